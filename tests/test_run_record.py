import json
from pathlib import Path

import numpy as np
import pytest

from tuner.cache import Cache
from tuner.config import parse_config
from tuner.errors import ConfigError
from tuner.evaluation.match_records import MatchRecords
from tuner.precision import FP32, INT8, PrecisionPlan
from tuner.run_record import FILE, RunFacts, read_run, write_run
from tuner.study import Study, open_study
from tuner.trial import CompletedTrial, FailedTrial, Measurement, Proposal

PLAN = PrecisionPlan({"a": INT8, "b": FP32})
BASELINE = Measurement(0.5, 400, 8.0, 9.0, 4_000_000, 5.0)
RECORDS = MatchRecords(
    np.array([7]), np.array([1]), np.ones((1, 1), np.int32), *np.zeros((2, 1), np.int32), np.ones(1, np.float32),
    np.ones((1, 10), np.int8),
)  # fmt: skip


@pytest.fixture
def facts(tmp_path: Path) -> RunFacts:
    return RunFacts(
        started="2026-01-02T03:04:05+00:00",
        command="tuner tune --input_model f.pb",
        folder="/somewhere",
        input_model="/somewhere/f.pb",
        output_model="/somewhere/q.pb",
        storage=f"sqlite:///{tmp_path / 'study.db'}",
        settings={"model": {"name": "m", "framework": "tensorflow"}},
        environment={"TensorFlow": "2.21.0"},
        float_ops={"c": "grouped"},
        category_names={"1": "cat"},
        keys={"matches": ["detections", "set", "1"], "foresight": ["prepared", "images"]},
    )


@pytest.fixture
def study(tmp_path: Path, facts: RunFacts) -> Study:
    """A run with a failed trial, one that passes and a faster one that does not."""
    write_run(tmp_path, facts)
    study = open_study(facts.storage, {"model": "abc"}, resume=False)
    study.record_baseline(BASELINE)
    proposal = Proposal(PLAN, 100, idea="int8")
    study.record(FailedTrial(study.start(proposal), proposal, "no kernel"))
    for made, accuracy, latency_ms in (("aa", 0.5, 4.0), ("bb", 0.3, 3.0)):
        measured = Measurement(accuracy, 400, latency_ms, 5.0, 1_000_000, 1.0)
        study.record(CompletedTrial(study.start(proposal), proposal, PLAN, made, measured, 0.5))
    return study


def test_a_run_comes_back_as_it_was_left(tmp_path: Path, facts: RunFacts, study: Study) -> None:
    cache = Cache(tmp_path)
    cache.write_json("damage", ["prepared", "images", PLAN.sha256, "100"], {"a": 0.5})
    cache.write_json("costs", ["prepared", "images"], {"a": {"fp32_us": 2.0, "int8_us": 1.0}})
    cache.write_json("times", ["aa", "set", "1"], {"float": {"Conv2D": 1000.0}})
    cache.write_arrays("detections", ["aa", "set", "1"], RECORDS.to_arrays())
    (tmp_path / "result.json").write_text(json.dumps({"trials": 3, "best": {"graph_sha256": "bb"}}))
    run = read_run(tmp_path)
    assert (run.facts, run.config) == (facts, parse_config(facts.settings, "here"))
    assert (run.baseline, list(run.trials)) == (BASELINE, study.trials)
    assert run.best == study.trials[2]
    assert (run.damage, run.costs, run.op_times) == (
        {"a": 0.5}, {"a": {"fp32_us": 2.0, "int8_us": 1.0}}, None,
    )  # fmt: skip
    found = run.matches("aa")
    assert found is not None
    assert found.image_ids.tolist() == [7]
    assert run.matches("bb") is None


def test_an_unfinished_run_has_what_was_found_so_far(tmp_path: Path, study: Study) -> None:
    run = read_run(tmp_path)
    assert (run.result, run.damage, run.costs, run.op_values, run.changed_images()) == (None,) * 5
    assert run.best == study.trials[1]
    assert run.study is not None
    seconds = [run.study.ended_s[trial.number] for trial in run.trials]
    assert seconds == sorted(seconds)


@pytest.mark.parametrize("result", [{"trials": 2, "best": None}, {"trials": 3, "best": {"graph_sha256": "cc"}}])
def test_the_result_of_an_earlier_run_does_not_count(tmp_path: Path, study: Study, result: object) -> None:
    (tmp_path / "result.json").write_text(json.dumps(result))
    assert read_run(tmp_path).result is None


def test_a_damaged_part_is_missing(tmp_path: Path, facts: RunFacts) -> None:
    write_run(tmp_path, facts)
    (tmp_path / "study.db").write_text("not a database, but long enough to be taken for one" * 40)
    (tmp_path / "result.json").write_text("{")
    run = read_run(tmp_path)
    assert (run.study, run.result, run.baseline, run.best, run.damage) == (None,) * 5


def test_before_the_first_trial_there_is_no_study(tmp_path: Path, facts: RunFacts) -> None:
    write_run(tmp_path, facts)
    assert read_run(tmp_path).study is None
    assert not (tmp_path / "study.db").exists()


def test_a_workspace_that_was_moved_is_read(tmp_path: Path, study: Study) -> None:
    moved = tmp_path.rename(tmp_path.with_name(f"{tmp_path.name}-moved"))
    assert read_run(moved).baseline == BASELINE


@pytest.mark.parametrize(
    ("content", "said"), [(None, "no workspace of a run"), ("{", "cannot be read"), ('{"schema": 0}', "schema 1")]
)
def test_a_folder_that_is_no_workspace_is_refused(tmp_path: Path, content: str | None, said: str) -> None:
    if content is not None:
        (tmp_path / FILE).write_text(content)
    with pytest.raises(ConfigError, match=said):
        read_run(tmp_path)

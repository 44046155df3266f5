from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest

from tuner.errors import ConfigError, TunerError
from tuner.precision import BF16, FP32, INT8, Correction, Dtype, Granularity, OpPrecision, PrecisionPlan
from tuner.study import Study, open_study
from tuner.study_storage import open_storage
from tuner.terms import CHOICES
from tuner.trial import CompletedTrial, FailedTrial, Measurement, Proposal, RejectedTrial, Rejection

IDENTITY = {"model": "abc", "evaluation set": "def"}
MEASUREMENT = Measurement(
    accuracy=0.25,
    images=4,
    latency_ms=1.5,
    latency_p90_ms=2.5,
    size_bytes=1000,
    elapsed_s=0.5,
    metrics={"mAP": 0.25, "AP50": 1 / 3},
)
PLAN = PrecisionPlan({"a": INT8, "b": FP32, "c": OpPrecision(Dtype.INT8, Granularity.PER_TENSOR)})
PROPOSAL = Proposal(PLAN, 50, (Correction.BIAS,), {"toggle a": "yes", "calibration_images": 50}, "a sample")


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'study.db'}"


def reopen(url: str, **changes: Any) -> Study:
    return open_study(url, {**IDENTITY, **changes}, resume=True)


def complete(study: Study, latency_ms: float = 1.5) -> CompletedTrial:
    number = study.start(PROPOSAL)
    measurement = replace(MEASUREMENT, latency_ms=latency_ms)
    trial = CompletedTrial(number, PROPOSAL, PLAN.with_ops(["a"], FP32), "123abc", measurement, 0.125)
    study.record(trial)
    return trial


def test_a_new_study_knows_nothing(url: str) -> None:
    study = open_study(url, IDENTITY, resume=False)
    assert (study.baseline, study.trials, study.search_s) == (None, [], 0)


def test_everything_comes_back_as_it_was_recorded(url: str) -> None:
    study = open_study(url, IDENTITY, resume=False)
    study.record_baseline(MEASUREMENT)
    first = complete(study)
    failed = FailedTrial(study.start(PROPOSAL), PROPOSAL, "eval_func raised ValueError: no")
    study.record(failed)
    rejection = Rejection(images=100, look=1, loss=0.5, lower_bound=1 / 3, alpha_spent=0.001, elapsed_s=0.25)
    rejected = RejectedTrial(study.start(PROPOSAL), PROPOSAL, PLAN, "456def", rejection, 0.5)
    study.record(rejected)
    last = complete(study, latency_ms=0.5)

    for found in (study, reopen(url)):
        assert found.baseline == MEASUREMENT
        assert found.trials == [first, failed, rejected, last]
        for trial in found.trials:
            assert (trial.proposal.parameters, trial.proposal.idea) == (PROPOSAL.parameters, PROPOSAL.idea)
        assert 0 < found.search_s <= study.search_s  # the record's trials, and a clock that also ran between them
    assert [trial.number for trial in study.trials] == [0, 1, 2, 3]


def test_goes_on_where_it_stopped(url: str) -> None:
    first = complete(open_study(url, IDENTITY, resume=False))
    second = complete(reopen(url))
    assert second.number == first.number + 1
    assert reopen(url).trials == [first, second]


def test_a_trial_that_was_cut_off_does_not_count(url: str) -> None:
    study = open_study(url, IDENTITY, resume=False)
    study.start(PROPOSAL)
    first = complete(study)
    assert study.trials == [first]
    resumed = reopen(url)
    assert resumed.trials == [first]
    assert complete(resumed).number == 2
    assert len(reopen(url).trials) == 2


@pytest.mark.parametrize("ending", ["completed", "failed", "rejected"])
def test_a_trial_counts_once_its_figures_are_recorded(ending: str, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut off between them and telling Optuna, which goes by states."""
    study = open_study(url, IDENTITY, resume=False)
    number = study.start(PROPOSAL)
    rejection = Rejection(images=100, look=1, loss=0.5, lower_bound=1 / 3, alpha_spent=0.001)
    trial = {
        "completed": CompletedTrial(number, PROPOSAL, PLAN, "123abc", MEASUREMENT, 0.125),
        "failed": FailedTrial(number, PROPOSAL, "it cannot be"),
        "rejected": RejectedTrial(number, PROPOSAL, PLAN, "456def", rejection, 0.5),
    }[ending]

    def cut_off(*_: Any, **named: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(optuna.Study, "tell", cut_off)
    with pytest.raises(KeyboardInterrupt):
        study.record(trial)
    monkeypatch.undo()
    resumed = reopen(url)
    assert resumed.trials == [trial]
    second = complete(resumed)
    assert reopen(url).trials == [trial, second]


def test_a_study_of_a_run_that_was_cut_off_before_it_said_what_it_is_of(url: str) -> None:
    complete(open_study(url, IDENTITY, resume=False))
    optuna.create_study(study_name="tuner-2", storage=url, directions=["minimize", "maximize"])
    trial = complete(reopen(url))
    assert reopen(url).trials == [trial]
    with pytest.raises(ConfigError, match="its model is 'abc'"):
        reopen(url, model="xyz")


def test_a_new_study_leaves_the_old_one_in_the_storage(url: str) -> None:
    complete(open_study(url, IDENTITY, resume=False))
    assert open_study(url, IDENTITY, resume=False).trials == []
    assert len(optuna.study.get_all_study_names(url)) == 2
    assert reopen(url).trials == []
    old = optuna.load_study(study_name=sorted(optuna.study.get_all_study_names(url))[0], storage=url)
    assert len(old.trials) == 1


def test_the_latest_of_many_studies_is_resumed(url: str) -> None:
    for latency_ms in range(1, 12):
        complete(open_study(url, IDENTITY, resume=False), latency_ms=latency_ms)
    (trial,) = reopen(url).trials
    assert isinstance(trial, CompletedTrial)
    assert trial.measurement.latency_ms == 11


def test_studies_of_other_programs_in_the_storage_are_left_alone(url: str) -> None:
    optuna.create_study(study_name="tuner", storage=url)
    optuna.create_study(study_name="somebody's", storage=url)
    complete(open_study(url, IDENTITY, resume=False))
    assert len(reopen(url).trials) == 1


def test_resuming_without_a_study_begins_one(url: str) -> None:
    assert reopen(url).trials == []
    assert len(optuna.study.get_all_study_names(url)) == 1


def test_resuming_with_something_else_is_refused(url: str) -> None:
    open_study(url, IDENTITY, resume=False)
    with pytest.raises(ConfigError) as raised:
        reopen(url, model="xyz")
    message = str(raised.value)
    assert message.startswith(f"{url}: cannot be resumed: its model is 'abc', this run's is 'xyz'")
    assert "--fresh" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "storage",
    [
        "nonsense",
        "no_such_database://somewhere/study",
        "sqlite:////no/such/folder/study.db",
        "mysql+no_such_driver://somewhere/study",
    ],
)
def test_a_storage_that_cannot_be_used_is_told_in_one_line(storage: str) -> None:
    with pytest.raises(TunerError) as raised:
        open_study(storage, IDENTITY, resume=False)
    assert str(raised.value).startswith(f"{storage}: cannot be used as storage: ")
    assert "\n" not in str(raised.value)


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    path.write_text("nothing of the kind " * 100)
    with pytest.raises(TunerError, match="cannot be used as storage"):
        open_study(f"sqlite:///{path}", IDENTITY, resume=True)


def test_optuna_says_nothing_by_itself(url: str, capfd: pytest.CaptureFixture[str]) -> None:
    complete(open_study(url, IDENTITY, resume=False))
    assert capfd.readouterr() == ("", "")


def trials_as_plots_see_them(url: str) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name="tuner-1", storage=url).get_trials()


def test_trials_are_told_in_terms_of_plots(url: str) -> None:
    study = open_study(url, {**IDENTITY, "criterion": "relative 0.01"}, resume=False)
    study.record_baseline(MEASUREMENT)
    complete(study)
    lossy = replace(MEASUREMENT, accuracy=0.2)
    study.record(CompletedTrial(study.start(PROPOSAL), PROPOSAL, PLAN, "123abc", lossy, 0.125))
    rejection = Rejection(images=100, look=1, loss=0.5, lower_bound=1 / 3, alpha_spent=0.001)
    bf16 = Proposal(PrecisionPlan({"a": BF16, "b": BF16, "c": FP32}), 10, idea="bf16")
    study.record(RejectedTrial(study.start(bf16), bf16, PLAN, "456def", rejection, 0.5))
    study.record(FailedTrial(study.start(PROPOSAL), PROPOSAL, "no"))

    first, second, rejected, failed = trials_as_plots_see_them(url)
    assert first.params == {
        "int8_share": 2 / 3,
        "bf16_share": 0,
        "calibration_images": 50,
        "range_algorithm": "minmax",
        "weight_granularity": "mixed",
        "corrections": "bias_correction",
    }
    assert first.values == [1.5, 0.25]
    told = {"idea", "verdict", "loss", "accuracy", "latency_ms", "size_bytes", "images", "ops_int8", "ops_fp32"}
    assert {name: first.user_attrs[name] for name in told} == {
        "idea": "a sample",
        "verdict": "meets the criterion",
        "loss": 0,
        "accuracy": 0.25,
        "latency_ms": 1.5,
        "size_bytes": 1000,
        "images": 4,
        "ops_int8": 1,
        "ops_fp32": 2,
    }
    assert (second.user_attrs["verdict"], second.user_attrs["loss"]) == ("loses too much", pytest.approx(0.2))
    assert rejected.params == {
        "int8_share": 0,
        "bf16_share": 2 / 3,
        "calibration_images": 10,
        "range_algorithm": "none",
        "weight_granularity": "none",
        "corrections": "none",
    }
    assert (rejected.user_attrs["verdict"], rejected.user_attrs["loss"]) == ("rejected early", 0.5)
    assert failed.user_attrs["verdict"] == "failed"


@pytest.mark.parametrize(
    ("criterion", "better"), [("absolute 0.1", "MAXIMIZE"), ("absolute 0.1, lower is better", "MINIMIZE")]
)
def test_what_is_better_is_told(url: str, criterion: str, better: str) -> None:
    study = open_study(url, {**IDENTITY, "criterion": criterion}, resume=False)
    study.record_baseline(replace(MEASUREMENT, accuracy=0.2))
    complete(study)
    loaded = optuna.load_study(study_name="tuner-1", storage=url)
    assert [direction.name for direction in loaded.directions] == ["MINIMIZE", better]
    assert loaded.metric_names == ["latency_ms", "accuracy"]
    (trial,) = loaded.get_trials()
    assert trial.user_attrs["loss"] == pytest.approx(-0.05 if better == "MAXIMIZE" else 0.05)


def test_a_study_of_before_goes_on(url: str) -> None:
    """One objective, no parameters, and no attributes but the record itself."""
    old = optuna.create_study(study_name="tuner-1", storage=url, direction="minimize")
    old.set_user_attr("identity", IDENTITY)
    old.set_user_attr("baseline", MEASUREMENT.to_json())
    kept = CompletedTrial(0, PROPOSAL, PLAN, "123abc", MEASUREMENT, 0.5)
    trial = old.ask()
    trial.set_user_attr("proposal", PROPOSAL.to_json())
    trial.set_user_attr("applied", PLAN.to_json())
    trial.set_user_attr("graph_sha256", kept.graph_sha256)
    trial.set_user_attr("quantize_s", kept.quantize_s)
    trial.set_user_attr("measurement", MEASUREMENT.to_json())
    old.tell(trial, MEASUREMENT.latency_ms)

    study = reopen(url)
    assert (study.baseline, study.trials) == (MEASUREMENT, [kept])
    added = complete(study)
    assert reopen(url).trials == [kept, added]
    assert trials_as_plots_see_them(url)[1].values == [1.5]


def test_choices_stay_what_they_are() -> None:
    """Optuna refuses other choices of a name in the same study: one that is added needs another name."""
    assert dict(CHOICES) == {
        "range_algorithm": ("none", "minmax", "mean", "percentile", "kl", "mse", "mixed"),
        "weight_granularity": ("none", "per_tensor", "per_channel", "mixed"),
        "corrections": (
            *("none", "cross_layer_equalization", "outlier_channel_splitting", "weight_rounding", "bias_correction"),
            "mixed",
        ),
    }


def test_a_storage_without_a_run_is_nothing_to_show(url: str) -> None:
    optuna.create_study(study_name="somebody's", storage=url)
    with pytest.raises(ConfigError, match="holds no run of tune"):
        open_storage(url, {})
    complete(open_study(url, IDENTITY, resume=False))
    assert len(open_storage(url, {}).get_all_studies()) == 2


def test_resuming_where_nothing_is_says_so_and_starts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "mistyped" / "study.db"
    file.parent.mkdir()
    for _ in range(2):
        assert open_study(f"sqlite:///{file}", IDENTITY, resume=True).trials == []
    told = [one.getMessage() for one in caplog.records if one.name == "tuner.study"]
    # Once: the second time there is a run, though without a trial.
    assert told == [f"--resume: nothing to go on from in {file}; a new search starts"]

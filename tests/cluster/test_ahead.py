"""Plans that are begun ahead change when something is done, and nothing else."""

from pathlib import Path
from typing import Any

import pytest

from tests.cluster.conftest import SHAPES, Nodes
from tuner import tune
from tuner.cluster.workforce import ClusterWorkforce
from tuner.report.result import TuningResult
from tuner.search.announced import Announced
from tuner.search.space import Outcome
from tuner.trial import CompletedTrial, Proposal

SETTINGS: dict[str, Any] = {
    "model": {"name": "shapes", "framework": "tensorflow"},
    "quantization": {
        "calibration": {
            "sampling_size": 10,
            "dataloader": {"dataset": {"COCORecord": {"root": str(SHAPES / "calibration.record")}}},
        }
    },
    "tuning": {
        "accuracy_criterion": {"relative": 0.01},
        # Five trials, whatever comes of them.
        "strategy": {"name": "tpe"},
        "exit_policy": {"max_trials": 5, "timeout": 3600},
        # No clock decides.
        "objective": "modelsize",
    },
    "evaluation": {
        "accuracy": {
            "metric": {"COCOmAP": {}},
            "dataloader": {"dataset": {"COCORecord": {"root": str(SHAPES / "evaluation.record")}}},
        }
    },
}


def run(folder: Path, **options: Any) -> TuningResult:
    return tune(SETTINGS, SHAPES / "detector.pb", folder / "int8.pb", workspace=folder / "work", **options)


def told(result: TuningResult) -> list[tuple[object, ...]]:
    return [
        (
            trial.number,
            trial.proposal,
            trial.proposal.idea,
            (trial.graph_sha256, trial.measurement.metrics) if isinstance(trial, CompletedTrial) else None,
        )
        for trial in result.trials
    ]


@pytest.mark.slow
def test_trials_are_those_of_one_machine(nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes.add("first")
    nodes.add("second")
    expected: list[list[Proposal]] = []
    expect = ClusterWorkforce.expect

    def counted(self: ClusterWorkforce, proposals: Any, images: Any) -> None:
        expected.append(list(proposals))
        expect(self, proposals, images)

    foretold: list[tuple[int, Proposal]] = []
    foretell = Announced.foretell

    def noted(self: Announced, outcome: Outcome) -> None:
        before = len(expected)
        foretell(self, outcome)
        foretold.extend((len(self._recorded) + 1, proposals[0]) for proposals in expected[before:])

    monkeypatch.setattr(ClusterWorkforce, "expect", counted)
    monkeypatch.setattr(Announced, "foretell", noted)
    on_cluster = run(tmp_path / "cluster", cluster="auto")
    # Begun ahead: at least one more than the one that was asked for.
    assert max(map(len, expected)) > 1
    followed = [proposal == on_cluster.trials[number].proposal for number, proposal in foretold if number < 5]
    assert len(followed) >= 2
    assert all(followed)
    here = run(tmp_path / "here")
    assert len(here.trials) == 5
    assert told(on_cluster) == told(here)
    assert on_cluster.status == here.status
    assert (tmp_path / "cluster" / "int8.pb").read_bytes() == (tmp_path / "here" / "int8.pb").read_bytes()

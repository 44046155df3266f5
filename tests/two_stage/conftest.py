"""The small detectors of several stages, exported and loaded once, and what they are run on."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.two_stage.network import write_export
from tuner.model.detection_model import DetectionModel
from tuner.model.loading import load_model
from tuner.precision import INT8, PrecisionPlan
from tuner.quantization.quantize import QuantizableOps, find_quantizable_ops, prepare
from tuner.quantization.ranges import Ranges, collect_ranges


@dataclass(frozen=True)
class Small:
    """A small detector. folder: its export. plan: every op in int8."""

    folder: Path
    model: DetectionModel
    prepared: DetectionModel
    ops: QuantizableOps
    ranges: Ranges
    plan: PrecisionPlan

    @property
    def has_masks(self) -> bool:
        return "detection_masks:0" in self.model.outputs


def pictures(count: int, seed: int = 0) -> list[NDArray[np.uint8]]:
    """Coloured tiles, wide and high ones, [1, H, W, 3]."""
    random = np.random.default_rng(seed)
    sizes = [(48, 72), (72, 48)]
    tiles = [
        random.integers(0, 256, (1, sizes[n % 2][0] // 8, sizes[n % 2][1] // 8, 3), np.uint8) for n in range(count)
    ]
    return [tile.repeat(8, axis=1).repeat(8, axis=2) for tile in tiles]


@pytest.fixture(scope="session", params=["two stages", "masks"])
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Small:
    folder = tmp_path_factory.mktemp("export")
    write_export(folder, masks=request.param == "masks")
    model = load_model(folder / "frozen_inference_graph.pb")
    prepared = prepare(model)
    ops = find_quantizable_ops(prepared)
    ranges = collect_ranges(prepared, ops.tensors, pictures(4))
    return Small(folder, model, prepared, ops, ranges, PrecisionPlan(dict.fromkeys(ops.names, INT8)))

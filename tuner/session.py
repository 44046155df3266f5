"""Which run this is: where it keeps its record, and what must be the same for another session to go on with it."""

import hashlib
import importlib.metadata
import os
import platform
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.address import without_secrets
from tuner.config import TuningConfig
from tuner.files import json_sha256, remove_leftovers
from tuner.inputs import Inputs
from tuner.model.detection_model import DetectionModel
from tuner.quantization.cpu import CpuFeatures
from tuner.run_record import RunFacts
from tuner.search.space import SearchSpace
from tuner.storage_url import shown_storage

# What a run writes in its workspace, and in the folders of its cache.
_WRITTEN = r"(?:run|result)\.json|plan\.yaml|report\.html"
_CACHED = r"[0-9a-f]{64}\.(?:json|npz|pb)"


def identity(
    config: TuningConfig,
    model: DetectionModel,
    inputs: Inputs,
    *,
    images_sha256: str,
    space: SearchSpace,
    features: CpuFeatures | None,
) -> dict[str, str]:
    """What has to be equal for the trials of two sessions to be of one search, by name.

    images_sha256: of the calibration images. The criterion is part of it, since only figures that met it were checked
    by the authority on the metric; so are the instruction sets of the CPU, on which codes and times depend.
    """
    tuning = config.tuning
    criterion = tuning.accuracy_criterion
    rules = {op: [decision.to_json() for decision in allowed] for op, allowed in space.choices.items()}
    return {
        "model": model.sha256,
        "evaluation set": inputs.evaluation_identity,
        "calibration images": images_sha256,
        "sampling sizes": ", ".join(map(str, config.quantization.calibration.sampling_sizes)),
        "operator rules": json_sha256(rules),
        "criterion": f"{criterion.kind} {criterion.limit:g}"
        + ("" if criterion.higher_is_better else ", lower is better"),
        "engine": str(config.quantization.engine),
        "oldest TensorFlow": config.quantization.oldest_tensorflow,
        "optimize_postprocess": str(config.quantization.optimize_postprocess).lower(),
        "corrections": ", ".join(config.quantization.corrections) or "none",
        "strategy": f"{tuning.strategy.name}, seed {tuning.random_seed}",
        "objective": ", ".join(f"{objective} {weight:g}" for objective, weight in tuning.weights.items()),
        "early rejection": f"alpha {tuning.early_rejection_alpha:g}",
        "share for confirmation": f"{tuning.confirm:g}",
        "int8_only": str(config.quantization.int8_only).lower(),
        "iou_type": config.evaluation.accuracy.iou_type,
        "accuracy configs": config.evaluation.accuracy.configs.model_dump_json(),
        **environment(config, features),
    }


def environment(config: TuningConfig, features: CpuFeatures | None) -> dict[str, str]:
    """What times and last bits depend on besides the graph, by name: the machine, TensorFlow, and its threads."""
    return {
        "CPU instructions": "unknown" if features is None else " ".join(sorted(features.flags)),
        "CPU cores": str(len(os.sched_getaffinity(0))),
        "TensorFlow": importlib.metadata.version("tensorflow"),
        "performance configs": config.evaluation.performance.configs.model_dump_json(),
    }


def run_facts(
    config: TuningConfig,
    inputs: Inputs,
    run_identity: Mapping[str, str],
    paths: tuple[Path, Path],
    *,
    storage: str,
    float_ops: Mapping[str, str],
    keys: Mapping[str, Sequence[str]],
) -> RunFacts:
    """What a workspace tells of its run. paths: of input and output model; the rest is as in `RunFacts`."""
    versions = {name: importlib.metadata.version(name) for name in ("tuner", "numpy", "optuna", "pycocotools")}
    shown, images = shown_storage(storage), inputs.evaluation
    return RunFacts(
        started=datetime.now().astimezone().isoformat(timespec="seconds"),
        command=_command(storage, shown),
        folder=str(Path.cwd()),
        input_model=str(paths[0].absolute()),
        output_model=str(paths[1].absolute()),
        storage=shown,
        settings=config.model_dump(mode="json", by_alias=True, exclude_unset=True),
        environment={**run_identity, "system": platform.platform(), "Python": platform.python_version(), **versions},
        float_ops=dict(float_ops),
        category_names={} if images is None else {str(i): name for i, name in images.category_names.items()},
        keys=keys,
    )


def _command(storage: str, shown: str) -> str:
    """What was typed, a password in the storage's URL hidden; of a Python program, how it was started."""
    program = Path(sys.argv[0])
    of_tuner = program.name == "tuner" or program.parts[-2:] == ("tuner", "__main__.py")
    begin = ["tuner"] if of_tuner else ["python", str(program)]
    return shlex.join([*begin, *(without_secrets(one.replace(storage, shown)) for one in sys.argv[1:])])


def remove_leftovers_of_kills(workspace: Path, output_model: Path) -> None:
    """Remove what a run that was killed left half written in a workspace, and beside its model. None may be running."""
    remove_leftovers(workspace, _WRITTEN)
    for kind in workspace.iterdir():
        remove_leftovers(kind, _CACHED)
    # A SavedModel is written where a link to its folder leads.
    for output in {output_model.absolute(), output_model.resolve()}:
        remove_leftovers(output.parent, re.escape(output.name))


def hash_images(images: Sequence[NDArray[Any]]) -> str:
    """Hex SHA-256 of images in their order: types, shapes and values."""
    digest = hashlib.sha256()
    for image in images:
        digest.update(f"{image.dtype} {image.shape}".encode())
        digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()

"""What a tuning of each topology costs, and its int8 graph's latency against the float model's (Linux).

    python benchmarks/topologies.py FOLDER --dataset D --calibration D -- --labels=model --max_trials=1

FOLDER holds TOPOLOGY/frozen_inference_graph.pb, TOPOLOGY/saved_model/ and, beside the frozen graph, the checkpoint, as
the Object Detection API exports them. Every model is tuned by `run_tuning.sh --topology=TOPOLOGY`, a process of its
own; what stands after `--` is given to each. Figures are those of the result.json, and the highest resident memory
of the process.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuner.config import load_config
from tuner.data.dataset import open_dataset

ROOT = Path(__file__).resolve().parents[1]
TOPOLOGIES = (
    "ssd_mobilenet_v1",
    "ssd_resnet50_v1",
    "faster_rcnn_inception_v2",
    "faster_rcnn_resnet101",
    "faster_rcnn_inception_resnet_v2",
    "mask_rcnn_inception_v2",
)
FORMATS = {"pb": "frozen_inference_graph.pb", "checkpoint": "", "savedmodel": "saved_model"}
COLUMNS = (
    "topology",
    "from",
    "exit",
    "load s",
    "calibrate s/image",
    "quantise s",
    "evaluate s/image",
    "float ms",
    "tuned ms",
    "speed",
    "loss",
    "int8/bf16/fp32",
    "file",
    "total s",
    "peak GiB",
)


@dataclass(frozen=True)
class Run:
    """One tuning. result: its result.json, or None where it ended without. fault: what it said last then."""

    exit_code: int
    peak_bytes: int
    result: dict[str, Any] | None
    fault: str


def main() -> None:
    """Tune each model in turn; print a row as soon as it is done."""
    arguments, given = sys.argv[1:], []
    if "--" in arguments:
        at = arguments.index("--")
        arguments, given = arguments[:at], arguments[at + 1 :]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dataset", type=Path, required=True)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--topologies", nargs="+", choices=TOPOLOGIES, default=TOPOLOGIES, metavar="T")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=tuple(FORMATS), metavar="F")
    options = parser.parse_args(arguments)
    calibration_images = len(open_dataset(options.calibration))
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True)
    for topology in options.topologies:
        for name in options.formats:
            model = options.folder / topology / FORMATS[name]
            run = tune(topology, model, options.dataset, options.calibration, given)
            asked_for = max(load_config(ROOT / f"configs/{topology}.yaml").quantization.calibration.sampling_sizes)
            row = [topology, name, *cells(run, min(calibration_images, asked_for))]
            print(f"| {' | '.join(row)} |", flush=True)


def tune(topology: str, model: Path, dataset: Path, calibration: Path, given: list[str]) -> Run:
    """Run the script in a folder of its own, and read what it left there."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *("bash", str(ROOT / "run_tuning.sh")),
            *(f"--topology={topology}", f"--input_model={model.resolve()}", f"--output_model={folder}/int8.pb"),
            *(f"--dataset_location={dataset.resolve()}", f"--calibration_location={calibration.resolve()}"),
            *(f"--workspace={folder}/workspace", "--quiet", *given),
        ]
        with Path(folder, "log").open("w+b") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            log.seek(0)
            last_line = (log.read().decode().strip().splitlines() or [""])[-1]
        path = Path(folder, "workspace/result.json")
        result = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    return Run(process.returncode, used.ru_maxrss * 1024, result, last_line)


def cells(run: Run, calibration_images: int) -> list[str]:
    """The row of a run, without its first two cells."""
    result = run.result
    if result is None or result["best"] is None:
        fault = run.fault if result is None else result["reason"]
        return [str(run.exit_code), fault, *[""] * (len(COLUMNS) - 4)]
    seconds = result["seconds"]
    before, after = result["baseline"], result["best"]
    return [
        str(run.exit_code),
        f"{seconds['load']:.0f}",
        f"{seconds['calibrate'] / calibration_images:.2f}",
        f"{seconds['quantize'] / result['trials']:.1f}",
        f"{seconds['evaluate'] / result['images_evaluated']:.2f}",
        f"{before['latency_ms']:.0f}",
        f"{after['latency_ms']:.0f}",
        f"{before['latency_ms'] / after['latency_ms']:.2f}x",
        f"{after['relative_loss']:.1%}",
        "/".join(str(after["ops"][dtype]) for dtype in ("int8", "bf16", "fp32")),
        f"{after['size_bytes'] / before['size_bytes']:.2f}",
        f"{seconds['total']:.0f}",
        f"{run.peak_bytes / 2**30:.2f}",
    ]


if __name__ == "__main__":
    main()

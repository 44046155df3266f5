"""Tune a detector on images without annotations: what it finds in float is taken as the truth.

    python examples/no_labels.py --input_model datasets/shapes/detector.pb --images folder --output_model int8.pb

mAP is then agreement with the float model; docs/label_free.md tells what a loss of it means.
"""

import argparse
import sys
from pathlib import Path

import tuner
from tuner.errors import TunerError


def main() -> int:
    """Tune, and print what was found; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--input_model", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True, help="a folder of JPEG or PNG files")
    parser.add_argument("--output_model", type=Path, required=True)
    parser.add_argument("--limit", type=float, default=0.05, help="share of agreement that may be lost")
    asked = parser.parse_args()
    images = {"dataset": {"COCORaw": {"root": str(asked.images.absolute())}}}
    settings = {
        "model": {"name": "no_labels"},
        "quantization": {"calibration": {"sampling_size": 50, "dataloader": images}},
        "evaluation": {"accuracy": {"labels": "model", "metric": {"COCOmAP": {}}, "dataloader": images}},
        "tuning": {"accuracy_criterion": {"relative": asked.limit}},
    }
    try:
        result = tuner.tune(settings, asked.input_model, asked.output_model)
    except TunerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if result.best is not None:
        agreement = result.best.measurement.accuracy
        print(f"{result.status.value}: agreement {agreement:.4f} on {result.dataset.images} images")
    return 0 if result.status.value == "accepted" else 3


if __name__ == "__main__":
    sys.exit(main())

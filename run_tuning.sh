#!/usr/bin/env bash
# Tune a trained detector to int8. Sets itself up on first use.
#
#   bash run_tuning.sh                         the embedded default: configs/shapes.yaml on datasets/shapes
#   bash run_tuning.sh --topology=ssd_mobilenet_v1 --dataset_location=DIR --input_model=PB --output_model=PB
#
# Every argument goes to `python -m tuner tune`, which takes both --flag=value and --flag value; --help lists them.
set -euo pipefail
# shellcheck source=.setup.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/.setup.sh"

set_up
if (($# == 0)); then
    cd -- "$root"
    set -- --config configs/shapes.yaml --input_model datasets/shapes/detector.pb --output_model output/shapes_int8.pb
fi
exec "$venv_python" -m tuner tune "$@"

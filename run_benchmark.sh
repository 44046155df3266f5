#!/usr/bin/env bash
# Accuracy or speed of one model. Sets itself up on first use.
#
#   bash run_benchmark.sh --mode=accuracy --config=YAML --input_model=MODEL     as `python -m tuner evaluate MODEL`
#   bash run_benchmark.sh --mode=benchmark --input_model=MODEL --iters=100      as `python -m tuner benchmark MODEL`
#
# Flags are --flag=value or --flag value; all but --mode and --input_model go on to the command.
set -euo pipefail
# shellcheck source=.setup.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/.setup.sh"

fail() {
    echo "run_benchmark.sh: $1" >&2
    exit 2
}

mode="" model="" rest=()
while (($# > 0)); do
    case $1 in
    --mode | --input_model)
        (($# > 1)) || fail "$1 needs a value"
        set -- "$1=$2" "${@:3}"
        ;;
    --mode=*) mode=${1#*=} && shift ;;
    --input_model=*) model=${1#*=} && shift ;;
    *) rest+=("$1") && shift ;;
    esac
done

case $mode in
accuracy) command=evaluate ;;
benchmark) command=benchmark ;;
*) fail "--mode: got '$mode'; expected accuracy or benchmark" ;;
esac
[[ -n $model ]] || fail "--input_model is missing"

set_up
exec "$venv_python" -m tuner "$command" "$model" "${rest[@]}"

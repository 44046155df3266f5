"""What a search holds after each of many trials in one process: resident memory, open files, threads (Linux).

    python benchmarks/long_run.py --trials 300

tunes the embedded detector, or `--model` on `--dataset`, for so many trials whatever they find, and prints what was
held after the third trial, at the highest after it, and after the last.
"""

import argparse
import gc
import os
import re
import tempfile
from pathlib import Path

import tuner

ROOT = Path(__file__).parents[1]
SETTLED = 3


def held() -> dict[str, float]:
    """Of this process, now: resident memory in MiB, open files, threads."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    found = {name: int(value) for name, value in re.findall(r"^(VmRSS|Threads):\s+(\d+)", status, re.MULTILINE)}
    files = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a listing of Path keeps one more open
    return {"resident MiB": found["VmRSS"] / 1024, "open files": files, "threads": found["Threads"]}


def main() -> None:
    """Search, then print three figures of each kind and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "datasets/shapes/detector.pb")
    parser.add_argument("--dataset", type=Path, help="instances JSON; the embedded images if not given")
    parser.add_argument("--trials", type=int, default=300)
    arguments = parser.parse_args()
    config = tuner.load_config(ROOT / "configs/shapes.yaml")
    settings = config.model_dump(mode="json", by_alias=True, exclude_unset=True)
    if arguments.dataset is not None:
        loader = {"dataset": {"COCORaw": {"root": str(arguments.dataset.resolve())}}}
        settings["quantization"]["calibration"]["dataloader"] = loader
        settings["evaluation"]["accuracy"]["dataloader"] = loader
    settings["tuning"] = {
        "strategy": {"name": "random"},
        "accuracy_criterion": {"relative": 1e-9},
        # A search with time left goes on when a plan has passed.
        "exit_policy": {"max_trials": arguments.trials, "timeout": 1_000_000},
    }
    after: list[dict[str, float]] = []

    def note(*_: object) -> None:
        gc.collect()
        after.append(held())
        if len(after) % 50 == 0:
            print(len(after), after[-1], flush=True)

    with tempfile.TemporaryDirectory() as folder:
        tuner.tune(settings, arguments.model, Path(folder, "out.pb"), workspace=folder, callbacks=[note])
    after = after[: arguments.trials]
    print(f"{'':14}{'after ' + str(SETTLED):>10}{'highest':>10}{'after ' + str(len(after)):>12}{'ratio':>8}")
    for kind, settled in after[SETTLED - 1].items():
        highest, last = max(one[kind] for one in after[SETTLED:]), after[-1][kind]
        print(f"{kind:14}{settled:10.0f}{highest:10.0f}{last:12.0f}{last / settled:8.2f}")


if __name__ == "__main__":
    main()

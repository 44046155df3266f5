"""Resident memory of a search after each of many trials in one process (Linux).

    python benchmarks/memory.py --trials 100

tunes the embedded detector, or `--model` on `--dataset`, for as many trials whatever they find, and prints the resident
memory after the third trial, at its highest, and after the last.
"""

import argparse
import gc
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import tuner
from tuner.progress import Item, Stage

ROOT = Path(__file__).parents[1]
SETTLED = 3


class MemoryAfterTrials:
    """Progress that notes the resident memory whenever a trial ends. mebibytes: one for each trial."""

    def __init__(self) -> None:
        self.mebibytes: list[float] = []

    @contextmanager
    def stage(self, title: str) -> Iterator[Stage]:
        """A stage of the run."""
        yield self
        if title.startswith("trial "):
            gc.collect()
            resident_kib = next(
                int(line.split()[1])
                for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines()
                if line.startswith("VmRSS:")
            )
            self.mebibytes.append(resident_kib / 1024)

    def note(self, text: str) -> None:
        """What a stage found: of no interest here."""

    def track(self, items: Iterable[Item], total: int, title: str) -> Iterator[Item]:
        """Hand on what is counted."""
        return iter(items)


def main() -> None:
    """Search, then print three figures and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "datasets/shapes/detector.pb")
    parser.add_argument("--dataset", type=Path, help="instances JSON; the embedded images if not given")
    parser.add_argument("--trials", type=int, default=100)
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
    progress = MemoryAfterTrials()
    with tempfile.TemporaryDirectory() as folder:
        tuner.tune(settings, arguments.model, Path(folder, "out.pb"), workspace=folder, progress=progress)
    used = progress.mebibytes[: arguments.trials]
    settled = used[SETTLED - 1]
    for name, value in (
        (f"after trial {SETTLED}", settled),
        ("highest after that", max(used[SETTLED:])),
        (f"after trial {len(used)}", used[-1]),
    ):
        print(f"{name:20} {value:7.0f} MiB  {value / settled:5.2f}x")


if __name__ == "__main__":
    main()

"""Every damaged input ends in success or in one clear line with exit code 2, whichever command reads it."""

import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

import pytest
import tensorflow as tf

from tests.faults.bad_input.corpus import OUTPUT, SEED, Case, corpus
from tests.faults.bad_input.originals import write_originals
from tests.faults.bad_input.runs import Commands, Ended

OF_EACH_KIND = 1


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("originals")
    write_originals(folder)
    return folder


@pytest.fixture(scope="module")
def commands() -> Iterator[Commands]:
    with Commands() as started:
        yield started


def test_the_corpus(originals: Path) -> None:
    cases = corpus(originals)
    assert len(cases) >= 300
    assert [(str(case), case.changes) for case in corpus(originals)] == [(str(case), case.changes) for case in cases]


def test_one_input_of_each_kind(originals: Path, commands: Commands, tmp_path: Path) -> None:
    by_kind = defaultdict(list)
    for case in corpus(originals):
        # A run of the tuner takes as long as ten of the other commands: one of them is enough.
        by_kind["tune" if case.command[0] == "tune" else case.kind].append(case)
    random = Random(SEED)
    chosen = [case for cases in by_kind.values() for case in random.sample(cases, OF_EACH_KIND)]
    assert {"tune", "summarize", "evaluate", "quantize"} == {case.command[0] for case in chosen}
    run_all(chosen, originals, commands, tmp_path)


@pytest.mark.slow
def test_all_inputs(originals: Path, commands: Commands, tmp_path: Path) -> None:
    for kind, verdicts in run_all(corpus(originals), originals, commands, tmp_path).items():
        print(f"{kind}: {verdicts.total()} tried, " + ", ".join(f"{n} {verdict}" for verdict, n in verdicts.items()))


def run_all(cases: Sequence[Case], originals: Path, commands: Commands, scratch: Path) -> dict[str, Counter[str]]:
    """How many of each kind ended how. All of them are run before any fails."""
    verdicts: dict[str, Counter[str]] = defaultdict(Counter)
    faults = []
    for case in cases:
        ended, verdict = run(case, originals, commands, scratch / "run")
        verdicts[case.kind][verdict] += 1
        if verdict not in ("success", "refused"):
            faults.append(f"{verdict} ({ended.exit_code}): {case}: {ended.left} {ended.errors[-400:]}")
    assert not faults, "\n".join(faults)
    return verdicts


def run(case: Case, originals: Path, commands: Commands, folder: Path) -> tuple[Ended, str]:
    """How the command of a case ended in a folder of its own, which is removed."""
    shutil.copytree(originals, folder)
    for path, content in case.changes.items():
        (folder / path).unlink()
        if content is not None:
            (folder / path).write_bytes(content)
    ended = commands.run(folder, case.command)
    verdict = ended.verdict
    if verdict in ("success", "refused") and not output_is_as_told(folder / OUTPUT, case, verdict):
        verdict = "partial"
    shutil.rmtree(folder)
    return ended, verdict


def output_is_as_told(output: Path, case: Case, verdict: str) -> bool:
    """Whether a graph is there, and whole, just where the command was to write one and did."""
    if verdict == "refused" or OUTPUT not in case.command:
        return not output.exists()
    if not output.exists():
        return case.command[0] == "tune"  # a search that found nothing better writes nothing
    return len(tf.compat.v1.GraphDef.FromString(output.read_bytes()).node) > 0

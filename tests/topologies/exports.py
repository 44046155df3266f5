"""Exports of the Object Detection API with random weights, made on this machine and kept in a cache."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

SCRIPT = (Path(__file__).parents[2] / "../shared/tools/export_od_graph.py").resolve()

# As the script's own header has them: the last one would bring in other versions of the others.
PACKAGES = (
    "tensorflow==1.15.5", "protobuf<3.21", "numpy<1.19", "tf_slim", "pillow", "lxml", "matplotlib", "six", "Cython",
    "contextlib2", "pycocotools",
)  # fmt: skip
PACKAGES_WITHOUT_DEPENDENCIES = ("tf-object-detection==0.0.3",)

# An export is whole when it has all of these.
PARTS = ("frozen_inference_graph.pb", "model.ckpt.index", "saved_model/saved_model.pb", "pipeline.config")


def export(topology: str) -> Path:
    """The folder of a topology's export, made now or before. Skips the test where the tools for it are missing."""
    folder = _cache() / topology
    if _is_whole(folder):
        return folder
    if not SCRIPT.is_file():
        pytest.skip("the script that exports topologies (../shared/tools) is not on this machine")
    python = _python()
    # Under its name it is whole, whatever stopped another run.
    with tempfile.TemporaryDirectory(dir=_cache(), prefix=f"{topology}.") as building:
        _run([str(python), str(SCRIPT), topology, building])
        made = Path(building) / topology
        shutil.rmtree(made / "init")
        if not _is_whole(made):
            pytest.fail(f"{SCRIPT.name} {topology}: not all of {', '.join(PARTS)} were written")
        if not _is_whole(folder):
            shutil.rmtree(folder, ignore_errors=True)
            made.rename(folder)
    return folder


def _cache() -> Path:
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = root / "tuner-tests" / "od_graphs"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _is_whole(folder: Path) -> bool:
    return all((folder / part).is_file() for part in PARTS)


def _python() -> Path:
    """The Python of a virtual environment with the Object Detection API, which is made where there is none."""
    folder = _cache() / "python"
    python, installed = folder / "bin" / "python", folder / "installed"
    packages = "\n".join((*PACKAGES, *PACKAGES_WITHOUT_DEPENDENCIES))
    if not (installed.is_file() and installed.read_text() == packages):
        shutil.rmtree(folder, ignore_errors=True)
        _run([str(_python_3_7()), "-m", "venv", str(folder)])
        _run([str(python), "-m", "pip", "install", "--quiet", *PACKAGES])
        _run([str(python), "-m", "pip", "install", "--quiet", "--no-deps", *PACKAGES_WITHOUT_DEPENDENCIES])
        installed.write_text(packages)
    return python


def _python_3_7() -> Path:
    for candidate in _candidates():
        found = subprocess.run([candidate, "--version"], capture_output=True, text=True, check=False)
        if found.returncode == 0 and found.stdout.startswith("Python 3.7."):
            return candidate
    pytest.skip("there is no Python 3.7 for TensorFlow 1.15, neither pyenv's nor python3.7 on the PATH")


def _candidates() -> Iterator[Path]:
    roots = [os.environ.get("PYENV_ROOT")]
    if shutil.which("pyenv"):
        roots.append(subprocess.run(["pyenv", "root"], capture_output=True, text=True, check=False).stdout.strip())
    for root in filter(None, roots):
        yield from sorted(Path(root).glob("versions/3.7.*/bin/python"))
    on_path = shutil.which("python3.7")
    if on_path:
        yield Path(on_path)


def _run(command: list[str]) -> None:
    # Neither this Python's packages nor what TensorFlow 2 leaves there, with which TensorFlow 1 would be eager.
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "TF"))}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        pytest.fail(f"{' '.join(command[:4])} ...: {(done.stderr or done.stdout).strip()[-2000:]}")

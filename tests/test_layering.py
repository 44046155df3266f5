"""Who may import whom, held by reading the source; and the check itself, held by breaking every law once."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# What a room of `tuner` may import besides itself, `errors` and `files`. Lower levels come first.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "files": set(),
    "cache": set(),
    "precision": set(),
    "memory": set(),
    "progress": set(),
    "masks": set(),
    "exclusive": set(),
    "storage_url": set(),
    "address": set(),
    "download": {"exclusive"},
    "detections": {"masks"},
    "entry_point": set(),
    "trial": {"precision"},
    "config": {"address", "precision"},
    "model": {"config", "detections", "masks", "memory"},
    "data": {"address", "config", "detections", "masks"},
    "graph": {"model"},
    "quantization": {"cache", "precision", "model"},
    "search": {"config", "precision", "trial"},
    "evaluation": {"data", "detections", "masks", "model", "trial"},
    "criterion": {"config", "trial"},
    "terms": {"config", "criterion", "precision", "trial"},
    "study_storage": {"storage_url"},
    "trial_records": {"precision", "trial"},
    "study": {"storage_url", "trial_records", "study_storage", "terms", "trial", "search"},
    "export": {"graph", "model", "precision", "quantization"},
    "report": {"config", "criterion", "evaluation", "precision", "run_record", "trial"},
    "summary": {"graph", "model", "precision", "quantization"},
    "untuned": {"config", "data", "engine", "graph", "inputs", "model", "precision", "quantization", "trial"},
    "inputs": {"address", "config", "data", "entry_point", "evaluation", "model"},
    "trial_runner": {"engine", "model", "study", "trial"},
    "run_record": {"cache", "config", "criterion", "evaluation", "study", "trial"},
    "evidence": {"cache", "data", "detections", "evaluation", "graph", "model", "precision", "quantization"},
    "session": {"address", "storage_url", "config", "data", "inputs", "model", "quantization", "run_record", "search"},
    "engine": {"cache", "config", "graph", "model", "precision", "quantization", "search", "trial"},
    "timing": {"config", "evaluation", "model"},
    "meter": {"timing", "cache", "config", "criterion", "data", "evaluation", "inputs", "model", "search", "trial"},
    "foresight": {"cache", "config", "criterion", "engine", "meter", "model", "precision", "quantization", "search"},
    "finals": {"config", "criterion", "evaluation", "meter", "model", "precision", "search", "trial", "trial_runner"},
}
ALLOWED["foresight"] |= {"timing", "trial"}
ALLOWED["finals"].add("timing")
ALLOWED["evidence"].add("run_record")
ALLOWED["explanation"] = {"config", "criterion", "precision", "run_record", "trial"}
ALLOWED["dashboard"] = {"report", "run_record", "study_storage"}
ALLOWED["comparison"] = {"timing", "config", "data", "detections", "evaluation", "inputs", "meter", "model", "report"}
ALLOWED["cluster"] = {
    "address",
    "config",
    "data",
    "detections",
    "engine",
    "evaluation",
    "model",
    "quantization",
    "trial",
}
ALLOWED["workforce"] = {"cluster", "config", "engine", "evaluation", "model", "quantization", "timing", "trial"}
# Whatever lies above the first level may tell its progress.
_LOWEST = {"errors", "files", "cache", "precision", "memory", "progress", "masks", "detections", "entry_point", "trial"}
_LOWEST |= {"exclusive", "storage_url", "address"}
for _room in set(ALLOWED) - _LOWEST:
    ALLOWED[_room].add("progress")
ALLOWED["job"] = {"config", "data", "evaluation", "report"}
ALLOWED["pipeline"] = ALLOWED["measure"] = set(ALLOWED)
ALLOWED["api"] = set(ALLOWED)
ALLOWED["cli"] = {
    *("config", "data", "download", "export", "graph", "inputs", "job", "measure", "model", "pipeline", "precision"),
    *("comparison", "dashboard", "explanation", "progress", "report", "run_record", "summary", "untuned"),
    *("address", "storage_url"),
}
ALLOWED["__main__"] = {"cli"}
ALLOWED["__init__"] = set(ALLOWED) - {"cli", "__main__"}

# One vendor, one door: files or folders of `tuner` that may import a package.
_TENSORFLOW_ROOMS = ("model/", "data/", "graph/", "quantization/", "export/")
DOORS: dict[str, tuple[str, ...]] = {
    "neural_compressor": ("quantization/inc_adapter.py",),
    "optuna": ("search/", "search.py", "study/", "study.py", "study_storage.py", "trial_records.py"),
    "ray": ("cluster/",),
    "optuna_dashboard": ("dashboard.py",),
    "pycocotools": ("evaluation/coco_map.py", "masks.py"),
    "faster_coco_eval": ("evaluation/coco_map.py",),
    "tensorflow": _TENSORFLOW_ROOMS,
    "keras": _TENSORFLOW_ROOMS,
    **dict.fromkeys(("onnx", "tf2onnx"), ("export/onnx_model.py",)),
    "matplotlib": ("report/html/",),
    "markupsafe": ("report/html/",),
    "PIL": ("evidence/changed_images.py",),
    "fsspec": ("data/remote.py",),
    "google_crc32c": ("data/frames.py",),
    # Files that run code when they are read have no door at all.
    **dict.fromkeys(("pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"), ()),
}
FORBIDDEN_NAMES = {"utils", "helpers", "common", "base", "manager"}
FORBIDDEN_CALLS = {"eval", "exec"}


def violations(package: Path) -> list[str]:
    """Every broken law under `package`, as "file:line: law"."""
    found = []
    for path in sorted(package.rglob("*.py")):
        inside = path.relative_to(package)
        for name in FORBIDDEN_NAMES.intersection(part.removesuffix(".py") for part in inside.parts):
            found.append(f"{inside}:1: no module is called {name}")
        for node in ast.walk(ast.parse(path.read_text(), str(path))):
            found += [f"{inside}:{node.lineno}: {law}" for law in _broken_by(node, inside)]
    return found


def _broken_by(node: ast.AST, inside: Path) -> Iterator[str]:
    match node:
        case ast.ImportFrom(level=level) if level:
            yield "relative import"
        case ast.ImportFrom(module="tuner", names=names):
            yield from (law for alias in names for law in _broken_by_import(f"tuner.{alias.name}", inside))
        case ast.ImportFrom(module=str(module)):
            yield from _broken_by_import(module, inside)
        case ast.Import(names=names):
            yield from (law for alias in names for law in _broken_by_import(alias.name, inside))
        case ast.Call(func=ast.Name(id=name)) if name in FORBIDDEN_CALLS:
            yield f"{name}()"
        case ast.keyword(arg="allow_pickle", value=ast.Constant(value=True)):
            yield "allow_pickle"
        case ast.ExceptHandler(type=None):
            yield "bare except"


def _broken_by_import(module: str, inside: Path) -> Iterator[str]:
    first, *rest = module.split(".")
    if first == "tuner":
        room = inside.parts[0].removesuffix(".py")
        imported = rest[0] if rest else "__init__"
        if room not in ALLOWED:
            yield f"{room} is not in the table of rooms"
        elif imported not in {room, "errors", "files"} | ALLOWED[room]:
            yield f"{room} imports {imported}"
    elif first in DOORS and not inside.as_posix().startswith(DOORS[first]):
        yield f"{first} has no door here"


def test_the_package_keeps_the_laws() -> None:
    assert violations(ROOT / "tuner") == []


@pytest.mark.parametrize(
    ("file", "source", "broken"),
    [
        ("config/loading.py", "from tuner.model.loading import load_model", "config imports model"),
        ("model/runner.py", "import tuner.evaluation.latency", "model imports evaluation"),
        ("model/runner.py", "from tuner import data", "model imports data"),
        ("model/runner.py", "import tuner", "model imports __init__"),
        ("data/records.py", "def f():\n    from tuner.model import loading", "data imports model"),
        ("quantization/ranges.py", "from tuner.evaluation import coco_map", "quantization imports evaluation"),
        ("search/space.py", "from tuner.quantization.ranges import x", "search imports quantization"),
        ("criterion.py", "from tuner.pipeline import tune", "criterion imports pipeline"),
        ("precision.py", "from tuner.trial import Trial", "precision imports trial"),
        ("novel.py", "from tuner.trial import Trial", "novel is not in the table of rooms"),
        ("model/runner.py", "from .loading import load_model", "relative import"),
        ("quantization/ranges.py", "import neural_compressor.tensorflow", "neural_compressor has no door here"),
        ("criterion.py", "import optuna", "optuna has no door here"),
        ("evaluation/latency.py", "from pycocotools.coco import COCO", "pycocotools has no door here"),
        ("evaluation/latency.py", "import tensorflow as tf", "tensorflow has no door here"),
        ("search/space.py", "from tensorflow.core import x", "tensorflow has no door here"),
        ("model/cache.py", "import pickle", "pickle has no door here"),
        ("model/cache.py", "np.load(p, allow_pickle=True)", "allow_pickle"),
        ("config/loading.py", "x = eval('1')", "eval()"),
        ("data/records.py", "try:\n    pass\nexcept:\n    pass", "bare except"),
        ("data/utils.py", "", "no module is called utils"),
        ("common/x.py", "", "no module is called common"),
    ],
)
def test_every_law_is_noticed(tmp_path: Path, file: str, source: str, broken: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)
    assert [law.partition(": ")[2] for law in violations(tmp_path)] == [broken]


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("model/runner.py", "from tuner.model.loading import x\nfrom tuner.errors import y\nimport tensorflow"),
        ("evaluation/evaluator.py", "from tuner.model import runner\nfrom tuner.data import records"),
        ("evaluation/coco_map.py", "import pycocotools.coco, faster_coco_eval"),
        ("quantization/inc_adapter.py", "def f():\n    import neural_compressor"),
        ("study.py", "import optuna\nfrom tuner.files import write_text\nfrom tuner.trial import Trial"),
        ("pipeline.py", "from tuner import config, model, report, study"),
        ("files.py", "try:\n    model.eval()\nexcept OSError:\n    pass"),
    ],
)
def test_what_is_allowed_is_not_noticed(tmp_path: Path, file: str, source: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)
    assert violations(tmp_path) == []


@pytest.mark.parametrize("module", ["tuner", "tuner.config", "tuner.config.loading", "tuner.trial", "tuner.precision"])
def test_start_up_does_not_import_tensorflow(module: str) -> None:
    late = {"tensorflow", "keras", "optuna", "fsspec"}
    code = f"import sys, {module}; sys.exit(' '.join({late} & set(sys.modules)) or None)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")

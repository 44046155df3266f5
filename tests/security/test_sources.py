"""Nothing in the sources runs code out of data: read as syntax trees, so that no spelling of a call hides it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("tuner", "examples", "benchmarks", "datasets")

RUNNING_MODULES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
RUNNING_BUILTINS = {"eval", "exec", "compile", "__import__"}
# By the last parts of their names, as they are called.
RUNNING_CALLS = {
    *("yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load", "yaml.unsafe_load_all", "yaml.full_load_all"),
    *("os.system", "os.popen", "pandas.read_pickle", "tf.load_op_library", "tf.load_library", "torch.load"),
}
NUMPY_LOADS = {"np.load", "numpy.load", "format.read_array", "np.fromregex"}
IMPORTERS = {"importlib.import_module", "import_module"}
# The settings' module:name, behind its permission, and the package's own lazy names.
MAY_IMPORT = {"tuner/entry_point.py", "tuner/__init__.py"}


def faults(source: str, where: str) -> list[str]:
    return [f"{where}:{line}: {fault}" for line, fault in _faults(ast.parse(source), where)]


def _faults(tree: ast.AST, where: str) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, one.name) for one in names if one.name.split(".")[0] in RUNNING_MODULES)
            case ast.ImportFrom(module=str(module), names=names):
                if module.split(".")[0] in RUNNING_MODULES:
                    yield node.lineno, module
                yield from ((node.lineno, f"{module}.{one.name}") for one in names if _runs(f"{module}.{one.name}"))
            case ast.Name(id=name) if name in RUNNING_BUILTINS:
                yield node.lineno, name
            case ast.Attribute() if _runs(name := ast.unparse(node)):
                yield node.lineno, name
            case ast.Call(func=function, keywords=keywords):
                yield from ((node.lineno, fault) for fault in _of_call(ast.unparse(function), keywords, where))


def _runs(name: str) -> bool:
    return ".".join(name.split(".")[-2:]) in RUNNING_CALLS


def _of_call(name: str, keywords: list[ast.keyword], where: str) -> Iterator[str]:
    given = {one.arg: ast.unparse(one.value) for one in keywords}
    if ".".join(name.split(".")[-2:]) in NUMPY_LOADS and given.get("allow_pickle") != "False":
        yield f"{name} without allow_pickle=False"
    if name in IMPORTERS and where not in MAY_IMPORT:
        yield name
    if given.get("shell", "False") != "False" or given.get("safe_mode", "True") != "True":
        yield f"{name} with {given}"
    if name.endswith("models.load_model") and where.startswith("tuner/") and "safe_mode" not in given:
        yield f"{name} without safe_mode=True"
    if given.get("allow_pickle", "False") != "False":
        yield f"{name} with allow_pickle"


def test_no_source_runs_code_out_of_data() -> None:
    found = []
    files = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    assert len(files) > 200
    for path in files:
        found += faults(path.read_text(), path.relative_to(ROOT).as_posix())
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import dill.source",
        "eval('1')",
        "run = exec",
        "import yaml\nyaml.load(text, Loader=yaml.SafeLoader)",
        "from yaml import unsafe_load",
        "load = yaml.full_load",
        "np.load(file)",
        "numpy.load(file, allow_pickle=True)",
        "read(file, allow_pickle=flag)",
        "importlib.import_module(name)",
        "subprocess.run(line, shell=True)",
        "os.system(line)",
        "tf.load_op_library(path)",
        "tf.keras.models.load_model(path)",
        "tf.keras.models.load_model(path, safe_mode=False)",
    ],
)
def test_each_way_of_running_code_is_seen(source: str) -> None:
    assert faults(source, "tuner/new.py")


@pytest.mark.parametrize(
    "source",
    [
        "yaml.safe_load(text)",
        "model.eval_func(graph)",
        "np.load(file, allow_pickle=False)",
        "re.compile(pattern)",
        "tf.keras.models.load_model(path, safe_mode=True)",
    ],
)
def test_what_is_harmless_passes(source: str) -> None:
    assert faults(source, "tuner/new.py") == []

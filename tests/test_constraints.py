"""What is installed beside the project: pinned exactly, declared where it is imported, under licences that are known.

`python -m tests.test_constraints` prints the table of docs/dependencies.md.
"""

import ast
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/dependencies.md"

# A copy may be used, changed and passed on with anything, as long as the notice stays.
PERMISSIVE = {
    *("0BSD", "Apache-2.0", "BSD", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "ISC", "MIT", "MIT-CMU", "PSF-2.0"),
    "Zlib",
}
# Changes to their own files have to stay open; whoever only installs them owes nothing more.
OPEN_FILES = {
    **dict.fromkeys(("certifi", "hypothesis", "pathspec", "tqdm"), "MPL-2.0"),
}
# The same of the whole library; it comes only with the extra that asks for it.
OPEN_LIBRARY = dict.fromkeys(("psycopg", "psycopg-binary"), "LGPL-3.0-only")
# Their metadata is silent; so say the licence files that they install.
SAID_IN_FILE = {"faster-coco-eval": "Apache-2.0", "namex": "Apache-2.0"}
# How metadata of before SPDX calls them.
SPDX = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache 2.0": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD",
    "FreeBSD": "BSD-2-Clause",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
}
# The other half of pydantic, which wants exactly one version of it.
HALVES = {"pydantic-core": "pydantic"}


def pins() -> dict[str, str]:
    """Canonical name -> version, of constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}


def declared() -> dict[str, list[Requirement]]:
    """What pyproject.toml asks for: extra -> requirements, and those of all under ""."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {"": project["dependencies"], **project["optional-dependencies"]}
    return {extra: [Requirement(line) for line in lines] for extra, lines in wanted.items()}


def needed() -> set[str]:
    """Every distribution that the project and its extras need here, and what these need in turn."""
    known: set[tuple[str, str]] = set()
    waiting = [requirement for requirements in declared().values() for requirement in requirements]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        for extra in {"", *requirement.extras} - {extra for known_name, extra in known if known_name == name}:
            known.add((name, extra))
            waiting += _needed_by(name, extra)
    return {name for name, _ in known}


def _needed_by(name: str, extra: str) -> Iterator[Requirement]:
    for line in metadata.requires(name) or []:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            yield requirement


def licence(name: str) -> str:
    """The licence of an installed distribution, as an SPDX expression where its metadata allows it."""
    if name in SAID_IN_FILE:
        return SAID_IN_FILE[name]
    about = metadata.metadata(name)
    classifiers = [line.split(" :: ")[-1] for line in about.get_all("Classifier", []) if line.startswith("License")]
    found = about.get("License-Expression") or " OR ".join(SPDX.get(one, one) for one in classifiers)
    stated = found or about.get("License", "").partition("\n")[0]
    return SPDX.get(stated, stated)


def imported() -> dict[str, set[str]]:
    """Top-level module from outside -> the files of `tuner` that import it."""
    found: dict[str, set[str]] = {}
    for path in sorted((ROOT / "tuner").rglob("*.py")):
        for module in _modules(ast.walk(ast.parse(path.read_text()))):
            if module not in sys.stdlib_module_names | {"tuner", "_typeshed"}:
                found.setdefault(module, set()).add(path.relative_to(ROOT).as_posix())
    return found


def _modules(nodes: Iterable[ast.AST]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]


def table() -> str:
    """Name, version and licence of everything that is pinned, in Markdown."""
    rows = [f"| {name} | {version} | {licence(name)} |" for name, version in sorted(pins().items())]
    return "\n".join(["| distribution | version | licence |", "|---|---|---|", *rows])


def test_every_line_is_one_exact_version() -> None:
    """No address, no host, no option, no range; each name once, in order."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9][\w.-]*==\d+(\.\d+)*", line)] == []
    assert len(pins()) == len(lines)


def test_what_is_needed_is_pinned_and_nothing_else() -> None:
    assert sorted(needed()) == sorted(pins())


def test_what_is_installed_is_what_is_pinned() -> None:
    assert {name: metadata.version(name) for name in pins()} == pins()


def test_the_floors_allow_the_pins() -> None:
    floors = [requirement for requirements in declared().values() for requirement in requirements]
    refused = [str(floor) for floor in floors if pins()[canonicalize_name(floor.name)] not in floor.specifier]
    assert refused == []


def test_what_is_imported_is_declared() -> None:
    names = {
        canonicalize_name(requirement.name) for requirements in declared().values() for requirement in requirements
    }
    homes = metadata.packages_distributions()
    undeclared = {}
    for module, files in imported().items():
        owners = {canonicalize_name(home) for home in homes.get(module, [module])}
        if not names & {HALVES.get(owner, owner) for owner in owners}:
            undeclared[module] = files
    assert undeclared == {}


def test_keras_is_as_new_as_its_safe_mode_has_to_be() -> None:
    keras = next(requirement for requirement in declared()[""] if requirement.name == "keras")
    assert "3.13.9" not in keras.specifier


@pytest.mark.parametrize("name", sorted(pins()))
def test_licences_are_known_and_permissive(name: str) -> None:
    words = set(re.findall(r"[\w.-]+", licence(name))) - {"AND", "OR"}
    assert words, "no licence is known"
    assert words <= PERMISSIVE | {OPEN_FILES.get(name, ""), OPEN_LIBRARY.get(name, "")}


def test_the_page_tells_what_is_pinned_and_every_direct_dependency() -> None:
    page = PAGE.read_text()
    assert table() in page
    direct = {requirement.name for requirements in declared().values() for requirement in requirements}
    assert [name for name in sorted(direct) if f"`{name}`" not in page] == []


if __name__ == "__main__":
    print(table())

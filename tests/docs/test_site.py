"""The site of the documentation: built with warnings as errors, and whole without a network."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tuner.config import TuningConfig

ROOT = Path(__file__).parents[2]

_OUTSIDE = re.compile(r"""(?:src|href)=["']?(?:[a-z]+:)?//[^"'> ]*|url\(["']?(?:https?:)?//[^)]*|@import[^;]*//[^;]*""")
_LIST_OR_TABLE_IN_PARAGRAPH = re.compile(r"<p>(?:(?!</p>).)*?\n(?:[-*] |\d+\. |\|)(?:(?!</p>).)*?</p>", re.DOTALL)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("documentation") / "site"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def pages(site: Path) -> dict[str, str]:
    return {path.relative_to(site).as_posix(): path.read_text() for path in sorted(site.rglob("*.html"))}


def test_every_page_is_built(site: Path) -> None:
    written = {path.relative_to(ROOT / "docs").with_suffix(".html").as_posix() for path in ROOT.glob("docs/**/*.md")}
    generated = {"configuration.html", "commands.html", "changelog.html", "contributing.html"}
    assert set(pages(site)) == written | generated | {"404.html"}


def test_nothing_comes_from_outside(site: Path) -> None:
    texts = {path.name: path.read_text() for kind in ("html", "css") for path in site.rglob(f"*.{kind}")}
    assert {name: found for name, text in texts.items() if (found := _OUTSIDE.findall(text))} == {}
    # The theme's script loads this diagram library from a server where a page has such a block.
    assert [name for name, text in pages(site).items() if 'class="mermaid"' in text] == []


def test_errors_are_marked_for_the_style_sheet(site: Path) -> None:
    found = pages(site)["troubleshooting.html"]
    assert found.count('<span class="go told">error: ') == (ROOT / "docs/troubleshooting.md").read_text().count(
        "\nerror: "
    )
    assert 'class="language-console highlight"' in found
    assert ".told" in (site / "stylesheets/extra.css").read_text()


def test_lists_and_tables_are_seen_as_such(site: Path) -> None:
    found = {name: _LIST_OR_TABLE_IN_PARAGRAPH.search(text) for name, text in pages(site).items()}
    assert {name: match.group()[:200] for name, match in found.items() if match} == {}


def test_references_hold_every_section_command_and_name(site: Path) -> None:
    built = pages(site)
    for section in TuningConfig.model_fields:
        assert f"<code><span>{section}</span></code>" in built["configuration.html"]
    for command in ("tune", "evaluate", "benchmark", "quantize", "export", "freeze", "prepare-dataset"):
        assert f'id="tuner-{command}"' in built["commands.html"]
    assert "<span>--accuracy_loss </span><wbr><span>SHARE</span>" in built["commands.html"]
    assert 'id="tuningstrategy"' in built["configuration.html"]
    rows = [line for line in (ROOT / "configs/README.md").read_text().splitlines() if line.startswith("| `")]
    assert built["configuration.html"].count("<tr>\n<td><code>") == len(rows)
    for name in ("tuner.api.tune", "tuner.api.Quantization", "tuner.report.result.TuningResult"):
        assert f'id="{name}"' in built["api.html"]
    assert "Find the fastest int8 graph that meets the criterion" in built["api.html"]


def test_every_example_is_told_of() -> None:
    page = (ROOT / "docs/python.md").read_text()
    assert [path.name for path in ROOT.glob("examples/*.py") if f"(../examples/{path.name})" not in page] == []

"""Names out of files are shown on the terminal, and nothing that they hold is obeyed."""

import io
import logging
from pathlib import Path

import pytest
import tensorflow as tf
from rich.columns import Columns
from rich.console import Group
from rich.table import Table
from rich.text import Text

from tuner.cli import main
from tuner.cli.app import show
from tuner.cli.terminal import PlainConsole, set_up_logging, visible

ESCAPES = "\x1b]8;;//evil\x1b\\\x1b[2J\x9b31m\u202egnp"
MARKUP = "[red]a[/red][link=//evil]b[/link] :cat:"


def printed(*things: object, terminal: bool = True) -> str:
    file = io.StringIO()
    console = PlainConsole(
        file=file, force_terminal=terminal, width=200, color_system="truecolor" if terminal else None
    )
    for thing in things:
        console.print(thing)
    return file.getvalue()


def test_what_a_terminal_obeys_is_written_out() -> None:
    assert visible("\x1b[31mred\x9b\u202e\ud800\u2028") == "\\x1b[31mred\\x9b\\u202e\\ud800\\u2028"
    assert visible("lines\nand\ttabs, Größe 猫 🐈") == "lines\nand\ttabs, Größe 猫 🐈"


@pytest.mark.parametrize("name", [ESCAPES, MARKUP])
def test_names_in_tables_titles_and_texts(name: str) -> None:
    table = Table(name, title=name)
    table.add_row(name, style="bold")
    table.add_row(Text(name))
    shown = printed(table, name, Text(name), Group(Columns([name]), name), Text.assemble((name, "red")))
    assert shown.count(visible(name)) == 9
    # Rich's own: colours and weights, but no links, no screens cleared, no text that runs backwards.
    for obeyed in ("\x1b]", "\x1b[2J", "\x9b", "\u202e"):
        assert obeyed not in shown
    assert not {"\x07", "\r", "\x08"}.intersection(printed("\x07\r\x08", Text("\x07\r\x08")))
    assert "\x1b[1m" in shown
    assert visible(name) in printed(table, terminal=False)


def test_rows_stay_in_line() -> None:
    table = Table("a", "b")
    table.add_row("\x1b[31m", "x")
    table.add_row("plain", "x")
    lines = printed(table, terminal=False).splitlines()
    assert len({len(line) for line in lines}) == 1


def test_results_go_the_same_way(capsys: pytest.CaptureFixture[str]) -> None:
    show(Group(ESCAPES, MARKUP))
    assert capsys.readouterr().out == f"{visible(ESCAPES)}\n{MARKUP}\n"


def test_errors_and_logs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / f"{ESCAPES.replace('/', '')}{MARKUP.replace('/', '')}.pb"
    assert main(["summarize", str(path)]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") and errors.count("\n") == 1
    assert "\\x1b[2J" in errors and "[red]a[red]" in errors and not {"\x1b", "\x9b", "\u202e"}.intersection(errors)

    file = io.StringIO()
    set_up_logging(PlainConsole(file=file), verbose=False)
    logging.getLogger("tuner.x").warning("%s", ESCAPES + MARKUP)
    assert file.getvalue() == f"warning: {visible(ESCAPES + MARKUP)}\n"


def test_a_model_with_such_op_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """TensorFlow takes no such names itself, which is where they would come from: the error shows them."""
    with tf.Graph().as_default() as graph:
        tf.identity(tf.compat.v1.placeholder(tf.float32, [1], name="x"), name="out")
    graph_def = graph.as_graph_def()
    graph_def.node[1].name = "\x1b[2Jout[red]"
    (tmp_path / "m.pb").write_bytes(graph_def.SerializeToString())
    assert main(["summarize", str(tmp_path / "m.pb")]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") and errors.count("\n") == 1 and "\x1b" not in errors

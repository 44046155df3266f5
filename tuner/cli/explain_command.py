"""Why operators are not int8 after a run, and what to try next."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from tuner.cli.app import Verbose, app, console_on, show
from tuner.cli.measure_commands import AsJson
from tuner.cli.terminal import hushed
from tuner.report.table import plain_table

if TYPE_CHECKING:
    from tuner.explanation import Explanation, FloatOp

EXAMPLE = "tuner explain tuner_workspace/shapes"
_TITLES = {
    "cannot": "cannot be int8",
    "kept": "kept from int8 before the search",
    "pinned": "pinned by the settings",
    "search": "left out of int8 by the search",
    "not applied": "int8 was asked for, and not made",
}


@app.command("explain", epilog=f"Example:\n\n{EXAMPLE}")
def explain_run(
    *,
    workspace: Annotated[
        Path, typer.Argument(metavar="WORKSPACE", help="Workspace of a run, ended or not.", show_default=False)
    ],
    top: Annotated[int, typer.Option("--top", metavar="N", min=1, help="Operators told of each kind.")] = 10,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> int:
    """Tell why operators are not int8, and what to try next."""
    console_on(verbose=verbose)
    with hushed(verbose=verbose):
        from tuner.explanation import explain  # noqa: PLC0415 - optuna takes a second; help does not wait
        from tuner.run_record import read_run  # noqa: PLC0415

        found = explain(read_run(workspace))
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=2))
    else:
        show(_told(found, top))
    return 0


def _told(found: "Explanation", top: int) -> Group:
    parts: list[RenderableType] = [Text(_headline(found))]
    form = "{:.2%}" if found.criterion == "relative" else "{:.4f}"
    for kind, title in _TITLES.items():
        of_kind = [one for one in found.ops if one.kind == kind]
        if of_kind:
            parts += [Text(f"\n{title}: {len(of_kind)} ops"), *_ops(of_kind, top, form)]
    parts.append(Text("\nto try next:" if found.advice else "\nto try next: nothing that the rules know of"))
    parts += [Text(f"{number}. {one.try_next}\n   ({one.why})") for number, one in enumerate(found.advice, start=1)]
    return Group(*parts)


def _headline(found: "Explanation") -> str:
    if found.trial is None:
        return "no plan was measured in full"
    verdict = "meets the criterion" if found.accepted else "loses too much"
    return (
        f"trial {found.trial + 1} ({found.idea}) {verdict}: "
        f"{found.int8_ops} ops in int8, {len(found.ops)} in another format"
    )


def _ops(ops: "list[FloatOp]", top: int, form: str) -> list[RenderableType]:
    reasons = dict.fromkeys(one.reason for one in ops)
    parts: list[RenderableType] = [
        Text(f"  {sum(one.reason == reason for one in ops)}: {reason}") for reason in reasons
    ]
    table = plain_table("op", "is", "damage", "rank", "would save", "might lose")
    for one in ops[:top]:
        table.add_row(
            one.op,
            one.dtype,
            "" if one.share is None else f"{one.share:.1%}",
            "" if one.rank is None else str(one.rank),
            "" if one.int8_saves_us is None else f"{one.int8_saves_us:.0f} us",
            "" if one.int8_loses is None else form.format(one.int8_loses),
        )
    note = Text(
        "  in int8 instead: damage, as a share of all ops; what it would save in a run; what it might lose, roughly"
    )
    more = [Text(f"  and {len(ops) - top} more: --top, or --json")] if len(ops) > top else []
    return [*parts, table, *([note] if any(one.share is not None for one in ops) else []), *more]

"""The whole report: one file that needs nothing else, made from what a run left in its workspace."""

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from tuner.files import write_text
from tuner.report.html.accuracy import by_category, by_size
from tuner.report.html.changed_images import changed_images
from tuner.report.html.figure import as_document, drawing
from tuner.report.html.losses import Judged, judged_trials, with_intervals
from tuner.report.html.markup import Part, join
from tuner.report.html.op_pictures import histograms, op_times, sensitivity
from tuner.report.html.search_pictures import search_path, trade_off
from tuner.report.html.style import CSS, SCRIPT, SECURITY_POLICY
from tuner.report.html.summary import summary
from tuner.report.html.tables import command, environment, float_ops, trials
from tuner.run_record import RunRecord, read_run

FILE = "report.html"

_PAGE = Markup(
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
    '<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    '<meta name="referrer" content="no-referrer">\n'
    '<title>{title}</title><link rel="icon" href="data:,">\n<style>{css}</style></head>\n<body>\n'
    '<header><p class="muted">{title}</p>{summary}</header>\n<main>\n{parts}</main>\n'
    '<div id="hint" role="status" hidden></div>\n<script>{script}</script>\n</body></html>\n'
)


def write_report(workspace: Path) -> Path:
    """Make `report.html` in a workspace from what its run left there, finished or not; returns its path.

    Raises ConfigError for a folder that is no workspace, TunerError when the file cannot be written.
    """
    path = workspace / FILE
    write_text(path, render(read_run(workspace)))
    return path


def render(run: RunRecord) -> str:
    """The report of a run as one HTML page. Every name in it is escaped."""
    judged = with_intervals(run, judged_trials(run))
    return _page(run, judged, _parts(run, judged))


def page_and_pictures(run: RunRecord) -> dict[str, str]:
    """File name -> content: the page, and an SVG file for each part of it that is one figure."""
    judged = with_intervals(run, judged_trials(run))
    parts = _parts(run, judged)
    figures = {part.title: part.body for part in parts if part.body is not None and part.body.count("<svg") == 1}
    pictures = {f"{title}.svg": as_document(body) for title, body in figures.items()}
    return {FILE: _page(run, judged, parts), **pictures}


def _parts(run: RunRecord, judged: list[Judged]) -> Sequence[Part]:
    with drawing():
        return (
            trade_off(run, judged),
            search_path(run, judged),
            sensitivity(run),
            by_category(run),
            by_size(run),
            op_times(run),
            histograms(run),
            changed_images(run),
            trials(run, judged),
            float_ops(run),
            environment(run),
            command(run),
        )


def _page(run: RunRecord, judged: list[Judged], parts: Sequence[Part]) -> str:
    name = run.config.model.name
    return str(
        _PAGE.format(
            policy=SECURITY_POLICY,
            title=f"Tuning of {name}",
            css=Markup(CSS),
            script=Markup(SCRIPT),
            summary=summary(run, judged),
            parts=join(part.html for part in parts),
        )
    )

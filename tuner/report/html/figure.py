"""The only door to matplotlib: a figure in the report's style, and what becomes of it in the page."""

import io
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from tuner.report.html.style import CSS, PLACEHOLDERS

# Its text is as large on a phone's screen as the phone's own.
WIDTH_IN = 5.2
_INK, _MUTED, _LINE = (PLACEHOLDERS[name] for name in ("ink", "muted", "line"))
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "tuner",
    "font.size": 10,
    "axes.edgecolor": _LINE,
    "axes.labelcolor": _MUTED,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": _LINE,
    "grid.linewidth": 0.6,
    "text.color": _INK,
    "text.parse_math": False,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}


def colour(name: str) -> str:
    """What stands for one of the report's colours in a figure."""
    return PLACEHOLDERS[name]


def drawing() -> AbstractContextManager[None]:
    """Within it, matplotlib draws in the report's style; outside, whatever its user has set stands."""
    return mpl.rc_context(_STYLE)


def new_figure(height_in: float, width_in: float = WIDTH_IN) -> tuple[Figure, Axes]:
    """An empty figure with one pair of axes. It needs no display and no global state of matplotlib."""
    figure = Figure(figsize=(width_in, height_in))
    return figure, figure.add_subplot()


def percent_axis(axis: mpl.axis.Axis) -> None:
    """Label the shares of an axis as 1%."""
    axis.set_major_formatter(FuncFormatter(lambda share, _: f"{share * 100:.3g}%"))


def inline_svg(figure: Figure, name: str, text: str, hints: Mapping[str, str] | None = None) -> Markup:
    """A figure as SVG within the page: colours follow the page's, ids are the figure's own.

    name: of the figure, unique in the page. text: what it shows, for who cannot see it. hints: by the gid of what they
    are about.
    """
    written = io.StringIO()
    figure.savefig(written, format="svg", transparent=True, metadata={"Date": None})
    svg = written.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # viewBox alone: the page says how wide it is.
    svg = re.sub(r'^<svg([^>]*?) height="[^"]*"', r"<svg\1", svg)
    svg = re.sub(r'^<svg([^>]*?) width="[^"]*"', r"<svg\1", svg)
    for colour_name, placeholder in PLACEHOLDERS.items():
        svg = svg.replace(placeholder, f"var(--{colour_name})")
    for gid, hint in (hints or {}).items():
        svg = svg.replace(f'<g id="{gid}">', f'<g id="{gid}" data-hint="{escape(hint)}">')
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", svg)
    return Markup(svg.replace("<svg", f'<svg role="img" aria-label="{escape(text)}"', 1))


def as_document(body: Markup) -> str:
    """The figure in a part of the page as an SVG file, in the page's colours, light and dark."""
    svg = body[body.index("<svg") : body.rindex("</svg>") + len("</svg>")]
    tag, _, content = svg.partition(">")
    return f"{tag}><style>{CSS}svg{{background:var(--paper)}}</style>{content}\n"

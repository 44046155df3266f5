"""A histogram as a few lines of SVG: there are a dozen in a report, and matplotlib takes a quarter second for each."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from markupsafe import Markup

from tuner.report.html.markup import join

_WIDTH, _HEIGHT, _TOP = 200.0, 78.0, 18.0


def histogram_svg(held: Mapping[str, Any], title: str, colour: str) -> Markup:
    """Counts on a logarithmic axis between `low` and `high`, with the ends of the chosen range where there is one."""
    counts = np.log1p(np.asarray(held["counts"], np.float64))
    heights = counts / max(float(counts.max()), 1e-9) * (_HEIGHT - _TOP)
    step = _WIDTH / len(heights)
    path = "".join(f"V{_HEIGHT - height:.1f}h{step:.3f}" for height in heights)
    low, high = float(held["low"]), float(held["high"])
    lines = join(
        Markup('<path d="M{:.1f} {}V{}" style="stroke:var(--bad)" stroke-dasharray="4 3" fill="none"/>').format(
            (end - low) / max(high - low, 1e-12) * _WIDTH, _TOP, _HEIGHT
        )
        for end in held.get("chosen", ())
    )
    chosen = held.get("chosen")
    said = f", codes span {chosen[0]:.3g} to {chosen[1]:.3g}" if chosen else ""
    return Markup(
        '<svg viewBox="-2 0 204 96" role="img" aria-label="{title}" data-hint="{title}: {low:.3g} to {high:.3g}{said}">'
        '<path d="M0 {bottom}{path}V{bottom}Z" style="fill:var(--{colour})"/>{lines}'
        '<path d="M0 {bottom}H{width}" style="stroke:var(--line)"/>'
        '<text x="0" y="12" class="small">{title}</text><text x="0" y="92" class="small">{low:.3g}</text>'
        '<text x="{width}" y="92" class="small" text-anchor="end">{high:.3g}</text></svg>'
    ).format(
        title=title, low=low, high=high, said=said, bottom=_HEIGHT, width=_WIDTH, path=path, colour=colour, lines=lines
    )

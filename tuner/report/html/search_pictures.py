"""The search as pictures: what every plan loses for its latency, and how the search went on."""

from collections.abc import Sequence

from matplotlib.axes import Axes

from tuner.criterion import pareto_front
from tuner.report.html.figure import colour, inline_svg, new_figure, percent_axis
from tuner.report.html.losses import Judged, about, loss_text
from tuner.report.html.markup import Part, picture
from tuner.run_record import RunRecord

TRADE_OFF, PATH = "Loss against latency", "The search over time"


def trade_off(run: RunRecord, judged: Sequence[Judged]) -> Part:
    """Every plan that was measured in full, the Pareto front, the limit, and intervals where they are known."""
    measured = [one for one in judged if one.measurement is not None]
    baseline = run.baseline
    if baseline is None or not measured:
        return Part(TRADE_OFF, None, "No plan was measured in full.")
    criterion = run.config.tuning.accuracy_criterion
    figure, axes = new_figure(3.7)
    hints = {"float": f"float model: {baseline.latency_ms:.1f} ms"}
    axes.plot(
        baseline.latency_ms, 0, "D", color=colour("float"), ms=8, gid="float", label="float model", linestyle="none"
    )
    front = pareto_front(criterion, baseline, run.trials)
    lost = {one.trial.number: one.lost or 0.0 for one in measured}
    axes.step(
        [one.measurement.latency_ms for one in front],
        [lost[one.number] for one in front],
        where="post",
        color=colour("muted"),
        lw=1.2,
        label="Pareto front",
    )
    for one in measured:
        if one.measurement is None or one.lost is None:
            continue
        x, gid = one.measurement.latency_ms, f"plan{one.trial.number}"
        if one.interval is not None:
            axes.plot([x, x], one.interval, color=colour("int8" if one.passes else "bad"), lw=1.6, alpha=0.6)
        axes.plot(x, one.lost, _marker(one), color=_colour(one), ms=7, gid=gid, mew=1.8)
        hints[gid] = f"{about(one.trial)}: {x:.1f} ms, loss {loss_text(run, one.lost)}{_interval_text(run, one)}"
    if run.best is not None and run.best.number in lost:
        best = run.best
        axes.plot(
            best.measurement.latency_ms, lost[best.number], "o", ms=14, mfc="none", mec=colour("ink"), label="best",
            linestyle="none",
        )  # fmt: skip
    _limit(axes, run)
    _legend_of_verdicts(axes, measured)
    axes.set_xlabel("latency, ms")
    axes.margins(x=0.08)
    axes.set_xlim(left=0)
    _loss_axis(axes, run, [*lost.values(), *(bound for one in measured for bound in one.interval or ())])
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=3, fontsize=10)
    left_out = len(judged) - len(measured)
    said = f"; {left_out} plans were rejected early or failed, and have no latency" if left_out else ""
    svg = inline_svg(figure, "tradeoff", f"{TRADE_OFF} of {len(measured)} plans", hints)
    return Part(
        TRADE_OFF,
        picture(
            svg,
            "Left is faster, lower is better. The line through a plan: between which bounds its loss would lie on 95 "
            "of 100 other sets of images. Latencies are those of the trials, one after the other; those at the top "
            f"were taken in turns and are the ones to compare{said}.",
        ),
        wide=False,
    )


def search_path(run: RunRecord, judged: Sequence[Judged]) -> Part:
    """What each trial lost, by when it ended."""
    known = [(one, one.lost) for one in judged if one.lost is not None]
    if not known or run.study is None:
        return Part(PATH, None, "No trial ended yet, or none with a loss.")
    ended_s = run.study.ended_s
    unit, name = (60.0, "minutes") if max(ended_s.values()) > 300 else (1.0, "seconds")
    figure, axes = new_figure(3.4)
    hints = {}
    axes.plot(
        [ended_s[one.trial.number] / unit for one, _ in known], [lost for _, lost in known], color=colour("line"), lw=1
    )
    for one, lost in known:
        gid, x = f"step{one.trial.number}", ended_s[one.trial.number] / unit
        axes.plot(x, lost, _marker(one), color=_colour(one), ms=7, gid=gid, mew=1.8)
        hints[gid] = f"{about(one.trial)}: loss {loss_text(run, one.lost)}, {one.verdict}"
    for one in judged:
        if one.lost is None:
            x = ended_s[one.trial.number] / unit
            axes.plot(x, 0.03, "v", color=colour("bad"), ms=7, transform=axes.get_xaxis_transform(),
                      gid=f"step{one.trial.number}")  # fmt: skip
            hints[f"step{one.trial.number}"] = f"{about(one.trial)}: {one.verdict}"
    _limit(axes, run)
    _legend_of_verdicts(axes, judged)
    axes.set_xlabel(f"{name} of search")
    axes.set_xlim(left=0)
    _loss_axis(axes, run, [lost for _, lost in known])
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.19), ncols=3, fontsize=10)
    return Part(PATH, picture(inline_svg(figure, "path", f"{PATH}, {len(known)} trials", hints)), wide=False)


def _marker(one: Judged) -> str:
    return "o" if one.passes else ("x" if one.measurement is not None else "+")


def _colour(one: Judged) -> str:
    return colour("int8" if one.passes else "bad")


def _legend_of_verdicts(axes: Axes, judged: Sequence[Judged]) -> None:
    rows = (
        ("passes", "o", "int8", any(one.passes for one in judged)),
        ("loses too much", "x", "bad", any(one.measurement is not None and not one.passes for one in judged)),
        ("rejected early", "+", "bad", any(one.measurement is None and one.lost is not None for one in judged)),
        ("failed", "v", "bad", any(one.lost is None for one in judged)),
    )
    for label, marker, name, occurs in rows:
        if occurs:
            axes.plot([], [], marker, color=colour(name), label=label, linestyle="none", mew=1.8)


def _limit(axes: Axes, run: RunRecord) -> None:
    limit = run.config.tuning.accuracy_criterion.limit
    axes.axhline(limit, color=colour("bad"), ls="--", lw=1.2, label=f"limit {loss_text(run, limit)}")


def _loss_axis(axes: Axes, run: RunRecord, losses: Sequence[float]) -> None:
    criterion = run.config.tuning.accuracy_criterion
    # Near the limit even, beyond by powers of ten: one plan that loses all must not flatten the others.
    linear = max(2 * criterion.limit, 1e-3)
    low, high = min([0.0, *losses]), max([criterion.limit, *losses])
    if high > 10 * linear:
        axes.set_yscale("symlog", linthresh=linear, linscale=2)
        axes.set_ylim(low - 0.3 * max(linear, -low), high * 1.5)
    else:
        axes.set_ylim(low - 0.08 * (high - low), high + 0.08 * (high - low))
    axes.set_ylabel("relative loss" if criterion.kind == "relative" else "loss")
    if criterion.kind == "relative":
        percent_axis(axes.yaxis)


def _interval_text(run: RunRecord, one: Judged) -> str:
    if one.interval is None:
        return ""
    low, high = one.interval
    return f" ({loss_text(run, low)} to {loss_text(run, high)} on other images)"

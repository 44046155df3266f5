"""The trials one by one, what the run ran on, and how to make it again."""

import json
import shlex
from collections import Counter
from collections.abc import Sequence

from markupsafe import Markup

from tuner.report.html.losses import Judged, formats, loss_text
from tuner.report.html.markup import EMPTY, Part, facts, join, preformatted, table
from tuner.run_record import RunRecord
from tuner.trial import CompletedTrial

COLUMNS = ("trial", "idea", "operators", "accuracy", "loss", "latency, ms", "size, MB", "verdict")


def trials(run: RunRecord, judged: Sequence[Judged]) -> Part:
    """A row for each trial."""
    if not judged:
        return Part("Trials", None, "No trial ended yet.")
    rows = []
    for one in judged:
        trial, measured = one.trial, one.measurement
        figures = ["", loss_text(run, one.lost), "", ""]
        if isinstance(trial, CompletedTrial) and measured is not None:
            figures = [
                f"{measured.accuracy:.4f}",
                loss_text(run, one.lost),
                f"{measured.latency_ms:.1f}",
                f"{measured.size_bytes / 1e6:.2f}",
            ]
        elif one.lost is not None:
            figures[1] = f"about {figures[1]}"
        best = " (best)" if run.best is not None and trial.number == run.best.number else ""
        rows.append([f"{trial.number + 1}{best}", trial.proposal.idea, formats(trial), *figures, one.verdict])
    return Part("Trials", table(COLUMNS, rows, texts=["trial", "idea", "operators", "verdict"]))


def float_ops(run: RunRecord) -> Part:
    """Why operators stay float in every plan, the most frequent reason first."""
    if not run.facts.float_ops:
        return Part("Operators without int8", None, "None: a plan may put every convolution and MatMul in int8.")
    reasons = Counter(run.facts.float_ops.values()).most_common()
    return Part(
        "Operators without int8", table(["operators", "reason"], [(n, why) for why, n in reasons], texts=["reason"])
    )


def environment(run: RunRecord) -> Part:
    """Machine, versions, hashes."""
    found = {
        "started": run.facts.started,
        "model": run.facts.input_model,
        "storage": run.facts.storage,
        **{_title(name): _environment_text(name, text) for name, text in run.facts.environment.items()},
    }
    seconds = {} if run.result is None else run.result["seconds"]
    taken = ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items() if value)
    return Part("Environment", facts({**found, **({"time taken": taken} if taken else {})}))


def _title(name: str) -> str:
    return f"{name} (SHA-256)" if name == "model" else name


def _environment_text(name: str, text: str) -> str:
    """Settings without those that were not made."""
    if not name.endswith(" configs"):
        return text
    made = {key: value for key, value in json.loads(text).items() if value is not None}
    return ", ".join(f"{key} {value}" for key, value in made.items()) or "as TensorFlow chooses"


def command(run: RunRecord) -> Part:
    """The command as it was given; and the one that makes the best graph again, where there is one."""
    again = EMPTY
    if run.best is not None:
        plan, model = shlex.quote(str(run.workspace / "plan.yaml")), shlex.quote(run.facts.input_model)
        again = Markup("<p>The best graph alone, from the plan that the run wrote:</p>{}").format(
            preformatted(f"tuner tune --config {plan} --input_model {model} --output_model NEW.pb --workspace NEW")
        )
    given = join(
        [Markup("<p>In <code>{}</code>:</p>").format(run.facts.folder), preformatted(run.facts.command), again]
    )
    return Part("The command", given)

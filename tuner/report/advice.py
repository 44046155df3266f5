"""When plan after plan fails of one cause: that the search ends, and what the user can do about it."""

import re
from collections.abc import Sequence

from tuner.trial import FailedTrial, Trial

# So many failures of one cause in a row end a search.
MOST_ALIKE = 3

_WORD = re.compile(r"[\w./:-]*\w")
_LIST = re.compile(r"\*(?:, ?\*)+")

# What a cause tells, the particular before the general.
_ADVICE = {
    r"neural-compressor: not done after": "raise quantization.converter_timeout_s, or use the default engine: "
    "--engine lowering",
    r"neural-compressor: (?:took more than .* of memory|crashed with SIGKILL)": "raise "
    "quantization.converter_memory_mb, give fewer calibration images, or use the default engine: --engine lowering",
    r"neural-compressor: ": "use the default engine: --engine lowering",
    r"eval_func ": "call the function by itself, on the graph that `tuner quantize` writes, until it works there",
    r"the process died": "keep the operators that these plans share in float, by quantization.op_wise, and report it",
    r"OOM|[Oo]ut of memory|MemoryError|[Uu]nable to allocate|failed to allocate": "close other programs, or use "
    "fewer calibration images and smaller batches",
    r"(?:cannot be run|failed while running): ": "this TensorFlow cannot run int8 graphs of the model: see "
    "docs/troubleshooting.md, and keep the operator that it names in float, by quantization.op_wise",
    r"^\w+(?:Error|Exception|Iteration)\b": "a mistake of the tuner: -v shows where, please report it; what the cause "
    "names can be kept in float, by quantization.op_wise",
}
_OTHERWISE = "keep the operators that the cause names in float, by quantization.op_wise"


def repeated_failure(trials: Sequence[Trial]) -> str:
    """Why the search should end, with advice, where the last three trials failed of one cause; "" where it goes on.

    Causes are one where their words are, but for the names of operators, paths, and whatever has a digit in it.
    """
    latest = trials[-MOST_ALIKE:]
    failed = [trial for trial in latest if isinstance(trial, FailedTrial)]
    if len(failed) < MOST_ALIKE or len({_outline(trial) for trial in failed}) > 1:
        return ""
    return f"{MOST_ALIKE} plans in a row failed alike: {failed[-1].cause}; {advice(failed[-1].cause)}"


def advice(cause: str) -> str:
    """What can be done about a cause, in one line."""
    return next((told for pattern, told in _ADVICE.items() if re.search(pattern, cause)), _OTHERWISE)


def _outline(trial: FailedTrial) -> str:
    """A cause without what differs between plans."""

    def outlined(word: re.Match[str]) -> str:
        told = word[0]
        return "*" if told in trial.proposal.plan or re.search(r"[\d/]", told) else told

    return _LIST.sub("*", _WORD.sub(outlined, trial.cause))

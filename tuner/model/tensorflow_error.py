"""TensorFlow's many-line messages told in one line."""

import re

_PREAMBLE = re.compile(r"^(\d+ root error\(s\) found|Graph execution error|Detected at node|Node: |Traceback|File \")")
_COUNTER = re.compile(r"^\(\d+\)\s*")
_WHERE = re.compile(r"\s*\[\[.*")
# Some messages name every side of a shape, or a name of a megabyte.
_MOST = 600


def first_line(error: BaseException | str) -> str:
    """The first line of an error, or of its message, that says what went wrong: no preamble, no dump of nodes."""
    message = str(getattr(error, "message", "") or error)
    for line in message.splitlines():
        useful = _WHERE.sub("", _COUNTER.sub("", line.strip())).strip()
        if useful and not _PREAMBLE.match(useful):
            return useful if len(useful) <= _MOST else f"{useful[:_MOST]} ..."
    return type(error).__name__

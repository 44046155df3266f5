"""What reaches the terminal of all that libraries say: warnings of this project, errors of others, and no banners."""

import logging
import os
import sys
import tempfile
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any, cast

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from tuner.errors import TunerError

# Controls, invisible marks that turn text around, halves of characters, and lines of another kind.
_OBEYED = ("Cc", "Cf", "Cs", "Zl", "Zp")


def visible(text: str) -> str:
    """`text` with all that a terminal obeys instead of showing it written out: "\\x1b" in the place of an escape.

    Names come out of files: of a category, an op, an image. Line feeds and tabs stay.
    """
    if text.isprintable():
        return text
    return "".join(
        repr(one)[1:-1] if unicodedata.category(one) in _OBEYED and one not in "\n\t" else one for one in text
    )


class PlainConsole(Console):
    """A console on which text is only text: no markup, no emoji names, no escape sequences but rich's own."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """The text as it is shown; cells of tables are measured by it, too."""
        return super().render_str(visible(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The segments of anything; control segments are rich's own."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)


class _Steady:
    """A stream that falls silent when it cannot be written any more."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self.encoding: str = getattr(stream, "encoding", "utf-8")
        self._broken = False

    def write(self, text: str) -> int:
        if not self._broken:
            try:
                self._stream.write(text)
            except OSError:
                self._fall_silent()
        return len(text)

    def flush(self) -> None:
        if not self._broken:
            try:
                self._stream.flush()
            except OSError:
                self._fall_silent()

    def isatty(self) -> bool:
        return not self._broken and self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    def _fall_silent(self) -> None:
        self._broken = True
        # What the interpreter writes when it ends would fail again, and change the exit code.
        with suppress(OSError), open(os.devnull, "w") as nothing:  # noqa: PTH123
            os.dup2(nothing.fileno(), self._stream.fileno())


def steady(stream: IO[str]) -> IO[str]:
    """`stream`, but silent once its reader is gone: a terminal that closes must not end a run of hours."""
    return cast(IO[str], _Steady(stream))


def set_up_logging(console: Console, *, verbose: bool) -> None:
    """Send log records to the console: with `verbose` everything from INFO on."""
    if not verbose:
        # TensorFlow reads it once, when it is imported; the processes that it is measured in inherit it.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    root = logging.getLogger()
    root.handlers = [_ConsoleHandler(console, verbose=verbose)]
    root.setLevel(logging.INFO if verbose else logging.WARNING)
    logging.captureWarnings(True)


class _ConsoleHandler(logging.Handler):
    """Records as lines of a console, above whatever it shows live."""

    def __init__(self, console: Console, *, verbose: bool) -> None:
        super().__init__(logging.INFO if verbose else logging.WARNING)
        self._console = console
        self._verbose = verbose

    def filter(self, record: logging.LogRecord) -> bool:
        ours = record.name.partition(".")[0] == "tuner"
        return self._verbose or ours or record.levelno >= logging.ERROR

    def emit(self, record: logging.LogRecord) -> None:
        self._console.print(Text(f"{record.levelname.lower()}: {self.format(record)}"), soft_wrap=True)


@contextmanager
def hushed(*, verbose: bool) -> Iterator[None]:
    """Keep back what native code writes to file descriptor 2; it is told after all when something unforeseen happens.

    TensorFlow's libraries write their banners before they look at TF_CPP_MIN_LOG_LEVEL.
    """
    if verbose:
        yield
        return
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as kept:
        os.dup2(kept.fileno(), 2)
        try:
            yield
        except (TunerError, KeyboardInterrupt):
            raise
        except BaseException:
            kept.seek(0)
            os.write(terminal, kept.read())
            raise
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)

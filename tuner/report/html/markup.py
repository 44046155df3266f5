"""Pieces of the page. Whatever is put into them is escaped, unless it is a piece itself."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

EMPTY = Markup("")


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the report under its title.

    body: None where the run has nothing to show; note: then why. wide: whether it takes the whole width of a large
    screen, or half of it.
    """

    title: str
    body: Markup | None
    note: str = ""
    wide: bool = True

    @property
    def html(self) -> Markup:
        """The part in the page."""
        note = Markup('<p class="note">{}</p>').format(self.note) if self.note else EMPTY
        kind = "wide" if self.wide else "half"
        return Markup('<section class="{}"><h2>{}</h2>{}{}</section>\n').format(
            kind, self.title, note, self.body or EMPTY
        )


def join(pieces: Iterable[Markup]) -> Markup:
    """Pieces one after the other."""
    return EMPTY.join(pieces)


def picture(svg: Markup, caption: str = "") -> Markup:
    """A figure with what there is to say about it."""
    return Markup("<figure>{}{}</figure>").format(
        svg, Markup("<figcaption>{}</figcaption>").format(caption) if caption else EMPTY
    )


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, texts: Sequence[str] = ()) -> Markup:
    """A table of figures; the columns of `texts` hold text. It scrolls by itself where the screen is narrow."""
    kinds = ["text" if column in texts else "figure" for column in columns]

    def cells(tag: str, values: Sequence[object]) -> Markup:
        cell = Markup(f'<{tag} class="{{}}">{{}}</{tag}>')
        return Markup("<tr>{}</tr>\n").format(
            join(cell.format(kind, value) for kind, value in zip(kinds, values, strict=True))
        )

    body = join(cells("td", row) for row in rows)
    return Markup('<div class="scroll"><table class="trials"><thead>{}</thead><tbody>{}</tbody></table></div>').format(
        cells("th", columns), body
    )


def facts(values: Mapping[str, object]) -> Markup:
    """Names and values in two columns."""
    row = Markup("<tr><th>{}</th><td>{}</td></tr>\n")
    return Markup('<table class="facts">{}</table>').format(join(row.format(*pair) for pair in values.items()))


def preformatted(text: str) -> Markup:
    """What is to be copied as it stands."""
    return Markup("<pre>{}</pre>").format(text)

"""A table as data, so that the HTML and the Markdown report show the same cells and cannot drift
apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Column:
    """A heading. numeric columns are set right-aligned with tabular figures."""

    title: str
    numeric: bool = False


@dataclass(frozen=True)
class Cell:
    """One cell. status: also show the text as a status badge (sign + word + colour)."""

    text: str
    status: str = ""


Row = Sequence[Cell | str]


@dataclass(frozen=True)
class Table:
    """caption: what the table shows, one sentence. The first column names the row. notes: read
    below the table.
    """

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = field(default=())

    def __bool__(self) -> bool:
        return bool(self.rows)


def table(
    caption: str, titles: Sequence[str], rows: Iterable[Row], notes: Iterable[str] = ()
) -> Table:
    """A table from strings and cells; a title that starts with `#` is numeric. Columns that are
    empty are kept: an absent number is a finding.
    """
    columns = tuple(Column(t.removeprefix("#"), t.startswith("#")) for t in titles)
    made = tuple(tuple(c if isinstance(c, Cell) else Cell(c) for c in row) for row in rows)
    for row in made:
        if len(row) != len(columns):
            raise ValueError(
                f"table {caption!r}: a row has {len(row)} cells for {len(columns)} columns"
            )
    return Table(caption, columns, made, tuple(n for n in notes if n))


def badge(status: str) -> Cell:
    """A status word as a badge."""
    return Cell(status, status=status)


SIGNS = {
    "holds": "✓",
    "met": "✓",
    "broken": "✓",
    "complete": "✓",
    "fails": "✕",
    "not met": "✕",
    "not broken": "✕",
    "inconclusive": "?",
    "incomplete": "?",
    "missing": "?",
    "blocks": "?",
    "invalid": "⊘",
    "invalidates": "⊘",
    "warns": "!",
    "not tested": "–",
    "not applicable": "–",
    "exempt": "–",
}
"""A sign beside each status word, so that a table can be skimmed without relying on colour."""


def tone(status: str) -> str:
    """The colour family of a status: good, bad, open, void or mute."""
    return {"✓": "good", "✕": "bad", "?": "open", "!": "open", "⊘": "void"}.get(
        SIGNS.get(status, "–"), "mute"
    )

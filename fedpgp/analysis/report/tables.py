"""The table type that the terminal, Markdown, HTML and CSV reports share."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.markup import escape
from rich.table import Table as RichTable
from rich.text import Text

from fedpgp.analysis.statistic import Statistic, repeated

STYLES = {1: "bold green", 2: "underline"}
TAGS = {1: "**{}**", 2: "<u>{}</u>"}
"""Markdown for the best and the second best value of a column."""
MIN_TEXT_WIDTH = 18
"""The terminal folds text columns to no fewer characters; in tables with three or more of them, to half as many."""


@dataclass(frozen=True)
class Cell:
    """A text, and whether it is the best (1) or the second best (2) of its column."""

    text: str
    rank: int | None = None


class Table:
    """A table whose first `text_columns` columns are text and the others numbers. `rich` consoles can print it.

    The caption says how many rows there are if some are cut off by `max_rows`.
    """

    def __init__(
        self,
        title: str,
        headings: Iterable[str],
        rows: Iterable[Iterable[Cell | str]],
        text_columns: int = 1,
        caption: str = "",
        max_rows: int | None = None,
    ) -> None:
        cells = [tuple(one if isinstance(one, Cell) else Cell(one) for one in row) for row in rows]
        if max_rows is not None and len(cells) > max_rows:
            caption = "; ".join(filter(None, (caption, f"the first {max_rows} of {len(cells)} rows")))
        self.title, self.headings, self.rows = title, tuple(headings), tuple(cells[:max_rows])
        self.text_columns, self.caption = text_columns, caption

    def markdown(self) -> str:
        """Format the table as Markdown: the best bold, the second best underlined."""
        rule = "".join("---|" if number < self.text_columns else "---:|" for number in range(len(self.headings)))
        lines = [f"**{_escaped(self.title)}**", ""] if self.title else []
        lines += [f"| {' | '.join(map(_escaped, self.headings))} |", f"|{rule}"]
        for row in self.rows:
            lines.append(f"| {' | '.join(TAGS.get(one.rank or 0, '{}').format(_escaped(one.text)) for one in row)} |")
        return "\n".join([*lines, *(["", _escaped(self.caption)] if self.caption else [])])

    def __rich__(self) -> Group:
        """Title and caption are printed outside the grid, which would fold them to its own width."""
        grid = RichTable(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
        least = MIN_TEXT_WIDTH if self.text_columns < 3 else MIN_TEXT_WIDTH // 2
        for number, heading in enumerate(self.headings):
            text = number < self.text_columns
            width = max((len(line) for row in self.rows for line in row[number].text.splitlines()), default=0)
            grid.add_column(
                escape(heading),
                justify="left" if text else "right",
                overflow="fold",
                min_width=min(width, least) if text else None,
            )
        for row in self.rows:
            grid.add_row(*(Text(cell.text, STYLES.get(cell.rank or 0, "")) for cell in row))
        caption = [Text(self.caption, "dim italic")] if self.caption else []
        return Group(Text(self.title, "bold"), grid, *caption, "")


def starred(text: str, best: bool) -> Cell:
    """A cell whose column marks only its best value, with a star that also shows without colours."""
    return Cell(f"{text} *", 1) if best else Cell(text)


def titled(title: str, scenario: str) -> str:
    """The title of a table of one scenario of several."""
    return f"{title}: {scenario}" if scenario else title


def ranks(values: Sequence[float | None], digits: int = 2, smallest_first: bool = False) -> list[int | None]:
    """Rank values rounded to `digits`: 1 for the best; ties share a rank; None for None."""
    shown = [None if value is None else round(value, digits) for value in values]
    order = sorted({value for value in shown if value is not None}, reverse=not smallest_first)
    return [None if value is None else order.index(value) + 1 for value in shown]


def ranked(found: Sequence[Statistic | None], digits: int = 2, smallest_first: bool = False) -> list[Cell]:
    """A column of means ± standard deviations, ranked if there are several."""
    order = ranks([one.mean if one else None for one in found], digits, smallest_first)
    return [
        Cell(statistic_text(one, digits), rank if len(found) > 1 else None)
        for one, rank in zip(found, order, strict=True)
    ]


def mean_std(mean: float | None, std: float | None = None, digits: int = 2) -> str:
    """`72.41 ± 0.30`; `72.41` without a standard deviation; `-` without a mean."""
    if mean is None:
        return "-"
    return f"{mean:.{digits}f}" + ("" if std is None else f" ± {std:.{digits}f}")


def statistic_text(found: Statistic | None, digits: int = 2) -> str:
    """Mean and standard deviation over the seeds, as `mean_std` formats them."""
    return "-" if found is None else mean_std(found.mean, found.std, digits)


def statistic_columns(found: Statistic | None) -> tuple[object, ...]:
    """The CSV columns mean, std, seeds and values."""
    if found is None:
        return None, None, None, None
    return found.mean, found.std, " ".join(map(repeated, found.by_seed)), " ".join(map(str, found.by_seed.values()))


def in_terminal(tables: Sequence[Table], notes: Sequence[str]) -> Group:
    """The tables and notes for a `rich` console: the best bold, the second best underlined."""
    return Group(*tables, *map(escape, notes))


def as_markdown(tables: Sequence[Table], notes: Sequence[str]) -> str:
    """The tables and notes as a Markdown document."""
    lines = "\n".join(f"* {_escaped(one)}" for one in notes)
    return "\n\n".join([*(table.markdown() for table in tables), lines]) + "\n"


def as_csv(headings: str, rows: Iterable[Iterable[object]]) -> str:
    """Format rows as CSV below a line of headings; None is an empty field."""
    sink = io.StringIO()
    csv.writer(sink, lineterminator="\n").writerows(rows)
    return f"{headings}\n{sink.getvalue()}"


def _escaped(text: str) -> str:
    """Escape the signs that mean something in Markdown, and keep indentation."""
    for sign in "\\`*_[]<>|":
        text = text.replace(sign, f"\\{sign}")
    words = text.lstrip(" ")
    return ("" if words == text else "&emsp;") + words.replace("\n", " ")

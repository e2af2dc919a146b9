"""A reproduced table as sheets of text, and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence

from fedpgp.analysis.report.labels import METRIC_TITLES
from fedpgp.analysis.report.tables import Cell as Text
from fedpgp.analysis.report.tables import Sheet, spread
from fedpgp.analysis.reproduce.cells import Cell, Mark, Reproduction
from fedpgp.analysis.reproduce.layouts import OVERLAP, SPECTRUM

NAMES = {
    **METRIC_TITLES, "average": "Average", "oxford_pets": "OxfordPets", "flowers102": "Flowers102", "dtd": "DTD",
    "caltech101": "Caltech101", "food101": "Food101", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100",
    "office_caltech10": "Office-Caltech10", "domainnet10": "DomainNet", "mean": "Mean", "spread": "Std",
    "overlap": "||U^T W V||, U and V the top singular directions of ...", "delta": "the change", "weight": "W itself",
    "random": "a random matrix", "weight_norm": "||W||", "delta_norm": "||change||",
    "spectrum": "is the personal part low-rank?",
}  # fmt: skip
UNITS = {
    OVERLAP: "Frobenius norms, query projections, mean over the layers",
    SPECTRUM: "share of the squared norm in percent, and how many ranks have 90 % of it, mean over the clients",
}
"""What is no accuracy."""
SIGNS: Mapping[Mark, str] = {"backbone": "ᵇ", "data": "ᵈ", "settings": "ˢ"}
NUMBERS = "¹²³⁴⁵⁶⁷⁸⁹"


def sheets(found: Reproduction) -> list[Sheet]:
    """A sheet per block: our mean ± standard deviation, the paper's number, and ours minus it."""
    doubts = _doubts(found)
    made = []
    for block, rows in found.blocks.items():
        columns = [column for column in found.columns if any(column in row for row in rows.values())]
        lines = [line for name, row in rows.items() for line in _lines(name, row, columns, doubts)]
        title = f"{found.plan.name}: {found.plan.table.title}" + (f", {_named(block)}" if block else "")
        seeds = max((len(cell.ours.by_seed) for row in rows.values() for cell in row.values() if cell.ours), default=0)
        over = "one seed" if seeds == 1 else f"mean ± standard deviation over {seeds} seeds (ddof 1)"
        caption = f"{UNITS.get(block, 'test accuracy in percent')}; {over}"
        made.append(Sheet(title, ("", *map(_named, columns)), tuple(lines), caption=caption))
    return made


def remarks(found: Reproduction) -> list[str]:
    """What the marks mean, what is doubtful, assumed or missing."""
    said = [f"{SIGNS[mark]} other {mark} than the paper's: {'; '.join(told)}" for mark, told in found.changed.items()]
    said += [f"{sign} the paper's number is doubtful: {why}" for why, sign in _doubts(found).items()]
    said += [f"missing: {line}" for line in found.missing]
    said += [f"paper: {found.paper.source}", *found.paper.assumed]
    return said


def as_csv(found: Reproduction) -> str:
    """One line per cell, for other programs."""
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(
        ["table", "block", "row", "column", "mean", "std", "seeds", "values", "paper", "paper_std", "difference",
         "differs", "doubt"]
    )  # fmt: skip
    for key, cell in found.cells.items():
        ours = cell.ours
        writer.writerow([
            found.plan.name, *key, *((ours.mean, ours.std) if ours else (None, None)),
            *((" ".join(map(str, ours.by_seed)), " ".join(map(str, ours.by_seed.values()))) if ours else (None, None)),
            *(cell.printed or (None, None)), cell.difference, " ".join(cell.marks), cell.doubt,
        ])  # fmt: skip
    return sink.getvalue()


def _lines(
    name: str, row: Mapping[str, Cell], columns: Sequence[str], doubts: Mapping[str, str]
) -> Iterator[tuple[Text, ...]]:
    """`95.10 ± 0.20`, below it `95.33` and `-0.23ᵇ`; of a row that the paper has not, the name has the marks."""
    cells = [row.get(column) for column in columns]
    ours = [Text("" if cell is None else spread(cell.ours)) for cell in cells]
    if not any(cell and cell.printed for cell in cells):
        marks = dict.fromkeys(_signs(cell) for cell in row.values())
        yield (Text(_named(name) + "".join(marks)), *ours)
        return
    yield (Text(_named(name)), *ours)
    yield (Text("  paper"), *(Text(_theirs(cell, doubts)) for cell in cells))
    yield (Text("  difference"), *(Text(_difference(cell)) for cell in cells))


def _theirs(cell: Cell | None, doubts: Mapping[str, str]) -> str:
    if cell is None or cell.printed is None:
        return ""
    value, std = cell.printed
    return f"{value:.2f}" + (f" ± {std:.2f}" if std is not None else "") + (doubts[cell.doubt] if cell.doubt else "")


def _difference(cell: Cell | None) -> str:
    return "" if cell is None or cell.difference is None else f"{cell.difference:+.2f}{_signs(cell)}"


def _signs(cell: Cell) -> str:
    return "".join(SIGNS[mark] for mark in cell.marks)


def _doubts(found: Reproduction) -> dict[str, str]:
    """A raised number for each doubt."""
    doubts = dict.fromkeys(cell.doubt for cell in found.cells.values() if cell.doubt)
    return dict(zip(doubts, NUMBERS, strict=False))


def _named(key: str) -> str:
    return NAMES.get(key, key)

"""A reproduced table as tables of text, and as CSV."""

from collections.abc import Iterator, Mapping, Sequence

from fedpgp.analysis.report import tables
from fedpgp.analysis.report.labels import METRIC_TITLES
from fedpgp.analysis.report.tables import Table, mean_std, statistic_columns, statistic_text
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
    SPECTRUM: "share of the squared norm in percent, and the number of ranks with 90 % of it, mean over the clients",
}
"""Units of the blocks that are no accuracies."""
SIGNS: Mapping[Mark, str] = {"backbone": "ᵇ", "data": "ᵈ", "settings": "ˢ"}
NUMBERS = "¹²³⁴⁵⁶⁷⁸⁹"
CSV_HEADINGS = "table,block,row,column,mean,std,seeds,values,paper,paper_std,difference,differs,doubt"


def all_tables(found: Reproduction) -> list[Table]:
    """A table per block: measured mean ± standard deviation, the paper's number, and measured minus paper."""
    doubts = _doubts(found)
    made = []
    for block, rows in found.blocks.items():
        columns = [column for column in found.columns if any(column in row for row in rows.values())]
        lines = [line for name, row in rows.items() for line in _lines(name, row, columns, doubts)]
        title = f"{found.plan.name}: {found.plan.table.title}" + (f", {_named(block)}" if block else "")
        cells = [cell.measured for row in rows.values() for cell in row.values() if cell.measured]
        seeds = max((len(one.by_seed) for one in cells), default=0)
        over = "one seed" if seeds == 1 else f"mean ± standard deviation over {seeds} seeds (ddof 1)"
        caption = f"{UNITS.get(block, 'test accuracy in percent')}; {over}"
        made.append(Table.of(title, ("", *map(_named, columns)), lines, caption=caption))
    return made


def remarks(found: Reproduction) -> list[str]:
    """What the marks mean, and what is doubtful, missing or assumed."""
    lines = [f"{SIGNS[mark]} other {mark} than the paper: {'; '.join(words)}" for mark, words in found.changed.items()]
    lines += [f"{sign} the paper's number is doubtful: {why}" for why, sign in _doubts(found).items()]
    lines += [f"missing: {line}" for line in found.missing]
    return [*lines, f"paper: {found.paper.source}", *found.paper.assumed]


def as_csv(found: Reproduction) -> str:
    """One line per cell, for other programs."""
    lines = (
        (found.plan.name, *key, *statistic_columns(cell.measured), *(cell.printed or (None, None)), cell.difference,
         " ".join(cell.marks), cell.doubt)
        for key, cell in found.cells.items()
    )  # fmt: skip
    return tables.as_csv(CSV_HEADINGS, lines)


def _lines(
    name: str, row: Mapping[str, Cell], columns: Sequence[str], doubts: Mapping[str, str]
) -> Iterator[tuple[str, ...]]:
    """`95.10 ± 0.20`, below it `95.33` and `-0.23ᵇ`; the name of a row that the paper does not have has the marks."""
    cells = [row.get(column) for column in columns]
    measured = ["" if cell is None else statistic_text(cell.measured) for cell in cells]
    if not any(cell and cell.printed for cell in cells):
        marks = dict.fromkeys(_signs(cell) for cell in row.values())
        yield _named(name) + "".join(marks), *measured
        return
    yield _named(name), *measured
    yield "  paper", *(_printed(cell, doubts) for cell in cells)
    yield "  difference", *(_difference(cell) for cell in cells)


def _printed(cell: Cell | None, doubts: Mapping[str, str]) -> str:
    if cell is None or cell.printed is None:
        return ""
    return mean_std(*cell.printed) + (doubts[cell.doubt] if cell.doubt else "")


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

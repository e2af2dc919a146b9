"""A reproduced table: measured numbers beside the paper's, what differs and is missing; as tables of text and CSV."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from fedpgp.analysis import loading
from fedpgp.analysis.comparison import METRIC_TITLES
from fedpgp.analysis.report import tables
from fedpgp.analysis.report.tables import mean_std, statistic_columns, statistic_text
from fedpgp.analysis.reproduce.layouts import AVERAGE, MEAN, NEIGHBOR, OVERLAP, SPECTRUM, SPREAD, Member
from fedpgp.analysis.reproduce.planning import Part, Plan
from fedpgp.analysis.reproduce.published import Key, Printed, Published
from fedpgp.analysis.statistic import Statistic, over
from fedpgp.experiments.sweeps.sampling import Trial
from fedpgp.storage.sweep_folder import SweepFolder

Mark = Literal["backbone", "data", "settings"]
SIGNS: Mapping[Mark, str] = {"backbone": "ᵇ", "data": "ᵈ", "settings": "ˢ"}
"""What can differ from the paper, and its sign in the tables."""
NAMES = {
    **METRIC_TITLES, "average": "Average", "oxford_pets": "OxfordPets", "flowers102": "Flowers102", "dtd": "DTD",
    "caltech101": "Caltech101", "food101": "Food101", "fgvc_aircraft": "FGVCAircraft", "ucf101": "UCF101",
    "stanford_cars": "StanfordCars", "sun397": "SUN397", "eurosat": "EuroSAT", "imagenet": "ImageNet",
    "cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "office_caltech10": "Office-Caltech10", "domainnet10": "DomainNet",
    "mean": "Mean", "spread": "Std", "cm": "CM", "held_out": "data sets on which nobody trains",
    "neighbor": "classes of all other clients",
    "overlap": "||U^T W V||, U and V the top singular directions of ...", "delta": "the change", "weight": "W itself",
    "random": "a random matrix", "weight_norm": "||W||", "delta_norm": "||change||",
    "spectrum": "is the personal part low-rank?",
}  # fmt: skip
UNITS = {
    NEIGHBOR: "test accuracy in percent, among all classes, on the test images of all other clients' classes: of each "
    "client the counts of all test images minus those of its own, mean over the clients",
    OVERLAP: "Frobenius norms, query projections, mean over the layers",
    SPECTRUM: "share of the squared norm in percent, and the number of ranks with 90 % of it, mean over the clients",
}
"""Units of the blocks that are no accuracies, or need more words."""
NUMBERS = "¹²³⁴⁵⁶⁷⁸⁹"
CSV_HEADINGS = "table,block,row,column,mean,std,seeds,values,paper,paper_std,difference,differs,doubt"


@dataclass(frozen=True)
class Cell:
    """A measured number and the paper's."""

    measured: Statistic | None
    """None: not measured"""
    marks: tuple[Mark, ...]
    """what differs from the paper"""
    printed: Printed | None
    """None: the paper has no such cell"""
    doubt: str | None
    """why the paper's number is doubtful"""

    @property
    def difference(self) -> float | None:
        """Measured minus printed; None if one is missing."""
        return None if self.measured is None or self.printed is None else self.measured.mean - self.printed.value


@dataclass(frozen=True)
class Reproduction:
    """A table with measured numbers."""

    plan: Plan
    paper: Published
    cells: Mapping[Key, Cell]
    """in the order of the table"""
    columns: tuple[str, ...]
    """of all blocks, in order"""
    changed: Mapping[Mark, tuple[str, ...]]
    """what each mark means, in words"""
    missing: tuple[str, ...]
    """missing runs, and why"""

    @property
    def blocks(self) -> dict[str, dict[str, dict[str, Cell]]]:
        """The cells by block, row and column."""
        blocks: dict[str, dict[str, dict[str, Cell]]] = {}
        for key, cell in self.cells.items():
            blocks.setdefault(key.block, {}).setdefault(key.row, {})[key.column] = cell
        return blocks


def fill(plan: Plan, folders: Sequence[SweepFolder]) -> Reproduction:
    """Read the runs of a table into its cells, from the folders of the sweeps of its parts, in order."""
    members: list[Member] = []
    missing: list[str] = []
    for part, folder in zip(plan.parts, folders, strict=True):
        for trial in part.drawn.trials:
            members += _members(part, trial, folder, missing)
    numbers = plan.table.layout(members, plan.asked)
    known = plan.table.published(plan.name)
    keys = list(dict.fromkeys([*(key for key in known.values if key in numbers or _belongs(key, plan)), *numbers]))
    columns = _columns(keys)
    changed = _changed(plan)
    if plan.asked != plan.table.data and any(key.block == AVERAGE for key in keys):
        changed[AVERAGE] = {"data": [f"{AVERAGE} of {', '.join(plan.asked)} only"]}
    cells = {
        key: Cell(
            measured=Statistic(numbers[key]) if key in numbers else None,
            marks=_marks(key, changed) if key in numbers else (),
            printed=known.values.get(key),
            doubt=known.doubtful.get(key),
        )
        for key in _order(keys, columns)
    }
    words = {}
    for mark in SIGNS:
        if lines := dict.fromkeys(line for own in changed.values() for line in own.get(mark, [])):
            words[mark] = tuple(lines)
    return Reproduction(plan, known, cells, tuple(columns), words, tuple(missing))


def all_tables(found: Reproduction) -> list[tables.Table]:
    """A table per block: measured mean ± standard deviation, the paper's number, and measured minus paper."""
    doubts = _doubts(found)
    made = []
    for block, rows in found.blocks.items():
        columns = [column for column in found.columns if any(column in row for row in rows.values())]
        lines = [line for name, row in rows.items() for line in _lines(name, row, columns, doubts)]
        title = f"{found.plan.name}: {found.plan.table.title}" + (f", {NAMES.get(block, block)}" if block else "")
        cells = [cell.measured for row in rows.values() for cell in row.values() if cell.measured]
        seeds = max((one.by_seed for one in cells), key=len, default={})
        means = "one seed" if len(seeds) == 1 else f"mean ± standard deviation over {over(seeds)} (ddof 1)"
        caption = f"{UNITS.get(block, 'test accuracy in percent')}; {means}"
        headings = ("", *(NAMES.get(column, column) for column in columns))
        made.append(tables.Table(title, headings, lines, caption=caption))
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


def _members(part: Part, trial: Trial, folder: SweepFolder, missing: list[str]) -> Iterator[Member]:
    """The finished runs of a trial; its missing folds are noted."""
    planned = next((one for one in folder.trials if one.id == trial.id), None)
    result = folder.result(trial.id)
    folds = frozenset(planned.folds if planned else ())
    found = set()
    for fold in result.folds if result else ():
        run = replace(loading.read(folder.root / "runs" / fold.run), fold=fold.fold)
        if run.state == "finished":
            found.add(run.fold)
            yield Member(trial.variant, part.stands_for(trial.experiment), run, folds)
    why = "not run" if result is None else ": ".join(filter(None, (result.state, result.reason)))
    missing += [f"{trial.label}, {fold}: {why}" for fold in sorted(folds - found, key=str)]


def _changed(plan: Plan) -> dict[str, dict[Mark, list[str]]]:
    """By variant and mark, what differs from the shipped sweeps."""
    changed: dict[str, dict[Mark, list[str]]] = {}
    for part in plan.parts:
        for trial in part.drawn.trials:
            own = changed.setdefault(trial.variant, {})
            for line in part.changed[trial.id]:
                section = line.partition(".")[0]
                mark: Mark = "backbone" if section == "backbone" else "data" if section == "data" else "settings"
                own.setdefault(mark, []).append(line)
    return changed


def _marks(key: Key, changed: Mapping[str, Mapping[Mark, list[str]]]) -> tuple[Mark, ...]:
    """The marks of a cell's variant, and of its block if that is the mean over data sets."""
    return tuple(sorted({mark for name in key if name in changed for mark in changed[name]}))


def _belongs(key: Key, plan: Plan) -> bool:
    """Whether a cell of the paper belongs to a planned sweep and the requested data sets."""
    if any(part.foreign for part in plan.parts) or (key.block == AVERAGE and len(plan.asked) == 1):
        return False
    planned = (part for part in plan.parts if not part.sweep.variants.keys().isdisjoint(key))
    return any((set(plan.table.data) - part.data).isdisjoint(key) for part in planned)


def _columns(keys: Sequence[Key]) -> list[str]:
    """Columns in order of appearance, those of a matrix in the order of its rows, means last."""
    columns = dict.fromkeys(key.column for key in keys)
    rows = dict.fromkeys(key.row for key in keys if key.row in columns)
    return sorted({**rows, **columns}, key=lambda column: column in (MEAN, SPREAD))


def _order(keys: Sequence[Key], columns: Sequence[str]) -> list[Key]:
    """Keys sorted by block, row and column; blocks and rows in order of appearance."""
    blocks, rows = ([*dict.fromkeys(names)] for names in ((key.block for key in keys), (key.row for key in keys)))
    return sorted(keys, key=lambda key: (blocks.index(key.block), rows.index(key.row), columns.index(key.column)))


def _lines(
    name: str, row: Mapping[str, Cell], columns: Sequence[str], doubts: Mapping[str, str]
) -> Iterator[tuple[str, ...]]:
    """`95.10 ± 0.20`, below it `95.33` and `-0.23ᵇ`; the name of a row that the paper does not have has the marks."""
    cells = [row.get(column) for column in columns]
    measured = ["" if cell is None else statistic_text(cell.measured) for cell in cells]
    if not any(cell and cell.printed for cell in cells):
        marks = dict.fromkeys(_signs(cell) for cell in row.values())
        yield NAMES.get(name, name) + "".join(marks), *measured
        return
    yield NAMES.get(name, name), *measured
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

"""A reproduced table: measured numbers beside the paper's, what differs, and what is missing."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from fedpgp.analysis import loading
from fedpgp.analysis.comparison import Statistic
from fedpgp.analysis.reproduce import paper
from fedpgp.analysis.reproduce.layouts import AVERAGE, MEAN, SPREAD, Member
from fedpgp.analysis.reproduce.paper import Key, Paper, Printed
from fedpgp.analysis.reproduce.planning import Part, Plan
from fedpgp.experiments.sweeps.sampling import Trial
from fedpgp.storage.sweep_folder import SweepFolder

Mark = Literal["backbone", "data", "settings"]
MARKS: tuple[Mark, ...] = ("backbone", "data", "settings")
"""What can differ from the paper."""


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
    paper: Paper
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
    """Read a table's runs into its cells.

    Args:
        folders: of the sweeps of the plan's parts, in order.
    """
    members: list[Member] = []
    missing: list[str] = []
    for part, folder in zip(plan.parts, folders, strict=True):
        for trial in part.drawn.trials:
            members += _members(part, trial, folder, missing)
    numbers = plan.table.layout(members, plan.asked)
    known = paper.read(plan.name)
    changed = _changed(plan)
    keys = list(dict.fromkeys([*(key for key in known.values if key in numbers or _belongs(key, plan)), *numbers]))
    columns = _columns(keys)
    cells = {
        key: Cell(
            measured=Statistic(numbers[key]) if key in numbers else None,
            marks=_marks(key, plan, changed) if key in numbers else (),
            printed=known.values.get(key),
            doubt=known.doubtful.get(key),
        )
        for key in _order(keys, columns)
    }
    return Reproduction(plan, known, cells, tuple(columns), _words(changed, cells, plan), tuple(missing))


def _words(
    changed: Mapping[str, Mapping[Mark, list[str]]], cells: Mapping[Key, Cell], plan: Plan
) -> dict[Mark, tuple[str, ...]]:
    """What each mark means, without repetitions."""
    averaged = _fewer(plan) if any(key.block == AVERAGE for key in cells) else []
    words = {}
    for mark in MARKS:
        lines = [line for own in changed.values() for line in own.get(mark, [])]
        if lines := lines + (averaged if mark == "data" else []):
            words[mark] = tuple(dict.fromkeys(lines))
    return words


def _members(part: Part, trial: Trial, folder: SweepFolder, missing: list[str]) -> Iterator[Member]:
    """The finished runs of a trial; its missing folds are noted."""
    planned = next((one for one in folder.trials if one.id == trial.id), None)
    result = folder.result(trial.id)
    folds = frozenset(planned.folds if planned else ())
    found = set()
    for fold in result.folds if result else ():
        run = loading.read(folder.root / "runs" / fold.run)
        if run.state == "finished":
            found.add(run.fold)
            yield Member(trial.variant, part.stands_for(trial.experiment), run, folds)
    why = "not run" if result is None else ": ".join(filter(None, (result.state, result.reason)))
    missing += [f"{trial.label}, {fold}: {why}" for fold in sorted(folds - found, key=str)]


def _changed(plan: Plan) -> dict[str, dict[Mark, list[str]]]:
    """By variant and mark: what differs from the shipped sweeps."""
    changed: dict[str, dict[Mark, list[str]]] = {}
    for part in plan.parts:
        for trial in part.drawn.trials:
            own = changed.setdefault(trial.variant, {})
            for line in part.changed[trial.id]:
                section = line.partition(".")[0]
                mark: Mark = "backbone" if section == "backbone" else "data" if section == "data" else "settings"
                own.setdefault(mark, []).append(line)
    return changed


def _marks(key: Key, plan: Plan, changed: Mapping[str, Mapping[Mark, list[str]]]) -> tuple[Mark, ...]:
    """The marks of a cell's variant, and `data` for a mean over fewer data sets than the paper's."""
    found = {mark for variant in key if variant in changed for mark in changed[variant]}
    if key.block == AVERAGE and _fewer(plan):
        found.add("data")
    return tuple(sorted(found))


def _fewer(plan: Plan) -> list[str]:
    return [] if plan.asked == plan.table.data else [f"{AVERAGE} of {', '.join(plan.asked)} only"]


def _belongs(key: Key, plan: Plan) -> bool:
    """Whether a cell of the paper belongs to the requested data sets."""
    foreign = any(trial.experiment.data.name not in part.asked for part in plan.parts for trial in part.drawn.trials)
    left_out = set(plan.table.data) - set(plan.asked)
    return not foreign and not left_out & set(key) and (key.block != AVERAGE or len(plan.asked) > 1)


def _columns(keys: Sequence[Key]) -> list[str]:
    """Columns in order of appearance, those of a matrix in the order of its rows, means last."""
    columns = dict.fromkeys(key.column for key in keys)
    rows = dict.fromkeys(key.row for key in keys if key.row in columns)
    return sorted({**rows, **columns}, key=lambda column: column in (MEAN, SPREAD))


def _order(keys: Sequence[Key], columns: Sequence[str]) -> list[Key]:
    """Keys sorted by block, row and column; blocks and rows in order of appearance."""
    blocks, rows = ([*dict.fromkeys(names)] for names in ((key.block for key in keys), (key.row for key in keys)))
    return sorted(keys, key=lambda key: (blocks.index(key.block), rows.index(key.row), columns.index(key.column)))

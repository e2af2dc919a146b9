"""Count the trials in which Optuna and random search find the best of a recorded grid. Nothing is trained."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import fmean, median
from typing import Any

from fedpgp.bench.measurement import Measurement, Report
from fedpgp.core.seeding import numpy_generator
from fedpgp.experiments.sweeps.optuna_search import OptunaSampler
from fedpgp.experiments.sweeps.sweep_settings import Sweep, TuneSettings
from fedpgp.storage.objectives import Objectives

GRID = Path(__file__).with_name("icons_grid.json")
REPETITIONS = 10
NEAR = 0.1
"""Points below the best that count as near."""
FEW = 20
"""Trials after which the best value so far is compared."""


@dataclass(frozen=True)
class Grid:
    """The values that a sweep over a whole grid recorded."""

    command: str
    """that made it"""
    metric: str
    space: Mapping[str, list[Any]]
    """values by key"""
    values: tuple[float, ...]
    """of the metric, the last key varying fastest"""

    @property
    def points(self) -> list[tuple[Any, ...]]:
        """The values of the keys, in the order of `values`."""
        return list(product(*self.space.values()))


def load(path: Path = GRID) -> Grid:
    """Read a recorded grid."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return Grid(content["command"], content["metric"], content["space"], tuple(content["values"]))


def measure(report: Report, grid: Grid, repetitions: int = REPETITIONS) -> Measurement:
    """Search the grid with both, each with as many seeds."""
    found = {}
    for name, search in (("optuna", by_optuna), ("random", by_chance)):
        report(f"{repetitions} searches of {len(grid.values)} points, {name}")
        found[name] = [list(search(grid, seed)) for seed in range(1, repetitions + 1)]
    needed = {name: [trials_to_best(grid, own) for own in runs] for name, runs in found.items()}
    near = {name: [trials_to_best(grid, own, NEAR) for own in runs] for name, runs in found.items()}
    few = {name: [max(own[:FEW]) for own in runs] for name, runs in found.items()}
    figures = {
        **{f"{name}_trials": float(median(own)) for name, own in needed.items()},
        **{f"{name}_mean_trials": fmean(own) for name, own in needed.items()},
        **{f"{name}_near_trials": float(median(own)) for name, own in near.items()},
        **{f"{name}_best_of_{FEW}": fmean(own) for name, own in few.items()},
    }
    rows = [
        [
            *(name, f"{median(own):g}", f"{fmean(own):.1f}", str(min(own)), str(max(own))),
            *(f"{median(near[name]):g}", f"{fmean(few[name]):.2f}"),
        ]
        for name, own in needed.items()
    ]
    notes = (
        f"best {grid.metric} of {len(grid.values)} points: {max(grid.values):.2f}; {repetitions} seeds; a point that "
        "is suggested again counts once; a search that ends before counts as all points",
        f"recorded by: {grid.command}",
    )
    within = f"to {NEAR:g} below, median"
    headings = ("search", "trials to the best, median", "mean", "fewest", "most", within, f"best of {FEW} trials")
    return Measurement("search", figures, headings, rows, notes)


def trials_to_best(grid: Grid, values: Sequence[float], margin: float = 0.0) -> int:
    """The number of the first value of a search that is within a margin of the grid's best; all points if none is."""
    good = max(grid.values) - margin
    return next((number for number, value in enumerate(values, 1) if value >= good), len(grid.values))


def by_optuna(grid: Grid, seed: int) -> Iterator[float]:
    """Yield the values of the points that Optuna suggests, each once; at most ten suggestions for each point."""
    recorded = dict(zip(map(repr, grid.points), grid.values, strict=True))
    space = {key: {"choice": list(values)} for key, values in grid.space.items()}
    tune = TuneSettings(search="optuna", metric=grid.metric, num_samples=len(grid.values), seed=seed)
    sampler = OptunaSampler(Sweep(space=space, tune=tune), Objectives((grid.metric,)))
    seen = set()
    for _ in range(10 * len(grid.values)):
        number, _, point = sampler.ask()
        text = repr(tuple(point.values()))
        sampler.tell(number, [recorded[text]])
        if text not in seen:
            seen.add(text)
            yield recorded[text]
        if len(seen) >= FEW and max(grid.values) in map(recorded.get, seen):
            return


def by_chance(grid: Grid, seed: int) -> Iterator[float]:
    """Yield the values of all points in a random order."""
    order = numpy_generator(seed, "bench search").permutation(len(grid.values))
    yield from (grid.values[number] for number in order)

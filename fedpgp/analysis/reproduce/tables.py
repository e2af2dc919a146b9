"""The papers' tables by name: sweeps, data sets, which numbers of which runs belong in which cell, printed numbers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from statistics import fmean, harmonic_mean, stdev
from typing import NamedTuple

from fedpgp.analysis import learned
from fedpgp.analysis.comparison import Run
from fedpgp.analysis.loading import client_accuracies
from fedpgp.storage.sweep_folder import Fold

AVERAGE = "average"
"""Block of the means over data sets."""
MEAN, SPREAD = "mean", "spread"
"""Columns of the mean over the other columns, and of their standard deviation (ddof 1)."""
OVERLAP, SPECTRUM = "overlap", "spectrum"
"""Blocks of the analysis of LoRA's adapters, and of the personal parts of prompts."""
PARTS = ("local", "base", "novel")
RANKS = (1, 4, 8)

FOUR = ("oxford_pets", "flowers102", "dtd", "caltech101")
FIVE = (*FOUR, "food101")


class Key(NamedTuple):
    """A cell of a table."""

    block: str
    """part of the table, such as a data set or a method; empty: the table has one part"""
    row: str
    column: str


class Printed(NamedTuple):
    """A number as the paper prints it."""

    value: float
    std: float | None = None


Numbers = dict[Key, dict[int, float]]
"""A number for each cell and seed."""


@dataclass(frozen=True)
class Member:
    """A run of a table."""

    variant: str
    data: tuple[str, ...]
    """the paper's data sets that it represents; several if one data set replaces all of them"""
    run: Run
    folds: frozenset[Fold]
    """all folds that its trial should have"""


@dataclass(frozen=True)
class Paper:
    """One table of a paper."""

    source: str
    """citation"""
    values: Mapping[Key, Printed]
    """in the paper's order"""
    doubtful: Mapping[Key, str]
    """why a value is likely a misprint or the result of a defect"""
    assumed: tuple[str, ...]
    """what the paper does not say, or is done differently here, in whole sentences"""

    @classmethod
    def read(cls, table: str) -> Paper:
        """Read the printed numbers of a table by its name, for example `table1`."""
        tree = json.loads((files("fedpgp.analysis.reproduce") / "paper.json").read_text(encoding="utf-8"))[table]
        values = {
            Key(block, row, column): Printed(*value) if isinstance(value, list) else Printed(value)
            for block, rows in tree["values"].items()
            for row, columns in rows.items()
            for column, value in columns.items()
        }
        doubtful = {Key(*cell.split("/")): why for cell, why in tree["doubtful"].items()}
        return cls(tree["paper"], values, doubtful, tuple(tree["assumed"]))


@dataclass(frozen=True)
class Table:
    """One table of a paper."""

    title: str
    sweeps: Mapping[str, tuple[str, ...]]
    """shipped sweep -> the data sets that it runs"""
    layout: Callable[[Sequence[Member], Sequence[str]], Numbers]
    variants: tuple[str, ...] | None = None
    """variants of the sweep that the table has; None: all"""

    @property
    def data(self) -> tuple[str, ...]:
        """Data sets of all sweeps, in order."""
        return tuple(data for own in self.sweeps.values() for data in own)


def base_to_novel(members: Sequence[Member], asked: Sequence[str]) -> Numbers:
    """Variants by Local, Base, Novel, HM: a block per data set and one of means; HM of these means, as in the paper."""
    numbers: Numbers = {}
    for metric in (*PARTS, "hm"):
        numbers |= _collected(members, metric)
    if len(asked) > 1:
        for variant in dict.fromkeys(one.variant for one in members):
            means = {part: _mean([numbers.get(Key(data, variant, part), {}) for data in asked]) for part in PARTS}
            seeds = set.intersection(*map(set, means.values()))
            means["hm"] = {seed: harmonic_mean([means[part][seed] for part in PARTS]) for seed in sorted(seeds)}
            numbers |= {Key(AVERAGE, variant, metric): own for metric, own in means.items() if own}
    return numbers


def local_by_data(members: Sequence[Member], asked: Sequence[str]) -> Numbers:
    """Variants by data set: accuracy on own classes."""
    return _collected(members, "local", lambda one, data: Key("", one.variant, data))


def local_only(members: Sequence[Member], asked: Sequence[str]) -> Numbers:
    """Variants by data set: a block for each, with the one column Local."""
    return _collected(members, "local")


def rank_by_shots(members: Sequence[Member], asked: Sequence[str]) -> Numbers:
    """A block per data set: ranks by shots (the variants), accuracy on own classes."""
    return _collected(
        members, "local", lambda one, data: Key(data, f"rank {one.run.settings['method.rank']}", one.variant)
    )


def held_out(members: Sequence[Member], asked: Sequence[str]) -> Numbers:
    """A block per data set: variants by held-out domain, mean over the clients, and the mean over the domains."""
    numbers = _collected(members, "held_out", lambda one, data: Key(data, one.variant, str(one.run.fold.held_out)))
    for one in members:
        for data in one.data:
            domains = {str(fold.held_out) for fold in one.folds}
            if mean := _mean([numbers.get(Key(data, one.variant, domain), {}) for domain in sorted(domains)]):
                numbers[Key(data, one.variant, MEAN)] = mean
    return numbers


def held_out_by_client(members: Sequence[Member], asked: Sequence[str]) -> Numbers:
    """A block per variant: held-out domain by client, with their mean and standard deviation."""
    numbers: Numbers = {}
    for one in members:
        domain, seed = str(one.run.fold.held_out), one.run.fold.seed
        clients = client_accuracies(one.run.path, "held_out")
        values = {**clients, MEAN: fmean(clients.values())}
        if len(clients) > 1:
            values[SPREAD] = stdev(clients.values())
        for column, value in values.items():
            numbers.setdefault(Key(one.variant, domain, column), {})[seed] = value
    return numbers


def low_rank(members: Sequence[Member], asked: Sequence[str]) -> Numbers:
    """`base_to_novel`, and the analyses of LoRA's paper: overlap of changes and weights, and the ranks they need.

    For adapters the query projections, as in the paper; for prompts their personal parts.
    """
    numbers = base_to_novel(members, asked)
    for one in members:
        if learned.has_adapters(one.run.path):
            values = asdict(learned.adapters(one.run.path)["q"])
            block = OVERLAP
        else:
            found = learned.personal_parts(one.run.path)
            shares = {f"rank {rank}": 100 * float(found.energy(rank).mean()) for rank in RANKS}
            values = {**shares, "ranks for 90 %": float(found.effective_rank().double().mean())}
            block = SPECTRUM
        for column, value in values.items():
            numbers.setdefault(Key(block, one.variant, column), {})[one.run.fold.seed] = value
    return numbers


TABLES: Mapping[str, Table] = {
    "table1": Table("Own classes and base-to-novel generalization", {"base_to_novel_5datasets": FIVE}, base_to_novel),
    "table2": Table(
        "Leave one domain out: columns are held-out domains",
        {"office_lodo": ("office_caltech10",), "domainnet_lodo": ("domainnet10",)},
        held_out,
    ),
    "table4": Table(
        "Leave one domain out: held-out domain by client",
        {"office_lodo": ("office_caltech10",)},
        held_out_by_client,
        ("CoOp", "FedPGP"),
    ),
    "table5": Table("100 clients, Dirichlet", {"cifar_dirichlet": ("cifar10", "cifar100")}, local_by_data),
    "table6": Table("Ablation: adaption and additional loss", {"ablations": FIVE}, base_to_novel),
    "table7": Table("Ablation: additional loss, own classes", {"ablation_negative": FIVE}, local_by_data),
    "table11": Table("Rank by shots, own classes", {"rank_by_shots": FOUR}, rank_by_shots),
    "pfedpt": Table(
        "pFedPT: a frame of learned pixels around the images of a shared network",
        {"pfedpt": ("cifar10",)},
        local_only,
    ),
    "lora": Table("LoRA: low-rank updates of the text tower", {"lora": ("oxford_pets",)}, low_rank),
}


def _collected(members: Sequence[Member], metric: str, key: Callable[[Member, str], Key] | None = None) -> Numbers:
    """A metric of members in the cells that `key` gives for a member and a data set; None: data, variant, metric."""
    numbers: Numbers = {}
    for one in members:
        if (found := one.run.metrics.get(f"test/{metric}")) is not None:
            for data in one.data:
                cell = key(one, data) if key else Key(data, one.variant, metric)
                numbers.setdefault(cell, {})[one.run.fold.seed] = found["last"]
    return numbers


def _mean(parts: Sequence[Mapping[int, float]]) -> dict[int, float]:
    """The mean by seed, for the seeds that all parts have."""
    seeds = set.intersection(*map(set, parts)) if parts else set()
    return {seed: fmean(part[seed] for part in parts) for seed in sorted(seeds)}

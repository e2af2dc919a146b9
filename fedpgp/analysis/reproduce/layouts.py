"""Layouts of tables: which numbers of which runs belong in which cell, and the numbers derived from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, harmonic_mean, stdev

from fedpgp.analysis import adapters, learned
from fedpgp.analysis.comparison import Run
from fedpgp.analysis.loading import client_accuracies, client_counts
from fedpgp.analysis.reproduce.published import Key
from fedpgp.analysis.statistic import in_order
from fedpgp.storage.sweep_folder import Fold, Repetition

AVERAGE = "average"
"""Block of the means over data sets."""
MEAN, SPREAD = "mean", "spread"
"""Columns of the mean over the other columns, and of their standard deviation (ddof 1)."""
OVERLAP, SPECTRUM = "overlap", "spectrum"
"""Blocks of the analysis of LoRA's adapters, and of the personal parts of prompts."""
NEIGHBOR = "neighbor"
"""Block of the accuracies on the classes of all other clients."""
PARTS = ("local", "base", "novel")
OF_FEDERATION = ("local_own", "base", "novel", "held_out")
RANKS = (1, 4, 8)

Numbers = dict[Key, dict[Repetition, float]]
"""A number for each cell and seed, or seed and split."""


@dataclass(frozen=True)
class Member:
    """A run of a table."""

    variant: str
    data: tuple[str, ...]
    """the paper's data sets that it represents; several if it trains on all of them, or one data set replaces them"""
    run: Run
    folds: frozenset[Fold]
    """all folds that its trial should have"""


def base_to_novel(members: Sequence[Member], asked: Sequence[str]) -> Numbers:
    """Variants by Local, Base, Novel, HM: a block per data set and one of means; HM of these means, as in the paper."""
    numbers = _by_data(members, (*PARTS, "hm"))
    averages = _averages(numbers, asked, PARTS)
    return numbers | averages | _derived(averages, "hm", lambda *parts: harmonic_mean(parts))


def combined_mean(members: Sequence[Member], asked: Sequence[str]) -> Numbers:
    """Variants by Local, Base, Novel, CM = (Local + HM(Base, Novel)) / 2: a block per data set and one of their means.

    The mean CM is that of the data sets' CM, which is not the CM of the means.
    """
    numbers = _by_data(members, PARTS)
    numbers |= _derived(numbers, "cm", lambda local, base, novel: (local + harmonic_mean([base, novel])) / 2)
    return numbers | _averages(numbers, asked, (*PARTS, "cm"))


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
        domain, seed = str(one.run.fold.held_out), one.run.fold.repetition
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
        if adapters.has_adapters(one.run.path):
            values = asdict(adapters.adapters(one.run.path)["q"])
            block = OVERLAP
        else:
            found = learned.personal_parts(one.run.path)
            shares = {f"rank {rank}": 100 * float(found.energy(rank).mean()) for rank in RANKS}
            values = {**shares, "ranks for 90 %": float(found.effective_rank().mean())}
            block = SPECTRUM
        for column, value in values.items():
            numbers.setdefault(Key(block, one.variant, column), {})[one.run.fold.repetition] = value
    return numbers


def by_federation(members: Sequence[Member], asked: Sequence[str]) -> Numbers:
    """A block per metric: variants by data set, of the runs that train or test on several in one federation.

    Local is among a client's own classes; `held_out` is of the data sets on which nobody trains. With the mean over the
    data sets.
    """
    numbers: Numbers = {}
    for one in members:
        for metric in OF_FEDERATION:
            values = _of_parts(one, metric)
            if len(values) > 1:
                values |= {MEAN: fmean(values.values())}
            for column, value in values.items():
                numbers.setdefault(Key(metric, one.variant, column), {})[one.run.fold.repetition] = value
    return numbers


def neighbors(members: Sequence[Member], asked: Sequence[str]) -> Numbers:
    """Variants by data set: a block for own classes, and one for the classes of all other clients.

    The latter is exact: per client the counts on all test images minus those on its own, then the mean over clients.
    """
    numbers = _collected(members, "local", lambda one, data: Key("local", one.variant, data))
    for one in members:
        own, everything = (client_counts(one.run.path, metric) for metric in ("local", "all"))
        accuracies = []
        for client, (correct, total) in everything.items():
            own_correct, own_total = own.get(client, (0, 0))
            if total > own_total:
                accuracies.append(100 * (correct - own_correct) / (total - own_total))
        for data in one.data if accuracies else ():
            numbers.setdefault(Key(NEIGHBOR, one.variant, data), {})[one.run.fold.repetition] = fmean(accuracies)
    return numbers


def _by_data(members: Sequence[Member], metrics: Sequence[str]) -> Numbers:
    """Metrics of members: a block per data set, variants by metric."""
    return {key: own for metric in metrics for key, own in _collected(members, metric).items()}


def _averages(numbers: Numbers, asked: Sequence[str], columns: Sequence[str]) -> Numbers:
    """The block of means over several data sets, for the seeds that all of them have."""
    averages: Numbers = {}
    for variant in dict.fromkeys(key.row for key in numbers if len(asked) > 1):
        for column in columns:
            if mean := _mean([numbers.get(Key(data, variant, column), {}) for data in asked]):
                averages[Key(AVERAGE, variant, column)] = mean
    return averages


def _derived(numbers: Numbers, column: str, compute: Callable[..., float]) -> Numbers:
    """A further column, computed from Local, Base and Novel of a row, for the seeds that have all three."""
    found: Numbers = {}
    for block, row in dict.fromkeys(key[:2] for key in numbers):
        parts = [numbers.get(Key(block, row, part), {}) for part in PARTS]
        if seeds := sorted(set.intersection(*map(set, parts)), key=in_order):
            found[Key(block, row, column)] = {seed: compute(*(part[seed] for part in parts)) for seed in seeds}
    return found


def _of_parts(one: Member, metric: str) -> dict[str, float]:
    """A metric on test images by data set: of each part of a union that has it, or of all that the run represents."""
    prefix, metrics = f"test/{metric}.", one.run.metrics
    named = {name.removeprefix(prefix): found["last"] for name, found in metrics.items() if name.startswith(prefix)}
    if named and one.run.settings.get("data.parts"):
        return named
    whole = metrics.get(f"test/{metric}")
    return {} if whole is None else dict.fromkeys(one.data, whole["last"])


def _collected(members: Sequence[Member], metric: str, key: Callable[[Member, str], Key] | None = None) -> Numbers:
    """A metric of members in the cells that `key` gives for a member and a data set; None: data, variant, metric."""
    numbers: Numbers = {}
    for one in members:
        if (found := one.run.metrics.get(f"test/{metric}")) is not None:
            for data in one.data:
                cell = key(one, data) if key else Key(data, one.variant, metric)
                numbers.setdefault(cell, {})[one.run.fold.repetition] = found["last"]
    return numbers


def _mean(parts: Sequence[Mapping[Repetition, float]]) -> dict[Repetition, float]:
    """The mean by seed, for the seeds that all parts have."""
    seeds = set.intersection(*map(set, parts)) if parts else set()
    return {seed: fmean(part[seed] for part in parts) for seed in sorted(seeds, key=in_order)}

"""Layouts of tables: which numbers of which runs belong in which cell."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, harmonic_mean, stdev

from fedpgp.analysis.comparison import Run
from fedpgp.analysis.loading import client_accuracies
from fedpgp.analysis.reproduce.paper import Key
from fedpgp.storage.sweep_folder import Fold

AVERAGE = "average"
"""Block of the means over data sets."""
MEAN, SPREAD = "mean", "spread"
"""Columns of the mean over the other columns, and of their standard deviation (ddof 1)."""
OVERLAP, SPECTRUM = "overlap", "spectrum"
"""Blocks of the analysis of LoRA's adapters, and of the personal parts of prompts."""
PARTS = ("local", "base", "novel")

RANKS = (1, 4, 8)

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


def base_to_novel(members: Sequence[Member], asked: Sequence[str]) -> Numbers:
    """A block per data set and one of their means: variants by Local, Base, Novel, HM.

    In the block of means, HM is the harmonic mean of the other three means, as in the paper.
    """
    numbers: Numbers = {}
    for metric in (*PARTS, "hm"):
        numbers |= _collected(members, metric, _variant_by(metric))
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
    return _collected(members, "local", _variant_by("local"))


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
    from fedpgp.analysis import adapter_analysis

    numbers = base_to_novel(members, asked)
    for one in members:
        if adapter_analysis.has_adapters(one.run.path):
            values = asdict(adapter_analysis.adapters(one.run.path)["q"])
            block = OVERLAP
        else:
            found = adapter_analysis.personal_parts(one.run.path)
            shares = {f"rank {rank}": 100 * float(found.energy(rank).mean()) for rank in RANKS}
            values = {**shares, "ranks for 90 %": float(found.effective_rank().double().mean())}
            block = SPECTRUM
        for column, value in values.items():
            numbers.setdefault(Key(block, one.variant, column), {})[one.run.fold.seed] = value
    return numbers


def _variant_by(column: str) -> Callable[[Member, str], Key]:
    """Cells of a column, in a block per data set and a row per variant."""
    return lambda one, data: Key(data, one.variant, column)


def _collected(members: Sequence[Member], metric: str, key: Callable[[Member, str], Key]) -> Numbers:
    """A metric of all members in the cells that `key` gives for a member and a data set."""
    numbers: Numbers = {}
    for one in members:
        if (found := one.run.metrics.get(f"test/{metric}")) is not None:
            for data in one.data:
                numbers.setdefault(key(one, data), {})[one.run.fold.seed] = found["last"]
    return numbers


def _mean(parts: Sequence[Mapping[int, float]]) -> dict[int, float]:
    """The mean by seed, for the seeds that all parts have."""
    seeds = set.intersection(*map(set, parts)) if parts else set()
    return {seed: fmean(part[seed] for part in parts) for seed in sorted(seeds)}

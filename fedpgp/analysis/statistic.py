"""A number by seed and split of the data: mean, standard deviation, confidence interval and paired difference."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from statistics import fmean, stdev

from fedpgp.storage.sweep_folder import Repetition


@dataclass(frozen=True)
class Statistic:
    """One number per seed; of runs that also differ in the split of the data, one per seed and split.

    With several of both, two numbers can share a seed or a split. They count as independent all the same, so that the
    interval is a little too narrow.
    """

    by_seed: Mapping[Repetition, float]

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return fmean(self.by_seed.values())

    @property
    def std(self) -> float | None:
        """Standard deviation over the seeds (ddof 1); None for one seed."""
        return stdev(self.by_seed.values()) if len(self.by_seed) > 1 else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """95% confidence interval of the mean, by Student's t with n - 1 degrees of freedom; None for one seed."""
        if self.std is None:
            return None
        from scipy.special import stdtrit  # the quantile of Student's t, without the weight of scipy.stats

        count = len(self.by_seed)
        half = float(stdtrit(count - 1, 0.975)) * self.std / math.sqrt(count)
        return self.mean - half, self.mean + half

    def minus(self, other: Statistic) -> Statistic | None:
        """Paired difference over the seeds that both have; None if there are none."""
        seeds = sorted(self.by_seed.keys() & other.by_seed.keys(), key=in_order)
        return Statistic({seed: self.by_seed[seed] - other.by_seed[seed] for seed in seeds}) if seeds else None


def in_order(repetition: Repetition) -> tuple[int, ...]:
    """The key by which seeds, and pairs of seed and split, are sorted."""
    return repetition if isinstance(repetition, tuple) else (repetition,)


def repeated(repetition: Repetition) -> str:
    """`1`, or with a split `1/2`."""
    return "/".join(map(str, in_order(repetition)))


def over(repetitions: Collection[Repetition]) -> str:
    """What a mean is over: `one seed`, `3 seeds`, `3 splits`, `2 seeds x 3 splits`."""
    return " x ".join(f"{count} {name}" for name, count in _varied(repetitions).items()) or "one seed"


def varied(repetitions: Collection[Repetition]) -> str:
    """What differs between repetitions: `seeds` (also if nothing does), `splits`, or `seeds and splits`."""
    return " and ".join(_varied(repetitions)) or "seeds"


def counted(repetitions: Collection[Repetition]) -> str:
    """The cell of a column `seeds`: `3`, or with splits what `over` says."""
    return over(repetitions) if any(isinstance(one, tuple) for one in repetitions) else str(len(repetitions))


def _varied(repetitions: Collection[Repetition]) -> dict[str, int]:
    """How many seeds and splits there are, of those of which there are several."""
    pairs = [in_order(one) for one in repetitions]
    counts = [len({pair[place] for pair in pairs if len(pair) > place}) for place in range(2)]
    return {name: count for name, count in zip(("seeds", "splits"), counts, strict=True) if count > 1}

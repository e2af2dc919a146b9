"""What a sweep optimizes: one metric, or two and the rule that names the best trial."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import ge
from statistics import harmonic_mean
from typing import Any, Self

from fedpgp.core.errors import ConfigError

HM = "hm"
"""The rule that names the trial with the highest harmonic mean of the objectives."""
CONDITION = re.compile(r"(\S+)\s+where\s+(\S+?)\s*(>=|<=)\s*(\S+)")
EXAMPLE = 'write hm, or "val/local where val/novel >= 70"'


@dataclass(frozen=True)
class Condition:
    """The rule `METRIC where OTHER >= LIMIT`, or `<=`."""

    metric: str
    other: str
    at_least: bool
    limit: float


@dataclass(frozen=True)
class Objectives:
    """One or two metrics, for each whether its maximum or its minimum is wanted, and the rule for two.

    Raises:
        ConfigError: there are more metrics, or not as many modes as metrics, or the rule does not fit them.
    """

    metrics: tuple[str, ...]
    modes: tuple[str, ...] = ("max",)
    rule: str = HM

    def __post_init__(self) -> None:
        if len(self.metrics) not in (1, 2) or len(set(self.metrics)) < len(self.metrics):
            raise ConfigError(f"tune.metric: give one metric, or two different ones (given: {list(self.metrics)})")
        if len(self.modes) != len(self.metrics):
            raise ConfigError("tune.mode: give one for all metrics, or a list with one for each")
        if len(self.metrics) == 1 and self.rule != HM:
            raise ConfigError(f"tune.best: {self.rule!r} chooses between two metrics; remove it, or add a metric")
        if len(self.metrics) == 2 and self.rule == HM and set(self.modes) != {"max"}:
            example = f"{self.metrics[0]} where {self.metrics[1]} <= LIMIT"
            raise ConfigError(f"tune.best: hm needs two metrics of which larger is better; write {example!r}")
        _ = self.condition

    @classmethod
    def of_head(cls, head: Mapping[str, Any]) -> Self:
        """Read what `head` returned."""
        metrics, modes = ((one,) if isinstance(one, str) else tuple(one) for one in (head["metric"], head["mode"]))
        return cls(metrics, modes, head.get("best", HM))

    @property
    def head(self) -> dict[str, Any]:
        """The entries `metric`, `mode` and, with two metrics, `best` of a sweep's file."""
        if len(self.metrics) == 1:
            return {"metric": self.metrics[0], "mode": self.modes[0]}
        return {"metric": list(self.metrics), "mode": list(self.modes), "best": self.rule}

    @property
    def name(self) -> str:
        """What trials are ranked by: the metric or, of two, the rule."""
        return self.metrics[0] if len(self.metrics) == 1 else self.rule

    @property
    def title(self) -> str:
        """As `name`, with the metrics of which hm is the mean."""
        return f"hm of {' and '.join(self.metrics)}" if self.name == HM else self.name

    @property
    def mode(self) -> str:
        """Whether the best trial has the largest or the smallest value."""
        return self.modes[self.metrics.index(self.condition.metric)] if self.condition else self.modes[0]

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the numbers of a trial: what it is ranked by, then the metrics, each once."""
        return tuple(dict.fromkeys((self.name, *self.metrics)))

    def value(self, values: Sequence[float | None]) -> float | None:
        """The number that a trial is ranked by; None: a metric is missing, or the condition does not hold.

        Args:
            values: of the metrics, in their order.
        """
        known = [value for value in values if value is not None]
        if len(known) < len(self.metrics):
            return None
        if len(self.metrics) == 1:
            return known[0]
        if self.condition is None:
            return harmonic_mean(known)
        found = dict(zip(self.metrics, known, strict=True))
        value = found[self.condition.other]
        holds = value >= self.condition.limit if self.condition.at_least else value <= self.condition.limit
        return found[self.condition.metric] if holds else None

    def front(self, points: Sequence[Sequence[float | None]]) -> list[int]:
        """Numbers of the points that no other one dominates, from the best by the first metric to the worst.

        A point dominates another if it is no worse in any metric and better in one. Points that lack a value are left
        out.
        """
        signs = [1 if mode == "max" else -1 for mode in self.modes]
        scores = {
            number: tuple(sign * value for sign, value in zip(signs, point, strict=True) if value is not None)
            for number, point in enumerate(points)
        }
        known = {number: score for number, score in scores.items() if len(score) == len(signs)}
        best = [
            number
            for number, score in known.items()
            if not any(other != score and all(map(ge, other, score)) for other in known.values())
        ]
        return sorted(best, key=lambda number: (known[number], -number), reverse=True)

    @cached_property
    def condition(self) -> Condition | None:
        """The condition of the rule, if it has one."""
        if self.rule == HM:
            return None
        found = CONDITION.fullmatch(self.rule.strip())
        if found is None:
            raise ConfigError(f"tune.best: {self.rule!r} is no rule; {EXAMPLE}")
        metric, other, sign, text = found.groups()
        for name in (metric, other):
            if name not in self.metrics:
                raise ConfigError(f"tune.best: {name} is not one of the metrics {', '.join(self.metrics)}; {EXAMPLE}")
        if metric == other:
            raise ConfigError(f"tune.best: the condition must be on the other metric, not on {other}; {EXAMPLE}")
        try:
            limit = float(text)
        except ValueError:
            limit = math.nan
        if not math.isfinite(limit):
            raise ConfigError(f"tune.best: {text!r} is no number; {EXAMPLE}")
        return Condition(metric, other, sign == ">=", limit)

"""Read a search space in Ray Tune's terms from YAML. It is data: no code is executed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedpgp.core.errors import ConfigError
from fedpgp.core.text import did_you_mean

GRID = "grid_search"
RANGES = {"uniform": "2 numbers", "loguniform": "2 numbers above 0", "randint": "2 whole numbers"}
TERMS = (GRID, "choice", *RANGES)


@dataclass(frozen=True)
class Term:
    """The domain of one key: `grid_search` or `choice` of values; `uniform`, `loguniform`, `randint` of [low, high)."""

    kind: str
    values: tuple[Any, ...]

    @property
    def is_grid(self) -> bool:
        """Whether every value is tried."""
        return self.kind == GRID

    def draw(self, generator: np.random.Generator) -> Any:
        """Draw a value of a term other than `grid_search`."""
        if self.kind == "choice":
            return self.values[int(generator.integers(len(self.values)))]
        low, high = self.values
        if self.kind == "randint":
            return int(generator.integers(low, high))
        if self.kind == "uniform":
            return float(generator.uniform(low, high))
        return math.exp(generator.uniform(math.log(low), math.log(high)))


def is_term(value: Any) -> bool:
    """Whether a value looks like a term: a mapping with one key that is the name of a term, or similar to one."""
    return isinstance(value, Mapping) and len(value) == 1 and bool(did_you_mean(next(iter(value)), TERMS, cutoff=0.8))


def parse(key: str, value: Any) -> Term:
    """Parse a term such as `{grid_search: [1, 2, 4]}` or `{loguniform: [0.001, 0.1]}`.

    Raises:
        ConfigError: invalid term.
    """
    shape = f"write a term with its values, for example {{grid_search: [1, 2, 4]}} (terms: {', '.join(TERMS)})"
    if not isinstance(value, Mapping) or len(value) != 1:
        raise ConfigError(f"space: {key}: {shape}; given: {value!r}")
    ((kind, given),) = value.items()
    if isinstance(given, str):
        raise ConfigError(f"space: {key}: {kind}: text such as {given!r} is not executed; {shape}")
    if kind not in TERMS:
        raise ConfigError(f"space: {key}: unknown term {kind!r}; {did_you_mean(kind, TERMS, shape)}")
    if not isinstance(given, list) or not given:
        raise ConfigError(f"space: {key}: {kind} needs a list; given: {given!r}")
    if kind in RANGES and not _is_range(kind, given):
        raise ConfigError(f"space: {key}: {kind} needs {RANGES[kind]}, the lower one first; given: {given!r}")
    return Term(kind, tuple(given))


def _is_range(kind: str, given: list[Any]) -> bool:
    kinds: type | tuple[type, ...] = int if kind == "randint" else (int, float)
    if len(given) != 2 or not all(isinstance(bound, kinds) and not isinstance(bound, bool) for bound in given):
        return False
    low, high = given
    return bool(-math.inf < low < high < math.inf and (kind != "loguniform" or low > 0))

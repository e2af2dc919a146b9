"""The terms of a search space: what values a key can have, and under which conditions it applies."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pydantic import FiniteFloat, TypeAdapter, ValidationError

from fedpgp import methods, server_rules
from fedpgp.config import Experiment, leaves
from fedpgp.core.errors import ConfigError
from fedpgp.core.text import did_you_mean

FOLD_KEYS = {
    "seed": "folds.seeds=[1, 2, 3]",
    "data.split_seed": "folds.splits=[1, 2, 3]",
    "protocol.held_out": "folds.held_out=all",
}
"""Settings that distinguish folds and cannot be searched over, with what to use instead."""
GRID = "grid_search"
RANGES = {"uniform": "2 numbers", "loguniform": "2 numbers above 0", "randint": "2 whole numbers"}
BOUNDS: dict[bool, TypeAdapter[Any]] = {
    True: TypeAdapter(tuple[int, int]),
    False: TypeAdapter(tuple[FiniteFloat, FiniteFloat]),
}
"""Reads the two bounds of a range as settings are read; by whether they are whole."""
TERMS = (GRID, "choice", *RANGES)
WHEN = "when"
"""Key of a term's condition."""
NAMED: Mapping[str, Callable[[str], Any]] = {"method": methods.find, "federation.server": server_rules.find}
"""The sections whose `name` says what other keys they have, with the class of a name."""
DEFAULTS: Mapping[str, Any] = leaves(Experiment().model_dump(mode="json"))
ABSENT = object()
"""Stands for the value of a setting that does not exist, such as the rank of a method without one."""

Point = Mapping[str, Any]
"""The values of the searched keys of a trial; of those that apply to it."""


@dataclass(frozen=True)
class Term:
    """The domain of one key: `grid_search` or `choice` of values; `uniform`, `loguniform`, `randint` of [low, high)."""

    kind: str
    values: tuple[Any, ...]
    key: str = ""
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """the condition: admissible values of other settings by dotted key, all of which must hold; empty: none"""
    variant: str | None = None
    """the variant that the term belongs to; None: all of them"""

    @property
    def name(self) -> str:
        """Its key, after that of its variant; no other term of the sweep has the same."""
        return self.key if self.variant is None else f"{self.variant}: {self.key}"

    @property
    def where(self) -> str:
        """The place in the file, for messages."""
        return f"{'space' if self.variant is None else 'variants'}: {self.name}"

    @property
    def leaves(self) -> set[str]:
        """The dotted keys that it sets: those of all its values, if it is a section."""
        return {leaf for value in self.values for leaf in leaves({self.key: value})}

    def draw(self, generator: np.random.Generator) -> Any:
        """Draw a value; all values of `grid_search` and `choice` are equally likely."""
        if self.kind not in RANGES:
            return self.values[int(generator.integers(len(self.values)))]
        low, high = self.values
        if self.kind == "randint":
            return int(generator.integers(low, high))
        if self.kind == "uniform":
            return float(generator.uniform(low, high))
        return math.exp(generator.uniform(math.log(low), math.log(high)))

    def follows(self, other: "Term") -> bool:
        """Whether its condition refers to a setting that another term of the same trial determines.

        A name (`method.name`) also determines the settings beside it: another method has others.
        """
        if None not in (self.variant, other.variant) and self.variant != other.variant:
            return False
        set_by = other.leaves
        names = {leaf.removesuffix(".name") for leaf in set_by if leaf.endswith(".name") and other is not self}
        return any(key in set_by or key.rpartition(".")[0] in names for key in self.when)

    def holds(self, tree: Mapping[str, Any]) -> bool:
        """Whether its condition holds for an experiment, given as a mapping that may leave out defaults."""
        return all(any(_equal(setting(tree, key), one) for one in values) for key, values in self.when.items())


def is_term(value: Any) -> bool:
    """Whether a value looks like a term: a mapping with the name of a term, or one similar to it, and no third key."""
    return isinstance(value, Mapping) and len(value) <= 2 and any(did_you_mean(key, TERMS, cutoff=0.8) for key in value)


def parse_term(key: str, value: Any, variant: str | None = None) -> Term:
    """Parse a term such as `{grid_search: [1, 2, 4]}` or `{loguniform: [0.001, 0.1], when: {method.name: fedpgp}}`.

    Raises:
        ConfigError: it is not a term.
    """
    shape = f"write a term with its values, for example {{grid_search: [1, 2, 4]}} (terms: {', '.join(TERMS)})"
    where = Term("", (), key, variant=variant).where
    kinds = [one for one in value if one != WHEN] if isinstance(value, Mapping) else []
    if len(kinds) != 1:
        misspelt = next((one for one in kinds if one not in TERMS and did_you_mean(one, [WHEN])), None)
        hint = f"unknown key {misspelt!r}; did you mean {WHEN}?" if misspelt else f"{shape}; given: {value!r}"
        raise ConfigError(f"{where}: {hint}")
    (kind,) = kinds
    given = value[kind]
    if isinstance(given, str):
        raise ConfigError(f"{where}: {kind}: text such as {given!r} is not executed; {shape}")
    if kind not in TERMS:
        raise ConfigError(f"{where}: unknown term {kind!r}; {did_you_mean(kind, TERMS, shape)}")
    if not isinstance(given, list) or not given:
        raise ConfigError(f"{where}: {kind} needs a list; given: {given!r}")
    values = _bounds(kind, given) if kind in RANGES else tuple(given)
    if values is None:
        raise ConfigError(f"{where}: {kind} needs {RANGES[kind]}, the lower one first; given: {given!r}")
    return Term(kind, values, key, _condition(where, value[WHEN]) if WHEN in value else {}, variant)


def leaves_of(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings to dotted keys as `config.leaves` does, but keep terms whole."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        nested = isinstance(value, Mapping) and not is_term(value)
        flat |= leaves_of(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat


def ordered(terms: Iterable[Term], grids_first: bool = False) -> list[Term]:
    """The terms in their order, but each after those that its condition refers to.

    Args:
        grids_first: also put every `grid_search` as far to the front as the conditions allow.

    Raises:
        ConfigError: conditions refer to each other.
    """
    left, found = list(terms), list[Term]()
    while left:
        ready = [one for one in left if not any(one.follows(other) for other in left)]
        if not ready:
            keys = ", ".join(one.where for one in left)
            raise ConfigError(f"{keys}: the conditions (when) refer to each other or to themselves; remove one")
        chosen = next((one for one in ready if one.kind == GRID), ready[0]) if grids_first else ready[0]
        left = [one for one in left if one is not chosen]
        found.append(chosen)
    return found


def expand(
    terms: Sequence[Term], applies: Callable[[Term, Point], bool], choices: Callable[[Term, Point], Iterable[Any]]
) -> Iterator[dict[str, Any]]:
    """Yield every point of some `ordered` terms; the last one varies fastest.

    Args:
        applies: whether a term applies at a point of the terms before it; otherwise the point does without its key.
        choices: the values that a term takes at such a point.
    """

    def beyond(point: Point, left: Sequence[Term]) -> Iterator[dict[str, Any]]:
        if not left:
            yield dict(point)
        elif applies(left[0], point):
            for value in choices(left[0], point):
                yield from beyond({**point, left[0].key: value}, left[1:])
        else:
            yield from beyond(point, left[1:])

    yield from beyond({}, terms)


def setting(tree: Mapping[str, Any], key: str) -> Any:
    """The value of a setting, or its default, or `ABSENT`."""
    found: Any = tree
    for part in key.split("."):
        if not isinstance(found, Mapping) or part not in found:
            return _default(tree, key)
        found = found[part]
    return found


def _default(tree: Mapping[str, Any], key: str) -> Any:
    section, _, last = key.rpartition(".")
    if section not in NAMED or last == "name":
        return DEFAULTS.get(key, ABSENT)
    fields = NAMED[section](str(setting(tree, f"{section}.name"))).settings_type.model_fields
    return fields[last].get_default(call_default_factory=True) if last in fields else ABSENT


def _equal(one: Any, other: Any) -> bool:
    """Whether two values are the same in YAML: 1 and 1.0 are, 1 and true are not."""
    one = list(one) if isinstance(one, tuple) else one
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


def _condition(where: str, given: Any) -> dict[str, tuple[Any, ...]]:
    """Read a condition: by dotted key a value, or a list of admissible ones."""
    flat = leaves(given) if isinstance(given, Mapping) else {}
    if not flat:
        raise ConfigError(
            f"{where}: {WHEN} needs settings with their values, for example {{method.name: fedpgp}}; given: {given!r}"
        )
    return {key: tuple(value) if isinstance(value, list) else (value,) for key, value in flat.items()}


def _bounds(kind: str, given: list[Any]) -> tuple[Any, ...] | None:
    """The bounds of a range; None: there are not two, or they are no numbers of its kind in their order."""
    if any(isinstance(bound, bool) for bound in given):
        return None
    try:
        low, high = BOUNDS[kind == "randint"].validate_python(given)
    except ValidationError:
        return None
    return (low, high) if low < high and (kind != "loguniform" or low > 0) else None

"""Check an adaptive search before it starts: Optuna itself, the known points, and points that probe the space."""

import importlib.util
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from fedpgp.core.errors import ConfigError
from fedpgp.core.text import did_you_mean
from fedpgp.experiments.sweeps.search_space import RANGES, Point, Term
from fedpgp.experiments.sweeps.sweep_settings import Sweep

VARIANT = "variant"
"""Key of the variant in `tune.points_to_try`; no setting of an experiment has this name."""


def check_installed() -> None:
    """Raise `ConfigError` if Optuna is missing."""
    if importlib.util.find_spec("optuna") is None:
        raise ConfigError("tune.search=optuna needs Optuna; pip install 'fedpgp[optuna]'")


def complete(sweep: Sweep, variant: str, choose: Callable[[Term], Any]) -> dict[str, Any]:
    """The point of a variant with the value that `choose` gives for each term that applies, by key."""
    (point,) = sweep.points(variant, tuple(sweep.terms.values()), lambda term, _: (choose(term),))
    return point


def bounds(term: Term) -> tuple[Any, Any]:
    """The smallest and the largest value of a range, whose upper end is excluded."""
    low, high = term.values
    return (low, high - 1) if term.kind == "randint" else (float(low), math.nextafter(high, low))


def probes(sweep: Sweep) -> Iterator[tuple[str, Point]]:
    """Yield points that together have every variant, value and bound, where it applies, beside the first of the others.

    The known points come first. Raises `ConfigError` if one of these is not in the space.
    """
    points = [(variant, complete(sweep, variant, _first(known))) for variant, known in known_points(sweep)]
    points += [(variant, complete(sweep, variant, _first({}))) for variant in sweep.labels]
    for term in sweep.terms.values():
        for value in _ends(term):
            wanted = _first({**_condition(sweep, term), term.key: value})
            having = (
                (label, complete(sweep, label, wanted)) for label in sweep.labels if term.variant in (None, label)
            )
            points += [next((one for one in having if term.key in one[1]), points[-1])]
    yield from (one for number, one in enumerate(points) if one not in points[:number])


def known_points(sweep: Sweep) -> list[tuple[str, Point]]:
    """Variants and values of `tune.points_to_try`, in its order; without a variant, the first. Raises `ConfigError`."""
    found = []
    for number, given in enumerate(sweep.tune.points_to_try, 1):
        try:
            found.append(_known_point(sweep, given))
        except ConfigError as error:
            raise ConfigError(f"tune.points_to_try: point {number}: {error}") from None
    return found


def _known_point(sweep: Sweep, given: Mapping[str, Any]) -> tuple[str, Point]:
    point = dict(given)
    variant = point.pop(VARIANT, sweep.labels[0])
    if variant not in sweep.labels:
        known = f"use one of {', '.join(sweep.variants)}" if sweep.variants else "the sweep has no variants"
        raise ConfigError(f"unknown variant {variant!r}; {did_you_mean(variant, sweep.variants, known)}")
    terms = {term.key: term for term in sweep.terms.values() if term.variant in (None, variant)}
    known = f"known keys: {', '.join(terms)}"
    for key, value in point.items():
        if key not in terms:
            raise ConfigError(f"{key} is not searched; {did_you_mean(key, terms, known)}")
        if not _contains(terms[key], value):
            raise ConfigError(f"{key}={value!r} is not in { {terms[key].kind: list(terms[key].values)} }")
    if left := point.keys() - complete(sweep, variant, _first(point)).keys():
        raise ConfigError(f"{', '.join(sorted(left))}: the condition (when) does not hold; leave it out")
    return variant, point


def _contains(term: Term, value: Any) -> bool:
    if term.kind not in RANGES:
        return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in term.values)
    kinds = int if term.kind == "randint" else int | float
    low, high = bounds(term)
    return isinstance(value, kinds) and not isinstance(value, bool) and bool(low <= value <= high)


def _first(fixed: Mapping[str, Any]) -> Callable[[Term], Any]:
    """Chooses fixed values, and the first one of every other term."""
    return lambda term: fixed.get(term.key, _ends(term)[0])


def _condition(sweep: Sweep, term: Term) -> dict[str, Any]:
    """Values of other terms for which a term applies: those that its condition names, and theirs in turn."""
    found: dict[str, Any] = {}
    for other in reversed(sweep.terms.values()):
        wanted = [value for value in term.when.get(other.key, ()) if _contains(other, value)]
        if wanted:
            found = {**_condition(sweep, other), **found, other.key: wanted[0]}
    return found


def _ends(term: Term) -> tuple[Any, ...]:
    """The values of a list, or the bounds of a range."""
    return bounds(term) if term.kind in RANGES else term.values

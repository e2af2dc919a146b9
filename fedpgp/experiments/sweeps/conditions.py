"""Check the conditions (`when`) of a sweep's terms, and that a searched key has one where it needs one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from fedpgp.config import Experiment, leaves
from fedpgp.core.errors import ConfigError
from fedpgp.core.text import did_you_mean, distinct
from fedpgp.experiments.sweeps.search_space import DEFAULTS, FOLD_KEYS, NAMED, RANGES, WHEN, Point, Term

if TYPE_CHECKING:
    from fedpgp.experiments.sweeps.sweep_settings import Sweep


def check(sweep: Sweep, terms: Sequence[Term]) -> list[str]:
    """What is wrong with the conditions of the `ordered` terms of a sweep, a line for each problem."""
    known = _known(sweep, terms)
    return [f"{term.where}: {WHEN}: {line}" for term in terms for line in _problems(sweep, term, terms, known)]


def _problems(sweep: Sweep, term: Term, terms: Sequence[Term], known: set[str]) -> Iterator[str]:
    unknown = [key for key in term.when if key not in known]
    yield from (f"no setting {key}; {did_you_mean(key, known, 'see `fedpgp config`')}" for key in unknown)
    of_folds = [key for key in term.when if key in FOLD_KEYS]
    yield from (f"{key} differs between the folds of a trial; name another setting" for key in of_folds)
    if term.when and not unknown and not of_folds and _never(sweep, term, terms):
        wanted = " and ".join(f"{key}={' or '.join(distinct(values))}" for key, values in term.when.items())
        yield f"no trial has {wanted}; name other values, or leave out the key"


def _known(sweep: Sweep, terms: Sequence[Term]) -> set[str]:
    """The dotted keys of all settings that a trial can have."""
    known = {*DEFAULTS, *leaves(sweep.base), *(leaf for term in terms for leaf in term.leaves)}
    known |= {leaf for label in sweep.variants for leaf in sweep.fixed(label)}
    for section in NAMED:
        for name in sweep.names(section):
            known |= {f"{section}.{key}" for key in _keys(section, name) or ()}
    return known


def _keys(section: str, name: str) -> set[str] | None:
    """The settings of a method or a server rule; None: it is unknown, which is reported where trials are checked."""
    with suppress(ConfigError):
        return set(NAMED[section](name).settings_type.model_fields)
    return None


def _never(sweep: Sweep, term: Term, terms: Sequence[Term]) -> bool:
    """Whether a term applies to no trial, whatever is drawn."""
    others = _behind(term, terms)
    with suppress(ConfigError):  # of an unknown name, as above
        for label in sweep.labels:
            for point in sweep.points(label, others, lambda one, _: _possible(one, others)):
                if term.key in point:
                    return False
        return True
    return False


def _behind(term: Term, terms: Sequence[Term]) -> list[Term]:
    """The terms that decide whether a term applies, and the term itself."""
    found = [term]
    for other in reversed(terms):
        if other is not term and any(one.follows(other) for one in found):
            found.insert(0, other)
    return found


def _possible(term: Term, others: Sequence[Term]) -> list[Any]:
    """Values of a term: all of a list; of a range its lower bound, and the whole numbers that conditions name."""
    if term.kind not in RANGES:
        return list(term.values)
    low, high = term.values
    named = [value for other in others for value in other.when.get(term.key, ())] if term.kind == "randint" else []
    return [low, *(value for value in named if isinstance(value, int) and low < value < high)]


def refuse_foreign(sweep: Sweep, experiment: Experiment, point: Point) -> None:
    """Raise `ConfigError` if a key of the space is for other methods, or server rules, than that of a trial."""
    names = {"method": experiment.method.name, "federation.server": experiment.federation.server.name}
    for section, name in names.items():
        own = _keys(section, name)
        for key in point.keys() & sweep.space.keys():
            place, _, last = key.rpartition(".")
            if place == section and last != "name" and own is not None and last not in own:
                takers = [one for one in sorted(sweep.names(section)) if last in (_keys(section, one) or ())]
                if takers:
                    raise ConfigError(
                        f"space: {key}: {section}.name={name} has no {last}; give the term a condition, "
                        f"{WHEN}: {{{section}.name: [{', '.join(takers)}]}}"
                    )

"""Suggest points of a search space with Optuna, through Ray Tune's OptunaSearch. Needs the extra `optuna`."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, NSGAIISampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from ray.tune.search.optuna import OptunaSearch

from fedpgp.core.seeding import derive_seed
from fedpgp.experiments.sweeps import probes
from fedpgp.experiments.sweeps.probes import VARIANT
from fedpgp.experiments.sweeps.search_space import RANGES, Point, Term
from fedpgp.experiments.sweeps.sweep_settings import Sweep
from fedpgp.storage.objectives import Objectives

MAX_POPULATION = 50
"""NSGA-II: trials of a generation, in a long search."""
GENERATIONS = 5
"""NSGA-II: generations of a short search."""


class OptunaSampler:
    """Suggests points one after another, from the values of earlier ones.

    A suggestion depends only on the seed, on its number, and on the points and values that it was told before: a search
    that continues from its records suggests what it would have suggested anyway. One metric is optimized by TPE
    (Bergstra et al., 2011), two by NSGA-II (Deb et al., 2002) with generations of a fifth of `tune.num_samples`, at
    least 4 and at most 50 trials. Lists of values are categories, without an order.

    Args:
        history: what was suggested before, in order; `ask` repeats these first.
    """

    def __init__(self, sweep: Sweep, objectives: Objectives, history: Sequence[tuple[str, Point]] = ()) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        logging.getLogger(OptunaSearch.__module__).setLevel(logging.ERROR)
        self._sweep, self._terms = sweep, tuple(sweep.terms.values())
        self._labels = tuple(sweep.variants)
        self._metrics = [f"value {number}" for number in range(len(objectives.metrics))]
        several = len(self._metrics) > 1
        size = min(MAX_POPULATION, max(4, sweep.tune.num_samples // GENERATIONS))
        seeded = _nsga(size) if several else TPESampler
        self._search = OptunaSearch(
            self._define,
            metric=self._metrics if several else self._metrics[0],
            mode=list(objectives.modes) if several else objectives.modes[0],
            points_to_evaluate=[
                *(self._parameters(variant, point) for variant, point in history),
                *(self._parameters(*known) for known in probes.known_points(sweep)[len(history) :]),
            ],
            sampler=_Seeded(sweep.tune.seed, seeded),
        )
        self._asked = 0
        self._suggested: tuple[str, Point] = "", {}

    def ask(self) -> tuple[int, str, Point]:
        """Suggest: the number of the suggestion, a variant, and a value for each key that applies."""
        number = self._asked
        self._asked += 1
        self._search.suggest(str(number))
        return number, *self._suggested

    def tell(self, number: int, values: Sequence[float | None] | None) -> None:
        """Report the values of a suggestion; None: it failed. If one is missing, it counts as worse than others."""
        found = dict(zip(self._metrics, values, strict=True)) if values is not None else None
        measured = found if found is not None and None not in found.values() else None
        self._search.on_trial_complete(str(number), measured, error=values is None)

    def _define(self, trial: Any) -> None:
        """Ask Optuna for the variant and for the value of each term that applies."""
        labels = self._labels
        variant = labels[trial.suggest_categorical(VARIANT, range(len(labels)))] if labels else ""
        point = probes.complete(self._sweep, variant, lambda term: _value(term, _ask(trial, term)))
        self._suggested = variant, point

    def _parameters(self, variant: str, point: Point) -> dict[str, Any]:
        """A point as parameters of Optuna."""
        own = {VARIANT: self._labels.index(variant)} if self._labels else {}
        terms = [term for term in self._terms if term.key in point and term.variant in (None, variant)]
        return own | {term.name: _parameter(term, point[term.key]) for term in terms}


class _Seeded(BaseSampler):
    """Another sampler, made anew for each trial from the seed and the number of the trial.

    It samples at once, so that it counts trials whose values are given, too: NSGA-II assigns them to generations then.
    """

    def __init__(self, seed: int, make: Callable[..., BaseSampler]) -> None:
        self._seed, self._make = seed, make
        self._own = make()
        self._space: dict[str, BaseDistribution] = {}
        self._sampled: dict[str, Any] = {}

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Make the sampler of a trial, and sample."""
        self._own = self._make(seed=derive_seed(self._seed, "search", trial.number) % 2**32)
        self._own.before_trial(study, trial)
        self._space = self._own.infer_relative_search_space(study, trial)
        self._sampled = self._own.sample_relative(study, trial, self._space)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The parameters that are sampled together."""
        return self._space

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Their values."""
        return self._sampled

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """As the sampler does."""
        return self._own.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """As the sampler does."""
        self._own.after_trial(study, trial, state, values)


def _nsga(size: int) -> Callable[..., BaseSampler]:
    return lambda seed=None: NSGAIISampler(population_size=size, seed=seed)


def _ask(trial: Any, term: Term) -> Any:
    """Ask Optuna for the parameter of a term: a number in a range, or the place of a value in a list."""
    if term.kind not in RANGES:
        return trial.suggest_categorical(term.name, range(len(term.values)))
    low, high = probes.bounds(term)
    if term.kind == "randint":
        return trial.suggest_int(term.name, low, high)
    return trial.suggest_float(term.name, low, high, log=term.kind == "loguniform")


def _value(term: Term, parameter: Any) -> Any:
    """The value of a parameter."""
    return parameter if term.kind in RANGES else term.values[parameter]


def _parameter(term: Term, value: Any) -> Any:
    """The parameter of a value."""
    return value if term.kind in RANGES else term.values.index(value)

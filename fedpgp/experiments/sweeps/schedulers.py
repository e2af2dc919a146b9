"""The schedulers of a sweep: Ray Tune's, which compare trials by the mean over folds at the same round."""

import math
from collections.abc import Sequence
from typing import Any

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from fedpgp.experiments.sweeps.sweep_settings import TuneSettings

REDUCTION = 3
"""asha, hyperband: one in so many trials continues after each evaluation."""


def scheduler(settings: TuneSettings, rounds: int) -> TrialScheduler:
    """The scheduler of a sweep; `rounds` is the number of rounds of its longest trial."""
    compared = {"time_attr": "rounds", "metric": "value", "mode": settings.objectives("").mode}
    if settings.scheduler == "fifo":
        return FIFOScheduler()
    if settings.scheduler == "median":  # without the time slice it would pause trials, which cannot be restored
        rule = MedianStoppingRule(**compared, grace_period=settings.grace_rounds, min_time_slice=math.inf)
        return Brackets([rule])
    grace = [min(settings.grace_rounds, rounds)]
    while settings.scheduler == "hyperband" and grace[-1] < rounds:
        grace.append(min(REDUCTION * grace[-1], rounds))
    return Brackets(
        [ASHAScheduler(**compared, max_t=rounds + 1, grace_period=first, reduction_factor=REDUCTION) for first in grace]
    )


class Brackets(FIFOScheduler):  # type: ignore[misc]
    """Gives trials to schedulers in turn, each of which compares its own trials only, as far as these have a value.

    With `ASHAScheduler`s whose first comparisons are after 1, 3, 9, ... times the grace period, and after the last
    round, this is asynchronous Hyperband (Li et al., MLSys 2020, section 3.3: it loops through the brackets). One
    scheduler is ASHA alone. Differs from `ASHAScheduler(brackets=N)`, which draws the bracket of a trial from numpy's
    global generator, in being reproducible, and in a bracket that never stops a trial. Tune's `HyperBandScheduler` is
    the synchronous one: it pauses trials, and so needs trainables that are saved and restored.
    """

    def __init__(self, brackets: Sequence[TrialScheduler]) -> None:
        super().__init__()
        self._brackets = brackets
        self._of: dict[str, TrialScheduler] = {}

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Give a new trial to the next scheduler."""
        self._of[trial.trial_id] = self._brackets[len(self._of) % len(self._brackets)]
        self._of[trial.trial_id].on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Decide whether a trial goes on."""
        return str(self._of[trial.trial_id].on_trial_result(tune_controller, trial, result))

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Keep the last value of a trial for later comparisons, if it has one."""
        if "value" in result:
            self._of[trial.trial_id].on_trial_complete(tune_controller, trial, result)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """Forget a trial that did not run."""
        self._of[trial.trial_id].on_trial_remove(tune_controller, trial)

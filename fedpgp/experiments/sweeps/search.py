"""Give the trials of an adaptive search to Ray Tune one after another, each recorded before it starts."""

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from ray.tune.search import Searcher

from fedpgp.core.callbacks import RunCallback
from fedpgp.core.errors import UserError
from fedpgp.experiments.sweeps import sampling, trial_runner
from fedpgp.experiments.sweeps.preparation import Preparation
from fedpgp.experiments.sweeps.search_space import Point
from fedpgp.experiments.sweeps.trial_runner import Report, TrialWork
from fedpgp.storage.sweep_folder import Result, Suggestion, SweepFolder, TrialSpec

MAX_REPEATS = 50
"""The search ends once so many suggestions in a row were trials of this sweep already."""


class Sampler(Protocol):
    """Suggests points of a search space from the values of earlier ones."""

    def ask(self) -> tuple[int, str, Point]:
        """Suggest: the number of the suggestion, a variant, and values by key."""

    def tell(self, number: int, values: Sequence[float | None] | None) -> None:
        """Report the values of a suggestion; None: it failed."""


def recorded(prepared: Preparation, folder: SweepFolder) -> Iterator[TrialWork]:
    """The trials that were suggested, in order, without those that turned out to be invalid."""
    first = {one.trial: one for one in reversed(folder.suggestions)}
    for spec in folder.trials:
        one = first[spec.id]
        try:
            trial = prepared.settled(sampling.suggested(prepared.sweep, spec.label, one.variant, one.point))
            yield prepared.work(folder, trial, prepared.plans(trial))
        except UserError:
            if folder.result(spec.id) is None:
                raise


class Search(Searcher):  # type: ignore[misc]
    """The trials of an adaptive search: first those that were suggested before and have not ended, then new ones.

    A new trial is written to the sweep's folder before it starts. One that was suggested before, or whose folds
    all finished in other sweeps, is not run: the sampler is told its values. One that turns out to be
    invalid fails.

    Args:
        sampler: first repeats what is recorded in the folder.
    """

    def __init__(
        self,
        prepared: Preparation,
        folder: SweepFolder,
        sampler: Sampler,
        todo: Sequence[TrialWork],
        callback: RunCallback,
    ) -> None:
        super().__init__()
        self.work: dict[str, TrialWork] = {one.id: one for one in todo}
        """given to Tune so far, or next, by id"""
        self.error: Exception | None = None
        """why it could not go on"""
        self.on_end: Callable[[str, Result], None] = lambda label, result: None
        """called with the label and the result of each trial that ended without running"""
        self._prepared, self._folder, self._sampler, self._callback = prepared, folder, sampler, callback
        self._open = deque(todo)
        self._running: dict[str, str] = {}  # ids of trials by Tune's own ids
        self._trials = {spec.id for spec in folder.trials}
        self._suggestions = folder.suggestions
        self._untold: dict[str, list[int]] = {}  # numbers of suggestions whose trial has not ended, by its id
        for one in self._suggestions:
            number, _, _ = self._sampler.ask()
            self._untold.setdefault(one.trial, []).append(number)
            self._tell(one.trial, folder.result(one.trial))

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Tune pickles its searchers, but they are never restored here."""
        return {}

    def set_search_properties(
        self, metric: str | None, mode: str | None, config: Mapping[str, Any], **spec: Any
    ) -> bool:
        """Accept what Tune is given: nothing."""
        return True

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "") -> None:
        """Write nothing: the folder of the sweep has it all."""

    def suggest(self, trial_id: str) -> Any:
        """The next trial for Tune, or `FINISHED`."""
        try:
            work = self._open.popleft() if self._open else self._next()
        except Exception as error:
            self.error, work = error, None
        if work is None:
            return Searcher.FINISHED
        self._running[trial_id] = work.id
        return {"trial": work}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell the sampler the values of a trial that finished or was stopped, or that it failed."""
        trial = self._running.pop(trial_id)
        ended = self._folder.result(trial)
        if ended is None and result is not None and not error:
            report: Report = result["report"]
            ended = Result(trial, "stopped", report.value, ())
        self._tell(trial, ended or Result(trial, "failed", None, ()))

    def _next(self) -> TrialWork | None:
        """Ask the sampler until a trial has to run; None: there are enough trials, or only repeated ones are left."""
        repeats = 0
        while len(self._trials) < self._folder.planned:
            if repeats == MAX_REPEATS:
                self._callback.on_message(
                    f"the search ends after {len(self._trials)} of {self._folder.planned} trials: the last "
                    f"{repeats} suggestions had all been made before",
                    warning=True,
                )
                self._folder.end_search()
                return None
            known = len(self._trials)
            work = self._ask()
            if work is not None:
                return work
            repeats = 0 if len(self._trials) > known else repeats + 1
        return None

    def _ask(self) -> TrialWork | None:
        """Ask the sampler once, and record what it suggests; None: that need not or cannot run."""
        number, variant, point = self._sampler.ask()
        sweep = self._prepared.sweep
        label = sampling.label_of(sweep, self._suggestions, variant, point)
        settings = sampling.settings_of(sweep, variant, point)
        spec, reason = TrialSpec(_digest(settings), label, settings, ()), ""
        work = None
        try:
            trial = self._prepared.settled(sampling.suggested(sweep, label, variant, point))
            spec = TrialSpec(trial.id, label, settings, ())
            if trial.id not in self._trials:
                plans = self._prepared.plans(trial)
                spec = TrialSpec(trial.id, label, settings, tuple(plans))
                work = self._prepared.work(self._folder, trial, plans)
        except UserError as error:
            reason = str(error)
        suggestion = Suggestion(spec.id, variant, point)
        self._folder.suggest(suggestion, None if spec.id in self._trials else spec)
        self._suggestions.append(suggestion)
        self._untold.setdefault(spec.id, []).append(number)
        if spec.id in self._trials:
            self._tell(spec.id, self._folder.result(spec.id))
            return None
        self._trials.add(spec.id)
        result = Result(spec.id, "failed", None, (), reason) if reason else None
        if work is not None and not work.force:
            ((result, _),) = trial_runner.earlier(self._folder, [work])
        if result is not None:
            self._folder.record(result, reason or None)
            self._tell(spec.id, result)
            self.on_end(label, result)
            return None
        if work is not None:
            self.work[work.id] = work
        return work

    def _tell(self, trial: str, result: Result | None) -> None:
        """Tell the sampler how every suggestion of a trial ended; None: it has not."""
        if result is None:
            return
        failed = result.state == "failed"
        for number in self._untold.pop(trial, ()):
            self._sampler.tell(number, None if failed else result.measured)


def _digest(settings: Mapping[str, Any]) -> str:
    """Identifies settings that are no trial."""
    text = json.dumps(dict(settings), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]

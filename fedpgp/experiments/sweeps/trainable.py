"""The Ray Tune process that runs trials, one after another on the same workers."""

from __future__ import annotations

import os
import threading
import time
from contextlib import ExitStack
from typing import Any

from ray import tune

from fedpgp.config import ResourceSettings
from fedpgp.core.callbacks import Event, EventStream
from fedpgp.experiments import launch, runner
from fedpgp.experiments.planning import Library
from fedpgp.experiments.sweeps import trial_runner
from fedpgp.experiments.sweeps.trial_runner import TrialWork
from fedpgp.experiments.tracker import Tracker
from fedpgp.federation.backends.base import Backend

REPORT_SECONDS = 1.0
"""Interval of reports to the driver, if no scheduler needs them at certain rounds."""
FORWARDED = ("on_message", "on_extract")
"""Events of folds that are sent to the driver of the sweep; it learns of rounds from reports."""


class SweepTrial(tune.Trainable):  # type: ignore[misc]
    """Runs the trial in `config["trial"]`, then the next one it is given. A trial that raises ends as `failed`."""

    def setup(self, config: dict[str, Any]) -> None:
        """Prepare the process for its first trial."""
        self._library = Library()
        self._workers: tuple[ResourceSettings, Backend] | None = None
        self._events: list[Event] = []
        self._tracker: Tracker = config["trial"].tracker
        self._callback = EventStream(self._receive)
        self._stack = ExitStack()
        self._stack.enter_context(launch.forward_warnings(self._callback))
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Leave the current trial, and prepare the next one."""
        self._reports.close()
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Run until the scheduler needs a report, or else for about a second, at least one round."""
        until = time.monotonic() + REPORT_SECONDS
        for report in self._reports:
            if self._trial.report_every or report.result or time.monotonic() > until:
                break
        events, self._events = self._events, []
        return {
            "rounds": report.round,
            **({"value": report.value} if report.value is not None else {}),
            "report": report,
            "events": events,
            "pid": os.getpid(),
            "done": report.result is not None,
        }

    def cleanup(self) -> None:
        """Leave the current trial, and close workers and tracker."""
        self._reports.close()
        if self._workers is not None:
            self._workers[1].close()
        self._tracker.close()
        self._stack.close()

    def _begin(self, config: dict[str, Any]) -> None:
        self._trial: TrialWork = config["trial"]
        self._reports = trial_runner.run(self._trial, self._backend, self._library, self._callback, self._tracker)

    def _backend(self) -> Backend:
        """The workers of the previous trial if the resources are the same, else new ones."""
        resources = self._trial.resources
        if self._workers is not None and self._workers[0] != resources:
            self._workers[1].close()
            self._workers = None
        if self._workers is None:
            self._workers = (resources, runner.make_backend(resources, threading.Event()))
        return self._workers[1]

    def _receive(self, event: Event) -> None:
        if event.method in FORWARDED:
            self._events.append(event)

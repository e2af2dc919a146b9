"""The process of a trial under Ray Tune: warm workers, and one trial after another on them."""

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
"""With nobody looking at rounds, a report goes to the driver so often."""
FORWARDED = ("on_message", "on_extract")
"""Events of folds that go to the driver of the sweep; it learns of rounds by reports."""


class SweepTrial(tune.Trainable):  # type: ignore[misc]
    """Runs the work of its `config["trial"]`, then the next it is given. A trial that raises ends as `failed`."""

    def setup(self, config: dict[str, Any]) -> None:
        """Called once in the life of the process."""
        self._library = Library()
        self._workers: tuple[ResourceSettings, Backend] | None = None
        self._events: list[Event] = []
        self._tracker: Tracker = config["trial"].tracker
        self._callback = EventStream(self._receive)
        self._open = ExitStack()
        self._open.enter_context(launch.forward_warnings(self._callback))
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """The next trial, on the same workers."""
        self._end()
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """A round, or as many as take a second; or as many as lie between two looks of the scheduler."""
        until = time.monotonic() + REPORT_SECONDS
        for report in self._reports:
            if self._trial.look_every or report.result or time.monotonic() > until:
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
        """Ray ends this process."""
        self._end()
        if self._workers is not None:
            self._workers[1].close()
        self._tracker.close()
        self._open.close()

    def _begin(self, config: dict[str, Any]) -> None:
        self._trial: TrialWork = config["trial"]
        resources = self._trial.resources
        self._reports = trial_runner.run(
            self._trial, lambda: self._ready(resources), self._library, self._callback, self._tracker
        )

    def _ready(self, resources: ResourceSettings) -> Backend:
        """The workers of the trial before, if they are such as this one needs."""
        if self._workers is not None and self._workers[0] != resources:
            self._workers[1].close()
            self._workers = None
        if self._workers is None:
            self._workers = (resources, runner.make_backend(resources, threading.Event()))
        return self._workers[1]

    def _end(self) -> None:
        """Leave a trial that was stopped early."""
        self._reports.close()

    def _receive(self, event: Event) -> None:
        if event.method in FORWARDED:
            self._events.append(event)

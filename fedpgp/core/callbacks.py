"""Progress reports of experiments: a callback interface, and events that carry its calls between processes."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


class RunCallback:
    """Receives the progress of an experiment or a sweep. Every method does nothing; override those you need.

    Methods are called between units of work, so a slow one delays the experiment, and an exception ends it.
    """

    def on_prepare(self) -> None:
        """Settings, data and backbone are about to be read."""

    def on_plan(self, summary: str) -> None:
        """The plan is complete: the method, where its clients run, and how much memory a worker needs."""

    def on_extract(self, done: int, total: int, images_per_second: float | None) -> None:
        """`done` of `total` images have frozen features; None: there is no rate yet."""

    def on_begin(self, folder: str, done: int, total: int) -> None:
        """The run in `folder` starts, or continues after `done` of `total` rounds."""

    def on_round(self, folder: str, done: int, total: int, metrics: Mapping[str, float]) -> None:
        """A round is committed; `metrics` are those of its row, in percent."""

    def on_end(self, folder: str, state: str) -> None:
        """The run in `folder` is `finished`, `stopped` or `failed`. Called without `on_begin` if it never started."""

    def on_trials(self, ended: int, total: int, summary: str) -> None:
        """`ended` of the `total` trials of a sweep have ended; `summary` describes the others."""

    def on_fold(self, trial: str, done: int, total: int, metrics: Mapping[str, float]) -> None:
        """`done` of the `total` folds of a trial of a sweep have finished; `metrics` are the last ones of this fold."""

    def on_message(self, text: str, warning: bool = False) -> None:
        """A message for the user."""


@dataclass(frozen=True)
class Event:
    """One call of a `RunCallback`, as a value that can be stored and sent."""

    method: str
    arguments: tuple[Any, ...]

    def replay(self, callback: RunCallback) -> None:
        """Make the call."""
        getattr(callback, self.method)(*self.arguments)


class EventStream(RunCallback):
    """Turns every call into an `Event` and passes it on."""

    def __init__(self, receive: Callable[[Event], None]) -> None:
        self._receive = receive


def _forwarded(name: str) -> Callable[..., None]:
    signature = inspect.signature(getattr(RunCallback, name))

    def forward(*given: Any, **named: Any) -> None:
        call = signature.bind(*given, **named)
        call.apply_defaults()
        stream, *arguments = call.args
        stream._receive(Event(name, tuple(dict(one) if isinstance(one, Mapping) else one for one in arguments)))

    return forward


for _name in [name for name in vars(RunCallback) if name.startswith("on_")]:
    setattr(EventStream, _name, _forwarded(_name))


def broadcast(*callbacks: RunCallback) -> RunCallback:
    """Create a callback that forwards every call to all `callbacks`, in order."""

    def receive(event: Event) -> None:
        for callback in callbacks:
            event.replay(callback)

    return EventStream(receive)

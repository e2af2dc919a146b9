"""Progress of experiments and sweeps: bars in a terminal, lines in a log."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from datetime import timedelta
from importlib.util import find_spec

from rich import progress
from rich.console import Console, RenderableType
from rich.markup import escape

from fedpgp.core.callbacks import RunCallback

SECONDS_BETWEEN_LINES = 10.0
SHOWN = ("test/local", "test/base", "test/novel", "test/all", "test/hm", "test/held_out")
"""Metrics that are shown after a round that measured them."""


class Bars(progress.Progress):
    """Progress bars, with something above them."""

    above: RenderableType | None = None

    def get_renderables(self) -> Iterable[RenderableType]:
        """What is shown, from top to bottom."""
        if self.above is not None:
            yield self.above
        yield from super().get_renderables()


class ProgressDisplay(RunCallback):
    """Shows the events of experiments and sweeps: bars in a terminal and in notebooks (with ipywidgets), else lines."""

    transient = False
    """whether what a terminal shows disappears at the end"""

    def __init__(self, console: Console) -> None:
        self._console = console
        columns = (
            progress.SpinnerColumn(), "{task.description}", progress.BarColumn(), progress.MofNCompleteColumn(),
            progress.TimeRemainingColumn(), "{task.fields[note]}",
        )  # fmt: skip
        self._bars = Bars(
            *columns, console=console, disable=not self._animated, refresh_per_second=4, transient=self.transient
        )
        self._tasks: dict[str, progress.TaskID] = {}
        self._last_line = 0.0
        self._printed: set[tuple[str, int]] = set()
        self._begun: dict[str, tuple[float, int]] = {}  # time and progress at the first event of a stage

    def __enter__(self) -> ProgressDisplay:
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def on_prepare(self) -> None:
        """Show that data and backbone are being read."""
        self.show("preparing", note="reading data and backbone")

    def on_plan(self, summary: str) -> None:
        """Print the plan."""
        self.on_message(summary)

    def on_extract(self, done: int, total: int, images_per_second: float | None) -> None:
        """Show the number of images with frozen features."""
        self.show("frozen features", done, total, f"{images_per_second:.1f} images/s" if images_per_second else "")

    def on_begin(self, folder: str, done: int, total: int) -> None:
        """Show the finished rounds."""
        self.show("rounds", done, total)

    def on_round(self, folder: str, done: int, total: int, metrics: Mapping[str, float]) -> None:
        """Show the round and its test metrics."""
        shown = [f"{name.removeprefix('test/')} {metrics[name]:.1f}" for name in SHOWN if name in metrics]
        self.show("rounds", done, total, "  ".join(shown))

    def on_end(self, folder: str, state: str) -> None:
        """Stop the bars: what follows may be printed on the same terminal."""
        self._close("rounds")
        self._bars.stop()

    def on_trials(self, ended: int, total: int, summary: str) -> None:
        """Show the number of trials that have ended, and the state of the others."""
        self.show("trials", ended, total, summary)

    def on_message(self, text: str, warning: bool = False) -> None:
        """Print the message."""
        prefix = "[yellow]warning[/]: " if warning else ""
        self._console.print(f"{prefix}{escape(text)}", highlight=False, soft_wrap=True)

    def show(self, stage: str, done: int = 0, total: int = 0, note: str = "") -> None:
        """Show the progress of a stage; a total of 0 means unknown."""
        if not self._animated:
            self._line(stage, done, total, note)
            return
        if stage not in self._tasks:
            self._close("preparing")
            self._tasks[stage] = self._bars.add_task(stage, total=total or None, note="")
        self._bars.update(self._tasks[stage], completed=done, total=total or None, note=escape(note))

    @property
    def _animated(self) -> bool:
        return self._console.is_terminal or (self._console.is_jupyter and find_spec("ipywidgets") is not None)

    def _close(self, stage: str) -> None:
        """Stop the spinner of a stage without a known end."""
        if stage in self._tasks:
            task = self._bars.tasks[self._bars.task_ids.index(self._tasks[stage])]
            self._bars.update(task.id, total=max(task.completed, 1), completed=max(task.completed, 1))

    def _line(self, stage: str, done: int, total: int, note: str) -> None:
        """Print a line with the time left at the speed so far, unless the last one is recent.

        The first line of a stage and the one at its end are always printed.
        """
        now = time.monotonic()
        begins = stage not in self._begun
        start, first = self._begun.setdefault(stage, (now, done))
        ends = done == total and (stage, done) not in self._printed
        if not begins and not ends and now - self._last_line < SECONDS_BETWEEN_LINES:
            return
        self._printed.add((stage, done))
        self._last_line = now
        left = ""
        if first < done < total:
            left = f"{timedelta(seconds=round((now - start) * (total - done) / (done - first)))} left"
        count = f" {done}/{total}" if total else ""
        line = "  ".join(filter(None, (f"{stage}{count}", note, left)))
        self._console.print(escape(line), highlight=False, soft_wrap=True)

"""Progress as a person sees it: bars in a terminal, lines in a log."""

from __future__ import annotations

import time
from datetime import timedelta
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from fedpgp.federation import records

SECONDS_BETWEEN_LINES = 10.0
TITLES = {
    "prepare": "preparing",
    "read": "reading images",
    "extract": "frozen features",
    "rounds": "rounds",
    "trials": "trials",
}


class Live:
    """Shows `records.Progress` as it comes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._tasks: dict[tuple[str, str], TaskID] = {}
        self._last_line = 0.0
        self._told: set[tuple[str, str, int]] = set()
        self._begun: dict[tuple[str, str], tuple[float, int]] = {}  # when a stage was first told of, and how far it was

    def __enter__(self) -> Live:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def show(self, progress: records.Progress) -> None:
        """One event."""
        if progress.stage == "warning":
            self._console.print(f"[yellow]warning[/]: {escape(progress.note)}", highlight=False)
        elif progress.stage == "note":
            self._console.print(escape(progress.note), highlight=False)
        elif progress.stage == "finished":
            self._close("rounds", progress.title)
        elif self._console.is_terminal:
            self._bar(progress)
        else:
            self._line(progress)

    def _bar(self, progress: records.Progress) -> None:
        key = (progress.stage, progress.title)
        if key not in self._tasks:
            self._close("prepare", progress.title)
            self._tasks[key] = self._bars.add_task(_title(progress), total=progress.total or None, note="")
        self._bars.update(
            self._tasks[key], completed=progress.done, total=progress.total or None, note=escape(progress.note)
        )

    def _close(self, stage: str, title: str) -> None:
        """Stop the spinner of a stage that has no end of its own."""
        if (stage, title) in self._tasks:
            task = self._bars.tasks[self._bars.task_ids.index(self._tasks[stage, title])]
            self._bars.update(task.id, total=max(task.completed, 1), completed=max(task.completed, 1))

    def _left(self, progress: records.Progress) -> str:
        """Time left at the speed so far, as the bar has it too; nothing before there is a speed."""
        now, key = time.monotonic(), (progress.stage, progress.title)
        start, first = self._begun.setdefault(key, (now, progress.done))
        if not first < progress.done < progress.total:
            return ""
        seconds = (now - start) * (progress.total - progress.done) / (progress.done - first)
        return f"{timedelta(seconds=round(seconds))} left"

    def _line(self, progress: records.Progress) -> None:
        left = self._left(progress)
        place = (progress.stage, progress.title, progress.done)
        ends = progress.done in (0, progress.total) and place not in self._told
        if not ends and time.monotonic() - self._last_line < SECONDS_BETWEEN_LINES:
            return
        self._told.add(place)
        self._last_line = time.monotonic()
        count = f" {progress.done}/{progress.total}" if progress.total else ""
        told = "  ".join(part for part in (f"{_title(progress)}{count}", progress.note, left) if part)
        self._console.print(escape(told), highlight=False)


def _title(progress: records.Progress) -> str:
    return f"{progress.title}: {TITLES[progress.stage]}" if progress.title else TITLES[progress.stage]

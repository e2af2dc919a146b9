"""Sweeps as tables that a person can read: what will be run, and how the trials ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Group
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from fedpgp.sweeps.draw import Drawn
from fedpgp.sweeps.estimate import Estimate
from fedpgp.sweeps.spec import Sweep

MAX_ROWS = 60


def dry_run(sweep: Sweep, drawn: Drawn, found: Estimate) -> Group:
    """What would be run, what it takes, and what could not be checked."""
    table = Table(title=f"{escape(sweep.name)}: {len(drawn.trials)} trials, nothing started")
    table.add_column("id", no_wrap=True)
    table.add_column("trial", overflow="fold")
    table.add_column("folds", overflow="fold")
    for trial, folds in zip(drawn.trials[:MAX_ROWS], found.folds, strict=False):
        table.add_row(trial.id, escape(trial.label), escape(_folds(folds)))
    if len(drawn.trials) > MAX_ROWS:
        table.caption = f"the first {MAX_ROWS} of {len(drawn.trials)}"
    runs = sum(map(len, found.folds))
    tune = sweep.tune
    selects = "  (selects on the test images)" if drawn.metric.startswith("test/") else ""
    lines = [
        f"runs:       {runs} (every trial once per fold)"
        + (f"; {drawn.repeated} drawn twice and left out" if drawn.repeated else ""),
        f"best:       {tune.mode} of {drawn.metric}, mean over folds{selects}",
        f"scheduler:  {tune.scheduler}, at most {tune.max_concurrent} trial(s) at a time",
        *(f"resources:  each trial {line}" for line in found.resources),
        f"time:       about {duration(found.seconds)} ({found.basis}), and the frozen features once",
        f"disk:       about {decimal(found.disk_bytes)} of rows and checkpoints, and the frozen features once",
        f"wire:       about {decimal(found.wire_bytes)} of parameters up and down (simulated)",
        *(f"not checked: {line}" for line in found.skipped),
    ]
    return Group(table, *(Text(line, no_wrap=True, overflow="ignore") for line in lines))


def duration(seconds: float) -> str:
    """`40 s`, `12 min`, `3.5 h`, `4 days`."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{max(1, round(seconds))} s"


def _folds(folds: Sequence[Any]) -> str:
    """`seeds 1, 2, 3 x held out a, b`."""
    seeds = dict.fromkeys(str(fold.seed) for fold in folds)
    held_out = dict.fromkeys(fold.held_out for fold in folds if fold.held_out)
    text = f"seed{'s' if len(seeds) > 1 else ''} {', '.join(seeds)}"
    return text + (f" x held out {', '.join(held_out)}" if held_out else "")

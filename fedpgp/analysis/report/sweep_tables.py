"""Sweeps as tables that a person can read: what will be run, and how the trials ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from fedpgp.analysis.report.terminal import held_out_accuracies
from fedpgp.core.text import disk_size
from fedpgp.experiments.sweeps.estimation import Estimate
from fedpgp.experiments.sweeps.sampling import SampledTrials
from fedpgp.experiments.sweeps.sweep_settings import Sweep
from fedpgp.storage.sweep_folder import Result, SweepFolder

MAX_ROWS = 60


def dry_run(sweep: Sweep, drawn: SampledTrials, found: Estimate) -> Group:
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
        f"disk:       about {disk_size(found.disk_bytes)} of rows and checkpoints, and the frozen features once",
        f"wire:       about {disk_size(found.wire_bytes)} of parameters up and down (simulated)",
        *(f"not checked: {line}" for line in found.skipped),
    ]
    return Group(table, *(Text(line, no_wrap=True, overflow="ignore") for line in lines))


def ranking(folder: SweepFolder) -> Table:
    """The trials of a sweep, the best first, then those that were stopped early, then those that failed."""
    head, results = folder.head, folder.results()
    metric, sign = head["metric"], -1 if head["mode"] == "max" else 1
    order = {"finished": 0, "stopped": 1, "failed": 2, "missing": 3}
    rows = []
    for trial in folder.trials:
        result = results.get(trial.id)
        state = result.state if result else "missing"
        value = result.value if result else None
        rows.append((order[state], value is None, sign * (value or 0), trial, state, value, result))
    rows.sort(key=lambda row: row[:3])
    table = Table(title=f"{escape(folder.path.name)}: {metric}, mean over folds after the last round; * best")
    table.caption = "chosen on the test images" if metric.startswith("test/") else None
    for heading in ("", "trial", metric, "folds", "state"):
        table.add_column(heading, justify="right" if heading in ("", metric) else "left", overflow="fold")
    best = next((row[3].id for row in rows if row[4] == "finished" and row[5] is not None), None)
    for number, (_, _, _, trial, state, value, result) in enumerate(rows[:MAX_ROWS], 1):
        shown = "-" if value is None else f"{value:.2f}"
        cell = f"[bold green]{shown} *[/]" if trial.id == best else f"{shown}  "
        reason = f": {result.reason.splitlines()[0]}" if result and result.reason else ""
        table.add_row(str(number), escape(trial.label), cell, str(len(trial.folds)), escape(state + reason))
    if len(rows) > MAX_ROWS:
        table.caption = f"the first {MAX_ROWS} of {len(rows)}"
    return table


def held_out(folder: SweepFolder) -> Group:
    """Leave one domain out: accuracy by held-out domain and client for each trial, then the trials side by side."""
    labels = {trial.id: trial.label for trial in folder.trials}
    tested = {
        labels[trial]: _by_domain(folder, result)
        for trial, result in folder.results().items()
        if result.state == "finished"
    }
    return Group(*(_matrix(label, domains) for label, domains in tested.items()), _side_by_side(tested))


Tested = dict[str, dict[int, dict[str, float]]]
"""Accuracy in percent by held-out domain, seed and client."""


def _by_domain(folder: SweepFolder, result: Result) -> Tested:
    tested: Tested = {}
    for fold, store in zip(result.folds, folder.runs(result), strict=True):
        tested.setdefault(str(fold.held_out), {})[fold.seed] = held_out_accuracies(store)
    return tested


def _matrix(label: str, tested: Tested) -> Table:
    """Held-out domain by client: the mean over seeds."""
    by_client = {
        domain: {client: fmean(one[client] for one in seeds.values()) for client in next(iter(seeds.values()))}
        for domain, seeds in tested.items()
    }
    clients = sorted({client for row in by_client.values() for client in row})
    count = len(next(iter(tested.values()), {}))
    table = Table(title=f"{escape(label)}: test accuracy in percent on the held-out domain, by client")
    table.caption = f"mean over {count} seed(s); mean ± standard deviation over clients (ddof 1)"
    for heading in ("held out", *clients, "mean"):
        table.add_column(heading, justify="left" if heading == "held out" else "right")
    for domain, row in by_client.items():
        cells = (f"{row[name]:.2f}" if name in row else "-" for name in clients)
        table.add_row(escape(domain), *cells, _spread(list(row.values())))
    return table


def _side_by_side(tested: Mapping[str, Tested]) -> Table:
    """A row per trial: the mean over clients for each held-out domain, and over all of them."""
    domains = list(dict.fromkeys(domain for one in tested.values() for domain in one))
    seeds = {seed for one in tested.values() for own in one.values() for seed in own}
    table = Table(title="Held-out domains: test accuracy in percent, mean over clients")
    several = len(seeds) > 1
    table.caption = f"mean ± standard deviation over {len(seeds)} seeds (ddof 1)" if several else "one seed"
    for heading in ("trial", *domains, "mean"):
        table.add_column(heading, justify="left" if heading == "trial" else "right")
    for label, one in tested.items():
        means = {domain: [fmean(own.values()) for own in one[domain].values()] for domain in domains if domain in one}
        overall = [fmean(values) for values in zip(*means.values(), strict=False)]
        table.add_row(escape(label), *(_spread(means.get(domain, [])) for domain in domains), _spread(overall))
    return table


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "-"
    return f"{fmean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


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

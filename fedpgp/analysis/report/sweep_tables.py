"""Sweeps as tables: what will run, and how the trials ended."""

from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

from rich.console import Group as Lines
from rich.text import Text

from fedpgp.analysis import loading
from fedpgp.analysis.comparison import Group, Statistic
from fedpgp.analysis.report.tables import Table, mean_std, starred, statistic_text
from fedpgp.core.text import disk_size
from fedpgp.experiments.estimation import Estimate
from fedpgp.experiments.sweeps.sampling import SampledTrials
from fedpgp.experiments.sweeps.sweep_settings import Sweep
from fedpgp.storage.sweep_folder import Result, SweepFolder

MAX_ROWS = 60
STATE_ORDER = ("finished", "stopped", "failed", "missing")


def dry_run(sweep: Sweep, drawn: SampledTrials, found: Estimate) -> Lines:
    """What would run, what it takes, and what could not be checked."""
    trials = [(trial.id, trial.label, _folds(folds)) for trial, folds in zip(drawn.trials, found.folds, strict=False)]
    title = f"{sweep.name}: {len(drawn.trials)} trials, nothing started"
    table = Table.of(title, ("id", "trial", "folds"), trials, text_columns=3, max_rows=MAX_ROWS)
    tune = sweep.tune
    selects = "  (selects on the test images)" if drawn.metric.startswith("test/") else ""
    lines = [
        f"runs:       {sum(map(len, found.folds))} (every trial once per fold)"
        + (f"; {drawn.repeated} drawn twice and left out" if drawn.repeated else ""),
        f"best:       {tune.mode} of {drawn.metric}, mean over folds{selects}",
        f"scheduler:  {tune.scheduler}, at most {tune.max_concurrent} trial(s) at a time",
        *(f"resources:  each trial {line}" for line in found.resources),
        f"time:       about {duration(found.seconds)} ({found.basis}), and the frozen features once",
        f"disk:       about {disk_size(found.disk_bytes)} of rows and checkpoints, and the frozen features once",
        f"wire:       about {disk_size(found.wire_bytes)} of parameters up and down (simulated)",
        *(f"not checked: {line}" for line in found.skipped),
    ]
    return Lines(table, *(Text(line, no_wrap=True, overflow="ignore") for line in lines))


def ranking(folder: SweepFolder) -> Table:
    """The trials of a sweep: finished ones from the best to the worst, then stopped, failed and missing ones."""
    head, results = folder.head, folder.results()
    metric, sign = head["metric"], -1 if head["mode"] == "max" else 1
    found = [(trial, results.get(trial.id)) for trial in folder.trials]

    def order(item: tuple[Any, Result | None]) -> tuple[int, bool, float]:
        result = item[1]
        value = result.value if result else None
        return STATE_ORDER.index(result.state if result else "missing"), value is None, sign * (value or 0)

    rows = []
    for number, (trial, result) in enumerate(sorted(found, key=order), 1):
        value = result.value if result else None
        best = number == 1 and value is not None and result is not None and result.state == "finished"
        reason = f": {result.reason.splitlines()[0]}" if result and result.reason else ""
        state = (result.state if result else "missing") + reason
        rows.append((str(number), trial.label, state, starred(mean_std(value), best), str(len(trial.folds))))
    return Table.of(
        f"{folder.path.name}: {metric}, mean over folds after the last round; * best",
        ("", "trial", "state", metric, "folds"),
        rows,
        text_columns=3,
        caption="chosen on the test images" if metric.startswith("test/") else "",
        max_rows=MAX_ROWS,
    )


def held_out(folder: SweepFolder) -> Lines:
    """Leave one domain out: accuracy by held-out domain and client for each trial, then the trials side by side."""
    results = folder.results()
    groups = []
    for trial in folder.trials:
        result = results.get(trial.id)
        if result is not None and result.state == "finished":
            runs = {run.fold: run for run in (loading.read(store.path) for store in folder.runs(result))}
            groups.append(Group(trial.label, "", runs, frozenset(runs)))
    return Lines(*map(_by_client, groups), _by_domain(groups))


def _by_client(group: Group) -> Table:
    """Held-out domain by client, mean over the seeds."""
    found = loading.held_out_accuracies(group)
    clients = sorted({client for row in found.values() for client in row})
    rows = []
    for domain, row in found.items():
        values = list(row.values())
        mean = mean_std(fmean(values), stdev(values) if len(values) > 1 else None)
        rows.append((domain, *(mean_std(row.get(client)) for client in clients), mean))
    title = f"{group.label}: test accuracy in percent on the held-out domain, by client"
    caption = f"mean over {len(group.seeds)} seed(s); mean ± standard deviation over clients (ddof 1)"
    return Table.of(title, ("held out", *clients, "mean"), rows, caption=caption)


def _by_domain(groups: Sequence[Group]) -> Table:
    """A row per trial: the mean over clients for each held-out domain, and over all of them."""
    domains = list(dict.fromkeys(str(fold.held_out) for group in groups for fold in group.runs))
    seeds = {seed for group in groups for seed in group.seeds}
    rows = []
    for group in groups:
        by_domain: dict[str, dict[int, float]] = {}
        for fold, run in group.runs.items():
            by_domain.setdefault(str(fold.held_out), {})[fold.seed] = run.metrics["test/held_out"]["last"]
        found = [Statistic(by_domain[domain]) if domain in by_domain else None for domain in domains]
        rows.append((group.label, *map(statistic_text, found), statistic_text(group.statistic("held_out"))))
    caption = f"mean ± standard deviation over {len(seeds)} seeds (ddof 1)" if len(seeds) > 1 else "one seed"
    title = "Held-out domains: test accuracy in percent, mean over clients"
    return Table.of(title, ("trial", *domains, "mean"), rows, caption=caption)


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

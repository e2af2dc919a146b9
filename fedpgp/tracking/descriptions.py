"""Summarize trials, and describe runs, trials and sweeps in Markdown, as MLflow shows them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from fedpgp.analysis import coverage
from fedpgp.analysis.comparison import METRIC_TITLES
from fedpgp.analysis.report.tables import Table, mean_std
from fedpgp.config.values import load_yaml
from fedpgp.core.text import redacted
from fedpgp.federation.metrics import (
    RoundRow,
    last_evaluated,
    on_test_images,
    per_client_table,
    selections,
)
from fedpgp.storage.objectives import Objectives
from fedpgp.storage.run_folder import RunFolder
from fedpgp.storage.sweep_folder import Result, SweepFolder, TrialSpec
from fedpgp.tracking.names import accuracies

MOST_ROWS = 40
"""Rows of a table in a description, which MLflow cuts at 8,000 characters."""


@dataclass(frozen=True)
class Outcome:
    """A trial that has ended."""

    planned: TrialSpec
    result: Result
    runs: Mapping[str, RunFolder]
    """by fold, `seed 1, held out clipart`; without those whose folder is gone"""
    rounds: tuple[RoundRow, ...]
    """the rounds that all folds have; metrics are means over the folds"""
    spread: Mapping[str, float]
    """standard deviation over the folds (ddof 1) in the last of these; empty for one fold"""
    best: RoundRow | None
    """mean over the folds of each one's best round by validation"""
    created_ms: int
    ended_ms: int

    @classmethod
    def read(cls, folder: SweepFolder, planned: TrialSpec, result: Result) -> Outcome:
        """Read the folds of a trial."""
        paths = {str(fold.fold): folder.root / "runs" / fold.run for fold in result.folds}
        runs = {label: RunFolder.open(path) for label, path in paths.items() if path.is_dir()}
        series = [{row.round: row for row in run.rounds()} for run in runs.values()]
        common = sorted(set.intersection(*map(set, series))) if series else []
        rounds = tuple(_mean([rows[number] for rows in series]) for number in common)
        spread = {}
        if common and len(series) > 1:
            spread = {name: stdev(rows[common[-1]].metrics[name] for rows in series) for name in rounds[-1].metrics}
        best = [rows[run.best] for run, rows in zip(runs.values(), series, strict=True) if run.best is not None]
        return cls(
            planned=planned,
            result=result,
            runs=runs,
            rounds=rounds,
            spread=spread,
            best=_mean(best) if best and len(best) == len(runs) else None,
            created_ms=min((run.identity["created_ms"] for run in runs.values()), default=folder.head["created_ms"]),
            ended_ms=max((run.status["timestamp_ms"] for run in runs.values()), default=folder.status["timestamp_ms"]),
        )

    @property
    def last(self) -> Mapping[str, float]:
        """Metrics of the last round."""
        return self.rounds[-1].metrics if self.rounds else {}

    @property
    def value(self) -> float | None:
        """The value by which a finished trial is ranked."""
        return self.result.value if self.result.state == "finished" else None


def best_of(outcomes: Sequence[Outcome], mode: str) -> Outcome | None:
    """The finished trial with the best value, if any."""
    return next((one for one in ranking(outcomes, mode) if one.value is not None), None)


def ranking(outcomes: Sequence[Outcome], mode: str) -> list[Outcome]:
    """Finished trials, best first, then those that were stopped or failed."""
    sign = -1 if mode == "max" else 1
    return sorted(outcomes, key=lambda one: (one.value is None, sign * (one.value or 0.0)))


def _mean(rows: Sequence[RoundRow]) -> RoundRow:
    """Mean of the metrics that all rows have, with the time of the latest row."""
    names = [name for name in rows[0].metrics if all(name in row.metrics for row in rows)]
    latest = max(rows, key=lambda row: row.timestamp_ms)
    return replace(latest, metrics={name: fmean(row.metrics[name] for row in rows) for name in names})


def of_run(store: RunFolder, settings: Mapping[str, Any]) -> str:
    """Describe a run: method, data, clients, and its accuracies, if it has any."""
    rounds, best = store.rounds(), store.best
    held_out = settings["protocol"]["held_out"]
    domain = f", domain {held_out} held out" if held_out else ""
    lines = [f"{what(settings)}, seed {settings['seed']}{domain}.", ""]
    if store.status["reason"]:
        lines += [f"**{store.status['state']}**: {redacted(store.status['reason'])}", ""]
    lines += _accuracies(rounds, next((row for row in rounds if row.round == best), None))
    lines += _coverage([store])
    lines += _by_client(store, rounds)
    return "\n".join([*lines, f"Rows: `{store.path}`"])


def of_trial(trial: Outcome, sweep: str) -> str:
    """Describe a trial and its folds."""
    lines = [f"**{trial.planned.label}**, a trial of the sweep {sweep}.", ""]
    for run in list(trial.runs.values())[:1]:
        lines += [f"{what(load_yaml(run.config_yaml))}.", ""]
    if trial.result.reason:
        lines += [f"**{trial.result.state}**: {redacted(trial.result.reason)}", ""]
    names = accuracies(trial.last)
    if names:
        rows = [
            [fold, *(f"{run.rounds()[-1].metrics.get(name, float('nan')):.2f}" for name in names)]
            for fold, run in trial.runs.items()
            if run.rounds()
        ]
        mean = ["mean", *(spread(trial, name) for name in names)]
        lines += [Table("", ["fold, last round", *names], [*rows, mean]).markdown(), ""]
        lines += _coverage(trial.runs.values())
    return "\n".join(lines)


def of_sweep(
    settings: Mapping[str, Any], head: Mapping[str, Any], planned: int, outcomes: Sequence[Outcome], path: Path
) -> str:
    """Describe a sweep: progress, best trial, and the ranking of its trials."""
    objectives = Objectives.of_head(head)
    best = best_of(outcomes, objectives.mode)
    folds = {name: settings["folds"].get(name) or () for name in ("seeds", "splits")}
    several = [f"the {name} {', '.join(map(str, own))}" for name, own in folds.items() if len(own) > 1]
    lines = [
        f"Sweep **{head['name']}**: {len(outcomes)} of {planned} trials have ended"
        + (f", each over {' and '.join(several)}" if several else "")
        + f". The best has the {'highest' if objectives.mode == 'max' else 'lowest'} `{objectives.title}` after the "
        "last round.",
        "",
    ]
    if not all(metric.startswith("val/") for metric in objectives.metrics):
        lines += ["**Trials are ranked on the test images, so the numbers are optimistic.**", ""]
    if best is not None:
        lines += [f"Best: **{best.planned.label}** with {best.result.value:.2f}.", ""]
    finished = [one for one in outcomes if one.result.state == "finished"]
    if len(objectives.metrics) > 1 and finished:
        front = [finished[number] for number in objectives.front([one.result.measured for one in finished])]
        rows = [[one.planned.label, *(spread(one, name) for name in objectives.metrics)] for one in front]
        lines += ["Pareto front, the trials that no other one beats in both metrics:", ""]
        lines += [Table("", ["trial", *objectives.metrics], rows).markdown(), ""]
    ranked = ranking(outcomes, objectives.mode)
    if ranked:
        tested = [name for one in ranked for name in accuracies(one.last) if on_test_images(name)]
        names = list(dict.fromkeys([*objectives.metrics, *tested]))
        rows = [
            [f"{one.planned.label}{'' if one.result.state == 'finished' else f' ({one.result.state})'}"]
            + [spread(one, name) for name in names]
            for one in ranked[:MOST_ROWS]
        ]
        lines += [Table("", ["trial", *names], rows).markdown(), ""]
        if len(ranked) > MOST_ROWS:
            lines += [f"The first {MOST_ROWS} of {len(ranked)}; all are in `comparison.csv`.", ""]
    return "\n".join([*lines, f"Folder: `{path}`"])


def spread(trial: Outcome, name: str) -> str:
    """`72.41 ± 0.30`, or `-`."""
    return mean_std(trial.last.get(name), trial.spread.get(name))


def what(settings: Mapping[str, Any]) -> str:
    """`fedpgp on icons with icon-clip: 10 clients (pathological), base_to_novel, 16 shots, 20 rounds`."""
    partition, protocol = settings["partition"], settings["protocol"]
    clients = "a client per domain" if partition["clients"] is None else f"{partition['clients']} clients"
    shots = "all images" if protocol["shots"] is None else f"{protocol['shots']} shots"
    where = f"{settings['data']['name']} with {settings['backbone']['name']}"
    return (
        f"**{settings['method']['name']}** on {where}: {clients} ({partition['scheme']}), {protocol['name']}, {shots}, "
        f"{settings['federation']['rounds']} rounds"
    )


def _coverage(runs: Iterable[RunFolder]) -> list[str]:
    """Over how many clients the means of runs are, where these are not all clients."""
    texts = dict.fromkeys(coverage.lines(map(coverage.of_run, runs), METRIC_TITLES).values())
    return [line for text in texts for line in (f"{text}.", "")]


def _by_client(store: RunFolder, rounds: Sequence[RoundRow]) -> list[str]:
    """The accuracies of each client in the last round that measured them."""
    if (last := last_evaluated(rounds)) is None:
        return []
    table = per_client_table(store.clients(), last)
    metrics = table.column_names[2:]
    names = store.identity.get("client_names") or {row: str(row) for row in table["client"].to_pylist()}
    rows = [
        [names[row["client"]], row["split"], *("-" if row[name] is None else f"{row[name]:.2f}" for name in metrics)]
        for row in table.to_pylist()
    ]
    shown = Table(
        f"Accuracy of each client in percent, round {last}",
        ["client", "split", *metrics],
        rows,
        text_columns=2,
        max_rows=MOST_ROWS,
    )
    return [shown.markdown(), ""] if rows else []


def _accuracies(rounds: Sequence[RoundRow], best: RoundRow | None) -> list[str]:
    """By metric: the last round and the mean of the last five, and the best round by validation."""
    found = selections(rounds)
    names = accuracies(found)
    if not names:
        return []
    chosen = dict(best.metrics) if best else {}
    heads = ["percent, mean over clients", "last round", "mean of last 5"]
    heads += [f"round {best.round}, best by validation"] if best else []
    rows = [
        [name, *(f"{found[name][reading]:.2f}" for reading in ("last", "mean_last_5"))]
        + ([f"{chosen[name]:.2f}" if name in chosen else "-"] if best else [])
        for name in names
    ]
    return [Table("", heads, rows).markdown(), ""]

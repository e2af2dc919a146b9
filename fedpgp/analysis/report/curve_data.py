"""What pictures need beyond a comparison, from the rows on disk: curves over rounds, and single clients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedpgp.analysis.comparison import Group, Run
from fedpgp.federation.metrics import last_evaluated, per_client_table
from fedpgp.storage.run_folder import RunFolder


@dataclass(frozen=True)
class Curve:
    """A metric over the rounds, mean over the runs of a group that measured it."""

    rounds: Sequence[int]
    mean: Sequence[float]
    spread: Sequence[float]
    """standard deviation over the runs (ddof 1); 0 for one run"""
    megabytes: Sequence[float]
    """sent up and down until then, mean over the runs"""


def curve(group: Group, metric: str, split: str = "test") -> Curve | None:
    """A metric of a group over the rounds that all its runs measured; None: there is none."""
    name = f"{split}/{metric}"
    series: list[dict[int, tuple[float, float]]] = []
    for run in group.runs.values():
        sent, points = 0, {}
        for row in RunFolder.open(run.path).rounds():
            sent += row.bytes_up + row.bytes_down
            if name in row.metrics:
                points[row.round] = row.metrics[name], sent / 1e6
        series.append(points)
    rounds = sorted(set.intersection(*map(set, series))) if series else []
    if not rounds:
        return None
    values = np.array([[points[number] for number in rounds] for points in series])  # (runs, rounds, 2)
    spread = values[:, :, 0].std(axis=0, ddof=1) if len(series) > 1 else np.zeros(len(rounds))
    mean, megabytes = values.mean(axis=0).T.tolist()
    return Curve(rounds, mean, spread.tolist(), megabytes)


def client_accuracies(run: Run, metric: str, split: str = "test") -> dict[str, float]:
    """Accuracy in percent of each client by name, in the last round that was evaluated; those without are absent."""
    store = RunFolder.open(run.path)
    last = last_evaluated(store.rounds())
    if last is None:
        return {}
    names = store.identity["client_names"]
    table = per_client_table(store.clients(), last)
    if metric not in table.column_names:
        return {}
    rows = (row for row in table.to_pylist() if row["split"] == split and row[metric] is not None)
    return {names[row["client"]]: row[metric] for row in rows}


def pooled_clients(group: Group, metric: str) -> list[float]:
    """Test accuracies of all clients of all runs of a group."""
    return [value for run in group.runs.values() for value in client_accuracies(run, metric).values()]


def held_out(group: Group) -> Mapping[str, Mapping[str, float]]:
    """Test accuracy by held-out domain and client, mean over the seeds that have both."""
    found: dict[str, dict[str, list[float]]] = {}
    for fold, run in group.runs.items():
        for name, value in client_accuracies(run, "held_out").items():
            found.setdefault(str(fold.held_out), {}).setdefault(name, []).append(value)
    return {domain: {name: float(np.mean(values)) for name, values in row.items()} for domain, row in found.items()}

"""Summarize a trial: the mean of its folds' metrics, round by round."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev

from fedpgp.federation.metrics import RoundRow
from fedpgp.storage.run_folder import RunFolder
from fedpgp.storage.sweep_folder import Result, SweepFolder, TrialSpec


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

    @property
    def last(self) -> Mapping[str, float]:
        """Metrics of the last round."""
        return self.rounds[-1].metrics if self.rounds else {}


def outcome(folder: SweepFolder, planned: TrialSpec, result: Result) -> Outcome:
    """Read the folds of a trial."""
    paths = {str(fold.fold): folder.root / "runs" / fold.run for fold in result.folds}
    runs = {label: RunFolder.open(path) for label, path in paths.items() if path.is_dir()}
    series = [{row.round: row for row in run.rounds()} for run in runs.values()]
    common = sorted(set.intersection(*map(set, series))) if series else []
    rounds = tuple(_mean([rows[number] for rows in series]) for number in common)
    best = [rows[run.best] for run, rows in zip(runs.values(), series, strict=True) if run.best is not None]
    return Outcome(
        planned=planned,
        result=result,
        runs=runs,
        rounds=rounds,
        spread=_spread([rows[common[-1]] for rows in series]) if common and len(series) > 1 else {},
        best=_mean(best) if best and len(best) == len(runs) else None,
        created_ms=min((run.identity["created_ms"] for run in runs.values()), default=folder.head["created_ms"]),
        ended_ms=max((run.status["timestamp_ms"] for run in runs.values()), default=folder.status["timestamp_ms"]),
    )


def best_of(outcomes: Sequence[Outcome], mode: str) -> Outcome | None:
    """The finished trial with the best value, if any."""
    ranked = ranking(outcomes, mode)
    return ranked[0] if ranked and _value(ranked[0]) is not None else None


def ranking(outcomes: Sequence[Outcome], mode: str) -> list[Outcome]:
    """Finished trials, best first, then those that were stopped or failed."""
    sign = -1 if mode == "max" else 1

    def key(one: Outcome) -> tuple[bool, float]:
        value = _value(one)
        return value is None, 0.0 if value is None else sign * value

    return sorted(outcomes, key=key)


def _value(one: Outcome) -> float | None:
    return one.result.value if one.result.state == "finished" else None


def _mean(rows: Sequence[RoundRow]) -> RoundRow:
    """Mean of the metrics that all rows have, with the time of the latest row."""
    names = [name for name in rows[0].metrics if all(name in row.metrics for row in rows)]
    latest = max(rows, key=lambda row: row.timestamp_ms)
    return replace(latest, metrics={name: fmean(row.metrics[name] for row in rows) for name in names})


def _spread(rows: Sequence[RoundRow]) -> dict[str, float]:
    names = [name for name in rows[0].metrics if all(name in row.metrics for row in rows)]
    return {name: stdev(row.metrics[name] for row in rows) for name in names}

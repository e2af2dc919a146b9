"""Runs and sweeps as objects to work with: rows as pandas DataFrames, learned prompts, figures."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from fedpgp.analysis import loading
from fedpgp.config.values import load_yaml
from fedpgp.export.exporting import Which, learned_prompt
from fedpgp.export.prompt_file import Prompt
from fedpgp.federation.measures import POOLED, of_counts
from fedpgp.federation.metrics import CONFUSION_SCHEMA, PARTITION_SCHEMA
from fedpgp.federation.pooled_counts import BINS, MILLION
from fedpgp.storage import copies
from fedpgp.storage.run_folder import RunFolder
from fedpgp.storage.sweep_folder import SweepFolder

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Run:
    """A run on disk, finished or not. Reading it never runs code that belongs to it.

    Args:
        path: the folder `STORAGE_ROOT/runs/NAME-DIGEST`, or its URI, of which a copy is made.

    Raises:
        RunError: the folder is not that of a run.
    """

    def __init__(self, path: str | Path) -> None:
        self.folder: RunFolder = RunFolder.open(copies.local(path))
        self.path: Path = self.folder.path

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}: {self.state})"

    @property
    def state(self) -> str:
        """`finished`, `running`, `stopped` (by request), `failed`, or `interrupted` (its process was killed)."""
        return self.folder.state

    @property
    def identity(self) -> dict[str, Any]:
        """Digests of data, partition and weights, versions and hardware, names of clients and classes."""
        return self.folder.identity

    @property
    def settings(self) -> dict[str, Any]:
        """Every setting of the run, as nested mappings."""
        return dict(load_yaml(self.folder.config_yaml))

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics of the last round, such as `test/hm`: means over clients, in percent. Empty before round 1."""
        rounds = self.folder.rounds()
        return dict(rounds[-1].metrics) if rounds else {}

    @property
    def rounds(self) -> pd.DataFrame:
        """One row per round: its metrics in percent, `train/...` losses, participants, bytes up and down, seconds."""
        rows = []
        for row in self.folder.rounds():
            seconds = {f"seconds/{stage}": value for stage, value in row.seconds.items()}
            counts = {"participants": row.participants, "bytes_up": row.bytes_up, "bytes_down": row.bytes_down}
            rows.append({"round": row.round, **row.metrics, **counts, **seconds})
        return pd.DataFrame(rows)

    @property
    def clients(self) -> pd.DataFrame:
        """One row per round, client, split, metric and domain, with exact counts and `accuracy` in percent.

        `name` is the client's name; `domain` is missing in rows over all domains; `loss` is set in rows of training.
        """
        table = self.folder.clients().to_pandas()
        names = self.identity["client_names"]
        table.insert(2, "name", [names[client] for client in table["client"]])
        table["accuracy"] = 100 * table["correct"] / table["total"]
        return table

    @property
    def confusion(self) -> pd.DataFrame:
        """How often images of class `label` were classified as `answer` after the last round, over all clients."""
        table = self.folder.confusion
        frame = (CONFUSION_SCHEMA.empty_table() if table is None else table).to_pandas()
        names = self.identity["class_names"]
        for column in ("label", "answer"):
            frame[column] = [names[number] for number in frame[column]]
        return frame

    @property
    def measures(self) -> pd.DataFrame:
        """One row per evaluated round, split, metric and domain (missing: all): `ece`, `f1`, `balanced` in percent.

        Over the images of all clients together, see `measures.of_counts`. Empty for runs of older versions.
        """
        pooled, whole = self.folder.pooled(), ("round", "split", "metric")
        found = {(*key, None): own for key, own in of_counts(pooled, whole).items()}
        found |= {(*key,): own for key, own in of_counts(pooled, (*whole, "domain")).items()}  # the same for one domain
        columns = [*whole, "domain"]
        rows = [{**dict(zip(columns, key, strict=True)), **own} for key, own in found.items()]
        return pd.DataFrame(rows, columns=[*columns, *POOLED]).sort_values(columns, ignore_index=True)

    @property
    def calibration(self) -> pd.DataFrame:
        """Images by confidence of the answer: one row per evaluated round, split, metric, domain and bin with images.

        `images` and `correct` are exact counts over all clients; `accuracy` and `confidence` are means in percent, and
        bins hold the confidences above `low`, up to `high`. `domain` is missing if the data have one.
        """
        frame = self._pooled("bin").drop(columns="predicted")
        frame.insert(5, "low", 100 * frame["bin"] / BINS)
        frame.insert(6, "high", 100 * (frame["bin"] + 1) / BINS)
        frame["accuracy"] = 100 * frame["correct"] / frame["images"]
        frame["confidence"] = 100 * (frame["confidence"] / MILLION) / frame["images"]
        return frame

    @property
    def classes(self) -> pd.DataFrame:
        """One row per evaluated round, split, metric, domain and class: exact counts over all clients.

        `images` of the class, images `predicted` as it, and `correct`: those that are both. `domain` is missing if the
        data have one.
        """
        frame = self._pooled("label").drop(columns="confidence")
        frame["label"] = [self.identity["class_names"][number] for number in frame["label"]]
        return frame.rename(columns={"label": "class"}).astype({"predicted": int})

    def _pooled(self, kind: str) -> pd.DataFrame:
        """The pooled rows of bins or of classes (`label`)."""
        other = {"bin": "label", "label": "bin"}[kind]
        frame = self.folder.pooled().to_pandas()
        return frame[frame[kind].notna()].drop(columns=other).astype({kind: int}).reset_index(drop=True)

    @property
    def partition(self) -> pd.DataFrame:
        """How many images of which class and domain each client has, by split."""
        table = self.folder.partition
        return (PARTITION_SCHEMA.empty_table() if table is None else table).to_pandas()

    def prompt(self, client: int | str = "global", round: Which = "last") -> Prompt:
        """The prompt that a client, or the server, has learned. See `fedpgp export`.

        Args:
            client: number or name of a client, or `global`.
            round: the last one, or the best by validation images.

        Raises:
            RunError: the run has not finished, there is no such client or global model, or the method learns no prompt.
        """
        return learned_prompt(copies.with_checkpoints(self.path), str(client), round)

    def figures(self) -> dict[str, Figure]:
        """The figures of a report on this run alone, by name."""
        return _figures(self.path)


class Sweep:
    """A sweep on disk: its trials, each a set of settings that was run once per fold (seed, split, held-out domain).

    Args:
        path: the folder `STORAGE_ROOT/sweeps/NAME-DIGEST`, or its URI, of which a copy is made.

    Raises:
        RunError: the folder is not that of a sweep.
    """

    def __init__(self, path: str | Path) -> None:
        self.folder: SweepFolder = SweepFolder.open(copies.local(path))
        self.path: Path = self.folder.path

    def __repr__(self) -> str:
        return f"Sweep({str(self.path)!r}: {self.state}, {len(self.folder.trials)} trials)"

    @property
    def state(self) -> str:
        """As of a run; `failed` if any trial failed."""
        return self.folder.state

    @property
    def metric(self) -> str:
        """What trials are ranked by: a metric such as `val/hm` or, with two, the rule `tune.best`, such as `hm`."""
        return self.folder.objectives.name

    @property
    def trials(self) -> pd.DataFrame:
        """One row per trial: id, label, state, value of the metric (mean over folds), reason, and its settings.

        With two metrics also their values.
        """
        results, objectives = self.folder.results(), self.folder.objectives
        rows = []
        for trial in self.folder.trials:
            result = results.get(trial.id)
            rows.append(
                {
                    "id": trial.id,
                    "trial": trial.label,
                    "state": result.state if result else "missing",
                    objectives.name: result.value if result else None,
                    **dict.fromkeys(objectives.columns[1:]),
                    **(dict(zip(objectives.metrics, result.values, strict=True)) if result and result.values else {}),
                    "folds": len(trial.folds),
                    "reason": result.reason if result else None,
                    **trial.settings,
                }
            )
        return pd.DataFrame(rows)

    @property
    def best(self) -> pd.Series | None:
        """The row of the best finished trial by `metric`; None: there is none yet."""
        trials = self.trials
        if trials.empty:  # a search has not suggested any yet
            return None
        finished = trials[(trials["state"] == "finished") & trials[self.metric].notna()]
        if finished.empty:
            return None
        values = finished[self.metric].astype(float)
        return finished.loc[values.idxmax() if self.folder.objectives.mode == "max" else values.idxmin()]

    @property
    def front(self) -> pd.DataFrame:
        """The rows of the Pareto front of two metrics, from the best by the first to the worst; empty with one metric.

        These are the finished trials that no other one beats: is no worse in both metrics and better in one.
        """
        trials, front = self.trials, [trial.id for trial in self.folder.front()]
        return trials.set_index("id", drop=False).loc[front].reset_index(drop=True) if front else trials.head(0)

    def runs(self, trial: str | None = None) -> list[Run]:
        """The runs of all trials that ended, or of one.

        Args:
            trial: its id or label; None: all.
        """
        labels = {planned.id: planned.label for planned in self.folder.trials}
        return [
            Run(folder.path)
            for result in self.folder.results().values()
            if trial in (None, result.id, labels[result.id])
            for folder in self.folder.runs(result)
        ]

    def figures(self) -> dict[str, Figure]:
        """The figures of a report on this sweep, by name."""
        return _figures(self.path)


def compare(
    runs: Run | Sweep | str | Path | Iterable[Run | Sweep | str | Path],
    baseline: str | None = None,
    allow_mismatch: bool = False,
) -> pd.DataFrame:
    """Compare runs: means and standard deviations over seeds, and paired differences to a baseline.

    Runs that differ in seed, split of the data and held-out domain only form one group, labelled by its method and by
    what it differs in.

    Args:
        runs: runs, sweeps, or their folders, or a storage root; or URIs of these.
        baseline: label of the group that differences refer to; None: the first.
        allow_mismatch: also compare unfinished runs, and runs on different data, marked in `notes`.

    Returns:
        One row per group and test metric, its measures (`base_ece`) and domains (`base.sketch`): `group`, `metric`,
        `seeds` (with several splits of the data: pairs of seed and split), `mean`, `std` (ddof 1; missing for one
        seed), and `difference`, `low`, `high` (95% confidence interval, paired by seed and split).
        `DataFrame.attrs["notes"]` lists what was left out.

    Raises:
        RunError: no finished run, or runs that do not compare.
    """
    comparison = loading.find(loading.paths_of(runs)).compare(allow_mismatch)
    chosen = comparison.baseline(baseline)
    rows = []
    for group in comparison.groups:
        for metric in comparison.names():
            if (found := group.statistic(metric)) is None:
                continue
            difference = comparison.difference(group, chosen, metric)
            low, high = (difference.interval if difference else None) or (None, None)
            rows.append(
                {
                    "group": group.label,
                    "scenario": group.scenario,
                    "metric": metric,
                    "seeds": len(found.by_seed),
                    "mean": found.mean,
                    "std": found.std,
                    "difference": difference.mean if difference else None,
                    "low": low,
                    "high": high,
                    "notes": group.notes_on(f"test/{metric}"),
                }
            )
    frame = pd.DataFrame(rows)
    frame.attrs["notes"] = [*comparison.notes, *comparison.missing()]
    return frame


def _figures(folder: Path) -> dict[str, Figure]:
    from fedpgp.analysis.report.figures import all_figures

    figures, _ = all_figures(loading.find([folder]).compare())
    return {one.name: one.figure for one in figures}

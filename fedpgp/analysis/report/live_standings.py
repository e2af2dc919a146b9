"""The progress of a small sweep as a table of accuracies that fills up while its folds finish."""

from collections.abc import Mapping, Sequence
from statistics import fmean

from rich.console import Console

from fedpgp.analysis.comparison import METRIC_TITLES
from fedpgp.analysis.report.progress_bar import ProgressDisplay
from fedpgp.analysis.report.tables import Table

METRICS = ("local", "base", "novel", "hm")


class LiveStandings(ProgressDisplay):
    """Shows the mean test accuracy of each trial over its finished folds: a table in a terminal, else lines.

    The table disappears at the end, when the final one follows.

    Args:
        trials: labels of the trials, each a row from the beginning.
    """

    def __init__(self, console: Console, trials: Sequence[str]) -> None:
        super().__init__(console)
        self._done: dict[str, list[Mapping[str, float]]] = {trial: [] for trial in trials}
        self._folds = 0
        self._bars.live.transient = True
        self._bars.above = self._table()

    def on_fold(self, trial: str, done: int, total: int, metrics: Mapping[str, float]) -> None:
        """Fill in the row of the trial."""
        self._done.setdefault(trial, []).append(metrics)
        self._folds = total
        if self._animated:
            self._bars.above = self._table()
        else:
            means = zip(METRICS, self._means(trial), strict=True)
            shown = "  ".join(f"{METRIC_TITLES[metric]} {mean}" for metric, mean in means if mean)
            self._console.print(f"{trial} {done}/{total}  {shown}", highlight=False, soft_wrap=True)

    def on_trials(self, ended: int, total: int, summary: str) -> None:
        """Show the number of trials that have ended; the table has the rest."""
        self.show("trials", ended, total)

    def _table(self) -> Table:
        counts = [f"{len(own)}/{self._folds}" if own else "" for own in self._done.values()]
        rows = [(trial, count, *self._means(trial)) for trial, count in zip(self._done, counts, strict=True)]
        headings = ("method", "runs", *(METRIC_TITLES[metric] for metric in METRICS))
        return Table("Test accuracy in percent, mean over clients, so far", headings, rows)

    def _means(self, trial: str) -> list[str]:
        """The mean of each metric over the finished folds; empty without any."""
        values = [[row[f"test/{metric}"] for row in self._done[trial] if f"test/{metric}" in row] for metric in METRICS]
        return [f"{fmean(own):.1f}" if own else "" for own in values]

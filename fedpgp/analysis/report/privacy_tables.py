"""Tables of what runs with differential privacy have spent."""

from collections.abc import Mapping, Sequence

from fedpgp.analysis.comparison import Group, Run
from fedpgp.analysis.report.tables import Table
from fedpgp.federation.metrics import PRIVACY

HEADINGS = ("epsilon spent", "at delta", "clip norm")
CAPTION = "after the last round, of one run: runs on the same clients add up; - : no guarantee"


def of_metrics(title: str, by_label: Mapping[str, Sequence[Mapping[str, Mapping[str, float]]]]) -> Table:
    """A row per label for the runs with privacy, given by their `selections`: the largest values among them."""
    rows = []
    for label, runs in by_label.items():
        private = [run for run in runs if PRIVACY[-1] in run]
        if private:
            values = ([run[name]["last"] for run in private if name in run] for name in PRIVACY)
            rows.append((label, *(f"{max(found):.4g}" if found else "-" for found in values)))
    return Table(title, ("", *HEADINGS), rows, caption=CAPTION)


def of_groups(groups: Sequence[Group], scenario: str = "") -> Table:
    """The groups of a comparison; no rows without privacy."""
    title = f"Differential privacy: {scenario}" if scenario else "Differential privacy"
    return of_metrics(title, {group.label: [run.metrics for run in group.runs.values()] for group in groups})


def of_pair(first: Run, second: Run) -> Table:
    """Two runs side by side; no rows without privacy."""
    return of_metrics("Differential privacy", {"A": [first.metrics], "B": [second.metrics]})

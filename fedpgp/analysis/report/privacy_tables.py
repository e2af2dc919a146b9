"""Tables of what runs with differential privacy have spent."""

from collections.abc import Mapping, Sequence
from typing import Any

from fedpgp.analysis.comparison import Group, Run
from fedpgp.analysis.report.tables import Table
from fedpgp.federation.metrics import PRIVACY

HEADINGS = ("epsilon spent", "at delta", "clip norm", "noise multiplier", "neighbours")
CAPTION = (
    "after the last round, of one run: runs on the same clients add up; - : no guarantee; epsilons of different "
    "neighbours do not compare"
)

Numbers = tuple[Mapping[str, Mapping[str, float]], Mapping[str, Any]]
"""`selections` and identity of a run."""


def of_runs(title: str, by_label: Mapping[str, Sequence[Numbers]]) -> Table:
    """A row per label for the runs with privacy: the largest of what they spent, and what the accountant assumed."""
    rows = []
    for label, runs in by_label.items():
        private = [(metrics, identity.get("privacy", {})) for metrics, identity in runs if PRIVACY[-1] in metrics]
        if private:
            values = ([metrics[name]["last"] for metrics, _ in private if name in metrics] for name in PRIVACY)
            spent = (f"{max(found):.4g}" if found else "-" for found in values)
            noises = dict.fromkeys(f"{one['noise_multiplier']:.4g}" for _, one in private if one)
            neighbours = dict.fromkeys(one["neighbours"] for _, one in private if one)
            rows.append((label, *spent, ", ".join(noises) or "-", ", ".join(neighbours) or "-"))
    return Table(title, ("", *HEADINGS), rows, caption=CAPTION)


def of_groups(groups: Sequence[Group], scenario: str = "") -> Table:
    """The groups of a comparison; no rows without privacy."""
    title = f"Differential privacy: {scenario}" if scenario else "Differential privacy"
    return of_runs(title, {group.label: [*map(_numbers, group.runs.values())] for group in groups})


def of_pair(first: Run, second: Run) -> Table:
    """Two runs side by side; no rows without privacy."""
    return of_runs("Differential privacy", {"A": [_numbers(first)], "B": [_numbers(second)]})


def _numbers(run: Run) -> Numbers:
    return run.metrics, run.identity

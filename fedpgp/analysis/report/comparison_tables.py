"""The tables of a comparison: accuracies, paired differences, readings, costs, settings; and its CSV."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from fedpgp.analysis.comparison import MAIN, READINGS, Comparison, Difference, Group, Reading, ranks
from fedpgp.analysis.report import tables
from fedpgp.analysis.report.labels import METRIC_TITLES, READING_SENTENCES, READING_TITLES
from fedpgp.analysis.report.tables import Cell, Table, starred, statistic_columns, statistic_text
from fedpgp.core.text import disk_size

MARKS = "†‡§¶"
PROTOCOL_COLUMNS = ("local", "base", "novel", "hm", "all", "held_out")
STANDING = ("local", "base", "novel", "hm")
CSV_HEADINGS = "scenario,group,split,metric,reading,mean,std,seeds,values,baseline,difference,low,high,marks"


def all_tables(comparison: Comparison, baseline: str, reading: Reading = "last") -> list[Table]:
    """All tables of a comparison that have rows."""
    found = []
    for scenario in comparison.scenarios:
        found += [accuracies(comparison, scenario, reading), differences(comparison, scenario, baseline, reading)]
    for build in (readings, costs):
        found += [build(groups, scenario) for scenario, groups in comparison.scenarios.items()]
    return [table for table in found if table.rows]


def accuracies(comparison: Comparison, scenario: str, reading: Reading = "last", split: str = "test") -> Table:
    """Mean ± standard deviation over seeds for the groups of one scenario; best and second best are marked."""
    groups = comparison.scenarios[scenario]
    metrics = _measured(groups, split)
    columns = [_ranked(groups, metric, split, reading) for metric in metrics]
    signs = _signs(comparison)
    names = [" ".join([group.label, *(signs[mark] for mark in group.marks)]) for group in groups]
    return Table.of(
        _titled(f"Accuracy on {split} images in percent, mean over clients", scenario),
        ("", "seeds", *(METRIC_TITLES[metric] for metric in metrics)),
        zip(names, (str(len(group.seeds)) for group in groups), *columns, strict=True),
        caption=f"{READING_SENTENCES[reading]}, mean ± standard deviation over seeds (ddof 1)",
    )


def standings(comparison: Comparison) -> Table:
    """The short table of a demo: one decimal, the best of each column starred."""
    groups = comparison.groups
    seeds = max(len(group.seeds) for group in groups)
    columns = [_ranked(groups, metric, "test", "last", digits=1) for metric in STANDING]
    starred_columns = [[starred(cell.text, cell.rank == 1) for cell in column] for column in columns]
    return Table.of(
        "Test accuracy in percent, mean over clients; * best",
        ("method", *(METRIC_TITLES[metric] for metric in STANDING)),
        zip((group.label for group in groups), *starred_columns, strict=True),
        caption=f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else "one seed",
    )


def differences(comparison: Comparison, scenario: str, baseline: str, reading: Reading = "last") -> Table:
    """Paired difference of each group of a scenario to the baseline; no rows if the scenario lacks the baseline."""
    groups = comparison.scenarios[scenario]
    metrics = _measured(groups, "test")
    rows = []
    for group in groups:
        found = [comparison.difference(group, baseline, metric, reading) for metric in metrics]
        if any(found):
            seeds = max(len(one.by_seed) for one in found if one)
            rows.append((group.label, str(seeds), *map(_difference, found)))
    return Table.of(
        _titled(f"Difference to {baseline}", scenario),
        ("", "seeds", *(METRIC_TITLES[metric] for metric in metrics)),
        rows,
        caption="paired by common seeds, test images, percentage points; in brackets the 95% confidence interval of "
        "the mean, not corrected for multiple comparisons",
    )


def readings(groups: Sequence[Group], scenario: str = "") -> Table:
    """The main metric in three readings on both splits."""
    rows = []
    metric = next((one for one in MAIN if any(group.statistic(one) for group in groups)), "local")
    for group in groups:
        for split in ("val", "test"):
            found = [group.statistic(metric, split, read) for read in READINGS]
            if any(found):
                rows.append((group.label, split, *map(statistic_text, found)))
    title = _titled(f"{METRIC_TITLES[metric]} in three readings of the rounds", scenario)
    headings = ("", "", *READING_TITLES.values())
    return Table.of(title, headings, rows, text_columns=2, caption="max on test selects on the test images")


def costs(groups: Sequence[Group], scenario: str = "") -> Table:
    """Rounds, bytes and seconds of a run of each group, mean over its runs."""
    rows = []
    for group in groups:
        runs = [run.cost for run in group.runs.values()]
        sent = (fmean(one.bytes_up for one in runs), fmean(one.bytes_down for one in runs))
        seconds = fmean(one.seconds_per_round for one in runs)
        rounds = "-".join(dict.fromkeys(str(bound(one.rounds for one in runs)) for bound in (min, max)))
        rows.append((group.label, rounds, *(disk_size(size) for size in sent), f"{seconds:.2f}"))
    headings = ("", "rounds", "sent up", "sent down", "seconds per round")
    return Table.of(_titled("Cost of a run", scenario), headings, rows, caption="mean over the runs of a group")


def remarks(comparison: Comparison) -> list[str]:
    """Notes below the tables: marks, what is missing or left out, and on which images settings were selected."""
    lines = [f"{sign} {mark}" for mark, sign in _signs(comparison).items()]
    lines += [f"missing: {line}" for line in comparison.missing()]
    lines += list(comparison.notes)
    for metric in comparison.selected:
        split, _, name = metric.partition("/")
        images = "validation images" if split == "val" else "the TEST images: these numbers are optimistic"
        lines.append(f"settings were selected by {name} on {images} ({metric})")
    if not comparison.selected:
        lines.append("how settings were selected is not on record: these runs were not compared as a sweep")
    return lines


def settings(comparison: Comparison) -> Table:
    """The settings that differ, with a column per group."""
    labels = [f"{group.label} ({group.scenario})" if group.scenario else group.label for group in comparison.groups]
    return differing_settings(labels, [group.settings for group in comparison.groups], comparison.differing)


def differing_settings(labels: Sequence[str], trees: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> Table:
    """The values of some settings, with a column per label; `-` if a tree lacks the key."""
    rows = [(key, *(str(tree[key]) if key in tree else "-" for tree in trees)) for key in keys]
    return Table.of("Settings that differ", ("", *labels), rows, text_columns=len(trees) + 1)


def as_csv(comparison: Comparison, baseline: str) -> str:
    """One line per group, split, metric and reading, for other programs."""
    lines = (
        _csv_line(comparison, group, baseline, split, metric, read)
        for group in comparison.groups
        for split in ("val", "test")
        for metric in comparison.metrics(split)
        for read in READINGS
    )
    return tables.as_csv(CSV_HEADINGS, lines)


def _csv_line(
    comparison: Comparison, group: Group, baseline: str, split: str, metric: str, read: Reading
) -> Iterator[object]:
    gained = comparison.difference(group, baseline, metric, read) if split == "test" else None
    interval = (gained.interval if gained else None) or (None, None)
    yield from (group.scenario, group.label, split, metric, read)
    yield from statistic_columns(group.statistic(metric, split, read))
    yield from (baseline, gained.mean if gained else None, *interval, "; ".join(group.marks))


def _ranked(groups: Sequence[Group], metric: str, split: str, reading: Reading, digits: int = 2) -> list[Cell]:
    """A column: mean ± standard deviation of each group, ranked if there are several."""
    found = [group.statistic(metric, split, reading) for group in groups]
    order = ranks([one.mean if one else None for one in found], digits)
    return [
        Cell(statistic_text(one, digits), rank if len(groups) > 1 else None)
        for one, rank in zip(found, order, strict=True)
    ]


def _difference(found: Difference | None) -> str:
    """`+1.20`, and below it the interval `[-0.5, +4.5]`; or `-`."""
    if found is None:
        return "-"
    interval = found.interval
    return f"{found.mean:+.2f}" + ("" if interval is None else f"\n[{interval[0]:+.1f}, {interval[1]:+.1f}]")


def _measured(groups: Sequence[Group], split: str) -> list[str]:
    return [metric for metric in PROTOCOL_COLUMNS if any(group.statistic(metric, split) for group in groups)]


def _titled(title: str, scenario: str) -> str:
    return f"{title}: {scenario}" if scenario else title


def _signs(comparison: Comparison) -> dict[str, str]:
    """A sign for each mark."""
    marks = dict.fromkeys(mark for group in comparison.groups for mark in group.marks)
    return {mark: MARKS[number % len(MARKS)] * (1 + number // len(MARKS)) for number, mark in enumerate(marks)}

"""A comparison as tables of text, before anyone says how they look: terminal, Markdown, HTML and CSV share them."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

from rich.box import SIMPLE_HEAD
from rich.console import Group as Lines
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from fedpgp.analysis.comparison import MAIN, READINGS, Comparison, Difference, Group, Reading, Statistic, ranks
from fedpgp.analysis.report.labels import METRIC_TITLES, READING_SENTENCES, READING_TITLES
from fedpgp.core.text import disk_size

MARKS = "†‡§¶"
STYLES = {1: "bold green", 2: "underline"}
WIDEST_NAME = 18
"""Letters that a name is never folded below."""
TAGS = {1: "**{}**", 2: "<u>{}</u>"}
"""Markdown for the best and the second best of a column."""
PROTOCOL_COLUMNS = ("local", "base", "novel", "hm", "all", "held_out")


@dataclass(frozen=True)
class Cell:
    """A text, and whether it is the best (1) or the second best (2) of its column."""

    text: str
    rank: int | None = None


@dataclass(frozen=True)
class Sheet:
    """A table: the first `names` columns are words, the others numbers."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    names: int = 1
    caption: str = ""


def sheets(comparison: Comparison, baseline: str, reading: Reading = "last") -> list[Sheet]:
    """All tables of a comparison."""
    found = []
    for place in comparison.places:
        found.append(accuracies(comparison, place, reading))
        found.append(differences(comparison, place, baseline, reading))
    for tell in (readings, costs):
        found += [tell(groups, place) for place, groups in comparison.places.items()]
    return [sheet for sheet in found if sheet.rows]


def accuracies(comparison: Comparison, place: str, reading: Reading = "last", split: str = "test") -> Sheet:
    """Groups of one place: mean ± standard deviation over seeds of what was measured, best and second best marked."""
    groups = comparison.places[place]
    metrics = _measured(groups, split)
    columns = []
    for metric in metrics:
        found = [group.statistic(metric, split, reading) for group in groups]
        places = ranks([one.mean if one else None for one in found]) if len(groups) > 1 else [None] * len(groups)
        columns.append([Cell(spread(one), rank) for one, rank in zip(found, places, strict=True)])
    rows = [
        (Cell(_marked(group, comparison)), Cell(str(len(group.seeds))), *(column[number] for column in columns))
        for number, group in enumerate(groups)
    ]
    title = _titled(f"Accuracy on {split} images in percent, mean over clients", place)
    caption = f"{READING_SENTENCES[reading]}, mean ± standard deviation over seeds (ddof 1)"
    headings = ("", "seeds", *(METRIC_TITLES[metric] for metric in metrics))
    return Sheet(title, headings, tuple(rows), caption=caption)


def differences(comparison: Comparison, place: str, baseline: str, reading: Reading = "last") -> Sheet:
    """What each group of a place gains over the baseline there, seed by seed; no rows if it has none."""
    groups = comparison.places[place]
    metrics = _measured(groups, "test")
    rows = []
    for group in groups:
        found = [comparison.difference(group, baseline, metric, reading) for metric in metrics]
        if any(found):
            seeds = max(len(one.by_seed) for one in found if one)
            rows.append((Cell(group.label), Cell(str(seeds)), *(Cell(gain(one)) for one in found)))
    headings = ("", "seeds", *(METRIC_TITLES[metric] for metric in metrics))
    caption = (
        "paired by common seeds, test images, percentage points; in brackets the 95% confidence interval of the mean, "
        "not corrected for many comparisons"
    )
    title = _titled(f"Difference to {baseline}", place)
    return Sheet(title, headings, tuple(rows), caption=caption)


def readings(groups: Sequence[Group], place: str = "") -> Sheet:
    """The main metric read in three ways on both splits."""
    rows = []
    metric = next((one for one in MAIN if any(group.statistic(one) for group in groups)), "local")
    for group in groups:
        for split in ("val", "test"):
            found = [group.statistic(metric, split, read) for read in READINGS]
            if any(found):
                rows.append((Cell(group.label), Cell(split), *map(Cell, map(spread, found))))
    title = _titled(f"{METRIC_TITLES[metric]} in three readings of the rounds", place)
    caption = "max on test selects on the test images"
    return Sheet(title, ("", "", *READING_TITLES.values()), tuple(rows), names=2, caption=caption)


def costs(groups: Sequence[Group], place: str = "") -> Sheet:
    """What a run of each group sent and took, mean over its runs."""
    rows = []
    for group in groups:
        runs = [run.cost for run in group.runs.values()]
        sent = [
            disk_size(fmean(sizes)) for sizes in zip(*((one.bytes_up, one.bytes_down) for one in runs), strict=True)
        ]
        seconds = fmean(one.seconds_per_round for one in runs)
        rounds = "-".join(dict.fromkeys(str(bound(one.rounds for one in runs)) for bound in (min, max)))
        rows.append(tuple(map(Cell, (group.label, rounds, *sent, f"{seconds:.2f}"))))
    headings = ("", "rounds", "sent up", "sent down", "seconds per round")
    return Sheet(_titled("Cost of a run", place), headings, tuple(rows), caption="mean over the runs of a group")


def remarks(comparison: Comparison) -> list[str]:
    """What a reader must know: marks, what is missing or left out, and on which images settings were selected."""
    said = [f"{sign} {mark}" for mark, sign in _signs(comparison).items()]
    said += [f"missing: {line}" for line in comparison.missing()]
    said += list(comparison.notes)
    for metric in comparison.selected:
        split, _, name = metric.partition("/")
        images = "validation images" if split == "val" else "the TEST images: these numbers are optimistic"
        said.append(f"settings were selected by {name} on {images} ({metric})")
    if not comparison.selected:
        said.append("how settings were selected is not on record: these runs were not compared as a sweep")
    return said


def settings(comparison: Comparison) -> Sheet:
    """The settings that differ, a column per group."""
    groups = comparison.groups
    rows = [
        tuple(map(Cell, (key, *("-" if key not in one.settings else str(one.settings[key]) for one in groups))))
        for key in comparison.differing
    ]
    labels = [f"{group.label} ({group.place})" if group.place else group.label for group in groups]
    return Sheet("Settings that differ", ("", *labels), tuple(rows), names=len(groups) + 1)


def spread(found: Statistic | None) -> str:
    """`72.41 ± 0.30`, or `-`."""
    if found is None:
        return "-"
    return f"{found.mean:.2f}" + ("" if found.std is None else f" ± {found.std:.2f}")


def gain(found: Difference | None) -> str:
    """`+1.20`, below it `[-0.5, +4.5]`; or `-`."""
    if found is None:
        return "-"
    interval = found.interval
    return f"{found.mean:+.2f}" + ("" if interval is None else f"\n[{interval[0]:+.1f}, {interval[1]:+.1f}]")


def in_terminal(tables: Sequence[Sheet], notes: Sequence[str]) -> Lines:
    """For a person in front of a terminal: the best bold, the second best underlined."""
    return Lines(*map(_rich, tables), *(escape(note) for note in notes))


def as_markdown(tables: Sequence[Sheet], notes: Sequence[str]) -> str:
    """For a README: the best bold, the second best underlined."""
    return "\n\n".join([*map(_markdown, tables), "\n".join(f"* {_plain(note)}" for note in notes)]) + "\n"


def as_csv(comparison: Comparison, baseline: str) -> str:
    """One line per group, split, metric and reading, for other programs."""
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(
        ["place", "group", "split", "metric", "reading", "mean", "std", "seeds", "values", "baseline", "difference",
         "low", "high", "marks"]
    )  # fmt: skip
    for group in comparison.groups:
        for split in ("val", "test"):
            for metric in comparison.metrics(split):
                for read in READINGS:
                    writer.writerow(_line(comparison, group, baseline, split, metric, read))
    return sink.getvalue()


def _line(
    comparison: Comparison, group: Group, baseline: str, split: str, metric: str, read: Reading
) -> Iterator[object]:
    found = group.statistic(metric, split, read)
    gained = comparison.difference(group, baseline, metric, read) if split == "test" else None
    interval = (gained.interval if gained else None) or (None, None)
    yield from (group.place, group.label, split, metric, read)
    yield from (found.mean, found.std) if found else (None, None)
    yield from (
        (" ".join(map(str, found.by_seed)), " ".join(map(str, found.by_seed.values()))) if found else (None, None)
    )
    yield from (baseline, gained.mean if gained else None, *interval, "; ".join(group.marks))


def _rich(sheet: Sheet) -> Lines:
    """Title and caption stand beside the table, which would fold them to its own width."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for number, heading in enumerate(sheet.headings):
        widest = max((len(row[number].text) for row in sheet.rows), default=0)
        least = min(widest, WIDEST_NAME) if number < sheet.names else None
        table.add_column(
            escape(heading), justify="left" if number < sheet.names else "right", overflow="fold", min_width=least
        )
    for row in sheet.rows:
        table.add_row(*(Text(cell.text, STYLES.get(cell.rank or 0, "")) for cell in row))
    caption = [Text(sheet.caption, "dim italic")] if sheet.caption else []
    return Lines(Text(sheet.title, "bold"), table, *caption, "")


def _markdown(sheet: Sheet) -> str:
    lines = [f"**{_plain(sheet.title)}**", ""]
    lines.append("| " + " | ".join(map(_plain, sheet.headings)) + " |")
    lines.append("|" + "".join("---|" if number < sheet.names else "---:|" for number in range(len(sheet.headings))))
    lines += [
        "| " + " | ".join(TAGS.get(cell.rank or 0, "{}").format(_plain(cell.text)) for cell in row) + " |"
        for row in sheet.rows
    ]
    return "\n".join([*lines, *(["", _plain(sheet.caption)] if sheet.caption else [])])


def _plain(text: str) -> str:
    """Text that Markdown takes as it is, indented or not."""
    for sign in "\\`*_[]<>|":
        text = text.replace(sign, f"\\{sign}")
    words = text.lstrip(" ")
    return ("" if words == text else "&emsp;") + words.replace("\n", " ")


def _measured(groups: Sequence[Group], split: str) -> list[str]:
    return [metric for metric in PROTOCOL_COLUMNS if any(group.statistic(metric, split) for group in groups)]


def _titled(title: str, place: str) -> str:
    return f"{title}: {place}" if place else title


def _marked(group: Group, comparison: Comparison) -> str:
    signs = _signs(comparison)
    return " ".join([group.label, *(signs[mark] for mark in group.marks)])


def _signs(comparison: Comparison) -> dict[str, str]:
    """A sign for each mark."""
    marks = dict.fromkeys(mark for group in comparison.groups for mark in group.marks)
    return {mark: MARKS[number % len(MARKS)] * (1 + number // len(MARKS)) for number, mark in enumerate(marks)}

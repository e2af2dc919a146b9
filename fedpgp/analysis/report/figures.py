"""All pictures that a comparison can have, each with its caption; what cannot be drawn is said."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from matplotlib.figure import Figure

from fedpgp.analysis import prompts
from fedpgp.analysis.comparison import Comparison, Group, Reading
from fedpgp.analysis.report import convergence, curve_data, data_figures, grids, prompt_figures, tradeoff
from fedpgp.analysis.report.labels import METRIC_TITLES
from fedpgp.core.errors import FedPGPError
from fedpgp.storage.run_folder import RunFolder

MOST_PLACES = 6
"""Places whose groups are drawn."""
MOST_GROUPS = 12
"""Groups of a place up to which they are drawn one beside the other."""
MOST_PROMPTS = 8
"""Groups whose prompts are looked into."""
FIRST_KEYS = ("method.rank", "protocol.shots")
"""What a heat map shows rather than other swept settings."""


@dataclass(frozen=True)
class Picture:
    """A figure, its file's name and what it shows."""

    name: str
    title: str
    caption: str
    figure: Figure


def gallery(comparison: Comparison, reading: Reading = "last") -> tuple[list[Picture], list[str]]:
    """The pictures, and notes on those that could not be drawn."""
    notes: list[str] = []
    pictures: list[Picture] = []
    places = comparison.places
    if len(places) > MOST_PLACES:
        notes.append(f"figures show the first {MOST_PLACES} of {len(places)} places (data, partitions, protocols)")
    for number, (place, groups) in enumerate(islice(places.items(), MOST_PLACES), start=1):
        ending = f"-{number}" if len(places) > 1 else ""
        where = f" ({place})" if place else ""
        shown = groups[:MOST_GROUPS]
        if len(groups) > len(shown):
            notes.append(f"figures show the first {len(shown)} of {len(groups)} groups{where}")
        for picture in _of_place(shown, comparison, reading):
            pictures.append(Picture(f"{picture.name}{ending}", picture.title + where, picture.caption, picture.figure))
    pictures += _heat_map(comparison, reading)
    pictures += _learned(comparison, notes)
    return pictures, notes


def _of_place(groups: Sequence[Group], comparison: Comparison, reading: Reading) -> Iterator[Picture]:
    measured = [metric for metric in tradeoff.BARS if any(group.statistic(metric, "test", reading) for group in groups)]
    if {"local", "novel", "hm"} <= set(measured):
        caption = "Right is personal, up is general. Lines join equal harmonic means of these two."
        yield Picture("tradeoff", "Local against Novel", caption, tradeoff.local_against_novel(groups, reading))
    if measured:
        yield Picture("bars", "By metric", "", tradeoff.bars(groups, measured, reading))
    main = next((metric for metric in (comparison.main, *measured) if metric in measured), None)
    if main is not None:
        curves = {group.label: curve_data.curve(group, main) for group in groups}
        found = {label: curve for label, curve in curves.items() if curve is not None}
        if any(len(curve.rounds) > 1 for curve in found.values()):
            caption = "The same accuracies over rounds, and over what was sent. Dotted level: nothing is trained."
            yield Picture("convergence", "Convergence", caption, convergence.convergence(found, main))
    single = next((metric for metric in ("held_out", "local", "all") if metric in measured), None)
    if single is not None:
        pooled = {group.label: curve_data.pooled_clients(group, single) for group in groups}
        clients = {label: own for label, own in pooled.items() if own}
    if single is not None and clients:
        drawn = convergence.client_distribution(clients, single)
        yield Picture("clients", f"Single clients, {METRIC_TITLES[single]}", "A mean can hide who pays for it.", drawn)
    for number, group in enumerate(groups, start=1):
        if "held_out" in measured and (matrix := curve_data.held_out(group)):
            caption = "Nobody trained on the domain of the row; white: the client who has it."
            drawn = grids.held_out_matrix(matrix, group.label)
            yield Picture(f"held-out-{number}", f"Held-out domains, {group.label}", caption, drawn)
    first = next(iter(groups[0].runs.items()))
    if (drawn_partition := data_figures.partition_of_run(first[1].path)) is not None:
        yield Picture(
            "partition",
            f"Who holds what, {first[0]}",
            "" if any(group.marks for group in groups) else "The same for all groups.",
            drawn_partition,
        )


def _heat_map(comparison: Comparison, reading: Reading) -> Iterator[Picture]:
    """Two swept settings against each other, method by method."""
    for method in dict.fromkeys(group.method for group in comparison.groups):
        groups = [group for group in comparison.groups if group.method == method]
        keys = [key for key in Comparison(tuple(groups)).differing if _is_axis(groups, key)]
        keys.sort(key=lambda key: FIRST_KEYS.index(key) if key in FIRST_KEYS else len(FIRST_KEYS))
        if len(keys) >= 2 and _is_grid(groups, keys[0], keys[1]) and comparison.main is not None:
            drawn = grids.settings_heat_map(groups, keys[0], keys[1], comparison.main, reading)
            title = f"{keys[0]} by {keys[1]}, {method}"
            yield Picture(f"grid-{method}", title, "All else that was swept is averaged over.", drawn)


def _is_axis(groups: Sequence[Group], key: str) -> bool:
    return all(isinstance(group.settings.get(key), int | float) for group in groups)


def _is_grid(groups: Sequence[Group], down: str, across: str) -> bool:
    """Whether two settings vary by themselves, and not the one with the other."""
    points = {(group.settings[down], group.settings[across]) for group in groups}
    return len(points) > max(len({one[side] for one in points}) for side in (0, 1))


def _learned(comparison: Comparison, notes: list[str]) -> Iterator[Picture]:
    """What the prompts of the first groups that have any look like, in the first run of each."""
    looked = 0
    for number, group in enumerate(comparison.groups, start=1):
        fold, run = next(iter(group.runs.items()))
        label = f"{group.label}, {fold}"
        found: list[Picture] = []
        try:
            for picture in _prompts(RunFolder.open(run.path), number, label) if looked < MOST_PROMPTS else ():
                found.append(picture)
        except FedPGPError as error:  # what came before it is kept
            notes.append(f"not drawn: prompts of {label}: {error}")
        looked += bool(found)
        yield from found


def _prompts(store: RunFolder, number: int, label: str) -> Iterator[Picture]:
    found = prompts.prompts(store)
    if found is not None and found.personal is not None:
        caption = "Grey: single clients. Low-rank is what reaches the dotted line (90% of the energy) early."
        drawn = prompt_figures.spectra(found.spectrum().values.numpy(), label)
        yield Picture(f"spectrum-{number}", f"Spectrum of the clients' own part, {label}", caption, drawn)
        drawn = prompt_figures.similarity(found.similarity().numpy(), found.names, label)
        yield Picture(f"similarity-{number}", f"How alike the clients' own parts are, {label}", "", drawn)
    if found is not None and found.shared is not None:
        words = prompts.near_words(store, found.shared)
        drawn = prompt_figures.nearest_words([one.words for one in words], [one.distances for one in words], label)
        yield Picture(f"words-{number}", f"Words near the shared context, {label}", "", drawn)

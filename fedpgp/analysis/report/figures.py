"""All figures that a comparison can have, with their captions, and notes on those that cannot be drawn."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice

from matplotlib.figure import Figure

from fedpgp.analysis import learned, loading
from fedpgp.analysis.comparison import METRIC_TITLES, Comparison, Group, measured
from fedpgp.analysis.report import comparison_figures as draw
from fedpgp.analysis.report.reliability import reliability_bins, reliability_diagrams
from fedpgp.analysis.report.run_figures import partition_of_run
from fedpgp.analysis.report.style import Drawing
from fedpgp.core.errors import FedPGPError
from fedpgp.storage.run_folder import RunFolder

MAX_SCENARIOS = 6
MAX_GROUPS = 18
"""Groups of a scenario that figures show side by side."""
LEAST_POINTS = 3
"""Values of a setting from which on accuracy is drawn against it."""
MAX_RELIABILITY = 6
"""Groups of a scenario whose reliability is drawn."""
MAX_PROMPTS = 8
"""Groups whose prompts are drawn."""
FIRST_KEYS = ("federation.server.name", "federation.attack.kind", "method.rank", "protocol.shots")
"""Settings that a heat map prefers to other swept settings; they need not be numbers."""


@dataclass(frozen=True)
class ReportFigure:
    """A figure, the name of its file, its title and its caption."""

    name: str
    title: str
    caption: str
    figure: Figure

    @cached_property
    def drawing(self) -> Drawing:
        """The figure, laid out and encoded once for all that show it."""
        return Drawing(self.figure)


def all_figures(comparison: Comparison) -> tuple[list[ReportFigure], list[str]]:
    """Draw all figures; the second list says what was left out or could not be drawn."""
    notes: list[str] = []
    figures: list[ReportFigure] = []
    scenarios = comparison.scenarios
    if len(scenarios) > MAX_SCENARIOS:
        left_out = f"of {len(scenarios)} scenarios (data, partitions, protocols)"
        notes.append(f"figures show the first {MAX_SCENARIOS} {left_out}")
    for number, (scenario, groups) in enumerate(islice(scenarios.items(), MAX_SCENARIOS), start=1):
        suffix = f"-{number}" if len(scenarios) > 1 else ""
        where = f" ({scenario})" if scenario else ""
        shown = groups[:MAX_GROUPS]
        if len(groups) > len(shown):
            notes.append(f"figures show the first {len(shown)} of {len(groups)} groups{where}")
        for one in _of_scenario(shown, comparison):
            figures.append(replace(one, name=one.name + suffix, title=one.title + where))
    return [*figures, *_heat_maps(comparison), *_lines(comparison), *_learned(comparison, notes)], notes


def _of_scenario(groups: Sequence[Group], comparison: Comparison) -> Iterator[ReportFigure]:
    metrics = measured(groups)
    if {"local", "novel", "hm"} <= set(metrics):
        caption = "Points to the right are personal, points further up general. Lines: equal harmonic mean of the two."
        yield ReportFigure("tradeoff", "Local against Novel", caption, draw.local_against_novel(groups))
    if metrics:
        yield ReportFigure("bars", "By metric", "", draw.bars(groups, metrics))
        main = comparison.main if comparison.main in metrics else metrics[0]
        curves = {group.label: curve for group in groups if (curve := loading.curve(group, main)) is not None}
        if any(len(curve.rounds) > 1 for curve in curves.values()):
            caption = "The same accuracies over rounds and over megabytes. Dotted level: an untrained method."
            yield ReportFigure("convergence", "Convergence", caption, draw.convergence(curves, main))
    single = next((metric for metric in ("held_out", "local", "all") if metric in metrics), None)
    if single is not None and (clients := _pooled_clients(groups, single)):
        caption = "A mean can hide clients that do worse."
        drawn = draw.client_distribution(clients, single)
        yield ReportFigure("clients", f"Single clients, {METRIC_TITLES[single]}", caption, drawn)
    for number, group in enumerate(groups, start=1):
        if "held_out" in metrics and (matrix := loading.held_out_accuracies(group)):
            caption = "No client trained on the domain of the row; white: the client that has it."
            drawn = draw.held_out_matrix(matrix, group.label)
            yield ReportFigure(f"held-out-{number}", f"Held-out domains, {group.label}", caption, drawn)
    if found := {group.label: bins for group in groups[:MAX_RELIABILITY] if (bins := reliability_bins(group, metrics))}:
        caption = (
            "Bars below the diagonal: more confident than correct. Grey below: the share of the images by confidence."
        )
        yield ReportFigure("reliability", "Reliability diagrams", caption, reliability_diagrams(found))
    fold, run = next(iter(groups[0].runs.items()))
    if (partition := partition_of_run(run.path)) is not None:
        caption = "" if any(group.marks for group in groups) else "The same for all groups."
        yield ReportFigure("partition", f"Images by client and class, {fold}", caption, partition)


def _pooled_clients(groups: Sequence[Group], metric: str) -> dict[str, list[float]]:
    """By label, the test accuracies of all clients of all runs; groups without any are left out."""
    pooled: dict[str, list[float]] = {}
    for group in groups:
        accuracies = [loading.client_accuracies(run.path, metric) for run in group.runs.values()]
        pooled[group.label] = [value for own in accuracies for value in own.values()]
    return {label: values for label, values in pooled.items() if values}


def _heat_maps(comparison: Comparison) -> Iterator[ReportFigure]:
    """Two swept settings against each other, for each method."""
    for method in dict.fromkeys(group.settings["method.name"] for group in comparison.groups):
        groups = [group for group in comparison.groups if group.settings["method.name"] == method]
        differing = Comparison(tuple(groups)).differing
        keys = [key for key in differing if key in FIRST_KEYS or draw.is_numeric(groups, key)]
        keys.sort(key=lambda key: FIRST_KEYS.index(key) if key in FIRST_KEYS else len(FIRST_KEYS))
        if len(keys) < 2 or comparison.main is None:
            continue
        down, across = keys[:2]
        points = {(group.settings.get(down), group.settings.get(across)) for group in groups}
        if len(points) > max(len({one[side] for one in points}) for side in (0, 1)):  # they vary independently
            drawn = draw.settings_heat_map(groups, down, across, comparison.main)
            title = f"{down} by {across}, {method}"
            yield ReportFigure(f"grid-{method}", title, "The mean over all other swept settings.", drawn)


def _lines(comparison: Comparison) -> Iterator[ReportFigure]:
    """Accuracy against the one numeric setting that differs among groups of the same method."""
    keys: set[str] = set()
    for method in dict.fromkeys(group.settings["method.name"] for group in comparison.groups):
        own = [group for group in comparison.groups if group.settings["method.name"] == method]
        keys |= set(Comparison(tuple(own)).differing)
    numeric = [key for key in keys if len(_numbers(comparison.groups, key)) >= LEAST_POINTS]
    if comparison.main is None or len(numeric) != 1:
        return
    (key,) = numeric
    points = {(group.settings["method.name"], group.settings.get(key)) for group in comparison.groups}
    if len(points) == len(comparison.groups):
        caption = "Dotted: without the setting." if None in draw.values_of(comparison.groups, key) else ""
        drawn = draw.against_setting(comparison.groups, key, comparison.main)
        yield ReportFigure("setting", f"{METRIC_TITLES[comparison.main]} by {key}", caption, drawn)


def _numbers(groups: Sequence[Group], key: str) -> set[float]:
    values = [group.settings.get(key) for group in groups]
    return {value for value in values if isinstance(value, int | float) and not isinstance(value, bool)}


def _learned(comparison: Comparison, notes: list[str]) -> Iterator[ReportFigure]:
    """The prompts of the first groups that have any, from the first run of each."""
    drawn = 0
    for number, group in enumerate(comparison.groups, start=1):
        fold, run = next(iter(group.runs.items()))
        label = f"{group.label}, {fold}"
        found: list[ReportFigure] = []
        try:
            for one in _prompts(RunFolder.open(run.path), number, label) if drawn < MAX_PROMPTS else ():
                found.append(one)
        except FedPGPError as error:  # figures before the error are kept
            notes.append(f"not drawn: prompts of {label}: {error}")
        drawn += bool(found)
        yield from found


def _prompts(store: RunFolder, number: int, label: str) -> Iterator[ReportFigure]:
    shared, personal = learned.prompts(store)
    if personal is not None:
        caption = "Grey: single clients. A low-rank part reaches the dotted line (90% of the energy) early."
        drawn = draw.spectra(learned.spectrum(personal).values, label)
        yield ReportFigure(f"spectrum-{number}", f"Spectrum of the personal part, {label}", caption, drawn)
        drawn = draw.similarity(learned.similarity(personal), store.identity["client_names"], label)
        yield ReportFigure(f"similarity-{number}", f"Similarity of the personal parts, {label}", "", drawn)
    if shared is not None:
        drawn = draw.nearest_words(learned.near_words(store, shared), label)
        yield ReportFigure(f"words-{number}", f"Words near the shared context, {label}", "", drawn)

"""Figures of methods that were run with several settings: what those that validation images choose gain and reach."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import ceil

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedpgp.analysis import loading
from fedpgp.analysis.comparison import METRIC_TITLES, Comparison, Group, chosen, families
from fedpgp.analysis.report.figures import ReportFigure
from fedpgp.analysis.report.style import blank, item_style, styled, wrapped
from fedpgp.analysis.statistic import Statistic
from fedpgp.storage.objectives import Objectives

TRADEOFF = ("local", "novel")
"""Across and up in the figures of what settings reach."""
GAINS = ("hm", "local", "base", "novel")
MAX_SCENARIOS = 12
"""Scenarios that a figure shows."""
COLUMNS = 4
"""Panels side by side."""

Way = tuple[Sequence[float], Sequence[float]]
"""Local and Novel after each evaluated round."""


def figures(comparison: Comparison, baseline: str) -> Iterator[ReportFigure]:
    """Gains over the baseline by scenario; what all settings reach in each; and the way there over the rounds."""
    if not comparison.is_tuned:
        return
    main = comparison.main or ""
    baseline = next((group.family for group in comparison.groups if group.label == baseline), baseline)
    methods = list(families(comparison.groups))
    scenarios = dict(list(comparison.scenarios.items())[:MAX_SCENARIOS])
    more = len(comparison.scenarios) - len(scenarios)
    left_out = f" {more} more scenarios are not shown." if more else ""
    gained = {name: _gains(comparison, groups, baseline) for name, groups in scenarios.items()}
    if len(scenarios) > 1 and any(gained.values()):
        caption = f"Settings chosen on validation images. Bars: 95% confidence intervals of the paired mean.{left_out}"
        yield ReportFigure("gains", f"Gain over {baseline}", caption, gains(gained, baseline, methods))
    points = {name: _points(groups) for name, groups in scenarios.items()}
    if any(points.values()):
        caption = f"A point per setting, a line through those that no other one beats. Star: chosen.{left_out}"
        stars = {name: chosen(groups, main) for name, groups in scenarios.items()}
        yield ReportFigure("reach", "What each method can reach", caption, reach(points, stars, methods))
    ways = {name: _ways(groups, main) for name, groups in scenarios.items()}
    if any(ways.values()):
        caption = f"From the first to the last evaluated round (large), with the settings chosen.{left_out}"
        yield ReportFigure("paths", "Local and Novel over the rounds", caption, paths(ways, methods))


@styled
def gains(gained: Mapping[str, Mapping[str, Mapping[str, Statistic]]], baseline: str, methods: Sequence[str]) -> Figure:
    """Draw the gain of each method over the baseline by scenario, a panel per metric.

    Args:
        gained: by scenario, method and metric, the paired difference in points.
        methods: all of them, in the order of their colours.
    """
    shown = [metric for metric in GAINS if any(metric in one for own in gained.values() for one in own.values())]
    figure = blank(1.6 + 2.6 * len(shown), 1.7 + 0.42 * len(gained))
    places = range(len(gained))
    panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for axes, metric in zip(panels, shown, strict=True):
        axes.axvline(0, color="0.3", linewidth=1)
        for number, name in enumerate(methods):
            shift = 0.5 * ((number + 0.5) / len(methods) - 0.5)
            for place, own in zip(places, gained.values(), strict=True):
                if (found := own.get(name, {}).get(metric)) is None:
                    continue
                low, high = found.interval or (found.mean, found.mean)
                axes.errorbar(
                    found.mean, place + shift, xerr=[[found.mean - low], [high - found.mean]], capsize=2,
                    label=wrapped(name), **{**item_style(number), "linestyle": "none", "markersize": 5},
                )  # fmt: skip
        axes.set_title(METRIC_TITLES[metric])
        axes.set_xlabel(f"points above {baseline}")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    panels[0].set_yticks(places, [wrapped(name, 28) for name in gained])
    panels[0].invert_yaxis()
    _legend(figure, panels)
    return figure


@styled
def reach(
    points: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]],
    stars: Mapping[str, Mapping[str, Group]],
    methods: Sequence[str],
) -> Figure:
    """Draw Local (across) against Novel (up) of all settings, a panel per scenario.

    Args:
        points: by scenario and method, the test accuracies of every setting.
        stars: by scenario and method, the settings chosen.
        methods: all of them, in the order of their colours.
    """
    figure, panels = _panels(len(points))
    both = Objectives(TRADEOFF, ("max", "max"))
    for axes, (scenario, own) in zip(panels, points.items(), strict=False):
        for name, places in own.items():
            style = {**item_style(methods.index(name)), "linestyle": "none", "markeredgecolor": "white"}
            axes.plot(*zip(*places, strict=True), **style, markersize=6, alpha=0.7, label=wrapped(name))
            front = [places[number] for number in both.front(places)]
            axes.plot(*zip(*front, strict=True), color=style["color"], linewidth=1.2)
            if name in stars[scenario] and (star := _point(stars[scenario][name])) is not None:
                axes.plot(*star, **{**style, "marker": "*", "markersize": 13})
        axes.set_title(wrapped(scenario, 30), fontsize=8)
    _legend(figure, panels)
    return figure


@styled
def paths(ways: Mapping[str, Mapping[str, Way]], methods: Sequence[str]) -> Figure:
    """Draw Local (across) against Novel (up) over the rounds, a panel per scenario; the last round is the large one."""
    figure, panels = _panels(len(ways))
    for axes, (scenario, own) in zip(panels, ways.items(), strict=False):
        for name, (across, up) in own.items():
            style = item_style(methods.index(name)) | {"linestyle": "-", "linewidth": 1.1, "markersize": 4}
            axes.plot(across, up, **style, label=wrapped(name))
            axes.plot(across[-1], up[-1], marker=style["marker"], color=style["color"], markersize=9)
        axes.set_title(wrapped(scenario, 30), fontsize=8)
    _legend(figure, panels)
    return figure


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    """A figure with so many panels of Local against Novel with common axes."""
    columns = min(COLUMNS, count)
    rows = ceil(count / columns)
    figure = blank(1.2 + 2.5 * columns, 1.2 + 2.2 * rows)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    panels = list(grid.flat)
    for unused in panels[count:]:
        unused.set_visible(False)
    for lowest in panels[max(0, count - columns) : count]:
        lowest.tick_params(labelbottom=True)
    figure.supxlabel("Local: own classes, test accuracy in percent", fontsize=9)
    figure.supylabel("Novel: unseen classes, percent", fontsize=9)
    return figure, panels


def _legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """One legend for all panels."""
    found = dict(pair[::-1] for axes in panels for pair in zip(*axes.get_legend_handles_labels(), strict=True))
    figure.legend(found.values(), found.keys(), loc="outside upper center", ncols=min(4, len(found)), frameon=False)


def _gains(comparison: Comparison, groups: Sequence[Group], baseline: str) -> dict[str, dict[str, Statistic]]:
    """By method and metric, the paired difference of the settings chosen to the baseline."""
    found: dict[str, dict[str, Statistic]] = {}
    for name, group in chosen(groups, comparison.main or "").items():
        each = {metric: comparison.difference(group, baseline, metric) for metric in GAINS}
        if any(each.values()):
            found[name] = {metric: one for metric, one in each.items() if one is not None}
    return found


def _points(groups: Sequence[Group]) -> dict[str, list[tuple[float, float]]]:
    """By method, what its settings reach."""
    each = {name: [_point(group) for group in own] for name, own in families(groups).items()}
    known = {name: [point for point in own if point is not None] for name, own in each.items()}
    return {name: own for name, own in known.items() if own}


def _point(group: Group) -> tuple[float, float] | None:
    local, novel = (group.statistic(metric) for metric in TRADEOFF)
    return (local.mean, novel.mean) if local and novel else None


def _ways(groups: Sequence[Group], main: str) -> dict[str, Way]:
    """By method with more than one evaluated round, both metrics over these, with the settings chosen."""
    found = {}
    for name, group in chosen(groups, main).items():
        local, novel = (loading.curve(group, metric) for metric in TRADEOFF)
        if local and novel and local.rounds == novel.rounds and len(local.rounds) > 1:
            found[name] = local.mean, novel.mean
    return found

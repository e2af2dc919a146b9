"""The figure of the demo: methods as points with their names, between personal and general, and their front."""

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.figure import Figure

from fedpgp.analysis.comparison import Group
from fedpgp.analysis.report.style import item_style, panel, styled, wrapped

SIZE = 7.2, 4.6
HEIGHT, WIDTH = 300.0, 430.0
"""About how many points (1/72 inch) of the figure the axes take."""
LINE, LETTER = 12.0, 5.6
"""Height of a line of a label and width of a letter, in points."""
MARGIN = 0.12
"""Empty space around the points, as a share of their range."""


class Point(NamedTuple):
    """A method in the plane."""

    label: str
    local: float
    novel: float


@styled
def local_novel_front(groups: Sequence[Group]) -> Figure:
    """Draw Local (across) against Novel (up) with bars of one standard deviation, names, and the front as a band."""
    known = [
        (number, group.label, local, novel)
        for number, group in enumerate(groups)
        if (local := group.statistic("local")) and (novel := group.statistic("novel"))
    ]
    points = [Point(wrapped(label, 28), local.mean, novel.mean) for _, label, local, novel in known]
    left, right = _limits([point.local for point in points])
    low, high = _limits([point.novel for point in points])
    figure, axes = panel(*SIZE)
    best = front(points)
    axes.plot([one.local for one in best], [one.novel for one in best], color="0.88", linewidth=9, zorder=1)
    scale = WIDTH / (right - left), HEIGHT / (high - low)
    places = place_labels([((p.local - left) * scale[0], (p.novel - low) * scale[1], len(p.label)) for p in points])
    for (number, _, local, novel), point, offset in zip(known, points, places, strict=True):
        style = {**item_style(number), "linestyle": "none"}
        axes.errorbar(
            *point[1:], xerr=local.std, yerr=novel.std, capsize=2, markersize=11, markeredgecolor="white", **style
        )
        axes.annotate(
            point.label, point[1:], offset, textcoords="offset points", va="center", color=style["color"],
            fontsize=10, fontweight="bold",
        )  # fmt: skip
    axes.annotate(
        "better", (0.99, 0.99), (0.87, 0.9), xycoords="axes fraction", color="0.4", ha="center", va="top", fontsize=10,
        arrowprops={"arrowstyle": "-|>", "color": "0.4", "linewidth": 1.5},
    )  # fmt: skip
    axes.set(
        xlim=(left, right), ylim=(low, high), xlabel="Local: a client's own classes, test accuracy in percent  →",
        ylabel="Novel: classes nobody trained on  →",
    )  # fmt: skip
    axes.set_title("Personal or general? No method beats those on the grey band in both.", loc="left")
    return figure


def front(points: Sequence[Point]) -> list[Point]:
    """The points that no other one beats in both numbers, by Local."""
    best: list[Point] = []
    for point in sorted(points, key=lambda point: (-point.local, -point.novel)):
        if not best or point.novel > best[-1].novel:
            best.append(point)
    return best[::-1]


def place_labels(anchors: Sequence[tuple[float, float, int]]) -> list[tuple[float, float]]:
    """Offsets in points of labels right above their anchors (x, y in points, letters), so that none covers another.

    From the lowest anchor to the highest, a label that would overlap one below it moves up.
    """
    placed: list[tuple[float, float, float]] = []
    offsets = [(0.0, 0.0)] * len(anchors)
    for number in sorted(range(len(anchors)), key=lambda number: anchors[number][1]):
        x, y, letters = anchors[number]
        start, end, up = x + LINE, x + LINE + LETTER * letters, y + LINE
        for other_start, other_end, other_up in sorted(placed, key=lambda one: one[2]):
            if start < other_end and other_start < end and abs(up - other_up) < LINE:
                up = other_up + LINE
        placed.append((start, end, up))
        offsets[number] = (LINE, up - y)
    return offsets


def _limits(values: Sequence[float]) -> tuple[float, float]:
    margin = max(2.0, MARGIN * (max(values) - min(values)))
    return min(values) - margin, max(values) + 2 * margin

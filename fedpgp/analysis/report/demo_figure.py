"""The figure of the demo: methods as points with their names, between personal and general, and their front."""

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from fedpgp.analysis.comparison import Group
from fedpgp.analysis.report.style import item_style, panel, styled, wrapped

SIZE = 7.2, 4.6
HEIGHT, WIDTH = 300.0, 430.0
"""About how many points (1/72 inch) of the figure the axes take."""
LINE, LETTER = 12.0, 6.1
"""Height of a line of a label and width of a letter, in points."""
MARKER = 6.0
"""Half the width of a marker, in points."""
SIDES = ((1, 1), (-1, 1), (1, -1), (-1, -1))
"""Where a label may be: right or left of its point, above or below it."""
HEIGHTS = (1, 2, 3)
"""How many lines above or below."""
MARGIN = 0.12
"""Empty space around the points, as a share of their range."""


class Box(NamedTuple):
    """A rectangle, in points."""

    left: float
    low: float
    right: float
    high: float

    def overlaps(self, other: "Box") -> bool:
        """Whether they have a part in common."""
        return self.left < other.right and other.left < self.right and self.low < other.high and other.low < self.high


BETTER = Box(0.78 * WIDTH, 0.84 * HEIGHT, WIDTH, HEIGHT)
"""Where the arrow is."""


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
    across, up = WIDTH / (right - left), HEIGHT / (high - low)
    anchors = [((point.local - left) * across, (point.novel - low) * up) for point in points]
    taken = [BETTER]
    for (x, y), (_, _, local, novel) in zip(anchors, known, strict=True):
        wide, tall = across * (local.std or 0), up * (novel.std or 0)
        taken += [Box(x - MARKER, y - MARKER, x + MARKER, y + MARKER)]
        taken += [Box(x - wide, y - 1, x + wide, y + 1), Box(x - 1, y - tall, x + 1, y + tall)]
    places = place_labels([(*anchor, point.label) for anchor, point in zip(anchors, points, strict=True)], taken)
    for (number, _, local, novel), point, offset in zip(known, points, places, strict=True):
        style = {**item_style(number), "linestyle": "none"}
        axes.errorbar(
            *point[1:], xerr=local.std, yerr=novel.std, capsize=2, markersize=11, markeredgecolor="white", **style
        )
        axes.annotate(
            point.label, point[1:], offset, textcoords="offset points", va="center", color=style["color"],
            ha="left" if offset[0] > 0 else "right", fontsize=10, fontweight="bold",
            path_effects=[withStroke(linewidth=3, foreground="white")],
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


def place_labels(anchors: Sequence[tuple[float, float, str]], taken: Sequence[Box]) -> list[tuple[float, float]]:
    """Offsets in points of the labels of anchors (x, y in points), so that none covers another or what is `taken`.

    Each takes the nearest free place within the axes, above before below and right before left; a label without one
    is right above its anchor.
    """
    placed, offsets = list(taken), []
    for x, y, label in anchors:
        lines = label.split("\n")
        width, half = LETTER * max(map(len, lines)), LINE * len(lines) / 2
        found = None
        for height, (right, above) in product(HEIGHTS, SIDES):
            dx, dy = right * LINE, above * (LINE * (height - 0.5) + half)
            start = x + dx if right > 0 else x + dx - width
            box = Box(start, y + dy - half, start + width, y + dy + half)
            inside = box.left >= 0 and box.right <= WIDTH and box.low >= 0 and box.high <= HEIGHT
            if inside and not any(box.overlaps(other) for other in placed):
                found = dx, dy
                placed.append(box)
                break
        offsets.append(found or (LINE, LINE))
    return offsets


def _limits(values: Sequence[float]) -> tuple[float, float]:
    margin = max(2.0, MARGIN * (max(values) - min(values)))
    return min(values) - margin, max(values) + 2 * margin

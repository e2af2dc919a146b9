"""The figure of the demo: which methods are on the front, and labels that do not cover each other."""

from __future__ import annotations

import pytest

from fedpgp.analysis.loading import Entry, compare
from fedpgp.analysis.report.demo_figure import (
    HEIGHT,
    LETTER,
    LINE,
    WIDTH,
    Box,
    Point,
    front,
    local_novel_front,
    place_labels,
)


def test_the_front_has_what_no_other_point_beats_in_both():
    points = [Point("a", 50, 50), Point("b", 80, 60), Point("c", 70, 70), Point("d", 79, 60), Point("e", 70, 65)]
    assert [point.label for point in front(points)] == ["c", "b"]


def test_of_equal_points_one_is_on_the_front():
    assert [point.label for point in front([Point("a", 60, 60), Point("b", 60, 60)])] == ["a"]


def test_a_label_takes_the_nearest_free_place():
    """Right above; where that is taken left above; right below; and none that leaves the axes."""
    point = (200, 100, "ab")
    above = Box(200, 100, 230, 130), Box(170, 100, 200, 130)
    places = [(LINE, LINE), (-LINE, LINE), (LINE, -LINE)]
    for count, place in enumerate(places):
        assert place_labels([point], above[:count]) == [place]
    assert place_labels([(WIDTH - 5, 100, "ab")], []) == [(-LINE, LINE)]
    assert place_labels([(200, HEIGHT - 5, "ab")], []) == [(LINE, -LINE)]
    assert place_labels([(200, HEIGHT - 15, "a\nb")], []) == [(LINE, -1.5 * LINE)]
    assert place_labels([point], [Box(0, 0, WIDTH, HEIGHT)]) == [(LINE, LINE)]


@pytest.mark.parametrize("count", [2, 5, 9])
def test_no_label_covers_another_or_what_is_taken(count):
    anchors = [(200 + 3.0 * number, 100 + 30.0 * (number % 4), "a label") for number in range(count)]
    taken = [Box(x - 4, y - 20, x + 4, y + 20) for x, y, _ in anchors]
    boxes = list(taken)
    for (x, y, label), (dx, dy) in zip(anchors, place_labels(anchors, taken), strict=True):
        start = x + dx - (LETTER * len(label) if dx < 0 else 0)
        box = Box(start, y + dy - LINE / 2, start + LETTER * len(label), y + dy + LINE / 2)
        assert not any(box.overlaps(other) for other in boxes)
        boxes.append(box)


def test_every_method_has_its_name_beside_its_point(made_run):
    settings = {"test_local": [80], "test_base": [60], "test_novel": [50], "test_hm": [60]}
    methods = {"PromptFL": "promptfl", "CoOp": "coop"}
    compared = compare(Entry(made_run(f"method.name={name}", **settings), label) for label, name in methods.items())
    figure = local_novel_front(compared.groups)
    (axes,) = figure.axes
    shown = {text.get_text() for text in axes.texts}
    assert shown == {"PromptFL", "CoOp", "better"}
    assert axes.get_legend() is None
    assert not figure.legends

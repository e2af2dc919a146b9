"""The figure of the demo: which methods are on the front, and labels that do not cover each other."""

from __future__ import annotations

import pytest

from fedpgp.analysis.loading import Entry, compare
from fedpgp.analysis.report.demo_figure import LETTER, LINE, Point, front, local_novel_front, place_labels


def test_the_front_has_what_no_other_point_beats_in_both():
    points = [Point("a", 50, 50), Point("b", 80, 60), Point("c", 70, 70), Point("d", 79, 60), Point("e", 70, 65)]
    assert [point.label for point in front(points)] == ["c", "b"]


def test_of_equal_points_one_is_on_the_front():
    assert [point.label for point in front([Point("a", 60, 60), Point("b", 60, 60)])] == ["a"]


def test_a_label_that_would_cover_a_lower_one_moves_up():
    """The second anchor is 5 points higher and its label begins within the first one's, so it moves 7 more."""
    assert place_labels([(0, 0, 10), (20, 5, 10), (300, 5, 10)]) == [(LINE, LINE), (LINE, LINE + 7), (LINE, LINE)]


@pytest.mark.parametrize("count", [2, 5, 9])
def test_no_two_labels_overlap(count):
    anchors = [(3.0 * number, 2.0 * (number % 4), 12) for number in range(count)]
    boxes = [(x + dx, y + dy) for (x, y, _), (dx, dy) in zip(anchors, place_labels(anchors), strict=True)]
    for number, (x, y) in enumerate(boxes):
        for other_x, other_y in boxes[:number]:
            assert abs(x - other_x) >= 12 * LETTER or abs(y - other_y) >= LINE - 1e-9


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

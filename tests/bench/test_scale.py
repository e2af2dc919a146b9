"""The bench of a million clients, with a few: its figures, a kill, and its curves."""

import json

import pytest

from fedpgp.analysis.report.growth import growth_figure
from fedpgp.bench import scale
from fedpgp.bench.measurement import Measurement


@pytest.mark.slow
def test_scale_has_its_figures_and_a_killed_run_equals_a_whole_one(monkeypatch, capfd):
    """Of 300 clients the parameters are beyond the limit, of 20 they are not."""
    monkeypatch.setattr(scale, "KILL_AFTER", 1)
    found = scale.measure([20, 300], 5, print, "1MB", kill=True)
    figures = found.figures
    assert figures["kill_bit_equal"] == 1
    assert [figures[f"held_in_file_{count}"] for count in (20, 300)] == [0, 1]
    assert all(0 < figures[f"seconds_beside_training_{n}"] < figures[f"seconds_per_round_{n}"] for n in (20, 300))
    row = (16 * 8 + 8 * 128) * 4  # bytes of U and V
    assert 5 * row < figures["checkpoint_bytes_300"] < 5 * row + 30_000  # five clients, what is shared, a first row
    assert figures["disk_bytes_300"] > 2**26  # a chunk of the file
    assert figures["driver_memory_bytes_300"] > 2**28
    assert [cells[0] for cells in found.rows] == ["20", "300"]
    assert json.loads(found.as_json())["bench"] == "scale"


def test_curves_are_those_of_the_figures_and_both_axes_are_logarithmic():
    figures = {"seconds_per_round_100": 2.0, "seconds_per_round_10000": 3.0, "seconds_beside_training_100": 0.5}
    curves = scale.curves(Measurement("scale", figures, (), ()))
    assert curves == {"a round": {100: 2.0, 10000: 3.0}, "of that, beside training": {100: 0.5}}
    (axes,) = growth_figure(curves, "clients", "seconds").axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert [line.get_xydata().tolist() for line in axes.lines] == [[[100, 2], [10000, 3]], [[100, 0.5]]]

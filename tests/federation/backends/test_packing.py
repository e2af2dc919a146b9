"""Whether a plan fits: the cases that hang in Ray when nobody asks beforehand."""

from __future__ import annotations

from fedpgp.federation.backends.packing import capacity, shortfall


def test_fractions_lie_on_one_device():
    assert capacity({"CPU": 64, "GPU": 2}, 1, 0.3) == 6
    assert capacity({"CPU": 64, "GPU": 2}, 1, 0.5) == 4
    assert capacity({"CPU": 64, "GPU": 1}, 1, 0.1) == 10
    assert capacity({"CPU": 64, "GPU": 1}, 1, 0.6) == 1
    assert capacity({"CPU": 64, "GPU": 5}, 1, 2) == 2
    assert capacity({"CPU": 3, "GPU": 2}, 1, 0.5) == 3
    assert capacity({"CPU": 2}, 0.5, 0) == 4


def test_a_plan_that_fits_has_no_shortfall():
    assert shortfall(4, 1, 0.5, [{"CPU": 4, "GPU": 2}]) is None
    assert shortfall(3, 1, 0, [{"CPU": 1}, {"CPU": 2}]) is None


def test_the_shortfall_is_named():
    assert "short of GPU, 2 fit" in shortfall(4, 1, 0.5, [{"CPU": 4, "GPU": 1}])
    assert "short of CPU and GPU" in shortfall(4, 1, 1, [{"CPU": 2, "GPU": 1}])
    assert "do not pack" in shortfall(7, 1, 0.28, [{"CPU": 8, "GPU": 2}])
    assert "do not pack" in shortfall(2, 3, 0, [{"CPU": 4}, {"CPU": 2}])

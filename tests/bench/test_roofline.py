"""The work of operators by hand, and the table of a block's step."""

from __future__ import annotations

import pytest
import torch

from fedpgp.bench import roofline
from fedpgp.bench.measurement import KINDS, OTHER, OUTSIDE
from fedpgp.bench.roofline import Roofline


def test_an_operator_takes_the_longer_of_its_products_and_its_bytes():
    """(3, 4) x (4, 5) is 120 operations on 12 + 20 + 15 numbers of 4 bytes; the sum moves 15 numbers twice, and one."""
    left, right = torch.ones(3, 4), torch.ones(4, 5)
    with Roofline(peak=60.0, bandwidth=94.0) as counted:
        product = left @ right.view(4, 5)
        product + 1
    products, additions = counted.work["products with weights"], counted.work["additions"]
    assert (products.flop, products.bytes, products.seconds) == (120, 188, 2.0)
    assert (additions.flop, additions.bytes, additions.seconds) == (0, 120, pytest.approx(120 / 94))
    assert counted.products == {(3, 4, 5): 120}


def test_the_table_has_all_of_a_step(workload):
    found = roofline.measure(1, lambda line: None, workload)
    assert {row[0] for row in found.rows} == {*KINDS, OTHER, OUTSIDE, "all"}
    assert found.figures["peak_fraction"] > 0
    assert 0 < found.figures["roofline_fraction"] <= 1

"""Clocks and yardsticks of the benches: seconds, executed operations, and the machine's best matrix product."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

ATTENTION_ON_CPU = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad, q, k, v)
    ),
}
"""Fused attention that torch's counter leaves out."""

SQUARES = (1024, 2048, 3072)
"""Sizes of the square matrices that are multiplied to find the peak."""

TRIES = 5

Shape = tuple[int, int, int]


def seconds(run: Callable[[], object]) -> float:
    """Time of one run."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def counted(run: Callable[[], Any]) -> tuple[Any, int]:
    """What a run gives, and the floating-point operations of its matrix products, attention and convolutions."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the fused layer hides its products from the counter
    try:
        with FlopCounterMode(display=False, custom_mapping=ATTENTION_ON_CPU) as counter:
            result = run()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return result, int(counter.get_total_flops())


class Peak:
    """The best rate of matrix products, in operations per second: each shape by the median of its tries during a bench.

    Work that is measured by its median is held against the same, not against one lucky product.
    """

    def __init__(self, *shapes: Shape) -> None:
        """Products (m, k) x (k, n): squares, and those of the work that is measured."""
        self.shapes = (*((size, size, size) for size in SQUARES), *shapes)
        self._pairs = [(torch.randn(m, k), torch.randn(k, n)) for m, k, n in self.shapes]
        self._rates: list[list[float]] = [[] for _ in self.shapes]

    def probe(self) -> None:
        """Multiply each pair, several times."""
        for (m, k, n), (left, right), rates in zip(self.shapes, self._pairs, self._rates, strict=True):
            rates += [2 * m * k * n / seconds(partial(torch.mm, left, right)) for _ in range(TRIES)]

    @property
    def rate(self) -> float:
        """Of the best shape."""
        return max(map(median, self._rates))

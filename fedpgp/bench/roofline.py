"""Where the time of a block's step goes, and what fraction of the peak its operators allow: a roofline."""

from collections import Counter
from dataclasses import dataclass
from functools import partial
from math import inf
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from fedpgp.bench.measurement import KINDS, OTHER, OUTSIDE, Measurement, Peak, Report, profile, seconds
from fedpgp.bench.step import BATCH, CLIENTS, NO_KERNEL
from fedpgp.bench.workload import Workload, vit_b_16
from fedpgp.federation.resources import keep_freed_memory

REPEATS = 5
SHAPES = 4
"""Shapes of products, those with the most operations of a step, that are tried to find the peak."""
COPIED = 2**27
"""Bytes of the copy that measures the bandwidth of the memory: more than caches hold."""


@dataclass
class Work:
    """What the operators of one kind do."""

    flop: int = 0
    """floating-point operations of products"""
    bytes: int = 0
    """of all arguments and results, each read or written once"""
    seconds: float = 0.0
    """at least, each operator at the peak of its products or of the memory, whichever takes longer"""


class Roofline(TorchDispatchMode):
    """Adds up the work of the operators that compute something, by kind.

    Args:
        peak: operations per second.
        bandwidth: bytes per second.
    """

    def __init__(self, peak: float = inf, bandwidth: float = inf) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._peak, self._bandwidth = peak, bandwidth
        self.products: Counter[tuple[int, int, int]] = Counter()
        """operations of the products (m, k) x (k, n), by these three"""
        self._kinds = {operator: kind for kind, operators in KINDS.items() for operator in operators}
        self.work = {kind: Work() for kind in (*KINDS, OTHER)}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator."""
        result = func(*args, **(kwargs or {}))
        name = func.name().split(".")[0]
        if not func.is_view and name not in NO_KERNEL:
            work = self.work[self._kinds.get(name.removeprefix("aten::"), OTHER)]
            tensors = [one for one in tree_leaves((args, kwargs, result)) if isinstance(one, Tensor)]
            moved = sum(one.numel() * one.element_size() for one in tensors)
            count = flop_registry.get(func.overloadpacket)
            flop = int(count(*args, **(kwargs or {}), out_val=result)) if count else 0
            work.flop += flop
            work.bytes += moved
            work.seconds += max(flop / self._peak, moved / self._bandwidth)
            if func.overloadpacket is torch.ops.aten.mm:
                self.products[(*args[0].shape, args[1].shape[1])] += flop
        return result


def bandwidth() -> float:
    """Bytes per second of copying within the memory, read and written."""
    source = torch.zeros(COPIED, dtype=torch.uint8)
    target = torch.empty_like(source)
    return 2 * COPIED / median(seconds(partial(target.copy_, source)) for _ in range(REPEATS))


def measure(threads: int, report: Report, workload: Workload | None = None) -> Measurement:
    """Measure a step of a block of clients by kind of operator, and the least time that each kind can take here.

    `peak_fraction` is that of the step; `roofline_fraction` what it would be if every operator took its least time:
    what keeps a step of these operators from the peak.
    """
    torch.set_num_threads(threads)
    keep_freed_memory()
    workload = workload or vit_b_16()
    step = workload.step(BATCH, CLIENTS)
    report("a step of the block, by kind of operator")
    step()  # also makes the constants
    with Roofline() as shapes:
        step()
    peak = Peak(*(shape for shape, _ in shapes.products.most_common(SHAPES)))
    taken, speeds = [], []
    for _ in range(REPEATS):
        peak.probe()
        taken.append(seconds(step))
        speeds.append(bandwidth())
    spent = profile("", step, REPEATS, ()).figures
    whole, rate, speed = median(taken), peak.rate, median(speeds)
    with Roofline(rate, speed) as least:
        step()
    flop = sum(work.flop for work in least.work.values())
    bound = sum(work.seconds for work in least.work.values())
    figures = {"peak_fraction": flop / rate / whole, "roofline_fraction": flop / rate / bound, "seconds": whole}
    rows = [
        [kind, f"{1e3 * whole * spent[kind]:.0f}", f"{1e3 * work.seconds:.0f}", f"{work.flop / 1e9:.0f}",
         f"{work.bytes / 1e9:.1f}"]
        for kind, work in sorted(least.work.items(), key=lambda item: -spent[item[0]])
    ]  # fmt: skip
    rows.append([OUTSIDE, f"{1e3 * whole * spent[OUTSIDE]:.0f}", "0", "", ""])
    rows.append(["all", f"{1e3 * whole:.0f}", f"{1e3 * bound:.0f}", f"{flop / 1e9:.0f}", ""])
    notes = (
        f"a step of {CLIENTS} clients as one batch, {BATCH} images each, {len(workload.base)} classes, {threads} "
        f"threads; medians of {REPEATS}, divided by the shares of a profile",
        "least ms: every operator at the peak of products or of the memory, whichever takes longer",
        f"peak {rate / 1e9:.0f} GFLOP/s (the best of several matrix shapes, by median), memory {speed / 1e9:.1f} GB/s",
        f"of peak: {figures['peak_fraction']:.2f}; with every operator in its least time "
        f"{figures['roofline_fraction']:.2f}",
    )
    return Measurement("clients: roofline", figures, ("kind", "ms", "least ms", "GFLOP", "GB"), rows, notes)

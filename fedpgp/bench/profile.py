"""Where the time of a run goes, by kind of operator."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity

from fedpgp.bench.outcome import Outcome

KINDS = {
    "products with weights": ("mm", "addmm", "linear"),
    "attention's products": ("bmm", "baddbmm"),
    "nonlinearity": ("gelu", "gelu_backward", "silu", "silu_backward"),
    "softmax": ("_softmax", "_softmax_backward_data", "_log_softmax", "_log_softmax_backward_data"),
    "layer norm": ("native_layer_norm", "native_layer_norm_backward"),
    "additions": ("add", "add_", "sum"),
    "copies": ("copy_", "cat", "index_select", "index", "index_add_", "index_put_", "fill_", "zero_"),
}
"""Operators of PyTorch by what they are for, those that take noticeable time."""
OTHER = "other operators, autograd"
OUTSIDE = "Python, between operators"


def where_time_goes(what: str, run: Callable[[], object], times: int, notes: tuple[str, ...]) -> Outcome:
    """A table of one `run`: the mean of `times` after a first one. It makes small operators look dearer."""
    run()
    with torch.profiler.profile(activities=[ProfilerActivity.CPU]) as profiler:
        start = time.perf_counter()
        for _ in range(times):
            run()
        whole = time.perf_counter() - start
    kinds = {f"aten::{operator}": kind for kind, operators in KINDS.items() for operator in operators}
    taken = dict.fromkeys([*KINDS, OTHER], 0.0)
    for event in profiler.key_averages():
        taken[kinds.get(event.key, OTHER)] += event.self_cpu_time_total / 1e6
    taken[OUTSIDE] = max(0.0, whole - sum(taken.values()))
    ordered = sorted(taken.items(), key=lambda item: -item[1])
    rows = [[kind, f"{1e3 * spent / times:.1f}", f"{100 * spent / whole:.1f}"] for kind, spent in ordered]
    figures = {"milliseconds": 1e3 * whole / times, **{kind: spent / whole for kind, spent in taken.items()}}
    return Outcome(f"{what}: where the time goes", figures, ("kind", "ms", "% of time"), rows, notes)

"""Compare a block of clients as one batch with one client at a time, and count the operators of a client's step."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fedpgp.bench.measurement import Measurement, Report, alternated
from fedpgp.bench.workload import Workload, vit_b_16

CLIENTS, BATCH = 10, 32
CHUNKS = (1, 2, 5, 10)
REPEATS = 3

NO_KERNEL = {"aten::detach", "aten::empty", "aten::empty_like", "aten::empty_strided", "aten::_unsafe_view"}
"""Operators, besides views, that compute nothing."""


class Launches(TorchDispatchMode):
    """Counts the operators that compute something, in the forward and the backward pass."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator."""
        if not func.is_view and func.name().split(".")[0] not in NO_KERNEL:
            self.count += 1
        return func(*args, **(kwargs or {}))


def launches(step: Callable[[], object]) -> int:
    """The number of operators that a step launches. A first step, which also makes constants, is not counted."""
    step()
    with Launches() as counter:  # type: ignore[no-untyped-call]
        step()
    return int(counter.count)


def measure(threads: int, report: Report, workload: Workload | None = None) -> Measurement:
    """Measure seconds per client and step in chunks of several sizes, alternated."""
    torch.set_num_threads(threads)
    workload = workload or vit_b_16()
    steps = {chunk: workload.step(BATCH, chunk) for chunk in CHUNKS}
    count = {chunk: launches(step) / chunk for chunk, step in steps.items()}
    report(f"{REPEATS} steps of {CLIENTS} clients in chunks of {', '.join(map(str, CHUNKS))}")

    def all_clients(chunk: int) -> None:
        for _ in range(CLIENTS // chunk):
            steps[chunk]()

    medians = alternated(REPEATS, *(lambda chunk=chunk: all_clients(chunk) for chunk in CHUNKS))
    taken = {chunk: value / CLIENTS for chunk, value in zip(CHUNKS, medians, strict=True)}
    rows = [
        [str(chunk), f"{taken[chunk]:.3f}", f"{taken[1] / taken[chunk]:.2f}", f"{count[chunk]:.0f}"] for chunk in CHUNKS
    ]
    figures = {"ratio_block_to_single": taken[1] / taken[CLIENTS], "kernels_per_client_step": count[CLIENTS]}
    notes = (
        f"{CLIENTS} clients, batch {BATCH}, {len(workload.base)} classes, {threads} threads; medians of {REPEATS}",
        "ratio: one client at a time to the whole block as one batch (federation.chunk_size null, the default)",
    )
    headings = ("clients in one batch", "seconds per client and step", "times faster", "operators per client and step")
    return Measurement("clients", figures, headings, rows, notes)

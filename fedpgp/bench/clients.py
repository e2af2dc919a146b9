"""A block of clients as one batch against one client at a time, and how many operators a client's step launches."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fedpgp.bench.caltech import Scene, one_batch, vit_b_16
from fedpgp.bench.outcome import Outcome
from fedpgp.bench.timing import seconds

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


def block_step(scene: Scene, clients: int) -> Callable[[], list[Tensor]]:
    """One step of a block: loss and gradients of ctx, U and V (K, ...), of clients that all differ."""
    frozen, method, params = scene.on_base(), scene.method, scene.params(clients)
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(clients, BATCH, frozen.joint_width, generator=generator)
    batch = one_batch(features, torch.randint(len(scene.base), (clients, BATCH), generator=generator))

    def step() -> list[Tensor]:
        loss, _ = method.loss(params, {}, frozen, batch)
        return [loss.detach(), *torch.autograd.grad(loss.sum(), list(params.values()))]

    return step


def launches(step: Callable[[], object]) -> int:
    """Operators that a step launches, once its constants are there."""
    step()
    with Launches() as counter:  # type: ignore[no-untyped-call]
        step()
    return int(counter.count)


def measure(threads: int, progress: Callable[[str], None], scene: Scene | None = None) -> Outcome:
    """Seconds per client and step in chunks of several sizes, taken in turns."""
    torch.set_num_threads(threads)
    scene = scene or vit_b_16()
    steps = {chunk: block_step(scene, chunk) for chunk in CHUNKS}
    count = {chunk: launches(step) / chunk for chunk, step in steps.items()}
    taken: dict[int, list[float]] = {chunk: [] for chunk in CHUNKS}
    for repeat in range(REPEATS):
        progress(f"{repeat + 1} of {REPEATS}")
        for chunk, step in steps.items():
            turns = CLIENTS // chunk
            taken[chunk].append(sum(seconds(step) for _ in range(turns)) / CLIENTS)
    middle = {chunk: median(times) for chunk, times in taken.items()}
    rows = [
        [str(chunk), f"{middle[chunk]:.3f}", f"{middle[1] / middle[chunk]:.2f}", f"{count[chunk]:.0f}"]
        for chunk in CHUNKS
    ]
    figures = {"ratio_block_to_single": middle[1] / middle[CLIENTS], "kernels_per_client_step": count[CLIENTS]}
    notes = (
        f"{CLIENTS} clients, batch {BATCH}, {len(scene.base)} classes, {threads} threads; medians of {REPEATS}",
        "ratio: one client at a time to the whole block as one batch (federation.chunk_size null, the default)",
    )
    headings = ("clients in one batch", "seconds per client and step", "times faster", "operators per client and step")
    return Outcome("clients", figures, headings, rows, notes)

"""How much memory an actor needs: measured on one step of one client, not guessed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fedpgp.core.text import GIB

PROCESS_BYTES = GIB // 2
"""A process with torch and Ray in it, before it does anything."""


def kept_for_backward(run: Callable[[], Tensor], frozen: set[int]) -> int:
    """Bytes of the tensors that autograd keeps while `run` computes a loss, each counted once.

    Args:
        frozen: addresses of storages that do not count, because they are there anyway.
    """
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in frozen:
            kept[storage.data_ptr()] = storage.nbytes()
        alive.append(tensor)
        return tensor

    alive: list[Tensor] = []  # so that no address is used twice
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(kept.values())

"""Passes over what all clients of a round sent, some columns at a time in float64, without a second stack in memory."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fedpgp.core.tree import ParamTree

CHUNK_BYTES = 2**23
"""Bytes of a chunk in float64, unless one column is longer."""


def chunks(stack: ParamTree) -> Iterator[tuple[str, slice, Tensor]]:
    """Key, columns of the flattened entry, and what the M clients sent for them (M, c), float64."""
    for key, value in stack.items():
        flat = value.reshape(len(value), -1)
        width = _width(len(flat))
        for start in range(0, flat.shape[1], width):
            columns = slice(start, start + width)
            yield key, columns, flat[:, columns].double()


def by_column(stack: ParamTree, statistic: Callable[[Tensor], Tensor], dtype: torch.dtype | None = None) -> ParamTree:
    """Compute each value from those that the clients sent for it.

    Args:
        stack: what each client sent (M, ...).
        statistic: maps (M, c) to (c,), float64.
        dtype: of the result; None: that of the stack.
    """
    found = {key: torch.empty(value.shape[1:], dtype=dtype or value.dtype) for key, value in stack.items()}
    for key, columns, part in chunks(stack):
        found[key].view(-1)[columns] = statistic(part).to(found[key].dtype)
    return found


def weighted_mean(stack: ParamTree, weights: Tensor) -> ParamTree:
    """The mean with weights (M,), which need not add up to 1, in float64."""
    shares = (weights / weights.sum()).unsqueeze(1)
    return by_column(stack, lambda part: part.mul_(shares).sum(0), torch.float64)


def chunk_bytes(clients: int, shared: ParamTree) -> int:
    """Bytes of the largest chunk of what so many clients send."""
    longest = max((value.numel() for value in shared.values()), default=0)
    return 8 * clients * min(_width(clients), longest)


def _width(clients: int) -> int:
    return max(1, CHUNK_BYTES // (8 * clients))

"""Work on a long stack in pieces, so that the memory of one piece bounds the whole."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def in_chunks(function: Callable[..., Tensor], size: int, *stacks: Tensor) -> Tensor:
    """`function(*stacks)`, at most `size` rows of the stacks (P, ...) at a time.

    With several chunks the activations of one at a time are kept: they are computed again in the backward pass.

    Args:
        function: row by row: what it gives for a row, (1, ...), depends on that row of the stacks only.
    """
    if len(stacks[0]) <= size:
        return function(*stacks)
    pieces = zip(*(stack.split(size) for stack in stacks), strict=True)
    return torch.cat([checkpoint(function, *piece, use_reentrant=False) for piece in pieces])

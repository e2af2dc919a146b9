"""Parameter trees: a flat mapping from a key to a tensor, and the arithmetic that federation needs."""

from __future__ import annotations

from collections.abc import Iterable

import torch

ParamTree = dict[str, torch.Tensor]


def select(tree: ParamTree, keys: Iterable[str]) -> ParamTree:
    """The entries of `keys`, in the tree's own order."""
    wanted = frozenset(keys)
    return {key: value for key, value in tree.items() if key in wanted}


def without(tree: ParamTree, keys: Iterable[str]) -> ParamTree:
    """All entries but those of `keys`."""
    unwanted = frozenset(keys)
    return {key: value for key, value in tree.items() if key not in unwanted}


def stack(tree: ParamTree, count: int) -> ParamTree:
    """`count` equal copies along a new leading client axis (own memory, ready to be trained)."""
    return {key: value.unsqueeze(0).repeat(count, *[1] * value.dim()) for key, value in tree.items()}


def repeated(tree: ParamTree, count: int) -> ParamTree:
    """As `stack`, but all copies are one and the same memory, which must only be read."""
    return {key: value.expand(count, *value.shape) for key, value in tree.items()}


def rows(tree: ParamTree, index: torch.Tensor) -> ParamTree:
    """The rows `index` of every stacked entry, copied."""
    return {key: value[index] for key, value in tree.items()}


def choose(mask: torch.Tensor, chosen: ParamTree, other: ParamTree) -> ParamTree:
    """Row by row of stacked entries: `chosen` where `mask` (K,) is true, else `other`."""
    return {
        key: torch.where(mask.view(-1, *[1] * (value.dim() - 1)), value, other[key]) for key, value in chosen.items()
    }


def num_bytes(tree: ParamTree) -> int:
    """Bytes of all entries."""
    return sum(value.numel() * value.element_size() for value in tree.values())


def num_values(tree: ParamTree) -> int:
    """Number of scalars of all entries."""
    return sum(value.numel() for value in tree.values())

"""Parameter trees, flat mappings from keys to tensors, and operations on them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import torch

    ParamTree: TypeAlias = dict[str, torch.Tensor]
else:  # storage reads rows without tensors, and torch takes seconds to import
    ParamTree = dict


def select(tree: ParamTree, keys: Iterable[str]) -> ParamTree:
    """Return the entries of `keys`, in the tree's order."""
    selected = frozenset(keys)
    return {key: value for key, value in tree.items() if key in selected}


def without(tree: ParamTree, keys: Iterable[str]) -> ParamTree:
    """Return all entries except those of `keys`."""
    removed = frozenset(keys)
    return {key: value for key, value in tree.items() if key not in removed}


def stack(tree: ParamTree, count: int) -> ParamTree:
    """Copy the tree `count` times along a new leading client axis."""
    return {key: value.unsqueeze(0).repeat(count, *[1] * value.dim()) for key, value in tree.items()}


def repeated(tree: ParamTree, count: int) -> ParamTree:
    """Like `stack`, but all copies share memory and are read-only."""
    return {key: value.expand(count, *value.shape) for key, value in tree.items()}


def rows(tree: ParamTree, index: torch.Tensor) -> ParamTree:
    """Copy the rows `index` of every stacked entry."""
    return {key: value[index] for key, value in tree.items()}


def choose(mask: torch.Tensor, chosen: ParamTree, other: ParamTree) -> ParamTree:
    """Select each row of stacked entries from `chosen` where `mask` (K,) is true, else from `other`."""
    import torch

    return {
        key: torch.where(mask.view(-1, *[1] * (value.dim() - 1)), value, other[key]) for key, value in chosen.items()
    }


def to_device(value: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a tensor of the CPU to a device without waiting for that; to a GPU from page-locked memory."""
    return (value.pin_memory() if device.type == "cuda" else value).to(device, non_blocking=True)


def num_bytes(tree: ParamTree) -> int:
    """Count the bytes of all entries."""
    return sum(value.numel() * value.element_size() for value in tree.values())


def num_values(tree: ParamTree) -> int:
    """Count the scalars of all entries."""
    return sum(value.numel() for value in tree.values())

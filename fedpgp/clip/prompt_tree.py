"""Lays out the prompts of a class set as a tree, in which prompts share the nodes of common prefixes."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Literal

import torch
from torch import Tensor

from fedpgp.core.errors import DataError
from fedpgp.core.text import first_of

Position = Literal["end", "middle", "front"]

Slot = int
"""One position of a prompt: a token id (>= 0), or learned context token j as `-1 - j`."""

TREE_NODES = 256
"""Approximate maximum number of nodes per tree. Attention costs grow with its square, and every tree repeats the shared
context; with this value both are below a tenth of the work at the sizes of CLIP's text towers."""

FILLER: Slot = 0
"""Any token; the nodes that pad a tree are not read."""

MULTIPLE = 4
"""The number of nodes is padded to a multiple of this. Two prompts then have a multiple of 8 tokens, and the rows that
`Affine.transposed` writes are aligned for vector registers, which saves more than the padding costs."""


@dataclass(frozen=True)
class Layout:
    """The prompts of C classes as a tree of N tokens.

    The tower is causal, so a token's state depends on the tokens before it only, and prompts share the nodes of common
    prefixes (start-of-text, context, and first words such as in "cougar body" and "cougar face"). It is pooled at
    end-of-text, so prompts end there. The F learned tokens come first, then the fixed ones, the last of which may be
    padding that attends to itself only.
    """

    learned: Tensor  # (F,) index of the context token
    fixed: Tensor  # (N - F,) token ids
    positions: Tensor  # (N,) position in the prompt: depth in the tree
    sees: Tensor  # (N, N) bool: a token attends to itself and to those above it
    ends: Tensor  # (C,) node of each class's end-of-text token


def arrange(prompts: Sequence[Sequence[Slot]], class_chunk: int | None = None) -> tuple[Layout, ...]:
    """Lay out prompts, each from start-of-text to end-of-text, as one or more trees.

    Args:
        prompts: the slots of each class, in order.
        class_chunk: maximum number of classes per tree; None: trees of about `TREE_NODES` nodes.
    """
    trees = ceil(len(_grow(prompts)[0]) / TREE_NODES)
    size = class_chunk or ceil(len(prompts) / trees)
    return tuple(_lay_out(prompts[start : start + size]) for start in range(0, len(prompts), size))


def _grow(prompts: Sequence[Sequence[Slot]]) -> tuple[list[tuple[int, Slot]], list[int]]:
    """Build the tree: parent (-1 for the root) and slot of each node, parents first; and each prompt's last node."""
    nodes: dict[tuple[int, Slot], int] = {}
    ends = []
    for prompt in prompts:
        node = -1
        for slot in prompt:
            node = nodes.setdefault((node, slot), len(nodes))
        ends.append(node)
    return list(nodes), ends


def _lay_out(prompts: Sequence[Sequence[Slot]]) -> Layout:
    nodes, ends = _grow(prompts)
    nodes += [(-1, FILLER)] * (-len(nodes) % MULTIPLE)
    sees, depth = torch.eye(len(nodes), dtype=torch.bool), torch.zeros(len(nodes), dtype=torch.long)
    for node, (parent, _) in enumerate(nodes):
        if parent >= 0:
            sees[node] |= sees[parent]
            depth[node] = depth[parent] + 1
    slots = torch.tensor([slot for _, slot in nodes])
    order = (slots >= 0).long().argsort(stable=True)  # learned tokens first
    slots, place = slots[order], order.argsort()
    learned = int((slots < 0).sum())
    return Layout(
        learned=-1 - slots[:learned],
        fixed=slots[learned:],
        positions=depth[order],
        sees=sees[order][:, order],
        ends=place[torch.tensor(ends)],
    )


def prompt_slots(
    names: Sequence[Sequence[int]],
    bodies: Sequence[Sequence[int]],
    bounds: tuple[int, int],
    n_ctx: int,
    position: Position,
    class_specific: bool,
) -> list[list[Slot]]:
    """Build the slots of "[SOS] context NAME . [EOS]" for every class, as in CoOp.

    Args:
        names: token ids of each name; only their number is used (for `middle` and `front`).
        bodies: token ids of "NAME." for each class.
        bounds: ids of start-of-text and end-of-text.
        n_ctx: number of context tokens L.
        position: position of the name: after, in the middle of (after L // 2 tokens), or before the context.
        class_specific: context token l of class c is slot c * L + l instead of l.
    """
    prompts = []
    for index, (name, body) in enumerate(zip(names, bodies, strict=True)):
        first = index * n_ctx if class_specific else 0
        ctx = [-1 - slot for slot in range(first, first + n_ctx)]
        before = {"end": n_ctx, "middle": n_ctx // 2, "front": 0}[position]
        head, tail = list(body[: len(name)]), list(body[len(name) :])
        prompts.append([bounds[0], *ctx[:before], *head, *ctx[before:], *tail, bounds[1]])
    return prompts


def check_lengths(lengths: Sequence[int], names: Sequence[str], limit: int) -> None:
    """Raise `DataError` with the classes whose prompts are longer than `limit` tokens."""
    long = [f"{name!r} ({size} tokens)" for name, size in zip(names, lengths, strict=True) if size > limit]
    if long:
        raise DataError(
            f"class {first_of(long, 5)}: longer than the {limit} tokens of the tower; shorten name or n_ctx"
        )

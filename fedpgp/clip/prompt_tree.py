"""How the prompts of a class set are laid out: as one tree, in which every token that several share stands once."""

from __future__ import annotations

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
"""What stands at one place of a prompt: a token id (>= 0), or learned context token j as `-1 - j`."""

TREE_NODES = 256
"""About the most nodes of one tree. Attention costs the square of a tree's nodes, and each further tree begins with
the shared context again; both are below a tenth of the work here, at the sizes of CLIP's text towers."""

FILLER: Slot = 0
"""Some token, whichever: nothing is read from the nodes that fill up a tree."""

MULTIPLE = 4
"""Of which a tree's nodes are made a multiple. Two prompts then have a multiple of 8 tokens, and every row of features
that `Affine.transposed` writes begins where a vector register can load: more is won than the added nodes cost."""


@dataclass(frozen=True)
class Layout:
    """The prompts of C classes as a tree of N tokens.

    The tower is causal, so what it makes of a token depends on the tokens before it only: prompts that begin alike
    share nodes (start-of-text and context, and the first words of names such as "cougar body" and "cougar face").
    It is pooled at end-of-text, so nothing stands behind that. The F learned tokens come first, then the fixed ones,
    of which the last few may be there to fill up, seen by themselves only.
    """

    learned: Tensor  # (F,) which context token stands there
    fixed: Tensor  # (N - F,) token ids
    positions: Tensor  # (N,) place in the prompt: depth in the tree
    sees: Tensor  # (N, N) bool: a token attends to itself and to those above it
    ends: Tensor  # (C,) node of each class's end-of-text token


def arrange(prompts: Sequence[Sequence[Slot]], class_chunk: int | None = None) -> tuple[Layout, ...]:
    """Lay out prompts, each from start-of-text to end-of-text, as one or more trees.

    Args:
        prompts: the slots of each class, in order.
        class_chunk: most classes of one tree; None: as many as make a tree of about `TREE_NODES`.
    """
    trees = ceil(len(_grow(prompts)[0]) / TREE_NODES)
    size = class_chunk or ceil(len(prompts) / trees)
    return tuple(_lay_out(prompts[start : start + size]) for start in range(0, len(prompts), size))


def _grow(prompts: Sequence[Sequence[Slot]]) -> tuple[list[tuple[int, Slot]], list[int]]:
    """The tree: parent (-1 above the root) and slot of each node, parents first; and the last node of each prompt."""
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
    """The slots of "[SOS] context NAME . [EOS]" for every class, as in CoOp.

    Args:
        names: token ids of each name alone; only their number is used (the class token's place in `middle`, `front`).
        bodies: token ids of "NAME." for each class.
        bounds: ids of start-of-text and end-of-text.
        n_ctx: number of context tokens L.
        position: where the name stands: after, in the middle of (after L // 2 tokens), or before the context.
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
    """Refuse prompts that do not fit the tower, naming the classes.

    Raises:
        DataError: a prompt is longer than `limit` tokens.
    """
    long = [f"{name!r} ({size} tokens)" for name, size in zip(names, lengths, strict=True) if size > limit]
    if long:
        raise DataError(
            f"class {first_of(long, 5)}: longer than the {limit} tokens of the text tower; shorten the name or n_ctx"
        )

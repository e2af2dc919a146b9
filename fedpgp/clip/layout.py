"""How the prompts of a class set are laid out: what they share, what is left per class, and where each token goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fedpgp.errors import DataError

Position = Literal["end", "middle", "front"]

Slot = int
"""What stands at one place of a prompt: a token id (>= 0), or learned context token j as `-1 - j`."""


@dataclass(frozen=True)
class Layout:
    """The prompts of C classes, cut into one shared prefix and packed suffixes.

    The tower is causal, so the tokens before the first one that differs between classes (`prefix`) have the
    same hidden states for all of them, and nothing after the end-of-text token matters. The suffixes lie packed
    one after another, T tokens in all, for the linear layers; attention sees them padded to (C, S).
    """

    prefix: Tensor  # slots (L',)
    suffix: Tensor  # slots (T,)
    suffix_positions: Tensor  # (T,) place in the prompt
    lengths: Tensor  # (C,)
    pad: Tensor | None  # (C S,) packed index at each padded place; None if all lengths are equal
    pack: Tensor | None  # (T,) padded place of each packed token; None if all lengths are equal
    ends: Tensor  # (C,) packed index of each end-of-text token

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.lengths)

    @property
    def longest(self) -> int:
        """S, the longest suffix."""
        return int(self.lengths.max())


def arrange(prompts: Sequence[Sequence[Slot]], class_chunk: int | None = None) -> tuple[Layout, ...]:
    """Cut prompts, each from start-of-text to end-of-text, into shared prefix and suffixes.

    The last token of a prompt always belongs to its suffix, so that every class has one.

    Args:
        prompts: the slots of each class, in order.
        class_chunk: most classes of one layout; None: one layout of all. All chunks have the same prefix.
    """
    shortest = min(len(prompt) for prompt in prompts)
    shared = 0
    while shared < shortest - 1 and len({prompt[shared] for prompt in prompts}) == 1:
        shared += 1
    size = class_chunk or len(prompts)
    return tuple(_cut(prompts[start : start + size], shared) for start in range(0, len(prompts), size))


def _cut(prompts: Sequence[Sequence[Slot]], shared: int) -> Layout:
    lengths = torch.tensor([len(prompt) - shared for prompt in prompts])
    longest = int(lengths.max())
    ends = lengths.cumsum(0) - 1
    starts = ends + 1 - lengths
    places = torch.arange(longest)
    inside = places < lengths[:, None]
    padded = torch.minimum(starts[:, None] + places, ends[:, None])  # a padded place repeats the last token
    ragged = bool((lengths != longest).any())
    return Layout(
        prefix=torch.tensor(prompts[0][:shared], dtype=torch.long),
        suffix=torch.tensor([slot for prompt in prompts for slot in prompt[shared:]], dtype=torch.long),
        suffix_positions=places.expand(len(prompts), -1)[inside] + shared,
        lengths=lengths,
        pad=padded.flatten() if ragged else None,
        pack=inside.flatten().nonzero().flatten() if ragged else None,
        ends=ends,
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


def check_lengths(prompts: Sequence[Sequence[Slot]], names: Sequence[str], limit: int) -> None:
    """Refuse prompts that do not fit the tower, naming the classes.

    Raises:
        DataError: a prompt is longer than `limit` tokens.
    """
    long = [f"{name!r} ({len(p)} tokens)" for name, p in zip(names, prompts, strict=True) if len(p) > limit]
    if long:
        shown = ", ".join(long[:5]) + (f" and {len(long) - 5} more" if len(long) > 5 else "")
        raise DataError(f"class {shown}: longer than the {limit} tokens of the text tower; shorten the name or n_ctx")

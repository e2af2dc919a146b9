"""The frozen backbone as methods see it: the towers, and text features for a class set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from fedpgp.clip.prompt_encoder import Adapters, PromptEncoder, Slot, arrange
from fedpgp.clip.towers import TextTower, VisualTower, map_tensors
from fedpgp.core.errors import DataError
from fedpgp.core.text import first_of

if TYPE_CHECKING:
    from fedpgp.clip.model import Backbone

Position = Literal["end", "middle", "front"]
"""Position of the class name: after, in the middle of (after L // 2 tokens), or before the context."""


@dataclass(frozen=True)
class FrozenText:
    """The frozen text tower of an experiment, small enough to send to every actor.

    The tower keeps only the embeddings of tokens in `token_ids`. The image tower is included for methods that run it.
    """

    tower: TextTower | None  # None: the method has its own network
    token_ids: Mapping[str, tuple[int, ...]]  # of all texts, without start and end: actors need no tokenizer
    bounds: tuple[int, int]  # ids of start-of-text and end-of-text
    class_names: tuple[str, ...]
    templates: tuple[str, ...]  # hand-written prompt of each class, with {} for its name
    logit_scale: float
    class_chunk: int | None = None
    visual: VisualTower | None = None

    def to(self, device: torch.device | str, dtype: torch.dtype) -> FrozenText:
        """Move the towers to another device or precision."""
        moved: FrozenText = map_tensors(self, lambda tensor: tensor.to(device, dtype))
        return moved

    def on(self, classes: Sequence[int]) -> ClassSet:
        """Bind the towers to the classes with these labels, in this order."""
        names = tuple(self.class_names[label] for label in classes)
        return ClassSet(self, names, tuple(self.templates[label] for label in classes))


def freeze(
    backbone: Backbone,
    class_names: Sequence[str],
    templates: str | Sequence[str],
    extra_texts: Sequence[str] = (),
    class_chunk: int | None = None,
    visual: bool = False,
) -> FrozenText:
    """Extract the parts of a backbone that training needs: its text tower, pruned to the tokens that can occur.

    Args:
        class_names: in label order; underscores become spaces, as in CoOp.
        templates: hand-written prompt with one {} for the name, one for all classes or one of each.
        extra_texts: further texts of the method, for example the words of an initial context.

    Raises:
        DataError: a text does not fit the tower's context.
        BackboneError: the image tower cannot be prompted.
    """
    names = [readable(name) for name in class_names]
    templates = _of_each(templates, names)
    prompts = [filled(template, name) for template, name in zip(templates, names, strict=True)]
    texts = list(dict.fromkeys([*names, *(f"{name}." for name in names), *prompts, *extra_texts]))
    rows = backbone.tokenize(texts)
    limit = rows.shape[1]
    ends = rows.argmax(dim=1).tolist()  # end-of-text has the highest id
    long = [text for text, end in zip(texts, ends, strict=True) if end == limit - 1]
    if long:
        raise DataError(f"text {long[0]!r}: longer than the {limit} tokens of the text tower; shorten the name")
    unpadded = [row[: end + 1] for row, end in zip(rows, ends, strict=True)]
    kept, dense = torch.cat(unpadded).unique(return_inverse=True)
    renumbered = [row.tolist() for row in dense.split([len(row) for row in unpadded])]
    return FrozenText(
        tower=TextTower.from_open_clip(backbone.model).pruned(kept),
        token_ids={text: tuple(row[1:-1]) for text, row in zip(texts, renumbered, strict=True)},
        bounds=(renumbered[0][0], renumbered[0][-1]),
        class_names=tuple(names),
        templates=templates,
        logit_scale=backbone.logit_scale,
        class_chunk=class_chunk,
        visual=VisualTower.from_open_clip(backbone.model.visual, backbone.image) if visual else None,  # type: ignore[arg-type]
    )


def names_only(class_names: Sequence[str], templates: str | Sequence[str]) -> FrozenText:
    """Create the frozen part for a method with its own network: only the classes."""
    names = tuple(readable(name) for name in class_names)
    return FrozenText(None, {}, (0, 0), names, _of_each(templates, names), logit_scale=1.0)


def _of_each(templates: str | Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    return (templates,) * len(names) if isinstance(templates, str) else tuple(templates)


def readable(name: str) -> str:
    """Replace underscores of a class name by spaces."""
    return name.replace("_", " ")


def filled(template: str, name: str) -> str:
    """Insert a class name into the hand-written prompt. Other braces are text, not format fields."""
    return template.replace("{}", name)


class ClassSet:
    """The frozen towers for C classes. Encoders and constants are created at first use and cached."""

    def __init__(self, frozen: FrozenText, names: tuple[str, ...], templates: tuple[str, ...]) -> None:
        self.names = names
        self._prompts_of = tuple(filled(template, name) for template, name in zip(templates, names, strict=True))
        self._frozen = frozen
        self._encoders: dict[tuple[int, Position, bool, tuple[int, ...]], PromptEncoder] = {}
        self._fixed_encoders: dict[str, PromptEncoder] = {}
        self._constants: dict[str, Tensor] = {}

    def duplicate_names(self) -> list[str]:
        """List names with equal tokens: they differ in capitals only, or in words that the tower does not know."""
        counts = Counter(self.token_ids(name) for name in self.names)
        return [name for name in self.names if counts[self.token_ids(name)] > 1]

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.names)

    @property
    def logit_scale(self) -> float:
        """Factor of the cosine similarities, from the checkpoint (exponential already applied)."""
        return self._frozen.logit_scale

    @property
    def width(self) -> int:
        """D, the width of a context token."""
        return self._tower.width

    @property
    def joint_width(self) -> int:
        """E, the width of the joint embedding space."""
        return len(self._tower.projection.weight)

    @property
    def layers(self) -> int:
        """Number of layers of the text tower."""
        return len(self._tower.blocks)

    @property
    def _tower(self) -> TextTower:
        if self._frozen.tower is None:
            raise TypeError("methods with their own network have no text tower")
        return self._frozen.tower

    @property
    def visual(self) -> VisualTower:
        """The image tower of methods that require it."""
        if self._frozen.visual is None:
            raise TypeError("only methods with `required_towers` text and image have the image tower")
        return self._frozen.visual

    def encode(
        self, ctx: Tensor, position: Position = "end", deep: Tensor | None = None, before_name: tuple[int, ...] = ()
    ) -> Tensor:
        """Compute text features (P, C, E), not normalized, of contexts (P, L, D) or, class-specific, (P, C, L, D).

        Args:
            deep: contexts of the layers after the first (P, J - 1, ..., L, D), see `PromptEncoder.encode`.
            before_name: fixed tokens in front of each name.
        """
        key = (ctx.shape[-2], position, ctx.dim() == 4, before_name)
        if key not in self._encoders:
            self._encoders[key] = self._encoder(self._prompts(*key))
        return self._encoders[key].encode(ctx, deep)

    def check_room(self, tokens: int) -> None:
        """Raise `DataError` if a prompt of `tokens` context tokens and a class name does not fit the tower."""
        self._check_lengths([2 + tokens + len(self.token_ids(f"{name}.")) for name in self.names])

    def template(self) -> Tensor:
        """Return constant text features (C, E) of the hand-written prompts: zero-shot CLIP."""
        return self._constant("template", map(self.token_ids, self._prompts_of))

    def bare_names(self) -> Tensor:
        """Return constant text features (C, E) of the class names alone."""
        return self._constant("names", map(self.token_ids, self.names))

    def adapted_template(self, adapters: Adapters) -> Tensor:
        """Compute text features (P, C, E) of the hand-written prompts in a tower with adapters."""
        return self._fixed("template", map(self.token_ids, self._prompts_of), adapters)

    def placeholder(self, n_ctx: int) -> Tensor:
        """Return constant text features (C, E) of "X X ... X NAME." with n_ctx letters X; needs the extra text "X"."""
        tokens = self.token_ids("X") * n_ctx
        return self._constant(f"X{n_ctx}", ((*tokens, *self.token_ids(f"{name}.")) for name in self.names))

    def token_ids(self, phrase: str) -> tuple[int, ...]:
        """Return the tokens of a text of the experiment."""
        return self._frozen.token_ids[phrase]

    def word_vectors(self, phrase: str) -> Tensor:
        """Return the token embeddings (L, D) of an extra text of the method."""
        return self._tower.tokens[torch.tensor(self.token_ids(phrase), dtype=torch.long)].float()

    def _constant(self, key: str, tokens: Iterable[tuple[int, ...]]) -> Tensor:
        if key not in self._constants:
            with torch.no_grad():
                self._constants[key] = self._fixed(key, tokens)[0]
        return self._constants[key]

    def _fixed(self, key: str, tokens: Iterable[tuple[int, ...]], adapters: Adapters | None = None) -> Tensor:
        """Compute text features (P, C, E) of prompts with the `tokens` of each class; their encoder is cached."""
        if key not in self._fixed_encoders:
            start, end = self._frozen.bounds
            self._fixed_encoders[key] = self._encoder([[start, *own, end] for own in tokens])
        return self._fixed_encoders[key].encode(self._tower.tokens.new_empty(1, 0, self.width), adapters=adapters)

    def _prompts(
        self, n_ctx: int, position: Position, class_specific: bool, before_name: tuple[int, ...]
    ) -> list[list[Slot]]:
        """Build the slots of "[SOS] context NAME . [EOS]" for every class, as in CoOp.

        Context token l of class c is slot c * L + l if it is class-specific, and l otherwise.
        """
        start, end = self._frozen.bounds
        before = {"end": n_ctx, "middle": n_ctx // 2, "front": 0}[position]
        prompts = []
        for index, name in enumerate(self.names):
            first = index * n_ctx if class_specific else 0
            ctx = [-1 - slot for slot in range(first, first + n_ctx)]
            body, length = self.token_ids(f"{name}."), len(self.token_ids(name))
            prompts.append([start, *ctx[:before], *before_name, *body[:length], *ctx[before:], *body[length:], end])
        return prompts

    def _encoder(self, prompts: list[list[Slot]]) -> PromptEncoder:
        self._check_lengths([len(prompt) for prompt in prompts])
        chunk = self._frozen.class_chunk
        return PromptEncoder(self._tower, arrange(prompts, chunk), bounded=chunk is not None)

    def _check_lengths(self, lengths: list[int]) -> None:
        limit, named = len(self._tower.positions), zip(self.names, lengths, strict=True)
        long = [f"{name!r} ({length} tokens)" for name, length in named if length > limit]
        if long:
            raise DataError(
                f"class {first_of(long, 5)}: longer than the {limit} tokens of the tower; shorten name or n_ctx"
            )

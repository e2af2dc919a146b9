"""What a method may look at: the frozen towers, the text side bound to a class set, its constants computed once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedpgp.clip.adapters import Adapters
from fedpgp.clip.image_tower import VisualTower
from fedpgp.clip.prompt_encoder import PromptEncoder
from fedpgp.clip.prompt_tree import Position, Slot, arrange, check_lengths, prompt_slots
from fedpgp.clip.text_tower import TextTower
from fedpgp.core.errors import DataError

if TYPE_CHECKING:
    from fedpgp.clip.model import Backbone


@dataclass(frozen=True)
class Vocabulary:
    """The token ids of every text that an experiment can need, so that an actor needs no tokenizer."""

    texts: Mapping[str, tuple[int, ...]]
    """ids of a text without start and end"""
    bounds: tuple[int, int]
    """ids of start-of-text and end-of-text"""

    def __getitem__(self, text: str) -> tuple[int, ...]:
        return self.texts[text]


@dataclass(frozen=True)
class FrozenText:
    """The frozen text side of an experiment, small enough to send to every actor.

    The tower keeps the embeddings of the tokens that occur in `vocabulary` only. The image tower comes along for
    methods that run it themselves.
    """

    tower: TextTower | None
    """None: the method brings a network of its own"""
    vocabulary: Vocabulary
    class_names: tuple[str, ...]
    template: str
    logit_scale: float
    class_chunk: int | None = None
    visual: VisualTower | None = None

    def to(self, device: torch.device | str, dtype: torch.dtype) -> FrozenText:
        """The same on another device or in another precision."""
        visual = None if self.visual is None else self.visual.to(device, dtype)
        tower = None if self.tower is None else self.tower.to(device, dtype)
        return replace(self, tower=tower, visual=visual)

    def duplicate_names(self) -> list[str]:
        """Names with the tokens of another: apart in capitals only, or in words that the tower does not know."""
        counts = Counter(self.vocabulary[name] for name in self.class_names)
        return [name for name in self.class_names if counts[self.vocabulary[name]] > 1]

    def on(self, classes: Sequence[int]) -> ClassSet:
        """The frozen side bound to the classes with these labels, in this order."""
        return ClassSet(self, tuple(self.class_names[label] for label in classes))


def freeze(
    backbone: Backbone,
    class_names: Sequence[str],
    template: str,
    extra_texts: Sequence[str] = (),
    class_chunk: int | None = None,
    visual: bool = False,
) -> FrozenText:
    """Take from a backbone what training needs: its text tower, pruned to the tokens that can occur.

    Args:
        class_names: in label order; underscores become spaces, as in CoOp.
        template: hand-written prompt with one {} for the name.
        phrases: further texts that the method needs, for example the words of an initial context.
        visual: take the image tower too.

    Raises:
        DataError: a text does not fit the tower's context.
        BackboneError: the image tower is wanted, and cannot be prompted.
    """
    names = [readable(name) for name in class_names]
    texts = dict.fromkeys(
        [*names, *(f"{name}." for name in names), *(filled(template, name) for name in names), *extra_texts]
    )
    vocabulary = _tokenize(backbone, list(texts))
    ids = sorted({*vocabulary.bounds, *(token for tokens in vocabulary.texts.values() for token in tokens)})
    dense = {token: index for index, token in enumerate(ids)}
    return FrozenText(
        tower=TextTower.from_open_clip(backbone.model).pruned(ids),
        vocabulary=Vocabulary(
            texts={text: tuple(dense[t] for t in tokens) for text, tokens in vocabulary.texts.items()},
            bounds=(dense[vocabulary.bounds[0]], dense[vocabulary.bounds[1]]),
        ),
        class_names=tuple(names),
        template=template,
        logit_scale=backbone.logit_scale,
        class_chunk=class_chunk,
        visual=VisualTower.from_open_clip(backbone.model.visual, backbone.image) if visual else None,  # type: ignore[arg-type]
    )


def names_only(class_names: Sequence[str], template: str) -> FrozenText:
    """The frozen side of a method that brings a network of its own: nothing but the classes."""
    names = tuple(readable(name) for name in class_names)
    return FrozenText(None, Vocabulary({}, (0, 0)), names, template, logit_scale=1.0)


def readable(name: str) -> str:
    """A class name as it stands in a prompt."""
    return name.replace("_", " ")


def filled(template: str, name: str) -> str:
    """The hand-written prompt of a class. Other braces in it are text, and not run as a format."""
    return template.replace("{}", name)


def _tokenize(backbone: Backbone, texts: Sequence[str]) -> Vocabulary:
    rows = backbone.tokenize(texts)
    limit = rows.shape[1]
    ends = rows.argmax(dim=1).tolist()  # end-of-text has the highest id
    long = [text for text, end in zip(texts, ends, strict=True) if end == limit - 1]
    if long:
        raise DataError(f"text {long[0]!r}: longer than the {limit} tokens of the text tower; shorten the name")
    lists = rows.tolist()
    return Vocabulary(
        texts={text: tuple(row[1:end]) for text, row, end in zip(texts, lists, ends, strict=True)},
        bounds=(lists[0][0], lists[0][ends[0]]),
    )


class ClassSet:
    """The frozen side for C classes. Encoders and constants are made at first use and kept."""

    def __init__(self, frozen: FrozenText, names: tuple[str, ...]) -> None:
        self.names = names
        self._frozen = frozen
        self._encoders: dict[tuple[int, Position, bool, tuple[int, ...]], PromptEncoder] = {}
        self._fixed_encoders: dict[str, PromptEncoder] = {}
        self._constants: dict[str, Tensor] = {}

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.names)

    @property
    def logit_scale(self) -> float:
        """The factor of the cosines, from the checkpoint (exp already applied)."""
        return self._frozen.logit_scale

    @property
    def width(self) -> int:
        """D, the width of a context token."""
        return self._tower.width

    @property
    def joint_width(self) -> int:
        """E, the width of the space that images and texts share."""
        return len(self._tower.projection.weight)

    @property
    def layers(self) -> int:
        """Number of layers of the text tower."""
        return len(self._tower.blocks)

    @property
    def _tower(self) -> TextTower:
        if self._frozen.tower is None:
            raise TypeError("the text tower is there for methods without a network of their own only")
        return self._frozen.tower

    @property
    def visual(self) -> VisualTower:
        """The image tower, for methods that asked for it."""
        if self._frozen.visual is None:
            raise TypeError("the image tower is there for methods with `required_towers` text and image only")
        return self._frozen.visual

    def encode(
        self, ctx: Tensor, position: Position = "end", deep: Tensor | None = None, before_name: tuple[int, ...] = ()
    ) -> Tensor:
        """Text features (P, C, E), not normalised, of contexts (P, L, D) or class-specific ones (P, C, L, D).

        Args:
            position: place of the class name.
            deep: contexts of the layers after the first (P, J - 1, ..., L, D), see `PromptEncoder.encode`.
            before_name: fixed tokens in front of each name.
        """
        n_ctx, specific = ctx.shape[-2], ctx.dim() == 4
        key = (n_ctx, position, specific, before_name)
        if key not in self._encoders:
            vocabulary = self._frozen.vocabulary
            prompts = prompt_slots(
                names=[(*before_name, *vocabulary[name]) for name in self.names],
                bodies=[(*before_name, *vocabulary[f"{name}."]) for name in self.names],
                bounds=vocabulary.bounds,
                n_ctx=n_ctx,
                position=position,
                class_specific=specific,
            )
            self._encoders[key] = self._encoder(prompts)
        return self._encoders[key].encode(ctx, deep)

    def check_room(self, tokens: int) -> None:
        """See before any work whether a prompt of so many tokens and a name fits into the tower, for every name.

        Raises:
            DataError: it does not.
        """
        bodies = (self._frozen.vocabulary[f"{name}."] for name in self.names)
        lengths = [len(self._frozen.vocabulary.bounds) + tokens + len(body) for body in bodies]
        check_lengths(lengths, self.names, limit=len(self._tower.positions))

    def template(self) -> Tensor:
        """Text features (C, E) of the hand-written prompt of each class: zero-shot CLIP. Constant."""
        template = self._frozen.template
        return self._constant(template, lambda name: self._frozen.vocabulary[filled(template, name)])

    def adapted_template(self, adapters: Adapters) -> Tensor:
        """Text features (P, C, E) of the hand-written prompts in a tower with these adapters."""
        template, vocabulary = self._frozen.template, self._frozen.vocabulary
        encoder = self._fixed(template, lambda name: vocabulary[filled(template, name)])
        return encoder.encode(self._nothing(), adapters=adapters)

    def placeholder(self, n_ctx: int) -> Tensor:
        """Text features (C, E) of "X X ... X NAME." with n_ctx letters X; needs the phrase "X". Constant."""
        vocabulary = self._frozen.vocabulary
        return self._constant(f"X{n_ctx}", lambda name: (*vocabulary["X"] * n_ctx, *vocabulary[f"{name}."]))

    def token_ids(self, phrase: str) -> tuple[int, ...]:
        """The tokens of a phrase that the method asked for."""
        return self._frozen.vocabulary[phrase]

    def word_vectors(self, phrase: str) -> Tensor:
        """Token embeddings (L, D) of a phrase that the method asked for."""
        return self._tower.tokens[torch.tensor(self.token_ids(phrase), dtype=torch.long)].float()

    def _constant(self, key: str, tokens_of: Callable[[str], tuple[int, ...]]) -> Tensor:
        if key not in self._constants:
            with torch.no_grad():
                self._constants[key] = self._fixed(key, tokens_of).encode(self._nothing())[0]
        return self._constants[key]

    def _fixed(self, key: str, tokens_of: Callable[[str], tuple[int, ...]]) -> PromptEncoder:
        """The encoder of prompts without a context."""
        if key not in self._fixed_encoders:
            start, end = self._frozen.vocabulary.bounds
            self._fixed_encoders[key] = self._encoder([[start, *tokens_of(name), end] for name in self.names])
        return self._fixed_encoders[key]

    def _nothing(self) -> Tensor:
        """A context (1, 0, D) of no tokens."""
        return self._tower.tokens.new_empty(1, 0, self.width)

    def _encoder(self, prompts: list[list[Slot]]) -> PromptEncoder:
        tower = self._tower
        check_lengths([len(prompt) for prompt in prompts], self.names, limit=len(tower.positions))
        chunk = self._frozen.class_chunk
        return PromptEncoder(tower, arrange(prompts, chunk), bounded=chunk is not None)

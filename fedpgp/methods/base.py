"""What a method is: settings, what is learned, what is shared, and a pure loss over parameters with a client axis."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from fedpgp.clip.model import ImageSpec
from fedpgp.clip.text_backbone import ClassSet
from fedpgp.config import Settings
from fedpgp.core.tree import ParamTree

Inputs = Literal["pooled", "patches", "pixels"]
"""The form in which a method sees an image: one feature, one per patch, or the picture itself."""

Tower = Literal["text", "image"]
"""A frozen tower that a method runs itself; it is sent to every actor."""

Metrics = dict[str, Tensor]
"""Named parts of a loss, each of shape (K,)."""

Classifier = Callable[[Tensor], Tensor]
"""Features (K or 1, B, ...) to logits (K, B, C). What does not depend on the images is computed beforehand."""


@dataclass(frozen=True)
class Batch:
    """One step's images for K clients. Where `mask` is False the row is padding and must not count."""

    features: Tensor  # (K, B, ...)
    labels: Tensor  # (K, B)
    mask: Tensor  # (K, B) bool


@dataclass(frozen=True)
class Phase:
    """A stretch of local training in which some parameters learn and the others rest."""

    keys: frozenset[str]
    lr: Mapping[str, float] = field(default_factory=dict)
    """keys with a learning rate of their own; all others take the federation's"""
    decay: float = 1.0
    """factor on all learning rates from one round to the next; 1: constant"""
    epochs: int | None = None
    """None: the federation's"""
    momentum: float | None = None
    """None: the federation's"""
    weight_decay: float | None = None
    """None: the federation's"""


class Method(Protocol):
    """One paper's method. Parameters, batches and losses carry the client axis K in front.

    `shared_keys` is the only thing that the federation knows about a method's parameters.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    settings_type: ClassVar[type[Settings]]
    image_inputs: ClassVar[Inputs]
    required_towers: ClassVar[frozenset[Tower]]

    def __init__(self, settings: Any) -> None:
        """Build the method from an instance of its `settings_type`."""

    @property
    def shared_keys(self) -> frozenset[str]:
        """Parameters that leave the client and are averaged; all others never do. May depend on the settings."""
        ...

    @property
    def settings(self) -> Settings:
        """Frozen; a field's docstring says what it does."""
        ...

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The stretches of one local epoch sequence; none: there is nothing to train."""
        ...

    @property
    def extra_texts(self) -> tuple[str, ...]:
        """Texts, besides the class names and the template, whose tokens the method needs."""
        ...

    @property
    def supports_unseen_classes(self) -> bool:
        """Whether it can classify a class set that it was not trained on."""
        ...

    def init(self, frozen: ClassSet, generator: torch.Generator) -> ParamTree:
        """Initial parameters of one client (without the client axis), on the CPU, the same for all.

        Called before any other work, so it is also the place to refuse a frozen side that the settings do not fit.

        Raises:
            ConfigError: a setting asks for more than the model has, for example a rank above the context's.
        """
        ...

    def loss(self, params: ParamTree, received: ParamTree, frozen: ClassSet, batch: Batch) -> tuple[Tensor, Metrics]:
        """Loss (K,) and its named parts. `received` is what the server sent this round, without the client axis.

        Pure, but for entries of `params` that no phase learns: a loss may renew those in place, as batch normalisation
        does with its running statistics.
        """
        ...

    def classifier(self, params: ParamTree, frozen: ClassSet) -> Classifier:
        """The classifier of each client over the classes of `frozen`."""
        ...


@runtime_checkable
class HasGlobalModel(Protocol):
    """A method with personal parameters whose shared ones are a model without them."""

    def global_model(self, params: ParamTree) -> ParamTree:
        """The same parameters with the personal ones at rest: what the server could hand to a new client."""
        ...


@runtime_checkable
class LimitsBlocks(Protocol):
    """A method whose parameters are too large to train many clients at once."""

    max_block: ClassVar[int]
    """most clients of a block, whatever `federation.block_size` says"""


@runtime_checkable
class BringsNetwork(Protocol):
    """A method that learns a network of its own and has no use for CLIP."""

    @property
    def image(self) -> ImageSpec:
        """The pictures that the network takes."""
        ...


def cosine_logits(features: Tensor, text: Tensor, scale: float) -> Tensor:
    """CLIP's logits (K, B, C): scaled cosines of image features (K or 1, B, E) and text features (K, C, E)."""
    return scale * F.normalize(features, dim=-1) @ F.normalize(text, dim=-1).mT


def cross_entropy(logits: Tensor, batch: Batch) -> Tensor:
    """Mean cross-entropy of each client (K,) over its real images; 0 for a client without one."""
    losses = F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), reduction="none").view_as(batch.labels)
    return (losses * batch.mask).sum(1) / batch.mask.sum(1).clamp(min=1)


def draw_linear(name: str, inputs: int, outputs: int, generator: torch.Generator) -> ParamTree:
    """Weight (outputs, inputs) and bias of a linear layer, started as torch starts one: U(-1, 1) / sqrt(inputs)."""
    weight, bias = (2 * torch.rand(*shape, generator=generator) - 1 for shape in ((outputs, inputs), (outputs,)))
    return {f"{name}.weight": weight / inputs**0.5, f"{name}.bias": bias / inputs**0.5}

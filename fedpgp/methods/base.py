"""The interface of a method: settings, learned and shared parameters, and a pure loss over a client axis."""

from abc import ABC, abstractmethod
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
"""The form in which a method receives an image: one feature, one per patch, or the pixels."""

Tower = Literal["text", "image"]
"""A frozen tower that a method runs itself; it is sent to every worker."""

Metrics = dict[str, Tensor]
"""Named parts of a loss, each of shape (K,), the same names in every call. They are recorded as `train/NAME`."""

Classifier = Callable[[Tensor], Tensor]
"""Maps features (K or 1, B, ...) to logits (K, B, C). Everything independent of the images is computed beforehand."""


@dataclass(frozen=True)
class Batch:
    """One step's images for K clients. Rows where `mask` is False are padding and must not count."""

    features: Tensor  # (K, B, ...)
    labels: Tensor  # (K, B)
    mask: Tensor  # (K, B) bool


@dataclass(frozen=True)
class Phase:
    """A stretch of local training in which some parameters learn and the others stay fixed."""

    keys: frozenset[str]
    lr: Mapping[str, float] = field(default_factory=dict)  # of single keys; all others use the federation's
    decay: float = 1.0  # factor on all learning rates from one round to the next; 1: constant
    epochs: int | None = None  # None: the federation's, as for all below
    momentum: float | None = None
    weight_decay: float | None = None


class Method(Protocol):
    """The method of one paper. Parameters, batches and losses carry the client axis K in front.

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
    def settings(self) -> Settings:
        """Frozen settings; the docstring of a field explains it."""

    @property
    def shared_keys(self) -> frozenset[str]:
        """Parameters that are sent to the server and averaged; all others stay with the client."""

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The phases of local training, in order. Empty: nothing is trained."""

    @property
    def extra_texts(self) -> tuple[str, ...]:
        """Texts, besides the class names and the template, whose tokens the method needs."""

    @property
    def supports_unseen_classes(self) -> bool:
        """Whether it can classify classes that it was not trained on."""

    def init(self, frozen: ClassSet, generator: torch.Generator) -> ParamTree:
        """Initial parameters of one client (without the client axis), on the CPU, the same for all clients.

        Called before any other work, so it also checks that the settings fit the frozen model: it raises `ConfigError`
        if one asks for more than the model has, for example a rank above the context's.
        """

    def loss(self, params: ParamTree, received: ParamTree, frozen: ClassSet, batch: Batch) -> tuple[Tensor, Metrics]:
        """Loss (K,) and its named parts. `received` is what the server sent this round, without the client axis.

        Pure, with one exception: entries of `params` that no phase learns may be updated in place, such as the running
        statistics of batch normalisation. It should not wait for the device (`.item()`, `bool(tensor)`).
        """

    def classifier(self, params: ParamTree, frozen: ClassSet) -> Classifier:
        """The classifier of each client over the classes of `frozen`."""


class PromptMethod(ABC):
    """Defaults of a method on frozen CLIP: pooled image features, the text tower, a loss of cross-entropy alone."""

    image_inputs: ClassVar[Inputs] = "pooled"
    required_towers: ClassVar[frozenset[Tower]] = frozenset({"text"})
    extra_texts: tuple[str, ...] = ()
    supports_unseen_classes = True

    def loss(self, params: ParamTree, received: ParamTree, frozen: ClassSet, batch: Batch) -> tuple[Tensor, Metrics]:
        """Cross-entropy (K,)."""
        return cross_entropy(self.classifier(params, frozen)(batch.features), batch), {}

    @abstractmethod
    def classifier(self, params: ParamTree, frozen: ClassSet) -> Classifier:
        """See `Method`."""


@runtime_checkable
class HasGlobalModel(Protocol):
    """A method with personal parameters whose shared ones form a model without them."""

    def global_model(self, params: ParamTree) -> ParamTree:
        """`params` with neutral personal parameters: the model that the server could give to a new client."""


@runtime_checkable
class LimitsBlocks(Protocol):
    """A method whose parameters are too large to train many clients at once."""

    max_block: ClassVar[int]  # most clients of a block; limits `federation.block_size`


@runtime_checkable
class BringsNetwork(Protocol):
    """A method that learns its own network and does not use CLIP."""

    image: ImageSpec  # the images that the network takes


def cosine_logits(features: Tensor, text: Tensor, scale: float) -> Tensor:
    """CLIP's logits (K, B, C): scaled cosines of image features (K or 1, B, E) and text features (K, C, E)."""
    return scale * F.normalize(features, dim=-1) @ F.normalize(text, dim=-1).mT


def cross_entropy(logits: Tensor, batch: Batch) -> Tensor:
    """Mean cross-entropy of each client (K,) over its real images; 0 for a client without one."""
    losses = F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), reduction="none").view_as(batch.labels)
    return (losses * batch.mask).sum(1) / batch.mask.sum(1).clamp(min=1)


def draw_linear(name: str, inputs: int, outputs: int, generator: torch.Generator) -> ParamTree:
    """Weight (outputs, inputs) and bias of a linear layer with torch's default init, U(-1, 1) / sqrt(inputs)."""
    weight, bias = (2 * torch.rand(*shape, generator=generator) - 1 for shape in ((outputs, inputs), (outputs,)))
    return {f"{name}.weight": weight / inputs**0.5, f"{name}.bias": bias / inputs**0.5}

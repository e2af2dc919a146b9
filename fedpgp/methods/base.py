"""The interface of a method: settings, learned and shared parameters, and a pure loss over a client axis."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from fedpgp.clip.model import ImageSpec
from fedpgp.clip.text_backbone import ClassSet
from fedpgp.config import FederationSettings, Settings
from fedpgp.core.tree import ParamTree
from fedpgp.server_rules.base import ServerRule

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
    """One step's images for the K clients of a block that have a batch left, fewer from step to step.

    Rows where `mask` is False are padding and must not count.
    """

    features: Tensor  # (K, B, ...)
    labels: Tensor  # (K, B)
    mask: Tensor  # (K, B) bool
    own: Tensor | None = None  # (K, C) bool: the classes among which each client trains; None: all of them
    draws: ParamTree = field(default_factory=dict)  # (K, ...) random numbers of this step, see `HasDraws`


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
        """Loss (K,) and its named parts.

        `received` is what the server sent this round: without the client axis what it sent to all, (K, ...) what it
        sent to each client alone, and with what `PreparesRound` adds.

        Pure, with one exception: entries of `params` that no phase learns may be updated in place, such as the running
        statistics of batch normalisation. It should not wait for the device (`.item()`, `bool(tensor)`).
        """

    def classifier(self, params: ParamTree, frozen: ClassSet) -> Classifier:
        """The classifier of each client over the classes of `frozen`.

        `params` also has what the server rule sends to each client alone.
        """


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
class HasServerRule(Protocol):
    """A method with a server's half of its own, which takes the place of `federation.server`."""

    def server_rule(self, federation: FederationSettings) -> ServerRule:
        """The rule, for the settings of a federation."""


@runtime_checkable
class PreparesRound(Protocol):
    """A method that computes something once per round from what the server sends."""

    def prepare(self, received: ParamTree, frozen: ClassSet) -> ParamTree:
        """Further entries of `received` for all steps of the round; constants, without gradients.

        They have the client axis (K, ...) if the server sends something to each client alone, and not otherwise.
        """


@runtime_checkable
class HasDraws(Protocol):
    """A method whose local steps use random numbers."""

    def draws(self, frozen: ClassSet, generator: torch.Generator) -> ParamTree:
        """Those of one step of one client (without the client axis), on the CPU."""


@runtime_checkable
class FinishesTraining(Protocol):
    """A method that chooses what it sends after local training."""

    def after_training(
        self, params: ParamTree, received: ParamTree, round: int, generators: Sequence[torch.Generator]
    ) -> ParamTree:
        """The trained parameters (K, ...), with what is to be sent under the shared keys.

        Args:
            params: after local training (K, ...).
            received: see `Method.loss`.
            round: counted from 1.
            generators: of each client (K), on the CPU.
        """


@runtime_checkable
class FinishesRound(Protocol):
    """A method whose participants change their personal parameters when they hear the result of the round."""

    def after_aggregation(self, personal: ParamTree, shared: ParamTree) -> ParamTree:
        """The personal parameters of the clients whose updates count (M, ...), given the new shared ones."""


@runtime_checkable
class DiffersByClient(Protocol):
    """A method whose clients start from different personal parameters, for example of different lengths."""

    def personal_of(self, client: int, personal: ParamTree) -> ParamTree:
        """The initial personal parameters of one client, of the shapes of `personal`, those that `init` gives."""


@runtime_checkable
class NeedsAllClasses(Protocol):
    """A method that may need all classes of the task in training: it cannot have `protocol.train_classes=own`."""

    @property
    def needs_all_classes(self) -> str:
        """Why; empty: it does not need them."""


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
    """Mean cross-entropy of each client (K,) over its real images and its classes; 0 for a client without an image."""
    logits = own_logits(logits, batch).flatten(0, 1)
    losses = F.cross_entropy(logits, batch.labels.flatten(), reduction="none").view_as(batch.labels)
    return image_mean(losses, batch)


def own_logits(logits: Tensor, batch: Batch) -> Tensor:
    """Logits (K, B, C), or (K, B, N C) of N prompt sets: minus infinity for classes that a client does not train on."""
    if batch.own is None:
        return logits
    own = batch.own.repeat(1, logits.shape[-1] // batch.own.shape[-1])
    return logits.masked_fill(~own.unsqueeze(1), -torch.inf)


def image_mean(values: Tensor, batch: Batch) -> Tensor:
    """Mean of values (K, B) of each client (K,) over its real images; 0 for a client without one.

    Those of padding may be infinite: its label need not be one of the client's classes.
    """
    return torch.where(batch.mask, values, 0.0).sum(1) / batch.mask.sum(1).clamp(min=1)


def with_gradients(value: Tensor, params: ParamTree, gradients: ParamTree) -> Tensor:
    """A loss (K,) with this `value` whose gradients for `params` are exactly `gradients`, for methods that shape them.

    Each client's gradients (K, ...) are its own. Those that are not finite make its loss NaN. Such a method computes
    them inside `loss` from detached leaves, under `torch.enable_grad`.
    """
    zeros = [(params[key] - params[key].detach()) * gradient.detach() for key, gradient in gradients.items()]
    return torch.stack([value.detach(), *(zero.flatten(1).sum(1) for zero in zeros)]).sum(0)


def class_mean(values: Tensor, batch: Batch) -> Tensor:
    """Mean of values (K, C) over the classes of each client (K,)."""
    return values.mean(1) if batch.own is None else (values * batch.own).sum(1) / batch.own.sum(1)


def draw_linear(name: str, inputs: int, outputs: int, generator: torch.Generator) -> ParamTree:
    """Weight (outputs, inputs) and bias of a linear layer with torch's default init, U(-1, 1) / sqrt(inputs)."""
    weight, bias = (2 * torch.rand(*shape, generator=generator) - 1 for shape in ((outputs, inputs), (outputs,)))
    return {f"{name}.weight": weight / inputs**0.5, f"{name}.bias": bias / inputs**0.5}

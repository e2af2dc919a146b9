"""pFedPT (Li et al., 2024): a personal frame of learned pixels in front of a network that the server averages."""

from functools import lru_cache
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn
from torch.func import functional_call

from fedpgp.clip.images import normalise
from fedpgp.clip.model import ImageSpec
from fedpgp.clip.text_backbone import ClassSet
from fedpgp.config import Settings
from fedpgp.core.text import did_you_mean
from fedpgp.core.tree import ParamTree
from fedpgp.methods.base import Batch, Classifier, Inputs, Metrics, Phase, Tower

BASE = "base."
FRAME = ("up", "down", "left", "right")
IMAGES_PER_PASS = 256


class PFedPTSettings(Settings):
    """Settings of pFedPT. The base network trains with the federation's `local_epochs` and SGD settings."""

    model: str = "resnet18"
    """base network: the name of any timm model; its weights start at random"""
    image_size: int = Field(32, ge=1)
    """height and width of its input images in pixels"""
    mean: tuple[float, float, float] = (0.4914, 0.4822, 0.4465)
    """mean of each channel, for normalisation; CIFAR-10's (CIFAR-100: 0.5071, 0.4865, 0.4409)"""
    std: tuple[float, float, float] = (0.2023, 0.1994, 0.2010)
    """standard deviation of each channel; CIFAR-10's (CIFAR-100: 0.2673, 0.2564, 0.2762)"""
    use_prompt: bool = True
    """false: FedAvg of the base network, which ignores the settings below"""
    pad_size: int = Field(2, ge=1)
    """width of the frame in pixels"""
    prompt_epochs: int = Field(5, ge=1)
    """epochs per round that train the frame, before those of the base network"""
    prompt_lr: float = Field(1.0, gt=0)
    """learning rate of the frame in the first round"""
    prompt_decay: float = Field(1.0, gt=0, le=1)
    """factor on that rate from one round to the next; 1: constant"""
    prompt_momentum: float = Field(0.5, ge=0, lt=1)
    """momentum of the frame's SGD, which has no weight decay; 0: none"""

    @field_validator("model")
    @classmethod
    def _known(cls, name: str) -> str:
        import timm

        if not timm.is_model(name):
            hint = did_you_mean(name, timm.list_models(), "see timm.list_models()", count=3)
            raise ValueError(f"timm has no such model; {hint}")
        return name

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.use_prompt and 2 * self.pad_size > self.image_size:
            raise ValueError(f"pad_size {self.pad_size} is more than half of image_size {self.image_size}")
        size = self.image_size
        try:
            with torch.no_grad():
                _network(self.model, size, num_classes=2).eval()(torch.zeros(1, 3, size, size))
        except Exception as error:  # networks raise anything
            reason = " ".join(str(error).split())[:100]
            raise ValueError(f"model {self.model} does not take images of {size} x {size} ({reason})") from None
        return self


class PFedPT:
    """min over theta and delta_1 .. delta_K of sum_i n_i / n L_ce(f(x + delta_i; theta)).

    Legend: delta_i is the frame `up`, `down` (3, P, S), `left`, `right` (3, S - 2 P, P) around S x S pixels, added to
    the normalised image, zero in the middle; it starts from N(0, 1), equal for all. theta, `base.*`, is all of the
    network f: its weights, and the running mean and variance of its batch normalisation. These have no gradient; every
    training pass updates them, in both phases. (Batches are normalised by their own statistics, single images by the
    running ones.)

    Shared: theta, running statistics included, which travels up and down in every round and is averaged by numbers of
    images. The frame stays with client i.

    A round at a client has two phases: the frame learns while theta is fixed, then theta learns while the frame is
    fixed. `use_prompt: false` has no frame and no first phase: FedAvg. The network has no output for novel classes, so
    Novel is not measured.

    The images that are not padding are selected by a mask, so every step waits for the device.

    Departs from the authors' code: each round has fresh optimizers (theirs keep the frame's momentum); running
    statistics are averaged (theirs stay with the client and are used with the averaged weights); the frame's rate
    decays by rounds (theirs by batches, and not at all by default).
    """

    name: ClassVar[str] = "pfedpt"
    paper: ClassVar[str] = "Li et al., TMLR 2024"
    settings_type: ClassVar[type[Settings]] = PFedPTSettings
    image_inputs: ClassVar[Inputs] = "pixels"
    required_towers: ClassVar[frozenset[Tower]] = frozenset()
    max_block: ClassVar[int] = 1
    extra_texts: tuple[str, ...] = ()
    supports_unseen_classes = False

    def __init__(self, settings: PFedPTSettings) -> None:
        self.settings = settings
        self.image = ImageSpec(settings.image_size, settings.mean, settings.std, "bicubic", "shortest")
        network = _network(settings.model, settings.image_size, num_classes=2)
        self.shared_keys = frozenset(BASE + key for key in _state(network))
        theta = Phase(frozenset(BASE + key for key, _ in network.named_parameters()))
        delta = Phase(
            frozenset(FRAME),
            lr=dict.fromkeys(FRAME, settings.prompt_lr),
            decay=settings.prompt_decay,
            epochs=settings.prompt_epochs,
            momentum=settings.prompt_momentum,
            weight_decay=0.0,
        )
        self.phases = (delta, theta) if settings.use_prompt else (theta,)

    @property
    def needs_all_classes(self) -> str:
        """See `NeedsAllClasses`."""
        return "its network has an output for each of them"

    def init(self, frozen: ClassSet, generator: torch.Generator) -> ParamTree:
        """timm's random start of the network, with a seed drawn from the generator, and the frame."""
        size, pad = self.settings.image_size, self.settings.pad_size
        seed = int(torch.randint(2**62, (), generator=generator))
        network = _build(self.settings.model, size, frozen.num_classes, seed)
        theta = {BASE + key: value.detach().clone() for key, value in _state(network).items()}
        if not self.settings.use_prompt:
            return theta
        sides = {"up": (pad, size), "down": (pad, size), "left": (size - 2 * pad, pad), "right": (size - 2 * pad, pad)}
        return theta | {key: torch.randn(3, *sides[key], generator=generator) for key in FRAME}

    def loss(self, params: ParamTree, received: ParamTree, frozen: ClassSet, batch: Batch) -> tuple[Tensor, Metrics]:
        """Cross-entropy (K,), client by client; updates their running statistics in place."""
        losses = []
        for client, mask in enumerate(batch.mask):
            pixels, labels = batch.features[client, mask], batch.labels[client, mask]
            logits = self._logits(params, client, pixels, frozen.num_classes, training=len(pixels) > 1)
            losses.append(F.cross_entropy(logits, labels, reduction="sum") / max(len(labels), 1))
        return torch.stack(losses), {}

    def classifier(self, params: ParamTree, frozen: ClassSet) -> Classifier:
        """The network with each client's frame and running statistics."""
        clients = range(len(next(iter(params.values()))))

        def own_logits(client: int, pixels: Tensor) -> Tensor:
            parts = pixels.split(IMAGES_PER_PASS)
            return torch.cat([self._logits(params, client, part, frozen.num_classes) for part in parts])

        def logits(features: Tensor) -> Tensor:
            images = features.expand(len(clients), *features.shape[1:])
            return torch.stack([own_logits(client, images[client]) for client in clients])

        return logits

    def global_model(self, params: ParamTree) -> ParamTree:
        """The network without a frame."""
        return {key: torch.zeros_like(value) if key in FRAME else value for key, value in params.items()}

    def _logits(
        self, params: ParamTree, client: int, pixels: Tensor, num_classes: int, training: bool = False
    ) -> Tensor:
        """f(x + delta_i; theta) (B, C) of cached images (B, 3, S, S)."""
        own = {key: value[client] for key, value in params.items()}
        images = normalise(pixels, self.image)
        if self.settings.use_prompt:
            images = images + frame(own)
        network = _network(self.settings.model, self.settings.image_size, num_classes, pixels.device).train(training)
        theta = {key.removeprefix(BASE): value for key, value in own.items() if key.startswith(BASE)}
        logits: Tensor = functional_call(network, theta, (images,))
        return logits


def frame(own: ParamTree) -> Tensor:
    """Assemble delta_i (3, S, S), zero in the middle, from its four sides."""
    left, right = own["left"], own["right"]
    inner = left.new_zeros(*left.shape[:2], own["up"].shape[2] - left.shape[2] - right.shape[2])
    return torch.cat([own["up"], torch.cat([left, inner, right], dim=2), own["down"]], dim=1)


def _state(network: nn.Module) -> ParamTree:
    """Weights and running statistics of a network, without its counters and constants."""
    kept = network.state_dict().keys()
    buffers = {key: value for key, value in network.named_buffers() if key in kept and value.is_floating_point()}
    return {**dict(network.named_parameters()), **buffers}


@lru_cache(maxsize=4)
def _network(model: str, image_size: int, num_classes: int, device: torch.device | None = None) -> nn.Module:
    """The network to be used as a function; its own weights are not used."""
    return _build(model, image_size, num_classes, seed=0).to(device)


def _build(model: str, image_size: int, num_classes: int, seed: int) -> nn.Module:
    import timm

    config: Any = timm.get_pretrained_cfg(model)
    sized = {"img_size": image_size} if config is not None and config.fixed_input_size else {}
    with torch.random.fork_rng(devices=[]):  # timm draws from the global generator
        torch.default_generator.manual_seed(seed)
        network: nn.Module = timm.create_model(model, pretrained=False, num_classes=num_classes, **sized)
    return network

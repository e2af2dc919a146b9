"""The workload of the speed benches: Caltech101's class names, a model, and clients with random features."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedpgp.bench.reference_step import ReferenceFedPGP
from fedpgp.clip import model
from fedpgp.clip.feature_cache import FeatureKey, write_shard
from fedpgp.clip.model import Backbone
from fedpgp.clip.text_backbone import ClassSet, FrozenText, freeze
from fedpgp.config import BackboneSettings, FederationSettings
from fedpgp.core.seeding import numpy_generator, torch_generator
from fedpgp.core.tree import ParamTree
from fedpgp.data.protocol import EvaluationSet, FederatedData
from fedpgp.federation.messages import Features
from fedpgp.federation.server import Server
from fedpgp.federation.worker import FederationJob
from fedpgp.methods.base import Batch
from fedpgp.methods.fedpgp import FedPGP, FedPGPSettings


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


BASE = _words(
    "face leopard motorbike accordion airplane anchor ant barrel bass beaver binocular bonsai brain brontosaurus "
    "buddha butterfly camera cannon car_side ceiling_fan cellphone chair chandelier cougar_body cougar_face crab "
    "crayfish crocodile crocodile_head cup dalmatian dollar_bill dolphin dragonfly electric_guitar elephant emu "
    "euphonium ewer ferry flamingo flamingo_head garfield gerenuk gramophone grand_piano hawksbill headphone "
    "hedgehog helicopter"
)
NOVEL = _words(
    "ibis inline_skate joshua_tree kangaroo ketch lamp laptop llama lobster lotus mandolin mayfly menorah "
    "metronome minaret nautilus octopus okapi pagoda panda pigeon pizza platypus pyramid revolver rhino rooster "
    "saxophone schooner scissors scorpion sea_horse snoopy soccer_ball stapler starfish stegosaurus stop_sign "
    "strawberry sunflower tick trilobite umbrella watch water_lilly wheelchair wild_cat windsor_chair wrench "
    "yin_yang"
)
BASE_TEST, NOVEL_TEST = 1549, 916
"""Numbers of test images of Caltech101 in CoOp's split."""
MODEL = "ViT-B-16"
TEMPLATE = "a photo of a {}."
MU, TAU = 0.5, 0.5


@dataclass(frozen=True)
class Workload:
    """FedPGP with the authors' settings on a frozen model, with base and novel classes."""

    backbone: Backbone
    base: Sequence[str] = BASE
    novel: Sequence[str] = NOVEL
    n_ctx: int = 16

    @cached_property
    def method(self) -> FedPGP:
        """FedPGP with rank 8, mu and tau 0.5, and the hand-written anchor."""
        return FedPGP(FedPGPSettings(n_ctx=self.n_ctx, rank=min(8, self.n_ctx), mu=MU, tau=TAU))

    @cached_property
    def text(self) -> FrozenText:
        """The frozen text tower over base and novel classes."""
        return freeze(self.backbone, [*self.base, *self.novel], TEMPLATE, ("X",))

    def on_base(self, dtype: torch.dtype = torch.float32) -> ClassSet:
        """The text tower on the base classes."""
        return self.text.to("cpu", dtype).on(range(len(self.base)))

    def reference(self) -> ReferenceFedPGP:
        """The authors' implementation on the base classes."""
        return ReferenceFedPGP(self.backbone, self.base, TEMPLATE, self.n_ctx)

    def params(self, clients: int = 1) -> ParamTree:
        """Initial parameters of the clients, each with its own random draw."""
        method, frozen = self.method, self.on_base()
        trees = [method.init(frozen, torch_generator(1, "bench", client)) for client in range(clients)]
        return {key: torch.stack([tree[key] for tree in trees]).requires_grad_() for key in trees[0]}

    def images(self, count: int) -> tuple[Tensor, Tensor]:
        """Normalised pixels (count, 3, H, W) of noise, and labels."""
        generator, size = torch_generator(1, "images"), self.backbone.image.size
        pixels = torch.randn(count, 3, size, size, generator=generator)
        return pixels, torch.randint(len(self.base), (count,), generator=generator)

    def step(self, batch: int, clients: int = 1, class_chunk: int | None = None) -> Callable[[], list[Tensor]]:
        """One step of a block of clients: loss (K,) and gradients of ctx, U and V (K, ...)."""
        frozen = replace(self.text, class_chunk=class_chunk).on(range(len(self.base)))
        generator, params = torch.Generator().manual_seed(1), self.params(clients)
        features = torch.randn(clients, batch, frozen.joint_width, generator=generator)
        images = one_batch(features, torch.randint(len(self.base), (clients, batch), generator=generator))

        def run() -> list[Tensor]:
            loss, _ = self.method.loss(params, {}, frozen, images)
            return [loss.detach(), *torch.autograd.grad(loss.sum(), list(params.values()))]

        return run


def vit_b_16() -> Workload:
    """ViT-B/16 with random weights."""
    return Workload(model.load(BackboneSettings(name=MODEL, weights="random")))


def one_batch(features: Tensor, labels: Tensor) -> Batch:
    """A batch of K clients without padding: features (K, B, E), labels (K, B)."""
    return Batch(features, labels, torch.ones(labels.shape, dtype=torch.bool))


def job(
    workload: Workload, folder: Path, clients: int, shots: int, batch_size: int, tests: tuple[int, int]
) -> FederationJob:
    """Clients with disjoint base classes and `shots` images of each; their features are noise in a feature cache.

    Args:
        folder: where the cache is written.
        tests: number of base and of novel test images, divided evenly over their classes.
    """
    classes, width = len(workload.base), workload.text.on([0]).joint_width
    own = np.array_split(np.arange(classes), clients)
    labels = [np.repeat(mine, shots) for mine in own]
    starts = np.cumsum([0, *(len(part) for part in labels)])
    base = np.arange(tests[0]) % classes
    novel = np.arange(tests[1]) % len(workload.novel)
    domains, first = np.zeros(sum(tests), np.int64), starts[-1]  # test images follow the training images
    evaluation_sets = (
        EvaluationSet(
            labels=base,
            domains=domains[: tests[0]],
            split="test",
            class_set="base",
            rows=first + np.arange(tests[0]),
            members=tuple(np.flatnonzero(np.isin(base, mine)) for mine in own),
        ),
        EvaluationSet(
            labels=novel,
            domains=domains[tests[0] :],
            split="test",
            class_set="novel",
            rows=first + tests[0] + np.arange(tests[1]),
        ),
    )
    data = FederatedData(
        client_names=tuple(f"client {client}" for client in range(clients)),
        class_names=(*workload.base, *workload.novel),
        domains=("only",),
        class_sets={"base": tuple(range(classes)), "novel": tuple(range(classes, classes + len(workload.novel)))},
        train_set="base",
        train_rows=tuple(np.arange(start, stop) for start, stop in pairwise(starts)),
        train_labels=tuple(labels),
        evaluation_sets=evaluation_sets,
        manifest_digest="bench",
    )
    key = FeatureKey(manifest="bench", weights=workload.backbone.fingerprint, transform=workload.backbone.image.digest)
    noise = numpy_generator(1, "bench features").standard_normal((int(starts[-1]) + sum(tests), 1, width), np.float32)
    cache = Features(folder / f"{key.digest}.arrow", key)
    write_shard(cache.path, key, np.arange(len(noise)), noise)
    federation = FederationSettings(
        rounds=10**6, batch_size=batch_size, drop_last=True, block_size=clients, evaluate_before_aggregation=True
    )
    return FederationJob(workload.method, workload.text, data, cache, cache, federation, seed=1)


def round_seconds(server: Server, rounds: int) -> list[float]:
    """Seconds of consecutive rounds from the initial state."""
    state, taken = server.initial_state(), []
    for _ in range(rounds):
        start = time.perf_counter()
        state = server.step(state).state
        taken.append(time.perf_counter() - start)
    return taken

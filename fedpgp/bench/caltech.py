"""What the benches of speed share: Caltech101's class names, a model, and clients with made-up features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedpgp.bench.plain import PlainFedPGP
from fedpgp.clip import model
from fedpgp.clip.feature_cache import FeatureKey, write_shard
from fedpgp.clip.model import Backbone
from fedpgp.clip.text_backbone import ClassSet, FrozenText, freeze
from fedpgp.config import BackboneSettings, FederationSettings
from fedpgp.core.seeding import numpy_generator, torch_generator
from fedpgp.core.tree import ParamTree
from fedpgp.data.protocol import EvaluationSet, FederatedData
from fedpgp.federation.messages import Features
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
"""Test images of Caltech101 in CoOp's split."""
MODEL = "ViT-B-16"
TEMPLATE = "a photo of a {}."
MU, TAU = 0.5, 0.5


@dataclass(frozen=True)
class Scene:
    """FedPGP with the authors' settings on a frozen model, base and novel classes."""

    backbone: Backbone
    base: Sequence[str] = BASE
    novel: Sequence[str] = NOVEL
    n_ctx: int = 16

    @cached_property
    def method(self) -> FedPGP:
        """Rank 8, mu and tau 0.5, the hand-written anchor."""
        return FedPGP(FedPGPSettings(n_ctx=self.n_ctx, rank=min(8, self.n_ctx), mu=MU, tau=TAU))

    @cached_property
    def text(self) -> FrozenText:
        """The text side over base and novel classes."""
        return freeze(self.backbone, [*self.base, *self.novel], TEMPLATE, ("X",))

    def on_base(self, dtype: torch.dtype = torch.float32) -> ClassSet:
        """The text side bound to the base classes."""
        return self.text.to("cpu", dtype).on(range(len(self.base)))

    def plain(self) -> PlainFedPGP:
        """The authors' way over the base classes."""
        return PlainFedPGP(self.backbone, self.base, TEMPLATE, self.n_ctx)

    def params(self, clients: int = 1) -> ParamTree:
        """First parameters of so many clients, each drawn apart."""
        method, frozen = self.method, self.on_base()
        drawn = [method.init(frozen, torch_generator(1, "bench", client)) for client in range(clients)]
        return {key: torch.stack([tree[key] for tree in drawn]).requires_grad_() for key in drawn[0]}

    def images(self, count: int) -> tuple[Tensor, Tensor]:
        """Normalised pixels (count, 3, H, W) of noise, and labels."""
        generator, size = torch_generator(1, "images"), self.backbone.image.size
        pixels = torch.randn(count, 3, size, size, generator=generator)
        return pixels, torch.randint(len(self.base), (count,), generator=generator)


def vit_b_16() -> Scene:
    """ViT-B/16 with random weights."""
    return Scene(model.load(BackboneSettings(name=MODEL, weights="random")))


def one_batch(features: Tensor, labels: Tensor) -> Batch:
    """A step's images for K clients, features (K, B, E) and labels (K, B), none of them padding."""
    return Batch(features, labels, torch.ones(labels.shape, dtype=torch.bool))


def job(scene: Scene, folder: Path, clients: int, shots: int, batch_size: int, tests: tuple[int, int]) -> FederationJob:
    """Clients with disjoint base classes, `shots` images of each; features are noise, in a cache like any other.

    Args:
        folder: where the cache is written.
        tests: number of base and of novel test images, as evenly over their classes as can be.
    """
    classes, width = len(scene.base), scene.text.on([0]).joint_width
    own = np.array_split(np.arange(classes), clients)
    labels = [np.repeat(mine, shots) for mine in own]
    starts = np.cumsum([0, *(len(part) for part in labels)])
    base = np.arange(tests[0]) % classes
    novel = np.arange(tests[1]) % len(scene.novel)
    everywhere, first = np.zeros(sum(tests), np.int64), starts[-1]  # one domain; test images follow the training ones
    evaluation_sets = (
        EvaluationSet(
            labels=base,
            domains=everywhere[: tests[0]],
            split="test",
            class_set="base",
            rows=first + np.arange(tests[0]),
            members=tuple(np.flatnonzero(np.isin(base, mine)) for mine in own),
        ),
        EvaluationSet(
            labels=novel,
            domains=everywhere[tests[0] :],
            split="test",
            class_set="novel",
            rows=first + tests[0] + np.arange(tests[1]),
        ),
    )
    data = FederatedData(
        client_names=tuple(f"client {client}" for client in range(clients)),
        class_names=(*scene.base, *scene.novel),
        domains=("only",),
        class_sets={"base": tuple(range(classes)), "novel": tuple(range(classes, classes + len(scene.novel)))},
        train_set="base",
        train_rows=tuple(np.arange(start, stop) for start, stop in pairwise(starts)),
        train_labels=tuple(labels),
        evaluation_sets=evaluation_sets,
        manifest_digest="bench",
    )
    key = FeatureKey(manifest="bench", weights=scene.backbone.fingerprint, transform=scene.backbone.image.digest)
    noise = numpy_generator(1, "bench features").standard_normal((int(starts[-1]) + sum(tests), 1, width), np.float32)
    cache = Features(folder / f"{key.digest}.arrow", key)
    write_shard(cache.path, key, np.arange(len(noise)), noise)
    federation = FederationSettings(
        rounds=10**6, batch_size=batch_size, drop_last=True, block_size=clients, evaluate_before_aggregation=True
    )
    return FederationJob(scene.method, scene.text, data, cache, cache, federation, seed=1)

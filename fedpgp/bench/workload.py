"""The workload of the speed benches: Caltech101's class names, a model, both implementations, and random features."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fedpgp.clip import model
from fedpgp.clip.feature_cache import FeatureKey, write_shard
from fedpgp.clip.model import Backbone
from fedpgp.clip.text_backbone import ClassSet, FrozenText, filled, freeze, readable
from fedpgp.config import BackboneSettings, FederationSettings
from fedpgp.core.seeding import numpy_generator, torch_generator
from fedpgp.core.tree import ParamTree
from fedpgp.data.federated import EvaluationSet, FederatedData
from fedpgp.data.ragged import Ragged
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
CPU = torch.device("cpu")
MODEL = "ViT-B-16"
TEMPLATE = "a photo of a {}."
MU, TAU = 0.5, 0.5


class ReferenceFedPGP:
    """One client's FedPGP step (N = 1, context before the name) as in the authors' code, on open_clip's own modules.

    The oracle of the benches and of their tests. Images pass through the tower at every step, prompts have 77 tokens,
    and four sets of them are encoded: p_i, p_G, U V alone (unused) and the hand-written ones (constant).

    Args:
        names: the C classes.
        template: hand-written prompt with one `{}` for the name.
        n_ctx: L, number of context tokens.
    """

    def __init__(self, backbone: Backbone, names: Sequence[str], template: str, n_ctx: int) -> None:
        self.model = cast(Any, backbone.model)
        self.scale = backbone.logit_scale
        placeholders = " ".join(["X"] * n_ctx)
        self.tokens = backbone.tokenize([f"{placeholders} {readable(name)}." for name in names])
        self.template_tokens = backbone.tokenize([filled(template, readable(name)) for name in names])
        embedded: Tensor = self.model.token_embedding(self.tokens)
        self.before, self.after = embedded[:, :1], embedded[:, 1 + n_ctx :]

    def image_features(self, images: Tensor) -> Tensor:
        """Features (B, E) of normalised images (B, 3, H, W)."""
        features: Tensor = self.model.encode_image(images)
        return features

    def loss(self, params: ParamTree, images: Tensor, labels: Tensor) -> Tensor:
        """L_ce + mu L_con on normalised images (B, 3, H, W)."""
        ctx, low_rank = params["ctx"][0, 0], params["U"][0, 0] @ params["V"][0, 0]
        image_features = self.image_features(images)
        z_g, z_i, _ = self._text(ctx), self._text(ctx + low_rank), self._text(low_rank)
        z_c = self._encode(self.model.token_embedding(self.template_tokens), self.template_tokens)
        pair = torch.stack([F.cosine_similarity(z_g, z_c), F.cosine_similarity(z_g, z_i)], dim=1) / TAU
        con = F.cross_entropy(pair, torch.zeros(len(pair), dtype=torch.long))
        return F.cross_entropy(self._logits(image_features, z_i), labels) + MU * con

    def logits(self, params: ParamTree, image_features: Tensor) -> Tensor:
        """Logits (B, C) of features (B, E); only p_i is encoded."""
        return self._logits(image_features, self._text(params["ctx"][0, 0] + params["U"][0, 0] @ params["V"][0, 0]))

    def _logits(self, image_features: Tensor, text: Tensor) -> Tensor:
        return self.scale * F.normalize(image_features, dim=-1) @ F.normalize(text, dim=-1).t()

    def _text(self, prompt: Tensor) -> Tensor:
        """Text features (C, E) of a prompt (L, D)."""
        ctx = prompt.expand(len(self.tokens), -1, -1)
        return self._encode(torch.cat([self.before, ctx, self.after], dim=1), self.tokens)

    def _encode(self, embedded: Tensor, tokens: Tensor) -> Tensor:
        """Text features (C, E) of 77 embedded tokens (C, 77, D): CLIP's encode_text."""
        model = self.model
        x = model.transformer(embedded + model.positional_embedding, attn_mask=model.attn_mask)
        pooled: Tensor = model.ln_final(x)[torch.arange(len(x)), tokens.argmax(dim=-1)] @ model.text_projection
        return pooled


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

    def on_base(self, dtype: torch.dtype = torch.float32, device: torch.device = CPU) -> ClassSet:
        """The text tower on the base classes."""
        return self.text.to(device, dtype).on(range(len(self.base)))

    def params(self, clients: int = 1, device: torch.device = CPU) -> ParamTree:
        """Initial parameters of the clients, each with its own random draw."""
        method, frozen = self.method, self.on_base()
        trees = [method.init(frozen, torch_generator(1, "bench", client)) for client in range(clients)]
        return {key: torch.stack([tree[key] for tree in trees]).to(device).requires_grad_() for key in trees[0]}

    def images(self, count: int) -> tuple[Tensor, Tensor]:
        """Normalised pixels (count, 3, H, W) of noise, and labels."""
        generator, size = torch_generator(1, "images"), self.backbone.image.size
        pixels = torch.randn(count, 3, size, size, generator=generator)
        return pixels, torch.randint(len(self.base), (count,), generator=generator)

    def step(
        self,
        batch: int,
        clients: int = 1,
        class_chunk: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device = CPU,
    ) -> Callable[[], list[Tensor]]:
        """One step of a block of clients: loss (K,) and gradients of ctx, U and V (K, ...)."""
        frozen = replace(self.text, class_chunk=class_chunk).to(device, dtype).on(range(len(self.base)))
        params, images = self.params(clients, device), self.batch(batch, clients, device)

        def run() -> list[Tensor]:
            loss, _ = self.method.loss(params, {}, frozen, images)
            return [loss.detach(), *torch.autograd.grad(loss.sum(), list(params.values()))]

        return run

    def batch(self, batch: int, clients: int, device: torch.device = CPU) -> Batch:
        """Noise in place of the features of `batch` images of each client."""
        generator, width = torch.Generator().manual_seed(1), self.on_base().joint_width
        features = torch.randn(clients, batch, width, generator=generator)
        labels = torch.randint(len(self.base), (clients, batch), generator=generator)
        return one_batch(features.to(device), labels.to(device))


def vit_b_16() -> Workload:
    """ViT-B/16 with random weights."""
    return Workload(model.load(BackboneSettings(name=MODEL, weights="random")))


def one_batch(features: Tensor, labels: Tensor) -> Batch:
    """A batch of K clients without padding: features (K, B, E), labels (K, B)."""
    return Batch(features, labels, torch.ones_like(labels, dtype=torch.bool))


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
    ends = np.cumsum([len(part) for part in labels])

    def test_set(name: str, names: Sequence[str], first: int, count: int) -> EvaluationSet:
        labels = np.arange(count) % len(names)
        rows, domains = first + np.arange(count), np.zeros(count, np.int64)
        return EvaluationSet(labels=labels, domains=domains, split="test", class_set=name, rows=rows)

    first_test = int(ends[-1])  # test images follow the training images
    base = test_set("base", workload.base, first_test, tests[0])
    novel = test_set("novel", workload.novel, first_test + tests[0], tests[1])
    members = tuple(np.flatnonzero(np.isin(base.labels, mine)) for mine in own)
    data = FederatedData(
        client_names=tuple(f"client {client}" for client in range(clients)),
        class_names=(*workload.base, *workload.novel),
        domains=("only",),
        class_sets={"base": tuple(range(classes)), "novel": tuple(range(classes, classes + len(workload.novel)))},
        train_set="base",
        train_rows=Ragged(np.arange(first_test), ends),
        train_labels=Ragged(np.concatenate(labels), ends),
        evaluation_sets=(replace(base, members=members), novel),
        manifest_digest="bench",
    )
    key = FeatureKey(manifest="bench", weights=workload.backbone.fingerprint, transform=workload.backbone.image.digest)
    noise = numpy_generator(1, "bench features").standard_normal((first_test + sum(tests), 1, width), np.float32)
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

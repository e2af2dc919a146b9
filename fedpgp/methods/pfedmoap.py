"""pFedMoAP (Luo et al., 2025): personal gating over a client's own prompt and prompts downloaded from other clients."""

from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from fedpgp.clip.text_backbone import ClassSet
from fedpgp.clip.towers import split_heads
from fedpgp.config import FederationSettings, Settings
from fedpgp.core.errors import ConfigError
from fedpgp.core.tree import ParamTree, num_bytes
from fedpgp.methods.base import (
    Batch,
    Classifier,
    Metrics,
    Phase,
    PromptMethod,
    cosine_logits,
    cross_entropy,
    draw_linear,
)
from fedpgp.methods.coop import ContextSettings
from fedpgp.server_rules.base import BaseRule, Received, RuleSettings, Uploads
from fedpgp.server_rules.columns import chunk_bytes, chunks, weighted_mean

PUBLISHED_DIM, SHARE_OF_WIDTH = 128, 4
PROJECTIONS = ("gate_q", "gate_k", "gate_v", "gate_o")
SCORES_PER_CHUNK = 1 << 22  # most attention scores of an evaluation at a time: 16 MB of float32
NOBODY = -1

Selection = Literal["nearest", "random"]


class PFedMoAPSettings(ContextSettings):
    """Settings of pFedMoAP."""

    num_experts: int = Field(10, ge=1)
    """X, most experts of a client, its own prompt included; 1: PromptFL"""
    selection: Selection = "nearest"
    """prompts that a client receives: nearest (closest to its own last one) | random (the first of a fixed list)"""
    local_weight: float = Field(0.5, ge=0)
    """lambda, weight of the own prompt's logits beside those of the mixture; without experts they count fully"""
    scaling: float = Field(10.0, gt=0)
    """factor on the attention's scores, in place of 1 / sqrt(width of a head)"""
    gating_dim: int | None = Field(None, ge=1)
    """width of the gating, which must divide E, the width of features; null: 128 as published, or E / 4 where E is no
    larger multiple of 128"""
    gating_heads: int = Field(8, ge=1)
    """heads of the gating's attention; they must divide its width"""
    gating_lr: float | None = Field(0.01, gt=0)
    """learning rate of the gating; null: the federation's"""


class PFedMoAP(PromptMethod):
    """logits_bc = s (lambda v_b . z_c + pool(v_b) . m_bc), trained by cross-entropy.

    Legend: v (B, E) and z (C, E) are normalised features of the images and of the classes with the client's own prompt
    `ctx` (L, D). pool keeps every S-th coordinate, S = E / d, without another normalisation. m_bc is a mixture of
    experts by multi-head attention with the image as query; of each head

        softmax over x of (scaling (W_q pool(v_b)) . (W_k e_xc)), applied to W_v e_xc; all heads then pass W_o.

    e_0c = pool(z_c) is the own prompt's expert and gets gradients; e_1c .. are those of up to X - 1 prompts of other
    clients, constants that are encoded once per round. W_q, W_k, W_v, W_o are linear layers (d, d) with biases
    (`gate_q` .. `gate_o`), the gating; it starts equal for all clients, learns with `gating_lr` and stays with the
    client. There is no dropout, residual or balancing of experts.

    Shared: `ctx`, which travels up and down in every round. With it, up to X - 1 prompts of other clients come down.
    The gating stays with the client.

    Round: a client starts from the global prompt and its own gating, trains both, and sends its prompt. The server
    averages the prompts by numbers of images (FedAvg), keeps the last prompt of every client, and sends each
    participant prompts of others from this pool as it was before the round. `nearest` chooses by Euclidean distance
    from the client's own last prompt; `random` takes the first others of one list, drawn once per run. A client that
    has not sent a prompt yet has no experts: its logits are s v_b . z_c (without lambda) and its gating does not learn,
    so the first round is PromptFL's, and with `num_experts` 1 every round is. After a round, clients are tested with
    the global prompt and experts chosen anew; the authors test participants right after local training, which
    `federation.evaluate_before_aggregation` gives too. The global model is the global prompt without gating. Everything
    is computed class by class, so novel classes and `protocol.train_classes=own` are supported.

    Privacy: clients see the prompts of other clients, one by one, the server keeps them all, and an exported client has
    those that it was sent. Noise on the average would not protect them, so `privacy.level=client` is rejected.

    Departs from the authors' code, in which `nearest` fails as soon as more than X clients have a prompt, and takes
    positions in a list for client numbers; experts come from a pool that changes while the round runs; and a gating
    passes from one client to the next, like the optimizer with its momentum (here fresh for each local update). Also,
    both learning rates follow the federation's schedule, contexts are the same for all classes, and weight decay
    shrinks the gating in a round without experts, in which theirs does not change (by 5e-6 of its value per step with
    their settings, without momentum).
    """

    name: ClassVar[str] = "pfedmoap"
    paper: ClassVar[str] = "Luo et al., ICLR 2025"
    settings_type: ClassVar[type[Settings]] = PFedMoAPSettings
    shared_keys: ClassVar[frozenset[str]] = frozenset({"ctx"})

    def __init__(self, settings: PFedMoAPSettings) -> None:
        self.settings = settings
        self.extra_texts = settings.extra_texts
        gating = [f"{layer}.{part}" for layer in PROJECTIONS for part in ("weight", "bias")]
        own_lr = {} if settings.gating_lr is None else dict.fromkeys(gating, settings.gating_lr)
        self.phases = (Phase(frozenset({"ctx", *gating}), lr=own_lr),)

    def server_rule(self, federation: FederationSettings) -> "ExpertPool":
        """See `HasServerRule`."""
        return ExpertPool(self.settings.num_experts, self.settings.selection)

    def init(self, frozen: ClassSet, generator: torch.Generator) -> ParamTree:
        """The context, from words or N(0, 0.02), and the gating with torch's default init.

        Raises `ConfigError` if the gating's width does not divide E, or its heads do not divide the width.
        """
        width = self._width(frozen.joint_width)
        tree = {"ctx": self.settings.draw(frozen, generator)}
        for layer in PROJECTIONS:
            tree |= draw_linear(layer, width, width, generator)
        return tree

    def _width(self, joint: int) -> int:
        """d, the width of the gating, for features of width E."""
        width, heads = self.settings.gating_dim, self.settings.gating_heads
        if width is None:
            larger = joint > PUBLISHED_DIM and joint % PUBLISHED_DIM == 0
            width = PUBLISHED_DIM if larger else max(1, joint // SHARE_OF_WIDTH)
        if joint % width:
            raise ConfigError(
                f"method pfedmoap: gating_dim: {width} does not divide the features' width {joint}; give "
                f"method.gating_dim={_largest_divisor(joint, width)}"
            )
        if width % heads:
            raise ConfigError(
                f"method pfedmoap: gating_heads: {heads} do not divide the gating's width {width}; give "
                f"method.gating_heads={_largest_divisor(width, heads)}"
            )
        return width

    def prepare(self, received: ParamTree, frozen: ClassSet) -> ParamTree:
        """The experts' pooled text features (K, X - 1, C, d), each distinct prompt encoded once; 0 where there is none.

        Args:
            received: `experts` (K, X - 1, L, D) and `expert_ids` (K, X - 1), see `ExpertPool.broadcast`.
            frozen: the classes.
        """
        ids = received["expert_ids"]
        there = ids >= 0
        distinct, place = ids[there].unique(return_inverse=True)
        width = self._width(frozen.joint_width)
        features = torch.zeros(*ids.shape, frozen.num_classes, width, device=ids.device)
        if len(distinct):
            first = torch.empty_like(distinct)
            first[place] = torch.arange(len(place), device=ids.device)  # any of them: they are equal
            prompts = received["experts"][there][first]
            with torch.no_grad():  # few at a time, as in training
                parts = [frozen.encode(part, self.settings.position) for part in prompts.split(len(ids))]
            features[there] = _pool(torch.cat(parts), width)[place]
        return {"expert_features": features}

    def loss(self, params: ParamTree, received: ParamTree, frozen: ClassSet, batch: Batch) -> tuple[Tensor, Metrics]:
        """Cross-entropy (K,)."""
        text = frozen.encode(params["ctx"], self.settings.position)
        return cross_entropy(self._logits(params, received, text, frozen.logit_scale, batch.features), batch), {}

    def classifier(self, params: ParamTree, frozen: ClassSet) -> Classifier:
        """Logits of the own prompt and of the experts in `params`, computed for a few images at a time.

        Without `experts` in `params` those of the prompt alone.
        """
        text, scale = frozen.encode(params["ctx"], self.settings.position), frozen.logit_scale
        if "experts" not in params:
            return lambda features: cosine_logits(features, text, scale)
        received = {"expert_ids": params["expert_ids"], **self.prepare(params, frozen)}
        scores = text.shape[0] * text.shape[1] * self.settings.gating_heads * (1 + params["experts"].shape[1])

        def logits(features: Tensor) -> Tensor:
            parts = features.split(max(1, SCORES_PER_CHUNK // scores), dim=1)
            return torch.cat([self._logits(params, received, text, scale, part) for part in parts], dim=1)

        return logits

    def global_model(self, params: ParamTree) -> ParamTree:
        """The global prompt, with a gating of 0, which nothing uses without experts."""
        return {key: value if key == "ctx" else torch.zeros_like(value) for key, value in params.items()}

    def _logits(self, params: ParamTree, received: ParamTree, text: Tensor, scale: float, features: Tensor) -> Tensor:
        """Logits (K, B, C) of features (K or 1, B, E) and text features (K, C, E)."""
        local, others, ids = cosine_logits(features, text, scale), received["expert_features"], received["expert_ids"]
        experts = torch.cat([_pool(text, others.shape[-1]).unsqueeze(1), others], dim=1)
        there = F.pad(ids >= 0, (1, 0), value=True)
        mixed = mixture(params, _pool(features, others.shape[-1]), experts, there, self.settings)
        gated = self.settings.local_weight * local + scale * mixed
        return torch.where((ids >= 0).any(1)[:, None, None], gated, local)


def attention(params: ParamTree, images: Tensor, experts: Tensor, there: Tensor, settings: PFedMoAPSettings) -> Tensor:
    """The weights of the experts (K, heads, B, X, C) for each head, image and class.

    Args:
        params: the gating (K, ...).
        images: pooled features (K or 1, B, d).
        experts: pooled text features (K, X, C, d).
        there: (K, X) bool: the expert exists; at least one does.
        settings: heads and scaling.
    """
    query = split_heads(_linear(params, "gate_q", images), settings.gating_heads)
    key = split_heads(_linear(params, "gate_k", experts.flatten(1, 2)), settings.gating_heads)
    scores = (settings.scaling * query @ key.mT).unflatten(-1, experts.shape[1:3])
    weights: Tensor = scores.masked_fill(~there[:, None, None, :, None], -torch.inf).softmax(-2)
    return weights


def mixture(params: ParamTree, images: Tensor, experts: Tensor, there: Tensor, settings: PFedMoAPSettings) -> Tensor:
    """pool(v_b) . m_bc (K, B, C), arguments as in `attention`.

    W_o is applied to the images instead of the mixtures, of which there is one for each image and class.
    """
    weights = attention(params, images, experts, there, settings)
    value = split_heads(_linear(params, "gate_v", experts.flatten(1, 2)), settings.gating_heads)
    image = split_heads(images @ params["gate_o.weight"], settings.gating_heads)
    votes = (image @ value.mT).unflatten(-1, experts.shape[1:3])
    mixed: Tensor = (weights * votes).sum((1, 3)) + images @ params["gate_o.bias"].unsqueeze(-1)
    return mixed


def _linear(params: ParamTree, layer: str, x: Tensor) -> Tensor:
    return x @ params[f"{layer}.weight"].mT + params[f"{layer}.bias"].unsqueeze(1)


def _pool(features: Tensor, width: int) -> Tensor:
    """Every S-th coordinate of the normalised features (..., E): (..., d)."""
    return F.normalize(features, dim=-1)[..., :: features.shape[-1] // width]


def _largest_divisor(number: int, most: int) -> int:
    return next(divisor for divisor in range(min(most, number), 0, -1) if number % divisor == 0)


class ExpertPool(BaseRule):
    """FedAvg of the prompts, and a pool with the last prompt of every client, of which each client gets some."""

    name: ClassVar[str] = PFedMoAP.name
    paper: ClassVar[str] = PFedMoAP.paper
    uploads: ClassVar[Uploads] = "stack"

    def __init__(self, num_experts: int, selection: Selection) -> None:
        super().__init__(RuleSettings())
        self.num_experts, self.selection = num_experts, selection

    def init(self, shared: ParamTree, num_clients: int) -> ParamTree:
        """`pool` (K, L, D), `there` (K): who is in it, and for `random` each client's `place` in the list (K)."""
        ctx = shared["ctx"]
        server = {"pool": ctx.new_zeros(num_clients, *ctx.shape), "there": torch.zeros(num_clients, dtype=torch.bool)}
        return server if self.selection == "nearest" else server | {"place": torch.arange(num_clients)}

    def broadcast(self, server: ParamTree, shared: ParamTree, clients: np.ndarray) -> tuple[ParamTree, ParamTree]:
        """The global prompt for all; for each client `experts` (M, X - 1, L, D) and their owners, `expert_ids`.

        The best experts come first; where there is none the owner is -1 and the prompt 0, and nothing is sent.
        """
        ids = self.choose(server, clients)
        experts = torch.where((ids >= 0)[..., None, None], server["pool"][ids.clamp(min=0)], 0.0)
        return shared, {"experts": experts, "expert_ids": ids}

    def choose(self, server: ParamTree, clients: np.ndarray) -> Tensor:
        """The clients whose prompts each client gets (M, X - 1), the best first; -1: none."""
        there = server["there"]
        ids = torch.full((len(clients), min(self.num_experts, len(there)) - 1), NOBODY)
        known = there[clients].nonzero().flatten()  # only these have a prompt to compare
        if not len(known) or not ids.shape[1]:
            return ids
        own = torch.from_numpy(clients)[known]
        ranks = self._ranks(server, own).masked_fill_(~there, torch.inf)
        ranks.scatter_(1, own.unsqueeze(1), torch.inf)
        best = ranks.sort(stable=True)
        chosen = best.indices.masked_fill(best.values.isinf(), NOBODY)
        ids[known] = chosen[:, : ids.shape[1]]
        return ids

    def _ranks(self, server: ParamTree, clients: Tensor) -> Tensor:
        """What orders all clients for each of some (M, K): a smaller number is better."""
        if self.selection == "random":
            return server["place"].double().repeat(len(clients), 1)
        return squared_distances(server["pool"], clients)

    def aggregate(self, server: ParamTree, shared: ParamTree, received: Received) -> tuple[ParamTree, ParamTree]:
        """See `ServerRule`. The list of `random` is drawn in the first round in which an update arrives."""
        fresh = {key: value.clone() for key, value in server.items()}
        fresh["pool"][received.clients] = received.stack["ctx"]
        fresh["there"][received.clients] = True
        if self.selection == "random" and not server["there"].any():
            fresh["place"] = torch.randperm(len(server["there"]), generator=received.generator)
        mean = weighted_mean(received.stack, received.weights)
        return fresh, {key: mean[key].to(value.dtype) for key, value in shared.items()}

    def working_bytes(self, clients: int, shared: ParamTree) -> int:
        """See `ServerRule`."""
        return 2 * chunk_bytes(clients, shared)

    def held_bytes(self, clients: int, shared: ParamTree) -> int:
        """See `SendsToEach`: the pool, once more while it changes, and the experts of all clients in an evaluation."""
        return (2 + min(self.num_experts, clients) - 1) * clients * num_bytes(shared)

    def sent_bytes(self, own: ParamTree) -> int:
        """See `SendsToEach`: the experts that exist. Clients need no owners; these say which prompts are the same."""
        experts = own["experts"]
        each = experts[0, 0].numel() * experts.element_size() if experts.numel() else 0
        return each * int((own["expert_ids"] >= 0).sum())


def squared_distances(pool: Tensor, clients: Tensor) -> Tensor:
    """Squared Euclidean distances (M, K) of the prompts of some clients from all of a pool (K, L, D), float64."""
    products = torch.zeros(len(clients), len(pool), dtype=torch.float64)
    squares = torch.zeros(len(pool), dtype=torch.float64)
    for _, _, part in chunks({"pool": pool}):
        products.addmm_(part[clients], part.T)
        squares += part.square().sum(1)
    return (squares[clients].unsqueeze(1) + squares - 2 * products).clamp_(min=0)

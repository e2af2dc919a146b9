"""DP-FPL (Tran et al., ICLR 2025): a global prompt plus a local one whose gradient is of low rank and may be noisy."""

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from fedpgp.clip.text_backbone import ClassSet
from fedpgp.config import FederationSettings, Settings
from fedpgp.core.errors import ConfigError
from fedpgp.core.tree import ParamTree
from fedpgp.methods.base import (
    Batch,
    Classifier,
    Metrics,
    Phase,
    PromptMethod,
    cosine_logits,
    cross_entropy,
    with_gradients,
)
from fedpgp.methods.coop import INIT_STD
from fedpgp.server_rules.base import BaseRule, Received, RuleSettings, Weighting


class DPFPLSettings(Settings):
    """Settings of DP-FPL. Those after `epsilon` are for its noise, and have no effect without it."""

    n_ctx: int = Field(16, ge=1)
    """L, number of learned tokens"""
    rank: int = Field(8, ge=1)
    """R, rank of the factors of the local prompt, whose gradient has at most twice this rank; at most L"""
    epsilon: float | None = Field(None, gt=0)
    """divides the noise; null: no noise and no clipping. It is not the epsilon of a guarantee"""
    delta: float = Field(1e-5, gt=0, lt=1)
    """the noise grows with sqrt(ln(1 / delta))"""
    clip_norm: float = Field(10.0, gt=0)
    """C, longest gradient of a batch (Euclidean norm), for each of its three parts by itself"""
    noise_rounds: int = Field(100, ge=1)
    """T in the noise, which grows with its square root: give federation.rounds for that of the paper"""
    noise_batch: int = Field(32, ge=1)
    """B in the noise, which it divides: give the number of images in the largest batch of a client"""

    @property
    def noise_std(self) -> float:
        """sqrt(T ln(1 / delta)) / epsilon * C / B; 0 without `epsilon`."""
        if self.epsilon is None:
            return 0.0
        scale = math.sqrt(self.noise_rounds * math.log(1 / self.delta)) / self.epsilon
        return scale * self.clip_norm / self.noise_batch


class DPFPL(PromptMethod):
    """min L_ce(p_G + p_i), where p_i learns with a gradient of rank at most 2 R (algorithm 1, equation 4).

    Legend: p_G is `ctx` (L, D), p_i is `local` (L, D); both start from N(0, 0.02), equal for all clients. Each step
    factorises p_i anew: V_0 (D, R) from N(0, 1), u (L, R) the Gram-Schmidt basis of p_i V_0, v (R, D) that of
    (p_i^T u)^T, both orthonormal, and p_i = u v + r. With the gradients g_u, g_v, g_G of the loss for u, v, p_G (r is
    constant), p_i steps by g_u v + u g_v - u u^T g_u v: without noise this is G P_v + P_u G - P_u G P_v, the projection
    of the gradient G of p_i (P_u = u u^T, P_v = v^T v). So the factors change no prediction, only the gradient.

    With `epsilon`: g_u, g_v and g_G are each clipped to norm C; g_u and g_v get noise N(0, s^2), g_G none, with
    s = sqrt(T ln(1 / delta)) / epsilon * C / B; the server adds N(0, (s / K)^2) to the mean of the g_G of K clients.

    A round of the paper is one batch: give `federation.local_steps: 1`. Then the unweighted mean of the clients' p_G
    after a step is the step with the mean gradient, which is what the method's own server rule computes. Steps are
    plain SGD, without the federation's momentum and weight decay. More local steps average p_G after several of them,
    as FedAvg does; with noise they are refused, and so is a schedule of the learning rate, by which the server's noise
    is multiplied. K is the expected number of participants; the paper has all clients in every round.

    Shared: `ctx`, which travels up and down in every round. `local` stays with the client. Images are classified by
    p_G + p_i, also among novel classes; the global model is p_G alone.

    No guarantee: the paper's accounting clips the gradient of a whole batch and takes C / B as the influence of one
    image, for which gradients would have to be clipped image by image; it sends g_G itself without noise; and the start
    of p_i and r are not protected. `privacy.level: client` does give one for p_G, with this method too, and needs no
    `epsilon` here.

    Departs from the authors' code, where g_u v + u g_v + u u^T g_u v is divided by 10; where every client's p_i gets
    the gradient of the last client; where a round keeps the last of its batches only; and where one optimizer with
    momentum serves all clients. Like the code, and unlike the paper, nothing is clipped without noise.
    """

    name: ClassVar[str] = "dp_fpl"
    paper: ClassVar[str] = "Tran et al., ICLR 2025"
    settings_type: ClassVar[type[Settings]] = DPFPLSettings
    shared_keys: ClassVar[frozenset[str]] = frozenset({"ctx"})
    phases: tuple[Phase, ...] = (Phase(frozenset({"ctx", "local"}), momentum=0.0, weight_decay=0.0),)

    def __init__(self, settings: DPFPLSettings) -> None:
        self.settings = settings

    def init(self, frozen: ClassSet, generator: torch.Generator) -> ParamTree:
        """Both prompts from N(0, 0.02).

        Raises `ConfigError` if the rank exceeds that of a prompt, `DataError` if a prompt does not fit the text tower.
        """
        n_ctx, width, rank = self.settings.n_ctx, frozen.width, self.settings.rank
        frozen.check_room(n_ctx)
        if rank > min(n_ctx, width):
            raise ConfigError(
                f"method dp_fpl: rank: {rank} is more than a context of {n_ctx} tokens of width {width} can have; "
                f"give method.rank={min(n_ctx, width)} or less"
            )
        return {key: INIT_STD * torch.randn(n_ctx, width, generator=generator) for key in ("ctx", "local")}

    def draws(self, frozen: ClassSet, generator: torch.Generator) -> ParamTree:
        """V_0 `power_start` (D, R), and with `epsilon` the noise `noise_u` (L, R) and `noise_v` (R, D)."""
        n_ctx, rank, std = self.settings.n_ctx, self.settings.rank, self.settings.noise_std
        drawn = {"power_start": torch.randn(frozen.width, rank, generator=generator)}
        if std:
            drawn["noise_u"] = std * torch.randn(n_ctx, rank, generator=generator)
            drawn["noise_v"] = std * torch.randn(rank, frozen.width, generator=generator)
        return drawn

    def loss(self, params: ParamTree, received: ParamTree, frozen: ClassSet, batch: Batch) -> tuple[Tensor, Metrics]:
        """L_ce (K,), with the gradients above."""
        p = params["local"].detach()
        u, v = factors(p, batch.draws["power_start"])
        with torch.enable_grad():
            leaves = [one.detach().requires_grad_() for one in (params["ctx"], u, v)]
            p_g, own_u, own_v = leaves
            text = frozen.encode(p_g + own_u @ own_v + (p - u @ v))
            ce = cross_entropy(cosine_logits(batch.features, text, frozen.logit_scale), batch)
            g_g, g_u, g_v = torch.autograd.grad(ce.sum(), leaves)
        if self.settings.epsilon is not None:
            g_g, g_u, g_v = (clipped(one, self.settings.clip_norm) for one in (g_g, g_u, g_v))
            g_u, g_v = g_u + batch.draws["noise_u"], g_v + batch.draws["noise_v"]
        return with_gradients(ce, params, {"ctx": g_g, "local": combined(u, v, g_u, g_v)}), {}

    def classifier(self, params: ParamTree, frozen: ClassSet) -> Classifier:
        """Scaled cosines with the text features of p_G + p_i."""
        text = frozen.encode(params["ctx"] + params["local"])
        return lambda features: cosine_logits(features, text, frozen.logit_scale)

    def global_model(self, params: ParamTree) -> ParamTree:
        """p_i = 0."""
        return params | {"local": torch.zeros_like(params["local"])}

    def server_rule(self, federation: FederationSettings) -> "NoisyMean":
        """The mean with the noise of a step; raise `ConfigError` if the federation's steps are not the noise's."""
        std = self.settings.noise_std
        for key, wanted in {"local_steps": 1, "lr_schedule": "constant", "lr_warmup_rounds": 0}.items():
            if std and (given := getattr(federation, key)) != wanted:
                raise ConfigError(
                    f"federation.{key}={'null' if given is None else given}: method dp_fpl with epsilon adds the noise "
                    f"of one step with a constant learning rate; give federation.{key}={wanted}, or method.epsilon=null"
                )
        return NoisyMean(federation.lr * std, federation.participation)


class NoisyMean(BaseRule):
    """x <- sum_i y_i / M + N(0, (std / K)^2) for M participants, K of them expected: all count alike."""

    name: ClassVar[str] = "dp_fpl"
    paper: ClassVar[str] = DPFPL.paper
    weighting: Weighting = "equal"

    def __init__(self, std: float, participation: float) -> None:
        """Take the standard deviation of the noise on the sum of the parameters, and the share that takes part."""
        super().__init__(RuleSettings())
        self.std, self.participation = std, participation

    def aggregate(self, server: ParamTree, shared: ParamTree, received: Received) -> tuple[ParamTree, ParamTree]:
        """See `ServerRule`."""
        mean = self.step(shared, received.mean)
        if not self.std:
            return server, mean
        std = self.std / (self.participation * received.num_clients)
        noise = {key: torch.randn(value.shape, generator=received.generator) for key, value in mean.items()}
        return server, {key: value + std * noise[key] for key, value in mean.items()}


def factors(prompt: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """u (K, L, R) and v (K, R, D) of prompts (K, L, D): a step of the power method from `start` (K, D, R)."""
    u = gram_schmidt(prompt @ start)
    return u, gram_schmidt(prompt.mT @ u).mT


def gram_schmidt(columns: Tensor) -> Tensor:
    """The columns of matrices (K, N, R) made orthonormal, in order; a column of zeros stays one."""
    found = columns[..., :0]
    for column in columns.split(1, dim=-1):
        rest = column - found @ (found.mT @ column)
        found = torch.cat([found, F.normalize(rest, dim=-2)], dim=-1)
    return found


def combined(u: Tensor, v: Tensor, g_u: Tensor, g_v: Tensor) -> Tensor:
    """g_u v + u g_v - u u^T g_u v (K, L, D), equation 4."""
    return g_u @ v + u @ g_v - u @ (u.mT @ g_u) @ v


def clipped(gradient: Tensor, norm: float) -> Tensor:
    """Matrices (K, M, N), those longer than `norm` scaled to it."""
    length: Tensor = torch.linalg.vector_norm(gradient, dim=(1, 2), keepdim=True)
    return gradient * (norm / length.clamp(min=norm))

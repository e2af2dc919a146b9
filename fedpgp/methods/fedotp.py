"""FedOTP (Li et al., CVPR 2024): a global and local prompts, matched with image patches by optimal transport."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from fedpgp.clip.frozen import ClassSet
from fedpgp.config import Settings
from fedpgp.methods.base import Batch, Classifier, Inputs, Metrics, Phase, Tower, cross_entropy
from fedpgp.methods.coop import ContextSettings
from fedpgp.tree import ParamTree

SIMILARITIES_PER_CHUNK = 1 << 24  # 64 MB of float32 each of them and of their plan
AUTHORS_TEST_BATCH = 100


class FedOTPSettings(ContextSettings):
    """Settings of FedOTP."""

    num_prompts: int = Field(2, ge=2)
    """N, prompts per class: one global, the others local"""
    transport: Literal["cot", "sinkhorn"] = "cot"
    """cot (unbalanced: a part of the mass, patches may be left out) | sinkhorn (balanced: all of it)"""
    top_percent: float = Field(0.8, gt=0, le=1)
    """cot: share of the mass that is moved; 1: balanced, as sinkhorn"""
    eps: float = Field(0.1, gt=0)
    """weight of the entropy of the plan"""
    thresh: float = Field(1e-3, ge=0)
    """stop when the mean change of the scaling is below it; 0: never before `max_iter`"""
    max_iter: int = Field(100, ge=1)
    """most iterations"""
    stop: Literal["image", "batch"] = "image"
    """image (each image stops by itself) | batch (a client's images stop together, as in the authors' code)"""


class FedOTP:
    """p(y = c | x) = softmax_c(s <T*, sim>), sim_nm = cos(prompt n of class c, patch m of x), by cross-entropy.

    Legend: N prompts, M patches. The global prompt is `ctx` (L, D), shared and averaged; the local ones are `local`
    (N - 1, L, D) and never leave the client. T* (N, M) is the plan of entropic optimal transport at cost 1 - sim: with
    cot each prompt receives top_percent / N and each patch gives 1 / M at most, with sinkhorn 1 / N and 1 / M exactly.
    The class token is not among the patches. No gradient passes through T*. The plan is not rescaled: with
    top_percent < 1 the logits shrink by it, as in the authors' code.

    Departs from the authors' code: each image stops its iterations by itself, so that its result does not depend on
    those beside it (theirs by `stop: batch`); the solver runs in fp32, on kernels that are scaled by their largest
    entry, which changes no plan and keeps those of a small `eps` from vanishing. With `stop: batch`, tested
    images stop together by up to 100 of a pool in its order (theirs by 100 of each client's own).
    """

    name: ClassVar[str] = "fedotp"
    paper: ClassVar[str] = "Li et al., CVPR 2024"
    settings_type: ClassVar[type[Settings]] = FedOTPSettings
    needs: ClassVar[Inputs] = "patches"
    towers: ClassVar[frozenset[Tower]] = frozenset({"text"})
    shared_keys: ClassVar[frozenset[str]] = frozenset({"ctx"})
    phases: tuple[Phase, ...] = (Phase(frozenset({"ctx", "local"})),)
    transfers = True

    def __init__(self, settings: FedOTPSettings) -> None:
        self.settings = settings
        self.phrases = settings.phrases

    def init(self, frozen: ClassSet, generator: torch.Generator) -> ParamTree:
        """Global and local prompts, drawn apart, or all from the words."""
        ctx, *local = (self.settings.draw(frozen, generator) for _ in range(self.settings.num_prompts))
        return {"ctx": ctx, "local": torch.stack(local)}

    def loss(self, params: ParamTree, received: ParamTree, frozen: ClassSet, batch: Batch) -> tuple[Tensor, Metrics]:
        """Cross-entropy (K,)."""
        text = self._text(params, frozen)
        return cross_entropy(frozen.logit_scale * self._score(batch.features, text, batch.mask), batch), {}

    def classifier(self, params: ParamTree, frozen: ClassSet) -> Classifier:
        """Scaled similarities under the plan, of a few images at a time."""
        text = self._text(params, frozen)

        def logits(features: Tensor) -> Tensor:
            entries = text.shape[0] * text.shape[1] * text.shape[2] * features.shape[2]
            size = max(1, SIMILARITIES_PER_CHUNK // entries) if self.settings.stop == "image" else AUTHORS_TEST_BATCH
            parts = [self._score(part, text) for part in features.split(size, dim=1)]
            return frozen.logit_scale * torch.cat(parts, dim=1)

        return logits

    def _text(self, params: ParamTree, frozen: ClassSet) -> Tensor:
        """Normalised text features (K, N, C, E), the global prompt's first."""
        prompts = torch.cat([params["ctx"].unsqueeze(1), params["local"]], dim=1)
        text = frozen.encode(prompts.flatten(0, 1), self.settings.position)
        unit: Tensor = F.normalize(text, dim=-1).unflatten(0, prompts.shape[:2])
        return unit

    def _score(self, features: Tensor, text: Tensor, mask: Tensor | None = None) -> Tensor:
        """<T*, sim> (K, B, C) of tokens (K or 1, B, 1 + M, E), the first left out."""
        patches = F.normalize(features[:, :, 1:], dim=-1).expand(len(text), -1, -1, -1)
        sim = torch.einsum("knce,kbme->kbcnm", text, patches)
        return (plan(sim.detach(), self.settings, mask) * sim).sum((-2, -1))


@torch.no_grad()
def plan(sim: Tensor, settings: FedOTPSettings, mask: Tensor | None = None) -> Tensor:
    """The transport plans T* (K, B, C, N, M) of similarities of that shape, by Sinkhorn's iteration.

    With the kernel G = exp(-(1 - sim) / eps), from u = v = 1:

        u_m = 1 / (M (G v)_m), at most 1 with cot;  v_n = top_percent / (N (G^T u)_n);  T_nm = v_n G_nm u_m,

    until v (cot) or u (sinkhorn) moves by less than `thresh` on average. G is divided by its largest entry for each
    image and class; the scaling whose movement is measured takes the factor up.

    Args:
        mask: real images (K, B); None: all.
    """
    cot = settings.transport == "cot"
    prompts, patches = sim.shape[-2:]
    received, given = (settings.top_percent if cot else 1.0) / prompts, 1.0 / patches
    largest = sim.amax((-2, -1), keepdim=True)
    kernel, factor = torch.exp((sim - largest) / settings.eps), torch.exp((largest - 1) / settings.eps)
    ones = torch.ones_like(factor)
    u, v = (ones, factor) if cot else (factor, ones)
    going = torch.ones(sim.shape[:2], dtype=torch.bool, device=sim.device) if mask is None else mask
    real = going
    for _ in range(settings.max_iter):
        new_u = given / (kernel * v).sum(-2, keepdim=True)
        new_u = new_u.clamp(max=1.0) if cot else new_u
        new_v = received / (kernel * new_u).sum(-1, keepdim=True)
        moved = ((new_v - v if cot else new_u - u).abs() / factor).flatten(2).mean(2)  # (K, B)
        if settings.stop == "batch":
            moved = (moved * real).sum(1, keepdim=True) / real.sum(1, keepdim=True)
        rows = going[:, :, None, None, None]
        u, v = torch.where(rows, new_u, u), torch.where(rows, new_v, v)
        going = going & ~(moved < settings.thresh)
        if not bool(going.any()):
            break
    return v * kernel * u

"""FedOTP (Li et al., CVPR 2024): a global and local prompts, matched with image patches by optimal transport."""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from fedpgp.clip.text_backbone import ClassSet
from fedpgp.config import Settings
from fedpgp.core.tree import ParamTree
from fedpgp.methods.base import Batch, Classifier, Inputs, Metrics, Phase, PromptMethod, cross_entropy
from fedpgp.methods.coop import ContextSettings

SIMILARITIES_PER_CHUNK = 1 << 20  # they and their plan take 4 MB of float32 each, which fits a core's cache
GATHERED_BELOW = 0.75  # when fewer of the images still iterate, those that have stopped are removed
AUTHORS_TEST_BATCH = 100


class FedOTPSettings(ContextSettings):
    """Settings of FedOTP."""

    num_prompts: int = Field(2, ge=2)
    """N, prompts per class: one global, the others local"""
    transport: Literal["cot", "sinkhorn"] = "cot"
    """cot (unbalanced: moves a part of the mass, may ignore patches) | sinkhorn (balanced: moves all of it)"""
    top_percent: float = Field(0.8, gt=0, le=1)
    """cot: share of the mass that is moved; 1: balanced, like sinkhorn"""
    eps: float = Field(0.1, gt=0)
    """weight of the plan's entropy"""
    thresh: float = Field(1e-3, ge=0)
    """stop when the mean change of the scaling falls below it; 0: run `max_iter` iterations"""
    max_iter: int = Field(100, ge=1)
    """most iterations"""
    stop: Literal["image", "batch"] = "image"
    """image (each image stops separately) | batch (a client's images stop together, as in the authors' code)"""


class FedOTP(PromptMethod):
    """p(y = c | x) = softmax_c(s <T*, sim>), sim_nm = cos(prompt n of class c, patch m of x), by cross-entropy.

    Legend: N prompts, M patches. The global prompt is `ctx` (L, D), the local ones are `local` (N - 1, L, D). s is
    CLIP's logit scale. T* (N, M) is the plan of entropic optimal transport at cost 1 - sim: with cot each prompt
    receives top_percent / N and each patch gives at most 1 / M, with sinkhorn 1 / N and 1 / M exactly. The class token
    is not a patch. No gradient passes through T*. The plan is not rescaled: with top_percent < 1 the logits shrink
    accordingly, as in the authors' code.

    Shared: `ctx`, which travels up and down in every round and is averaged by numbers of images. `local` stays with the
    client.

    Whether to stop is read from the device in every iteration.

    Departs from the authors' code: each image stops its iterations separately, so its result does not depend on the
    rest of the batch (`stop: batch` gives theirs); the solver runs in fp32, on kernels divided by their largest entry,
    which changes no plan and prevents underflow at a small `eps`. With `stop: batch`, up to 100 consecutive images of
    an evaluation set stop together (theirs: up to 100 of each client's own).
    """

    name: ClassVar[str] = "fedotp"
    paper: ClassVar[str] = "Li et al., CVPR 2024"
    settings_type: ClassVar[type[Settings]] = FedOTPSettings
    image_inputs: ClassVar[Inputs] = "patches"
    shared_keys: ClassVar[frozenset[str]] = frozenset({"ctx"})
    phases: tuple[Phase, ...] = (Phase(frozenset({"ctx", "local"})),)

    def __init__(self, settings: FedOTPSettings) -> None:
        self.settings = settings
        self.extra_texts = settings.extra_texts

    def init(self, frozen: ClassSet, generator: torch.Generator) -> ParamTree:
        """Global and local prompts, each drawn separately, or all from the words."""
        ctx, *local = (self.settings.draw(frozen, generator) for _ in range(self.settings.num_prompts))
        return {"ctx": ctx, "local": torch.stack(local)}

    def loss(self, params: ParamTree, received: ParamTree, frozen: ClassSet, batch: Batch) -> tuple[Tensor, Metrics]:
        """Cross-entropy (K,)."""
        text = self._text(params, frozen)
        return cross_entropy(frozen.logit_scale * self._score(batch.features, text, batch.mask), batch), {}

    def classifier(self, params: ParamTree, frozen: ClassSet) -> Classifier:
        """Scaled similarities under the plan, computed for a few images at a time."""
        text = self._text(params, frozen)

        def logits(features: Tensor) -> Tensor:
            entries = text.shape[0] * text.shape[1] * text.shape[2] * features.shape[2]
            size = max(1, SIMILARITIES_PER_CHUNK // entries) if self.settings.stop == "image" else AUTHORS_TEST_BATCH
            parts = [self._score(part, text) for part in features.split(size, dim=1)]
            return frozen.logit_scale * torch.cat(parts, dim=1)

        return logits

    def _text(self, params: ParamTree, frozen: ClassSet) -> Tensor:
        """Normalised text features (K, N, C, E), the global prompt first."""
        prompts = torch.cat([params["ctx"].unsqueeze(1), params["local"]], dim=1)
        text = frozen.encode(prompts.flatten(0, 1), self.settings.position)
        unit: Tensor = F.normalize(text, dim=-1).unflatten(0, prompts.shape[:2])
        return unit

    def _score(self, features: Tensor, text: Tensor, mask: Tensor | None = None) -> Tensor:
        """<T*, sim> (K, B, C) of tokens (K or 1, B, 1 + M, E) without the first, the class token."""
        patches = F.normalize(features[:, :, 1:], dim=-1).expand(len(text), -1, -1, -1)
        sim = torch.einsum("knce,kbme->kbcnm", text, patches)
        return (plan(sim.detach(), self.settings, mask) * sim).sum((-2, -1))


@torch.no_grad()
def plan(sim: Tensor, settings: FedOTPSettings, mask: Tensor | None = None) -> Tensor:
    """Compute the transport plans T* (K, B, C, N, M) of similarities of that shape by Sinkhorn's iteration.

    With the kernel G = exp(-(1 - sim) / eps), from u = v = 1:

        u_m = 1 / (M (G v)_m), at most 1 with cot;  v_n = top_percent / (N (G^T u)_n);  T_nm = v_n G_nm u_m,

    until v (cot) or u (sinkhorn) changes by less than `thresh` on average. G is divided by its largest entry for each
    image and class; the scaling whose change is measured absorbs the factor. Images are contiguous in memory. `mask`
    (K, B) marks the real ones; None: all.
    """
    together = sim.shape[1] if settings.stop == "batch" else 1  # images that stop together

    def grouped(of_images: Tensor) -> Tensor:
        return of_images.reshape(-1, together, *of_images.shape[2:])

    real = grouped(torch.ones_like(sim[..., 0, 0, 0]) if mask is None else mask.to(sim.dtype))
    largest = sim.amax((-2, -1))
    factor = grouped(torch.exp((largest - 1) / settings.eps))
    kernel = grouped(torch.exp((sim - largest[..., None, None]) / settings.eps)).permute(3, 4, 0, 1, 2).contiguous()
    u, v = _scalings(kernel, factor, real, settings)
    return (v.unsqueeze(1) * kernel * u).permute(2, 3, 4, 0, 1).reshape(sim.shape)


def _scalings(kernel: Tensor, factor: Tensor, real: Tensor, settings: FedOTPSettings) -> tuple[Tensor, Tensor]:
    """u (M, G, I, C) and v (N, G, I, C) of kernels (N, M, G, I, C) of G groups whose I images stop together.

    Groups that have stopped are removed once they are many; `factor` is (G, I, C), `real` (G, I).
    """
    cot = settings.transport == "cot"
    prompts, patches = kernel.shape[:2]
    received, given = (settings.top_percent if cot else 1.0) / prompts, 1.0 / patches
    u, v = torch.ones_like(kernel[0]), torch.ones_like(kernel[:, 0])
    u, v = (u, v * factor) if cot else (u * factor, v)
    all_u, all_v = torch.empty_like(u), torch.empty_like(v)
    group = torch.arange(len(factor), device=factor.device)
    running = torch.ones_like(group, dtype=torch.bool)
    for iteration in range(settings.max_iter):
        before = v if cot else u
        spread = kernel[0] * v[0]
        for row, scaling in zip(kernel[1:], v[1:], strict=True):
            spread.addcmul_(row, scaling)
        u = given / spread
        u = u.clamp_(max=1.0) if cot else u
        v = received / torch.stack([(row * u).sum(0) for row in kernel])
        change = (((v if cot else u) - before).abs_() / factor).mean((0, 3))
        change = (change * real).sum(1) / real.sum(1).clamp(min=1)
        stopped = running & (change < settings.thresh) if iteration + 1 < settings.max_iter else running
        all_u[:, group[stopped]], all_v[:, group[stopped]] = u[:, stopped], v[:, stopped]
        running = running & ~stopped
        share = float(running.float().mean())
        if share == 0:
            break
        if share < GATHERED_BELOW:
            kernel, u, v = kernel[:, :, running], u[:, running], v[:, running]
            factor, real, group, running = factor[running], real[running], group[running], running[running]
    return all_u, all_v

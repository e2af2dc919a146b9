"""FedPGP (Cui et al., ICML 2024): a global prompt plus a low-rank personal part, held apart by a contrastive loss."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from fedpgp.clip.frozen import ClassSet
from fedpgp.config import Settings
from fedpgp.methods.base import Batch, Classifier, Inputs, Metrics, Phase, cosine_logits, cross_entropy
from fedpgp.methods.coop import INIT_STD, ContextSettings
from fedpgp.tree import ParamTree


class FedPGPSettings(ContextSettings):
    """Settings of FedPGP."""

    rank: int = Field(8, ge=1)
    """R, rank of the personal part ("bottleneck" in the authors' code)"""
    mu: float = Field(0.5, ge=0)
    """weight of the contrastive term; 0: cross-entropy alone"""
    tau: float = Field(0.5, gt=0)
    """temperature of the contrastive term"""
    anchor: Literal["template", "placeholder"] = "template"
    """z_C: template (the hand-written `data.template`) | placeholder ("X X ... X NAME.", as in the authors' code)"""
    init: Literal["normal", "lora"] = "normal"
    """start of U: normal (N(0, 0.02), as published) | lora (0, so that training starts at the global prompt)"""
    personal_lr: float | None = Field(None, gt=0)
    """learning rate of U and V; null: the federation's, as published"""

    @property
    def phrases(self) -> tuple[str, ...]:
        """Texts whose tokens are needed."""
        return (*super().phrases, "X")


class FedPGP:
    """p_i = p_G + U_i V_i (equations 7 and 9), trained by L_ce(p_i) + mu L_con (equations 11 and 13).

    Legend: p_G is `ctx` (L, D), shared and averaged; U_i (L, R) and V_i (R, D) never leave client i.
    z_G, z_i and z_C are the normalised text features of p_G, of p_i and of CLIP's own prompt, one per class.
    With sim = cosine, equation 12 is

        L_con = -log( exp(sim(z_G, z_C) / tau) / (exp(sim(z_G, z_C) / tau) + exp(sim(z_G, z_i) / tau)) )
              = softplus((sim(z_G, z_i) - sim(z_G, z_C)) / tau),

    averaged over all classes of the task, those of other clients too, as in the authors' code. There is no
    stop-gradient: p_G is pulled through both pairs, U and V through the second. Neutral values: mu = 0 is
    cross-entropy; U V = 0 makes p_i the global prompt.

    Departs from the authors' code: z_C is the hand-written prompt (theirs by `anchor: placeholder`); a fresh
    optimizer per local update (theirs carries one client's momentum to the next).
    """

    name: ClassVar[str] = "fedpgp"
    paper: ClassVar[str] = "Cui et al., ICML 2024"
    settings_type: ClassVar[type[Settings]] = FedPGPSettings
    needs: ClassVar[Inputs] = "pooled"
    shared_keys: ClassVar[frozenset[str]] = frozenset({"ctx"})
    transfers = True

    def __init__(self, settings: FedPGPSettings) -> None:
        self.settings = settings
        self.phrases = settings.phrases
        own_lr = {} if settings.personal_lr is None else dict.fromkeys(("U", "V"), settings.personal_lr)
        self.phases = (Phase(frozenset({"ctx", "U", "V"}), lr=own_lr),)

    def init(self, frozen: ClassSet, generator: torch.Generator) -> ParamTree:
        """p_G, U and V; all N(0, 0.02), but for a context from words and U = 0 with `init: lora`."""
        ctx = self.settings.draw(frozen, generator)
        n_ctx, width = ctx.shape
        u = INIT_STD * torch.randn(n_ctx, self.settings.rank, generator=generator)
        v = INIT_STD * torch.randn(self.settings.rank, width, generator=generator)
        return {"ctx": ctx, "U": torch.zeros_like(u) if self.settings.init == "lora" else u, "V": v}

    def loss(self, params: ParamTree, received: ParamTree, frozen: ClassSet, batch: Batch) -> tuple[Tensor, Metrics]:
        """L_ce + mu L_con (K,), and both terms."""
        prompts = torch.cat([personal_prompt(params), params["ctx"]])
        z_i, z_g = frozen.encode(prompts, self.settings.position).chunk(2)
        ce = cross_entropy(cosine_logits(batch.features, z_i, frozen.logit_scale), batch)
        con = contrast(z_g, z_i, self._anchor(frozen, n_ctx=params["ctx"].shape[-2]), self.settings.tau)
        return ce + self.settings.mu * con, {"ce": ce, "con": con}

    def classifier(self, params: ParamTree, frozen: ClassSet) -> Classifier:
        """The client's own prompt p_i."""
        z_i = frozen.encode(personal_prompt(params), self.settings.position)
        return lambda features: cosine_logits(features, z_i, frozen.logit_scale)

    def _anchor(self, frozen: ClassSet, n_ctx: int) -> Tensor:
        return frozen.template() if self.settings.anchor == "template" else frozen.placeholder(n_ctx)


def personal_prompt(params: ParamTree) -> Tensor:
    """p_i = p_G + U_i V_i (K, L, D)."""
    return params["ctx"] + params["U"] @ params["V"]


def contrast(z_g: Tensor, z_i: Tensor, z_c: Tensor, tau: float) -> Tensor:
    """L_con (K,): the mean over classes of equation 12, from features (K, C, E); z_c is (C, E)."""
    positive = F.cosine_similarity(z_g, z_c.unsqueeze(0), dim=-1)
    negative = F.cosine_similarity(z_g, z_i, dim=-1)
    return F.softplus((negative - positive) / tau).mean(-1)

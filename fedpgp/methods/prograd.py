"""Federated ProGrad (Zhu et al., ICCV 2023): PromptFL whose gradient never opposes that of zero-shot CLIP's answers."""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from fedpgp.clip.text_backbone import ClassSet
from fedpgp.config import Settings
from fedpgp.core.tree import ParamTree
from fedpgp.methods.base import Batch, Metrics, cosine_logits, cross_entropy, image_mean, own_logits, with_gradients
from fedpgp.methods.coop import CoOpSettings
from fedpgp.methods.promptfl import PromptFL


class ProGradSettings(CoOpSettings):
    """Settings of ProGrad."""

    guidance: Literal["projection", "distillation"] = "projection"
    """projection (as published) | distillation (minimises L_ce + strength L_kl; FLiP's method of this name)"""
    strength: float = Field(1.0, ge=0)
    """lambda, share of the conflicting gradient that is removed, or weight of L_kl; 0: PromptFL, bit for bit"""
    tau: float = Field(1.0, gt=0)
    """T, temperature of both distributions in L_kl"""


class ProGrad(PromptFL):
    """L_ce(ctx) is minimised along g = a if <a, b> >= 0, else a - lambda <a, b> / |b|^2 b.

    Legend: `ctx` (L, D), or (C, L, D) if class-specific, is the learned context. a is the gradient of the cross-entropy
    L_ce, b that of

        L_kl = -T^2 mean_images sum_c p_c log q_c,  p = softmax(teacher / T),  q = softmax(logits / T),

    the KL divergence from the teacher, zero-shot CLIP with the hand-written prompt, up to a constant; like L_ce it is
    over all classes of the task or, with `protocol.train_classes: own`, the client's. <a, b> is over the whole context
    at once, and each client decides by its own in each step. lambda = 1 removes all of a that conflicts with b; L_kl
    itself is never minimised. Both gradients come from one forward pass and a backward pass each. The optimizer
    (momentum, weight decay) takes g. Recorded: the loss L_ce, L_kl and the share of steps in conflict. Neutral values:
    lambda = 0, or a batch without conflict, is PromptFL; b = 0 is no conflict.

    Shared: all of it. `ctx` travels up and down in every round, and the server averages it by numbers of images.

    The paper's method is not federated; averaging it is a baseline of later work. `guidance: distillation` minimises
    L_ce + lambda L_kl without a projection: this, with lambda = T = 1, is what FLiP (Liao et al., NeurIPS
    2025, a benchmark) runs as ProGrad.
    The authors' context has 16 tokens: zeros, then the words of the template. Departs from their code: it starts like
    PromptFL's; the teacher's prompt is the data set's one template `data.template`, and theirs for some data sets reads
    a little differently from KgCoOp's and from CoOp's ("a type of pet, a photo of a {}."); the optimizer is the
    federation's.
    """

    name: ClassVar[str] = "prograd"
    paper: ClassVar[str] = "Zhu et al., ICCV 2023"
    settings_type: ClassVar[type[Settings]] = ProGradSettings
    settings: ProGradSettings

    def loss(self, params: ParamTree, received: ParamTree, frozen: ClassSet, batch: Batch) -> tuple[Tensor, Metrics]:
        """L_ce with the gradient g, or L_ce + lambda L_kl (K,), and its parts."""
        if self.settings.guidance == "distillation":
            ce, kl = self._losses(params["ctx"], frozen, batch)
            return ce + self.settings.strength * kl, {"ce": ce, "kl": kl}
        with torch.enable_grad():
            ctx = params["ctx"].detach().requires_grad_()
            ce, kl = self._losses(ctx, frozen, batch)
            (a,) = torch.autograd.grad(ce.sum(), ctx, retain_graph=True)
            (b,) = torch.autograd.grad(kl.sum(), ctx)
        g, conflict = projected(a, b, self.settings.strength)
        return with_gradients(ce, params, {"ctx": g}), {"ce": ce, "kl": kl, "conflict": conflict.float()}

    def _losses(self, ctx: Tensor, frozen: ClassSet, batch: Batch) -> tuple[Tensor, Tensor]:
        """L_ce and L_kl (K,)."""
        tau = self.settings.tau
        logits = cosine_logits(batch.features, frozen.encode(ctx, self.settings.position), frozen.logit_scale)
        teacher = cosine_logits(batch.features, frozen.template().unsqueeze(0), frozen.logit_scale)
        p = F.softmax(own_logits(teacher, batch) / tau, -1)
        log_q = F.log_softmax(own_logits(logits, batch) / tau, -1)
        kl = -(tau**2) * torch.where(p > 0, p * log_q, 0.0).sum(-1)
        return cross_entropy(logits, batch), image_mean(kl, batch)


def projected(a: Tensor, b: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    """g (K, ...) from the gradients a and b (K, ...), and the clients in conflict (K,)."""
    along = (a * b).flatten(1).sum(1)
    conflict = along < 0
    removed = torch.where(conflict, strength * along / b.square().flatten(1).sum(1), 0.0)
    return a - removed.view(-1, *[1] * (a.dim() - 1)) * b, conflict

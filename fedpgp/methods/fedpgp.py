"""FedPGP (Cui et al., ICML 2024): a global prompt plus a low-rank personal part, trained with a contrastive loss."""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from fedpgp.clip.text_backbone import ClassSet
from fedpgp.config import Settings
from fedpgp.core.errors import ConfigError
from fedpgp.core.tree import ParamTree
from fedpgp.methods.base import Batch, Classifier, Metrics, Phase, PromptMethod, cosine_logits, cross_entropy
from fedpgp.methods.coop import INIT_STD, ContextSettings


class FedPGPSettings(ContextSettings):
    """Settings of FedPGP."""

    rank: int = Field(8, ge=1)
    """R, rank of the personal part ("bottleneck" in the authors' code); at most that of the context"""
    adaptation: Literal["low_rank", "full_rank"] = "low_rank"
    """personal part: low_rank (U V, as published) | full_rank (a free matrix; ignores `rank` and `init`)"""
    mu: float = Field(0.5, ge=0)
    """weight of the contrastive term; 0: only cross-entropy"""
    contrast: Literal["full", "no_positive", "no_negative", "none"] = "full"
    """contrastive term: full | no_positive (push from p_i only) | no_negative (pull to z_C only) | none"""
    tau: float = Field(0.5, gt=0)
    """temperature of the full contrastive term"""
    num_prompts: int = Field(1, ge=1)
    """N, prompt sets; 1: the paper's method. More reproduce the authors' code, see `FedPGP`"""
    anchor: Literal["template", "placeholder"] = "template"
    """z_C: template (the hand-written `data.template`) | placeholder ("X X ... X NAME.", as in the authors' code)"""
    init: Literal["normal", "lora"] = "normal"
    """start of U: normal (N(0, 0.02), as published) | lora (0: training starts at the global prompt)"""
    personal_lr: float | None = Field(None, gt=0)
    """learning rate of the personal part; null: the federation's, as published"""

    @property
    def extra_texts(self) -> tuple[str, ...]:
        """Texts whose tokens are needed."""
        return (*super().extra_texts, "X")


class FedPGP(PromptMethod):
    """p_i = p_G + U_i V_i (equations 7 and 9), trained by L_ce(p_i) + mu L_con (equations 11 and 13).

    Legend: p_G is `ctx` (N, L, D), client i has `U` (N, L, R) and `V` (N, R, D); N = 1. z_G, z_i and z_C are the text
    features of p_G, of p_i and of CLIP's own prompt, one per class. With sim = cosine, equation 12 is

        L_con = -log( exp(sim(z_G, z_C) / tau) / (exp(sim(z_G, z_C) / tau) + exp(sim(z_G, z_i) / tau)) )
              = softplus((sim(z_G, z_i) - sim(z_G, z_C)) / tau),

    averaged over all classes of the task, including those of other clients, as in the authors' code. There is no
    stop-gradient: p_G gets gradients from both pairs, U and V from the second. Neutral values: mu = 0 is
    cross-entropy; U V = 0 makes p_i the global prompt.

    Shared: `ctx`, which travels up and down in every round and is averaged by numbers of images. U and V stay with the
    client. The global model is p_G alone.

    Ablations: no_positive is L_con = sim(z_G, z_i), no_negative is L_con = 1 - sim(z_G, z_C), none is L_con = 0. These
    follow the paper's text; its tables 6 and 7 print "1 - sim(z_G, z_i)" and "sim(z_G, z_C)", whose minimisation would
    do the opposite. full_rank: p_i = p_G + delta_i, `delta` (N, L, D) from N(0, 0.02) (the start is our choice).

    N > 1 is not an ensemble, neither here nor in the authors' code (whose only released script has N = 2): the N C
    columns of the logits compete, labels refer to the first C, and the other sets count as wrong classes in the loss
    and in accuracy. The only known use is to reproduce their numbers.

    Departs from the authors' code: z_C is the hand-written prompt (`anchor: placeholder` gives theirs); each local
    update has a fresh optimizer (theirs carries one client's momentum to the next).
    """

    name: ClassVar[str] = "fedpgp"
    paper: ClassVar[str] = "Cui et al., ICML 2024"
    settings_type: ClassVar[type[Settings]] = FedPGPSettings
    shared_keys: ClassVar[frozenset[str]] = frozenset({"ctx"})

    def __init__(self, settings: FedPGPSettings) -> None:
        self.settings = settings
        self.extra_texts = settings.extra_texts
        personal = ("U", "V") if settings.adaptation == "low_rank" else ("delta",)
        own_lr = {} if settings.personal_lr is None else dict.fromkeys(personal, settings.personal_lr)
        self.phases = (Phase(frozenset({"ctx", *personal}), lr=own_lr),)

    @property
    def needs_all_classes(self) -> str:
        """See `NeedsAllClasses`."""
        return "" if self.settings.contrast == "none" else "its contrast compares the features of all of them"

    def init(self, frozen: ClassSet, generator: torch.Generator) -> ParamTree:
        """p_G and the personal part, all N(0, 0.02), except a context from words and U = 0 with `init: lora`.

        Raises `ConfigError` if the rank exceeds that of the context.
        """
        rank, sets = self.settings.rank, self.settings.num_prompts
        ctx = torch.stack([self.settings.draw(frozen, generator) for _ in range(sets)])
        _, n_ctx, width = ctx.shape
        if self.settings.adaptation == "full_rank":
            return {"ctx": ctx, "delta": INIT_STD * torch.randn(ctx.shape, generator=generator)}
        if rank > min(n_ctx, width):
            raise ConfigError(
                f"method fedpgp: rank: {rank} is more than a context of {n_ctx} tokens x {width} can have; "
                f"give method.rank={min(n_ctx, width)} or less"
            )
        u = INIT_STD * torch.randn(sets, n_ctx, rank, generator=generator)
        v = INIT_STD * torch.randn(sets, rank, width, generator=generator)
        return {"ctx": ctx, "U": torch.zeros_like(u) if self.settings.init == "lora" else u, "V": v}

    def loss(self, params: ParamTree, received: ParamTree, frozen: ClassSet, batch: Batch) -> tuple[Tensor, Metrics]:
        """L_ce + mu L_con (K,), and both terms."""
        p_i, p_g = personal_prompt(params), params["ctx"]
        if self.settings.contrast == "none":
            ce = cross_entropy(self.classifier(params, frozen)(batch.features), batch)
            return ce, {"ce": ce}
        z_i, z_g = self._features(torch.cat([p_i, p_g]), frozen).chunk(2)
        ce = cross_entropy(cosine_logits(batch.features, z_i.flatten(1, 2), frozen.logit_scale), batch)
        z_c = frozen.template() if self.settings.anchor == "template" else frozen.placeholder(n_ctx=p_g.shape[-2])
        con = contrast(z_g, z_i, z_c, self.settings.tau, self.settings.contrast)
        return ce + self.settings.mu * con, {"ce": ce, "con": con}

    def classifier(self, params: ParamTree, frozen: ClassSet) -> Classifier:
        """Scaled cosines with the text features of p_i. With N > 1 there are N C columns."""
        z_i = self._features(personal_prompt(params), frozen).flatten(1, 2)
        return lambda features: cosine_logits(features, z_i, frozen.logit_scale)

    def global_model(self, params: ParamTree) -> ParamTree:
        """p_G with a personal part of 0."""
        return {key: value if key == "ctx" else torch.zeros_like(value) for key, value in params.items()}

    def _features(self, prompts: Tensor, frozen: ClassSet) -> Tensor:
        """Text features (P, N, C, E) of prompts (P, N, L, D)."""
        text: Tensor = frozen.encode(prompts.flatten(0, 1), self.settings.position).unflatten(0, prompts.shape[:2])
        return text


def personal_prompt(params: ParamTree) -> Tensor:
    """p_i = p_G + U_i V_i, or p_G + delta_i (K, N, L, D)."""
    return params["ctx"] + (params["delta"] if "delta" in params else params["U"] @ params["V"])


def contrast(z_g: Tensor, z_i: Tensor, z_c: Tensor, tau: float, kind: str = "full") -> Tensor:
    """L_con (K,), the mean over sets and classes, from features (K, N, C, E); z_c is (C, E)."""
    positive = F.cosine_similarity(z_g, z_c.expand_as(z_g), dim=-1)
    negative = F.cosine_similarity(z_g, z_i, dim=-1)
    terms = {
        "full": F.softplus((negative - positive) / tau),
        "no_positive": negative,
        "no_negative": 1 - positive,
    }
    return terms[kind].mean((-2, -1))

"""PromptFL (Guo et al., 2023): CoOp with a context that the server averages. With FedProx it is Prompt+Prox."""

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from fedpgp.clip.text_backbone import ClassSet
from fedpgp.config import Settings
from fedpgp.core.tree import ParamTree
from fedpgp.methods.base import Batch, Metrics
from fedpgp.methods.coop import CoOp, CoOpSettings


class PromptFL(CoOp):
    """min over ctx of sum_k n_k / n L_ce(ctx; data of client k): CoOp's loss with one context for all clients.

    Legend: `ctx` (L, D), or (C, L, D) if class-specific, is the learned context; client k has n_k of the n images.

    Shared: all of it. `ctx` travels up and down in every round, and the server averages it by numbers of images
    (FedAvg).

    Departs from the authors' code, whose average equals the last client's weights.
    """

    name: ClassVar[str] = "promptfl"
    paper: ClassVar[str] = "Guo et al., IEEE TMC 2023"
    shared_keys: ClassVar[frozenset[str]] = frozenset({"ctx"})


class PromptProxSettings(CoOpSettings):
    """Settings of Prompt+Prox."""

    prox: float = Field(0.5, ge=0)
    """weight of the proximal term; 0: PromptFL, bit for bit"""


class PromptProx(PromptFL):
    """min L_ce(ctx) + prox / 2 ||ctx - ctx_received||^2 (FedProx, equation 2).

    Legend: `ctx` is the learned context, ctx_received the one that the server sent in this round, a constant. Neutral
    value: prox = 0 is PromptFL.

    Shared: all of it, as in PromptFL. The term needs nothing more to be sent.

    Departs from the published code of the prompt baselines: its proximal term is computed from detached weights, so it
    changes the printed loss but has no gradient, and its "FedProx" trains like FedAvg. Here the term has its gradient,
    prox (ctx - ctx_received).
    """

    name: ClassVar[str] = "prompt_prox"
    paper: ClassVar[str] = "Guo et al., IEEE TMC 2023; Li et al., MLSys 2020"
    settings_type: ClassVar[type[Settings]] = PromptProxSettings
    settings: PromptProxSettings

    def loss(self, params: ParamTree, received: ParamTree, frozen: ClassSet, batch: Batch) -> tuple[Tensor, Metrics]:
        """L_ce + prox / 2 ||ctx - ctx_received||^2 (K,), and both terms."""
        ce, _ = super().loss(params, received, frozen, batch)
        proximal = self.settings.prox / 2 * (params["ctx"] - received["ctx"]).square().flatten(1).sum(1)
        return ce + proximal, {"ce": ce, "prox": proximal}

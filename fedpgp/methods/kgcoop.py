"""Federated KgCoOp (Yao et al., CVPR 2023): PromptFL whose prompt is kept close to the hand-written one."""

from typing import ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from fedpgp.clip.text_backbone import ClassSet
from fedpgp.config import Settings
from fedpgp.core.tree import ParamTree
from fedpgp.methods.base import Batch, Metrics, class_mean, cosine_logits, cross_entropy
from fedpgp.methods.coop import CoOpSettings
from fedpgp.methods.promptfl import PromptFL


class KgCoOpSettings(CoOpSettings):
    """Settings of KgCoOp."""

    w: float = Field(8.0, ge=0)
    """weight of the knowledge-guided term; 0: PromptFL, bit for bit"""


class KgCoOp(PromptFL):
    """min L_ce(ctx) + w L_kg(ctx), with L_kg = 1 - mean_c cos(z_c, t_c).

    Legend: `ctx` (L, D), or (C, L, D) if class-specific, is the learned context. z_c is the text feature of the prompt
    [ctx, name_c], t_c that of CLIP's hand-written prompt of class c, a constant. The mean is independent of the images
    and over all classes of the task or, with `protocol.train_classes: own`, the client's. Between unit vectors
    |z - t|^2 = 2 (1 - cos), so 2 L_kg is the mean squared distance of the two prompts' features. Neutral value: w = 0
    is PromptFL.

    Shared: all of it. `ctx` travels up and down in every round, and the server averages it by numbers of images.

    The paper's method is not federated; averaging it is a baseline of FedTPG (Qiu et al., ICLR 2024) and of FLiP (Liao
    et al., NeurIPS 2025). w = 8 is the setting of the authors' scripts and of FedTPG; FLiP fixes w = 1. The authors'
    context starts from "a photo of a" (`ctx_init`), 4 tokens.

    Departs from the authors' code: t_c is of the data set's one template `data.template`, and theirs for some data sets
    reads a little differently from ProGrad's and from CoOp's; the optimizer is the federation's.
    """

    name: ClassVar[str] = "kgcoop"
    paper: ClassVar[str] = "Yao et al., CVPR 2023"
    settings_type: ClassVar[type[Settings]] = KgCoOpSettings
    settings: KgCoOpSettings

    def loss(self, params: ParamTree, received: ParamTree, frozen: ClassSet, batch: Batch) -> tuple[Tensor, Metrics]:
        """L_ce + w L_kg (K,), and both terms."""
        text = frozen.encode(params["ctx"], self.settings.position)
        ce = cross_entropy(cosine_logits(batch.features, text, frozen.logit_scale), batch)
        kg = class_mean(1 - F.cosine_similarity(text, frozen.template(), dim=-1), batch)
        return ce + self.settings.w * kg, {"ce": ce, "kg": kg}

"""PromptFolio (Pan et al., NeurIPS 2024): a portfolio of two prompts, one shared by all clients and one of each."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field

from fedpgp.clip.text_backbone import ClassSet
from fedpgp.config import Settings
from fedpgp.core.tree import ParamTree
from fedpgp.methods.base import Classifier, Phase, PromptMethod
from fedpgp.methods.coop import ContextSettings


class PromptFolioSettings(ContextSettings):
    """Settings of PromptFolio."""

    theta: float = Field(0.4, ge=0, le=1)
    """share of the local prompt's features; 0: PromptFL on the global prompt; 1: CoOp on the local one"""


class PromptFolio(PromptMethod):
    """p(y = c | x) = softmax_c(s <f(x), z_c>), z = (1 - theta) z_G + theta z_L, trained by cross-entropy.

    Legend: z_G and z_L are the normalised text features of the global prompt `ctx` (L, D) and of the client's local
    prompt `local` (L, D), f(x) the normalised image feature, s CLIP's logit scale. The mixture z is not normalised
    again, so the logits are the same mixture of the two prompts' logits. Both prompts learn at once. theta is one
    constant for all clients. Neutral values: theta = 0 is PromptFL on `ctx`, theta = 1 is CoOp on `local`.

    Shared: `ctx`, which travels up and down in every round and is averaged by numbers of images. `local` stays with the
    client; both are drawn separately, the same for all clients. The global model is the global prompt alone. The
    prompts are not class-specific, so both can be applied to novel classes.

    Departs from the authors' code: each client's weight in the average is its own (theirs pairs the weights of a
    permuted list of participants with other clients, and fails if some are absent); each local update has a fresh
    optimizer (theirs carries momentum, also the local prompt's, and the position in the schedule to the next client).
    The paper derives an optimal theta; the code has a constant, 0.4, and so does this.
    """

    name: ClassVar[str] = "promptfolio"
    paper: ClassVar[str] = "Pan et al., NeurIPS 2024"
    settings_type: ClassVar[type[Settings]] = PromptFolioSettings
    shared_keys: ClassVar[frozenset[str]] = frozenset({"ctx"})
    phases: tuple[Phase, ...] = (Phase(frozenset({"ctx", "local"})),)

    def __init__(self, settings: PromptFolioSettings) -> None:
        self.settings = settings
        self.extra_texts = settings.extra_texts

    def init(self, frozen: ClassSet, generator: torch.Generator) -> ParamTree:
        """Global and local prompt, each drawn from N(0, 0.02), or both from the words."""
        return {key: self.settings.draw(frozen, generator) for key in ("ctx", "local")}

    def classifier(self, params: ParamTree, frozen: ClassSet) -> Classifier:
        """Scaled products of normalised image features with the mixture of both prompts' text features."""
        theta = self.settings.theta
        position = self.settings.position
        z_g, z_l = (F.normalize(frozen.encode(params[key], position), dim=-1) for key in ("ctx", "local"))
        z = (1 - theta) * z_g + theta * z_l
        return lambda features: frozen.logit_scale * F.normalize(features, dim=-1) @ z.mT

    def global_model(self, params: ParamTree) -> ParamTree:
        """Both prompts are the global one."""
        return {"ctx": params["ctx"], "local": params["ctx"]}

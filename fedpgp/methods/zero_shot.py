"""Zero-shot CLIP (Radford et al., 2021): the hand-written prompt, without training."""

from typing import ClassVar

import torch

from fedpgp.clip.text_backbone import ClassSet
from fedpgp.config import Settings
from fedpgp.core.tree import ParamTree
from fedpgp.methods.base import Classifier, Phase, PromptMethod, cosine_logits


class ZeroShotSettings(Settings):
    """Settings of zero-shot CLIP: none. The prompt is `data.template`."""


class ZeroShot(PromptMethod):
    """p(y = c | x) = softmax_c(s cos(f(x), t_c)), without training.

    Legend: f(x) is CLIP's image feature, t_c the text feature of the hand-written prompt `data.template` with the name
    of class c, s CLIP's logit scale.

    Shared: nothing, for there are no parameters: every client has the same model, which is tested once, as round 0.

    Departs from the paper where it averages the text features of several templates: there is one.
    """

    name: ClassVar[str] = "zero_shot"
    paper: ClassVar[str] = "Radford et al., ICML 2021"
    settings_type: ClassVar[type[Settings]] = ZeroShotSettings
    shared_keys: ClassVar[frozenset[str]] = frozenset()
    phases: tuple[Phase, ...] = ()

    def __init__(self, settings: ZeroShotSettings) -> None:
        self.settings = settings

    def init(self, frozen: ClassSet, generator: torch.Generator) -> ParamTree:
        """No parameters."""
        return {}

    def classifier(self, params: ParamTree, frozen: ClassSet) -> Classifier:
        """One classifier, the same for every client."""
        text = frozen.template().unsqueeze(0)
        return lambda features: cosine_logits(features, text, frozen.logit_scale)

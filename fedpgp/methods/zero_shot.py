"""Zero-shot CLIP (Radford et al., 2021): the hand-written prompt, nothing learned."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from fedpgp.clip.text_backbone import ClassSet
from fedpgp.config import Settings
from fedpgp.core.tree import ParamTree
from fedpgp.methods.base import Batch, Classifier, Inputs, Metrics, Phase, Tower, cosine_logits


class ZeroShotSettings(Settings):
    """None; the prompt is `data.template`."""


class ZeroShot:
    """Cosine of image feature and text feature of `data.template`. No parameters, no training."""

    name: ClassVar[str] = "zero_shot"
    paper: ClassVar[str] = "Radford et al., ICML 2021"
    settings_type: ClassVar[type[Settings]] = ZeroShotSettings
    image_inputs: ClassVar[Inputs] = "pooled"
    required_towers: ClassVar[frozenset[Tower]] = frozenset({"text"})
    shared_keys: ClassVar[frozenset[str]] = frozenset()
    phases: tuple[Phase, ...] = ()
    extra_texts: tuple[str, ...] = ()
    supports_unseen_classes = True

    def __init__(self, settings: ZeroShotSettings) -> None:
        self.settings = settings

    def init(self, frozen: ClassSet, generator: torch.Generator) -> ParamTree:
        """Nothing."""
        return {}

    def loss(self, params: ParamTree, received: ParamTree, frozen: ClassSet, batch: Batch) -> tuple[Tensor, Metrics]:
        """Never called: there is no phase."""
        raise TypeError("zero_shot has no loss")

    def classifier(self, params: ParamTree, frozen: ClassSet) -> Classifier:
        """The same for every client."""
        text = frozen.template().unsqueeze(0)
        return lambda features: cosine_logits(features, text, frozen.logit_scale)

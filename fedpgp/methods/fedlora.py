"""Federated LoRA (Hu et al., 2022): low-rank adapters on the text tower's attention instead of a learned prompt."""

from typing import ClassVar

import torch
from pydantic import Field, field_validator

from fedpgp.clip.prompt_encoder import Adapters, Target
from fedpgp.clip.text_backbone import ClassSet
from fedpgp.config import Settings
from fedpgp.core.errors import ConfigError
from fedpgp.core.tree import ParamTree
from fedpgp.methods.base import Classifier, Phase, PromptMethod, cosine_logits
from fedpgp.methods.coop import INIT_STD


class FedLoRASettings(Settings):
    """Settings of LoRA."""

    targets: tuple[Target, ...] = Field(("q", "v"), min_length=1)
    """projections with an adapter, in every layer: q (queries), k (keys), v (values), o (output)"""
    rank: int = Field(4, ge=1)
    """R, rank of an adapter; at most the tower's width"""
    alpha: float = Field(4.0, gt=0)
    """adapters are scaled by alpha / rank"""
    shared: bool = True
    """true: the server averages the adapters (FedAvg); false: they stay with the client"""

    @field_validator("targets")
    @classmethod
    def _distinct(cls, targets: tuple[Target, ...]) -> tuple[Target, ...]:
        if len(set(targets)) < len(targets):
            raise ValueError("each target once")
        return targets


class FedLoRA(PromptMethod):
    """W' = W + alpha / R B A for each adapted W, trained by cross-entropy on the hand-written prompt `data.template`.

    Legend: for each target t, `t.A` (layers, R, D) starts from N(0, 0.02) and `t.B` (layers, D, R) from 0. B = 0 is
    zero-shot CLIP, so training starts there. W is frozen.

    Shared: all of it, or with `shared: false` nothing. A and B travel up and down in every round and are averaged by
    numbers of images, separately; the average of the products B A would be another matrix, of a higher rank.

    Departs from the paper: CLIP's text tower is adapted, with the federation's optimizer.
    """

    name: ClassVar[str] = "fedlora"
    paper: ClassVar[str] = "Hu et al., ICLR 2022"
    settings_type: ClassVar[type[Settings]] = FedLoRASettings

    def __init__(self, settings: FedLoRASettings) -> None:
        self.settings = settings
        keys = frozenset(f"{target}.{part}" for target in settings.targets for part in "AB")
        self.shared_keys = keys if settings.shared else frozenset()
        self.phases = (Phase(keys),)

    def init(self, frozen: ClassSet, generator: torch.Generator) -> ParamTree:
        """A from N(0, 0.02), B = 0; raise `ConfigError` if the rank exceeds the tower's width."""
        layers, width, rank = frozen.layers, frozen.width, self.settings.rank
        if rank > width:
            raise ConfigError(
                f"method fedlora: rank: {rank} is more than the text tower's width; give method.rank={width} or less"
            )
        tree: ParamTree = {}
        for target in self.settings.targets:
            tree[f"{target}.A"] = INIT_STD * torch.randn(layers, rank, width, generator=generator)
            tree[f"{target}.B"] = torch.zeros(layers, width, rank)
        return tree

    def classifier(self, params: ParamTree, frozen: ClassSet) -> Classifier:
        """Scaled cosines with the features of the hand-written prompt in each client's adapted tower."""
        text = frozen.adapted_template(self.adapters(params))
        return lambda features: cosine_logits(features, text, frozen.logit_scale)

    def adapters(self, params: ParamTree) -> Adapters:
        """A and (alpha / R) B of each target."""
        scale = self.settings.alpha / self.settings.rank
        return {target: (params[f"{target}.A"], scale * params[f"{target}.B"]) for target in self.settings.targets}

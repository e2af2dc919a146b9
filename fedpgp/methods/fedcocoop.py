"""Federated CoCoOp (Zhou et al., CVPR 2022): a small network adapts the context to each image."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from fedpgp.clip.text_backbone import ClassSet
from fedpgp.clip.towers import in_chunks
from fedpgp.config import Settings
from fedpgp.core.tree import ParamTree
from fedpgp.methods.base import Classifier, Phase, PromptMethod, draw_linear
from fedpgp.methods.coop import ContextSettings

REDUCTION = 16  # width of the joint space divided by the width of the meta-net's hidden layer
PROMPTS_PER_CHUNK = 1024  # most class prompts whose activations are kept at a time
VALUES_OF_CONTEXTS = 1 << 24  # most values of contexts that exist at a time: 64 MB of float32


class FedCoCoOpSettings(ContextSettings):
    """Settings of CoCoOp."""


class FedCoCoOp(PromptMethod):
    """p(y = c | x) = softmax_c(s cos(f(x), g([v_1(x) .. v_L(x), name_c]))), v_l(x) = v_l + h(x), by cross-entropy.

    Legend: v_l are the tokens of `ctx` (L, D); h is the meta-net `meta_2 relu(meta_1 f(x))` on the normalised image
    feature f(x), E -> E // 16 -> D; g is the frozen text tower, s CLIP's logit scale.

    Shared: all of it, context and meta-net, which travel up and down in every round and are averaged by numbers of
    images (the paper's CoCoOp is not federated).

    Each image has its own C prompts: B C of them per client and step, where PromptFL has C. Their common prefix (start,
    context) is encoded once per image, and images pass through the text tower in chunks.

    Departs from the paper only in the optimizer, which is the federation's.
    """

    name: ClassVar[str] = "fedcocoop"
    paper: ClassVar[str] = "Zhou et al., CVPR 2022"
    settings_type: ClassVar[type[Settings]] = FedCoCoOpSettings
    shared_keys: ClassVar[frozenset[str]] = frozenset(
        {"ctx", "meta_1.weight", "meta_1.bias", "meta_2.weight", "meta_2.bias"}
    )
    phases: tuple[Phase, ...] = (Phase(shared_keys),)

    def __init__(self, settings: FedCoCoOpSettings) -> None:
        self.settings = settings
        self.extra_texts = settings.extra_texts

    def init(self, frozen: ClassSet, generator: torch.Generator) -> ParamTree:
        """The context, from words or N(0, 0.02), and the meta-net with torch's default init."""
        hidden = max(1, frozen.joint_width // REDUCTION)
        return {
            "ctx": self.settings.draw(frozen, generator),
            **draw_linear("meta_1", frozen.joint_width, hidden, generator),
            **draw_linear("meta_2", hidden, frozen.width, generator),
        }

    def classifier(self, params: ParamTree, frozen: ClassSet) -> Classifier:
        """Scaled cosines with the text features of each client's prompts for each image."""
        chunk = max(1, PROMPTS_PER_CHUNK // frozen.num_classes)

        def cosines(ctx: Tensor, unit: Tensor) -> Tensor:
            text = frozen.encode(ctx, self.settings.position)
            return (F.normalize(text, dim=-1) @ unit.unsqueeze(-1)).squeeze(-1)

        def per_image(features: Tensor) -> Tensor:
            unit = F.normalize(features, dim=-1)
            bias = meta_net(params, unit)  # (K, B, D)
            ctx = params["ctx"].unsqueeze(1) + bias.unsqueeze(2)  # (K, B, L, D)
            unit = unit.expand(len(bias), -1, -1)
            flat = in_chunks(cosines, chunk, ctx.flatten(0, 1), unit.flatten(0, 1))
            cosines_KBC: Tensor = flat.unflatten(0, bias.shape[:2])
            return cosines_KBC

        def logits(features: Tensor) -> Tensor:
            parts = features.split(max(1, VALUES_OF_CONTEXTS // params["ctx"].numel()), dim=1)
            return frozen.logit_scale * torch.cat([per_image(part) for part in parts], dim=1)

        return logits


def meta_net(params: ParamTree, unit: Tensor) -> Tensor:
    """h(x) (K, B, D) of normalised image features (K or 1, B, E)."""
    hidden = torch.relu(unit @ params["meta_1.weight"].mT + params["meta_1.bias"].unsqueeze(1))
    return hidden @ params["meta_2.weight"].mT + params["meta_2.bias"].unsqueeze(1)

"""Count a method's parameters on the backbone of the papers."""

import torch

from fedpgp.clip.model import ImageSpec
from fedpgp.clip.text_backbone import ClassSet, FrozenText
from fedpgp.clip.towers import Affine, Block, TextTower, VisualTower
from fedpgp.core.tree import ParamTree, num_values, select, without
from fedpgp.methods.base import Method

REFERENCE = "ViT-B/16"
LAYERS, TEXT_WIDTH, IMAGE_WIDTH, JOINT_WIDTH, CONTEXT, PATCHES = 12, 512, 768, 512, 77, 196


def parameter_counts(method: Method) -> tuple[int, int]:
    """Shared and personal parameters of one client, on `REFERENCE`."""
    shared, personal = parameters(method)
    return num_values(shared), num_values(personal)


def parameters(method: Method) -> tuple[ParamTree, ParamTree]:
    """Shared and personal parameters of one client before training, on `REFERENCE`."""
    tree = method.init(_reference(method.extra_texts), torch.Generator().manual_seed(0))
    return select(tree, method.shared_keys), without(tree, method.shared_keys)


def _reference(extra_texts: tuple[str, ...]) -> ClassSet:
    """A frozen model of the right shape without weights; each word of a text is one token."""
    texts = (*extra_texts, "class.")
    words = sorted({word for text in texts for word in text.split()})
    token_ids = {text: tuple(words.index(word) for word in text.split()) for text in texts}
    nothing = Affine(torch.empty(0), None)
    blocks = (Block(*[nothing] * 6),) * LAYERS
    tower = TextTower(
        tokens=torch.zeros(len(words), TEXT_WIDTH),
        positions=torch.zeros(CONTEXT, TEXT_WIDTH),
        blocks=blocks,
        norm=nothing,
        projection=Affine(torch.zeros(JOINT_WIDTH, TEXT_WIDTH), None),
        heads=8,
        eps=1e-5,
        activation="silu",
    )
    visual = VisualTower(
        patch=torch.empty(0),
        class_token=torch.empty(0),
        positions=torch.zeros(1 + PATCHES, IMAGE_WIDTH),
        norm_before=None,
        blocks=blocks,
        norm=nothing,
        projection=nothing,
        heads=12,
        eps=1e-5,
        activation="silu",
        image=ImageSpec(224, (0.0,) * 3, (1.0,) * 3, "bicubic", "shortest"),
    )
    return FrozenText(tower, token_ids, (0, 0), ("class",), ("{}",), 100.0, visual=visual).on([0])

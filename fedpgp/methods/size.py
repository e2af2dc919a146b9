"""Count a method's parameters on a backbone of which only the sizes are known: by default that of the papers."""

from dataclasses import dataclass

import torch

from fedpgp.clip import model
from fedpgp.clip.model import ImageSpec
from fedpgp.clip.text_backbone import ClassSet, FrozenText
from fedpgp.clip.towers import Affine, Block, TextTower, VisualTower
from fedpgp.core.errors import BackboneError
from fedpgp.core.tree import ParamTree, num_values, select, without
from fedpgp.methods.base import Method


@dataclass(frozen=True)
class Sizes:
    """The sizes of a backbone."""

    name: str
    layers: int
    width: int  # D
    joint_width: int  # E
    context: int
    image: tuple[int, int] | None  # layers and width of the image tower; None: it is no plain ViT


REFERENCE = Sizes("ViT-B/16", layers=12, width=512, joint_width=512, context=77, image=(12, 768))


def sizes_of(name: str) -> Sizes:
    """The sizes of a model by its `backbone.name`; raise `BackboneError` if there is none or it cannot be prompted."""
    config, _ = model.read_config(name)
    model.check_text_tower(name, config)
    text, vision = config["text_cfg"], config["vision_cfg"]
    plain = isinstance(vision.get("layers"), int) and "timm_model_name" not in vision
    image = (int(vision["layers"]), int(vision["width"])) if plain else None
    context = int(text.get("context_length", REFERENCE.context))
    return Sizes(name, int(text["layers"]), int(text["width"]), int(config["embed_dim"]), context, image)


def parameter_counts(method: Method) -> tuple[int, int]:
    """Shared and personal parameters of one client, on `REFERENCE`."""
    shared, personal = parameters(method)
    return num_values(shared), num_values(personal)


def parameters(method: Method, sizes: Sizes = REFERENCE) -> tuple[ParamTree, ParamTree]:
    """Shared and personal parameters of one client before training, on a backbone of these sizes.

    Raises `BackboneError` if the method needs an image tower of another kind.
    """
    if "image" in method.required_towers and sizes.image is None:
        raise BackboneError(f"backbone.name: {sizes.name} does not fit method {method.name}: it needs a plain ViT")
    tree = method.init(_frozen(method.extra_texts, sizes), torch.Generator().manual_seed(0))
    return select(tree, method.shared_keys), without(tree, method.shared_keys)


def _frozen(extra_texts: tuple[str, ...], sizes: Sizes) -> ClassSet:
    """A frozen model of the right shape without weights; each word of a text is one token."""
    texts = (*extra_texts, "class.")
    words = sorted({word for text in texts for word in text.split()})
    token_ids = {text: tuple(words.index(word) for word in text.split()) for text in texts}
    nothing = Affine(torch.empty(0), None)
    block = Block(*[nothing] * 6)
    tower = TextTower(
        tokens=torch.zeros(len(words), sizes.width),
        positions=torch.zeros(sizes.context, sizes.width),
        blocks=(block,) * sizes.layers,
        norm=nothing,
        projection=Affine(torch.zeros(sizes.joint_width, sizes.width), None),
        heads=8,
        eps=1e-5,
        activation="silu",
    )
    image_layers, image_width = sizes.image or (0, 0)
    visual = VisualTower(
        patch=torch.empty(0),
        class_token=torch.empty(0),
        positions=torch.zeros(1, image_width),
        norm_before=None,
        blocks=(block,) * image_layers,
        norm=nothing,
        projection=nothing,
        heads=12,
        eps=1e-5,
        activation="silu",
        image=ImageSpec(224, (0.0,) * 3, (1.0,) * 3, "bicubic", "shortest"),
    )
    return FrozenText(tower, token_ids, (0, 0), ("class",), ("{}",), 100.0, visual=visual).on([0])

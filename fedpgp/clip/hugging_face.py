"""Hugging Face's `CLIPModel`: its tensor names, configuration and preprocessing, translated to open_clip's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import BaseModel, Field, PositiveInt, ValidationError, model_validator

from fedpgp.core.errors import BackboneError
from fedpgp.core.text import first_of

if TYPE_CHECKING:
    from torch import Tensor

F = TypeVar("F", bound="_File")

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""Names of the files in a hub repository or a saved model's folder."""

TOWERS = {"text_model.": "", "vision_model.": "visual."}
PARTS = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.class_embedding": "class_embedding",
    "embeddings.patch_embedding.": "conv1.",
    "pre_layrnorm.": "ln_pre.",  # spelled so
    "post_layernorm.": "ln_post.",
    "final_layer_norm.": "ln_final.",
    "encoder.layers.": "transformer.resblocks.",
    "self_attn.out_proj.": "attn.out_proj.",
    "layer_norm1.": "ln_1.",
    "layer_norm2.": "ln_2.",
    "mlp.fc1.": "mlp.c_fc.",
    "mlp.fc2.": "mlp.c_proj.",
}
PROJECTIONS = {"text_projection.weight": "text_projection", "visual_projection.weight": "visual.proj"}
"""Matrices that open_clip applies from the right, transposed."""
CONSTANTS = ("text_model.embeddings.position_ids", "vision_model.embeddings.position_ids")

RESAMPLING = {2: "bilinear", 3: "bicubic"}
"""Pillow's numbers."""


class _File(BaseModel):
    """What is read of a JSON file; a key that is absent or null has its default, which is CLIP's."""

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, tree: Any) -> Any:
        return {key: value for key, value in tree.items() if value is not None} if isinstance(tree, dict) else tree


class _Tower(_File):
    num_hidden_layers: PositiveInt = 12
    hidden_act: Literal["gelu", "quick_gelu"] = "quick_gelu"
    layer_norm_eps: float = Field(1e-5, ge=1e-5, le=1e-5)


class _TextTower(_Tower):
    vocab_size: PositiveInt = 49408
    hidden_size: PositiveInt = 512
    intermediate_size: PositiveInt = 2048
    num_attention_heads: PositiveInt = 8
    max_position_embeddings: PositiveInt = 77


class _VisionTower(_Tower):
    hidden_size: PositiveInt = 768
    intermediate_size: PositiveInt = 3072
    num_attention_heads: PositiveInt = 12
    image_size: PositiveInt = 224
    patch_size: PositiveInt = 32
    num_channels: Literal[3] = 3


class _Model(_File):
    model_type: Literal["clip"]
    projection_dim: PositiveInt = 512
    text_config: _TextTower = _TextTower()
    vision_config: _VisionTower = _VisionTower()


class _Preprocessor(_File):
    image_mean: tuple[float, float, float] | None = None
    image_std: tuple[float, float, float] | None = None
    resample: Literal[2, 3] = 3
    size: PositiveInt | dict[str, PositiveInt] = Field(default_factory=dict)
    do_resize: Literal[True] = True
    do_normalize: Literal[True] = True


def is_named_so(tensors: Mapping[str, Any]) -> bool:
    """Return whether the tensors have the names of `CLIPModel`."""
    return any(name.startswith(tuple(TOWERS)) for name in tensors)


def renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the tensors of a `CLIPModel` open_clip's names: queries, keys and values joined, projections transposed.

    Unknown names stay as they are, for the message that refuses them.
    """
    import torch

    found = {}
    for name, tensor in tensors.items():
        if name in PROJECTIONS:
            found[PROJECTIONS[name]] = tensor.T.contiguous()
        elif name not in CONSTANTS:
            found[_renamed(name)] = tensor
    for name in [name for name in found if ".self_attn.q_proj." in name]:
        parts = [name.replace(".q_proj.", f".{part}_proj.") for part in "qkv"]
        if all(part in found for part in parts):
            joined = name.replace("self_attn.q_proj.", "attn.in_proj_")
            found[joined] = torch.cat([found.pop(part) for part in parts])
    return found


def model_config(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Translate a `CLIPModel`'s config.json to open_clip's model config.

    Args:
        where: the file, for messages

    Raises:
        BackboneError: it describes another kind of model, or one that open_clip cannot build.
    """
    tree = dict(config)
    for tower in ("text_config", "vision_config"):  # older files have a second mapping, which overrides the first
        first, second = tree.get(tower) or {}, tree.get(f"{tower}_dict") or {}
        tree[tower] = {**first, **second} if isinstance(first, dict) and isinstance(second, dict) else first
    found = _checked(_Model, tree, where)
    text, vision = found.text_config, found.vision_config
    if text.hidden_act != vision.hidden_act:
        raise BackboneError(f"{where}: hidden_act is {text.hidden_act} and {vision.hidden_act}; it must be the same")
    return {
        "embed_dim": found.projection_dim,
        "quick_gelu": text.hidden_act == "quick_gelu",
        "vision_cfg": {
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "width": vision.hidden_size,
            "layers": vision.num_hidden_layers,
            "head_width": vision.hidden_size // vision.num_attention_heads,
            "mlp_ratio": vision.intermediate_size / vision.hidden_size,
        },
        "text_cfg": {
            "context_length": text.max_position_embeddings,
            "vocab_size": text.vocab_size,
            "width": text.hidden_size,
            "heads": text.num_attention_heads,
            "layers": text.num_hidden_layers,
            "mlp_ratio": text.intermediate_size / text.hidden_size,
        },
    }


def preprocessing_beside(config: Path) -> dict[str, Any]:
    """Translate the preprocessor_config.json beside a config.json, if any, to open_clip's preprocessing options.

    Raises `BackboneError` if it does not resize or normalise images, as all of CLIP's do.
    """
    path = config.with_name(PREPROCESSOR)
    if not path.is_file():
        return {}
    found = _checked(_Preprocessor, read_json(path), str(path))
    options: dict[str, Any] = {"interpolation": RESAMPLING[found.resample]}
    options |= {key: own for key, own in (("mean", found.image_mean), ("std", found.image_std)) if own is not None}
    if isinstance(found.size, dict) and "height" in found.size:
        options["resize_mode"] = "squash"
    return options


def read_json(path: Path) -> dict[str, Any]:
    """Read the mapping in a JSON file; raise `BackboneError` if there is none."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BackboneError(f"{path}: cannot be read as JSON ({error}); fetch it again") from None
    if not isinstance(tree, dict):
        raise BackboneError(f"{path}: expected a mapping; fetch it again")
    return tree


def _checked(kind: type[F], tree: Mapping[str, Any], where: str) -> F:
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, one['loc']))} is {one['input']!r}: {one['msg']}" for one in error.errors()]
        raise BackboneError(f"{where}: {first_of(wrong)}; only CLIP's models can be read") from None


def _renamed(name: str) -> str:
    for tower, ours in TOWERS.items():
        if name.startswith(tower):
            known = name.removeprefix(tower)
            for theirs, part in PARTS.items():
                known = known.replace(theirs, part)
            return ours + known if tower + known != name else name
    return name

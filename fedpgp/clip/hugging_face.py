"""Hugging Face's `CLIPModel`: its tensor names, configuration and preprocessing, translated to open_clip's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpgp.core.errors import BackboneError

if TYPE_CHECKING:
    from torch import Tensor

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

TEXT_DEFAULTS: dict[str, Any] = {
    "vocab_size": 49408, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12,
    "num_attention_heads": 8, "max_position_embeddings": 77, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
}  # fmt: skip
VISION_DEFAULTS: dict[str, Any] = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "image_size": 224, "patch_size": 32, "num_channels": 3, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
}  # fmt: skip
"""What a config.json means that does not say it."""
RESAMPLING = {2: "bilinear", 3: "bicubic"}
"""Pillow's numbers."""


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
    if config.get("model_type") != "clip":
        raise BackboneError(f"{where}: model_type is {config.get('model_type')!r}; only clip can be read")
    text, vision = _tower(config, "text", TEXT_DEFAULTS), _tower(config, "vision", VISION_DEFAULTS)
    activations = {text["hidden_act"], vision["hidden_act"]}
    if activations not in ({"gelu"}, {"quick_gelu"}):
        raise BackboneError(
            f"{where}: hidden_act is {' and '.join(sorted(activations))}; both must be gelu or quick_gelu"
        )
    if {text["layer_norm_eps"], vision["layer_norm_eps"]} != {1e-5} or vision["num_channels"] != 3:
        raise BackboneError(f"{where}: layer_norm_eps must be 1e-5 and num_channels 3, as in CLIP")
    return {
        "embed_dim": config.get("projection_dim", 512),
        "quick_gelu": activations == {"quick_gelu"},
        "vision_cfg": {
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
            "width": vision["hidden_size"],
            "layers": vision["num_hidden_layers"],
            "head_width": vision["hidden_size"] // vision["num_attention_heads"],
            "mlp_ratio": vision["intermediate_size"] / vision["hidden_size"],
        },
        "text_cfg": {
            "context_length": text["max_position_embeddings"],
            "vocab_size": text["vocab_size"],
            "width": text["hidden_size"],
            "heads": text["num_attention_heads"],
            "layers": text["num_hidden_layers"],
            "mlp_ratio": text["intermediate_size"] / text["hidden_size"],
        },
    }


def preprocessing_beside(config: Path) -> dict[str, Any]:
    """Translate the preprocessor_config.json beside a config.json, if any, to open_clip's preprocessing options."""
    path = config.with_name(PREPROCESSOR)
    if not path.is_file():
        return {}
    tree = read_json(path)
    found: dict[str, Any] = {key: tuple(tree[f"image_{key}"]) for key in ("mean", "std") if f"image_{key}" in tree}
    if tree.get("resample", 3) not in RESAMPLING:
        raise BackboneError(f"{path}: resample={tree['resample']} is not among {', '.join(map(str, RESAMPLING))}")
    found["interpolation"] = RESAMPLING[tree.get("resample", 3)]
    if isinstance(tree.get("size"), Mapping) and "height" in tree["size"]:
        found["resize_mode"] = "squash"
    return found


def read_json(path: Path) -> dict[str, Any]:
    """Read the mapping in a JSON file; raise `BackboneError` if there is none."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BackboneError(f"{path}: cannot be read as JSON ({error}); fetch it again") from None
    if not isinstance(tree, dict):
        raise BackboneError(f"{path}: expected a mapping; fetch it again")
    return tree


def _tower(config: Mapping[str, Any], name: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a tower; `NAME_config_dict`, which older files have, overrides `NAME_config`."""
    return {**defaults, **(config.get(f"{name}_config") or {}), **(config.get(f"{name}_config_dict") or {})}


def _renamed(name: str) -> str:
    for tower, ours in TOWERS.items():
        if name.startswith(tower):
            known = name.removeprefix(tower)
            for theirs, part in PARTS.items():
                known = known.replace(theirs, part)
            return ours + known if tower + known != name else name
    return name

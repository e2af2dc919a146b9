"""Loads frozen CLIP backbones by name, hub id or file, or from the package, and checks and fingerprints them."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from fedpgp.clip import hub, hugging_face
from fedpgp.clip import weights as checkpoints
from fedpgp.clip.tokens import ReducedTokenizer, reduced_ids
from fedpgp.config import BackboneSettings
from fedpgp.core.errors import BackboneError
from fedpgp.core.seeding import derive_seed
from fedpgp.core.text import did_you_mean, first_of

if TYPE_CHECKING:
    from torch import Tensor, nn

log = logging.getLogger(__name__)
log.setLevel(logging.INFO)

Activation = Literal["gelu", "quick_gelu"]

ICON_CLIP = "icon-clip"  # the small model in the package
ICON_CLIP_FOLDER = Path(__file__).parent.parent / "assets" / ICON_CLIP
ICON_CLIP_WEIGHTS = ICON_CLIP_FOLDER / "open_clip_model.safetensors"

HUB = "hf-hub:"
CONFIG = "open_clip_config.json"
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
"""Names of open_clip's files in a hub repository."""
QUICK = "-quickgelu"  # how open_clip names a model with QuickGELU
CHECKPOINT_SUFFIXES = (".pt", ".pth", ".bin", ".safetensors")
TINY: dict[str, Any] = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 64, "head_width": 32, "layers": 2},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}
TEXT_TOWER: dict[str, Any] = {
    "hf_model_name": None, "hf_tokenizer_name": None, "vocab_size": 49408, "embed_cls": False, "no_causal_mask": False,
    "pool_type": "argmax", "block_type": None, "qk_norm": False, "scaled_cosine_attn": False, "scale_heads": False,
    "scale_attn_inner": False, "scale_attn": False, "scale_fc": False,
}  # fmt: skip
"""What prompting requires: CLIP's tokens, a causal mask, pooling at the end-of-text token, standard blocks."""


@dataclass(frozen=True)
class ImageSpec:
    """The evaluation transform of a model."""

    size: int  # height and width in pixels
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    resize_mode: str

    @property
    def digest(self) -> str:
        """16 hex digits over all fields."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Backbone:
    """A frozen CLIP model in evaluation mode, without gradients, in float32."""

    name: str
    model: nn.Module  # open_clip's `CLIP` or `CustomTextCLIP`
    image: ImageSpec
    tokenize: Callable[[Sequence[str]], Tensor]  # texts to int64 (n, context length), zero-padded; longer texts are cut
    logit_scale: float  # factor of the cosine similarities (exponential already applied)
    activation: Activation
    fingerprint: str  # 16 hex digits over names, shapes and values of the weights, and the activation


def load(settings: BackboneSettings) -> Backbone:
    """Load a frozen model.

    Raises:
        BackboneError: the model is unknown or unsuitable; the weights are missing, unreadable, cannot be fetched or
            belong to another model; or the activation differs from the one that the weights were trained with.
    """
    name = settings.name if settings.name.startswith(HUB) else settings.name.replace("/", "-")
    config, preprocess = read_config(name)
    check_text_tower(name, config)
    source = _find_weights(name, settings, _activation(config))
    model = _build(name, config, source.activation)
    if source.weights is None:
        _spread(model)
    else:
        checkpoints.fill(model, source.weights, f"backbone {name}, weights {settings.weights or 'from the hub'}")
    if source.doubt:
        log.warning(source.doubt)
    return Backbone(
        name=name,
        model=model,
        image=_image_spec(name, model, {**preprocess, **source.preprocess}),
        tokenize=_tokenizer(name, config["text_cfg"]),
        logit_scale=float(model.logit_scale.exp()),
        activation=source.activation,
        fingerprint=_fingerprint(model.state_dict(), source.activation),
    )


def stored_arrays(settings: BackboneSettings, fingerprint: str) -> Mapping[str, np.ndarray] | None:
    """Read the weights from a safetensors file if they have this fingerprint, without torch and the model.

    None: they have another one, or become those of the model by translation only, or are in a file of another format.
    """
    from safetensors.numpy import load_file

    path = ICON_CLIP_WEIGHTS if settings.name == ICON_CLIP else Path(settings.weights or "")
    if path.suffix != ".safetensors" or not path.is_file():
        return None
    try:
        arrays = {
            name: one.astype(np.float32) if one.dtype.kind == "f" else one for name, one in load_file(path).items()
        }
    except Exception:  # a damaged file, or numbers that numpy lacks; `load` says what is wrong with it
        return None
    activations: tuple[Activation, ...] = get_args(Activation)
    return arrays if fingerprint in (_fingerprint(arrays, one) for one in activations) else None


def read_config(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return open_clip's model config and the preprocessing options that come with it, if any."""
    if name == "tiny":
        return deepcopy(TINY), {}
    if name == ICON_CLIP or name.startswith(HUB):
        repository = name.removeprefix(HUB)
        path = (
            ICON_CLIP_FOLDER / CONFIG if name == ICON_CLIP else _from_hub(name, repository, CONFIG, hugging_face.CONFIG)
        )
        described = hugging_face.read_json(path)
        if "model_cfg" in described:
            return described["model_cfg"], described.get("preprocess_cfg", {})
        hub.find(name, repository, hugging_face.PREPROCESSOR)  # the file is optional
        return hugging_face.model_config(described, str(path)), hugging_face.preprocessing_beside(path)
    import open_clip

    config = open_clip.get_model_config(name)
    if config is None:
        known = ("tiny", ICON_CLIP, *open_clip.list_models())
        hint = did_you_mean(name, known, "see open_clip.list_models()", count=3)
        raise BackboneError(f"backbone.name: open_clip has no model {name!r}; {hint}")
    return config, {}


def check_text_tower(name: str, config: Mapping[str, Any]) -> None:
    """Raise `BackboneError` if the text tower of a model's config is not CLIP's."""
    text = config["text_cfg"]
    if name == ICON_CLIP:
        text = {**text, "vocab_size": TEXT_TOWER["vocab_size"]}  # CLIP's tokens, reduced to those it was trained with
    odd = [f"{key}={text[key]}" for key, plain in TEXT_TOWER.items() if text.get(key, plain) != plain]
    if "multimodal_cfg" in config:
        odd.append("multimodal_cfg (CoCa)")
    if odd:
        raise BackboneError(
            f"backbone.name: {name} cannot be prompted: its text tower is not CLIP's, which is causal and pooled at "
            f"the end-of-text token ({', '.join(odd)}); use for example ViT-B-16-quickgelu"
        )


@dataclass(frozen=True)
class _Source:
    """The weights and the activation of a model."""

    activation: Activation
    weights: Mapping[str, Tensor] | None = None  # None: random ones
    preprocess: Mapping[str, Any] = field(default_factory=dict)  # open_clip's preprocessing options for the weights
    doubt: str | None = None  # a warning about the activation


def _find_weights(name: str, settings: BackboneSettings, configured: Activation) -> _Source:
    activation, weights = settings.activation or configured, settings.weights
    complete = name.startswith(HUB) or name == ICON_CLIP
    if activation != configured and (complete or configured == "quick_gelu"):
        raise _disagreement(name, name, configured)
    if complete:
        if weights is not None:
            raise BackboneError(f"backbone.weights: {name} includes weights; give null (given: {weights!r})")
        files = (*WEIGHTS, *hugging_face.WEIGHTS)
        path = ICON_CLIP_WEIGHTS if name == ICON_CLIP else _from_hub(name, name.removeprefix(HUB), *files)
        return _Source(activation, checkpoints.read(path).tensors)
    if weights == "random":
        return _Source(activation)
    if weights is not None and (Path(weights).is_file() or weights.endswith(CHECKPOINT_SUFFIXES)):
        return _from_file(name, Path(weights), settings, configured)
    return _from_tag(name, weights, activation)


def _from_file(name: str, path: Path, settings: BackboneSettings, configured: Activation) -> _Source:
    weights, activation = checkpoints.read(path, settings.weights_key), settings.activation
    trained, preprocess = _beside(path, weights)
    if weights.place or weights.left_out:
        log.info("%s: the weights of %r; not used: %s", path, weights.place, first_of(weights.left_out, 3) or "-")
    if trained and trained != (activation or (configured if configured == "quick_gelu" else trained)):
        raise _disagreement(name, f"OpenAI's {path}" if weights.openai else str(path), trained)
    if not trained and activation is None:
        raise BackboneError(
            f"backbone.activation: {path} does not say which activation it was trained with; give quick_gelu "
            "(OpenAI's, DFN's and MetaCLIP's weights) or gelu (most others)"
        )
    doubt = (
        f"backbone.activation={activation}: nothing in or beside {path} confirms it, and the wrong one costs accuracy "
        "without an error: OpenAI's, DFN's and MetaCLIP's weights need quick_gelu, most others gelu"
    )
    return _Source(trained or activation or "gelu", weights.tensors, preprocess, None if trained else doubt)


def _beside(path: Path, weights: checkpoints.Weights) -> tuple[Activation | None, Mapping[str, Any]]:
    """Return what the file or a configuration beside it says of activation and preprocessing."""
    if weights.openai:
        return "quick_gelu", {}
    key, file = ("model_type", hugging_face.CONFIG) if weights.hugging_face else ("model_cfg", CONFIG)
    config = path.with_name(file)
    described = hugging_face.read_json(config) if config.is_file() else {}
    if not described.get(key):  # there is none, or another program's
        return None, {}
    if weights.hugging_face:
        return _activation(hugging_face.model_config(described, str(config))), hugging_face.preprocessing_beside(config)
    return _activation(described[key]), described.get("preprocess_cfg", {})


def _activation(config: Mapping[str, Any]) -> Activation:
    return "quick_gelu" if config.get("quick_gelu") else "gelu"


def _from_tag(name: str, tag: str | None, activation: Activation) -> _Source:
    from open_clip import pretrained

    published = pretrained.get_pretrained_cfg(name.removesuffix(QUICK), tag) if tag else None
    if not published:
        tags = ", ".join(pretrained.list_pretrained_tags_by_model(name)) or "none"
        folder = "a folder, " if tag and Path(tag).is_dir() else ""
        raise BackboneError(
            f"backbone.weights: {tag!r} is {folder}not a file, `random` or a tag of {name} (tags: {tags})"
        )
    trained = _activation(published)
    if activation != trained:
        raise _disagreement(name, f"tag {tag}", trained)
    repository, _, file = published["hf_hub"].rpartition("/")
    files = (str(Path(file).with_suffix(".safetensors")), file) if file else WEIGHTS
    path = _from_hub(f"{name} {tag}", repository, *files)
    return _Source(activation, checkpoints.read(path).tensors, published)


def _from_hub(what: str, repository: str, *files: str) -> Path:
    """Fetch the first of the files that a model's repository has; it must have one of them."""
    if (path := hub.find(what, repository, *files)) is None:
        raise BackboneError(f"backbone.name: {what} has none of the files {', '.join(files)}; give another model")
    return path


def _disagreement(name: str, what: str, trained: Activation) -> BackboneError:
    import open_clip

    plain = name.removesuffix(QUICK)
    quick = plain + QUICK if plain + QUICK in open_clip.list_models() else plain
    return BackboneError(
        f"backbone.activation: {what} was trained with {trained} and would run with the other activation; "
        f"use backbone.name={quick if trained == 'quick_gelu' else plain} and backbone.activation={trained}"
    )


def _build(name: str, config: dict[str, Any], activation: Activation) -> Any:
    """Build the open_clip model with seeded standard initialization."""
    import torch
    from open_clip.model import CLIP, CustomTextCLIP

    config = config | {"quick_gelu": activation == "quick_gelu"}
    vision = config["vision_cfg"]
    if "timm_model_name" in vision:
        if config["quick_gelu"]:
            raise BackboneError(f"backbone.activation: {name} has a timm image tower, which never uses quick_gelu")
        vision["timm_model_pretrained"] = False  # all weights come from one place
    build = CustomTextCLIP if config.pop("custom_text", False) else CLIP
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(0, "random weights", name))
        return build(**config).eval().requires_grad_(False)


def _spread(model: Any) -> None:
    """Double the initial matrices, so that random weights give clearly different features for different inputs."""
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(2)


def _image_spec(name: str, model: Any, options: Mapping[str, Any]) -> ImageSpec:
    from open_clip.transform import PreprocessCfg, merge_preprocess_dict
    from open_clip.utils import to_2tuple

    height, width = to_2tuple(model.visual.image_size)
    if height != width:
        raise BackboneError(f"backbone.name: {name} takes images of {height} x {width} pixels; they must be square")
    merged = merge_preprocess_dict(PreprocessCfg(), options)
    mean, std = tuple(merged["mean"]), tuple(merged["std"])
    return ImageSpec(height, mean, std, merged["interpolation"], merged["resize_mode"])


def _tokenizer(name: str, text: Mapping[str, Any]) -> Callable[[Sequence[str]], Tensor]:
    from open_clip.tokenizer import SimpleTokenizer

    length = text.get("context_length", 77)
    if name == ICON_CLIP:
        return ReducedTokenizer(reduced_ids(ICON_CLIP_FOLDER), length)
    tokenizer: Callable[[Sequence[str]], Tensor] = SimpleTokenizer(
        context_length=length, **text.get("tokenizer_kwargs", {})
    )
    return tokenizer


def _fingerprint(weights: Mapping[str, Any], activation: Activation) -> str:
    """The fingerprint of arrays, or of tensors."""
    digest = hashlib.sha256(activation.encode())
    for name, one in sorted(weights.items()):
        digest.update(f"\0{name} {tuple(one.shape)} torch.{str(one.dtype).removeprefix('torch.')}\0".encode())
        digest.update(np.asarray(one.reshape(-1)).data)
    return digest.hexdigest()[:16]

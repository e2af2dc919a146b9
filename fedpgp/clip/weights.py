"""The tensors of a CLIP checkpoint: found in the file, with open_clip's names, and copied into a model."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpgp.clip import hugging_face
from fedpgp.clip.checkpoint_files import INDEX, PART, Skipped, is_archive, open_tensors
from fedpgp.core.errors import BackboneError
from fedpgp.core.text import first_of

if TYPE_CHECKING:
    from torch import Tensor, nn

log = logging.getLogger(__name__)
log.setLevel(logging.INFO)

OPENAI_EXTRAS = ("input_resolution", "context_length", "vocab_size")  # OpenAI's state dicts hold these too
PREFIX = re.compile(r"(|.*?\.)(?:(?:text\.)?token_embedding\.weight|text_model\.embeddings\.token_embedding\.weight)")
"""Matches the token embedding, which every CLIP model has; its group is what a program put before the model's names."""
WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""Names that torch.compile, FSDP and activation checkpointing put between those of a model and its parts."""
NAMES_OF_TOWERS = {"text", *(tower.rstrip(".") for tower in hugging_face.TOWERS)}
"""Modules of other formats. What is unknown in them is part of another model."""
ADAPTER = re.compile(r"\.(?:lora_|base_layer\.)")
"""Names of a model whose low-rank updates are kept beside its weights."""
DEPTH = 4
"""Depth of mappings inside mappings that are searched for tensors."""


@dataclass(frozen=True)
class Weights:
    """The tensors of a checkpoint by name."""

    tensors: Mapping[str, Tensor]
    openai: bool
    """whether the checkpoint has OpenAI's format and was thus trained with QuickGELU"""
    hugging_face: bool
    """whether it was in Hugging Face's format"""
    place: str
    """where the tensors are in the file: dotted keys of the mappings, and the prefix of the names; "" if neither"""
    left_out: tuple[str, ...]
    """names beside the model's"""


def read(path: Path, key: str | None = None) -> Weights:
    """Read the weights of a CLIP model from a checkpoint of any training program.

    Bare state dicts, mappings and lists of them, and names behind a common prefix are read; anything else in the file
    is ignored and never unpickled. Names of Hugging Face become open_clip's.

    Args:
        key: `Weights.place`, if the file has several models.

    Raises:
        BackboneError: the file is missing or damaged, has no model, or several and no `key`, or is a TorchScript
            archive (which is a program) that OpenAI did not publish.
    """
    if not path.is_file():
        raise BackboneError(f"backbone.weights: no such file: {path}")
    if part := PART.fullmatch(path.name):
        raise BackboneError(f"{path}: one of several files of a checkpoint; give {''.join(part.groups())}{INDEX}")
    tree = open_tensors(path)
    mappings = list(_mappings(tree))
    models = {
        ".".join(filter(None, (place, prefix.rstrip(".")))): (prefix, tensors)
        for place, tensors in mappings
        for prefix in _prefixes(tensors)
    }
    if key is not None and key not in models:
        raise BackboneError(
            f"backbone.weights_key: {path} has no model {key!r}, only {_shown(models) or 'other tensors'}"
        )
    if len(models) > 1 and key is None:
        raise BackboneError(f"{path}: several models: {_shown(models)}; choose one by backbone.weights_key")
    if not models and len(mappings) == 1:  # whose names tell which model it is
        models = {mappings[0][0]: ("", mappings[0][1])}
    if not models:
        raise BackboneError(
            f"{path}: no weights of a CLIP model, only {_contents(tree)}; save the model's state_dict()"
        )
    place, (prefix, tensors) = next((place, model) for place, model in models.items() if key in (None, place))
    own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    left_out = tuple(name for name in tensors if not name.startswith(prefix))
    extras = [own.pop(name, None) for name in OPENAI_EXTRAS]
    openai, foreign = is_archive(path) or None not in extras, hugging_face.is_named_so(own)
    return Weights(hugging_face.renamed(own) if foreign else own, openai, foreign, place, left_out)


def fill(model: nn.Module, weights: Mapping[str, Tensor], what: str) -> None:
    """Copy weights into an open_clip `CLIP` or `CustomTextCLIP`; names of older formats are translated.

    Tensors of modules that the model does not have, such as a loss or a classifier, are left out with a message.

    Raises:
        BackboneError: tensors are missing, unknown, of another shape or not finite; starts with `what`.
    """
    from open_clip.convert import convert_state_dict
    from open_clip.model import convert_to_custom_text_state_dict

    tensors, expected = dict(convert_state_dict(model, dict(weights))), model.state_dict()
    modules = {name.partition(".")[0] for name in (*expected, *dict(model.named_buffers()))} | NAMES_OF_TOWERS
    beside = [name for name in tensors if name.partition(".")[0] not in modules]
    if hasattr(model, "text"):
        tensors = convert_to_custom_text_state_dict(tensors)
    else:
        tensors = {name.removeprefix("text."): tensor for name, tensor in tensors.items()}
    for name in dict(model.named_buffers()).keys() - expected.keys():
        tensors.pop(name, None)  # a constant, such as the causal mask, which a scripted model saves too
    if "logit_scale" in tensors and tensors["logit_scale"].numel() == 1:  # () and (1,) are both in use
        tensors["logit_scale"] = tensors["logit_scale"].reshape(expected["logit_scale"].shape)
    misfits = {
        "missing": [name for name in expected if name not in tensors],
        "unknown": [name for name in tensors if name not in expected],
        "of another shape": [
            f"{name} {tuple(tensors[name].shape)} instead of {tuple(tensor.shape)}"
            for name, tensor in expected.items()
            if name in tensors and tensors[name].shape != tensor.shape
        ],
    }
    if beside and misfits == {"missing": [], "unknown": beside, "of another shape": []}:
        log.info("%s: not used: %s", what, first_of(beside, 3))
        tensors = {name: tensors[name] for name in expected}
    elif any(misfits.values()):
        difference = "; ".join(f"{kind}: {first_of(names, 3)}" for kind, names in misfits.items() if names)
        adapters = any(ADAPTER.search(name) for name in misfits["unknown"])
        advice = "merge its adapters and save it again" if adapters else "check backbone.name"
        raise BackboneError(f"{what}: the checkpoint does not fit this model: {difference}; {advice}")
    floats = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
    not_finite = [name for name, tensor in floats.items() if not tensor.isfinite().all()]
    if not_finite:
        raise BackboneError(f"{what}: not finite: {first_of(not_finite, 3)}; the file is damaged, fetch it again")
    model.load_state_dict(tensors)


def _mappings(tree: Any, place: str = "", depth: int = DEPTH) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield the tensors of each mapping inside `tree` by name, with the dotted keys that lead to it."""
    from torch import Tensor

    if isinstance(tree, list | tuple):
        tree = dict(enumerate(tree))
    if not isinstance(tree, Mapping):
        return
    tensors = {WRAPPERS.sub("", str(name)): value for name, value in tree.items() if isinstance(value, Tensor)}
    if tensors:
        yield place, tensors
    for name, value in tree.items() if depth else ():
        yield from _mappings(value, f"{place}.{name}" if place else str(name), depth - 1)


def _prefixes(names: Iterable[str]) -> list[str]:
    matches = (PREFIX.fullmatch(name) for name in names)
    return sorted({match.group(1) for match in matches if match})


def _shown(models: Mapping[str, Any]) -> str:
    return ", ".join(place or '"" (no prefix)' for place in models)


def _contents(tree: Any) -> str:
    """Name the entries of a mapping that holds no model, or the type of another object."""
    if isinstance(tree, Mapping) and tree:
        return first_of([f"{name} ({_kind(value)})" for name, value in tree.items()])
    return f"{_kind(tree)}"


def _kind(value: Any) -> str:
    if isinstance(value, Skipped):
        return f"a {type(value).__module__}.{type(value).__name__}, a Python object, which is never loaded"
    return "a mapping" if isinstance(value, Mapping) else type(value).__name__

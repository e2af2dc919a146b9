"""Checkpoint files, read without ever running code from them."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpgp.core.errors import BackboneError
from fedpgp.core.text import first_of

if TYPE_CHECKING:
    from torch import Tensor, nn

OPENAI_EXTRAS = ("input_resolution", "context_length", "vocab_size")  # OpenAI's state dicts hold these too


@dataclass(frozen=True)
class Weights:
    """The tensors of a checkpoint by name."""

    tensors: Mapping[str, Tensor]
    openai: bool
    """True: in OpenAI's own format, hence trained with QuickGELU"""


def read(path: Path) -> Weights:
    """Read a state dict, an open_clip training checkpoint, a safetensors file or one of OpenAI's archives.

    Raises:
        BackboneError: the file is missing, torn, holds anything but tensors, or is a TorchScript archive
            (which is a program) that OpenAI did not publish.
    """
    from torch import Tensor

    if not path.is_file():
        raise BackboneError(f"backbone.weights: no such file: {path}")
    archive = is_archive(path)
    checkpoint = _open_archive(path) if archive else _open(path)
    state = checkpoint.get("state_dict", checkpoint) if isinstance(checkpoint, Mapping) else None
    if not isinstance(state, Mapping):
        raise _unreadable(path)
    tensors = {str(name).removeprefix("module."): tensor for name, tensor in state.items()}
    extras = [tensors.pop(name, None) for name in OPENAI_EXTRAS]
    if not tensors or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise _unreadable(path)
    return Weights(tensors, openai=archive or None not in extras)


def is_archive(path: Path) -> bool:
    """Whether a file is a TorchScript archive, told from its list of contents alone."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        return False
    return any(name.endswith("/constants.pkl") or "/code/" in name for name in names)


def published_digests() -> frozenset[str]:
    """SHA-256 of the archives that OpenAI published, taken from the addresses where it did."""
    from open_clip import pretrained

    urls = (pretrained.get_pretrained_url(*entry) for entry in pretrained.list_pretrained())
    return frozenset(url.split("/")[-2] for url in urls if "openaipublic" in url)


def fill(model: nn.Module, weights: Weights, what: str) -> None:
    """Copy the weights into an open_clip model, which must have exactly these tensors.

    Args:
        model: a `CLIP` or `CustomTextCLIP`
        weights: as read; names of older formats are translated
        what: model and file, for the error

    Raises:
        BackboneError: tensors are missing, unknown, of another shape or not finite; the first of each are listed.
    """
    from open_clip.convert import convert_state_dict
    from open_clip.model import convert_to_custom_text_state_dict

    tensors = dict(convert_state_dict(model, dict(weights.tensors)))
    if hasattr(model, "text"):
        tensors = convert_to_custom_text_state_dict(tensors)
    wanted = model.state_dict()
    for name in dict(model.named_buffers()).keys() - wanted.keys():
        tensors.pop(name, None)  # a constant, such as the causal mask, which a scripted model saves too
    if "logit_scale" in tensors and tensors["logit_scale"].numel() == 1:  # () and (1,) are both in use
        tensors["logit_scale"] = tensors["logit_scale"].reshape(wanted["logit_scale"].shape)
    shapes = [
        f"{name} {tuple(tensors[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    misfits = {
        "missing": [name for name in wanted if name not in tensors],
        "unknown": [name for name in tensors if name not in wanted],
        "of another shape": shapes,
    }
    hollow = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if any(misfits.values()):
        told = "; ".join(f"{kind}: {first_of(names, 3)}" for kind, names in misfits.items() if names)
        raise BackboneError(f"{what}: the checkpoint belongs to another model: {told}; check backbone.name")
    if hollow:
        raise BackboneError(f"{what}: not finite: {first_of(hollow, 3)}; the file is damaged, fetch it again")
    model.load_state_dict(tensors)


def _open(path: Path) -> Any:
    import torch
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a parser makes of a foreign or torn file
        raise _unreadable(path) from error


def _open_archive(path: Path) -> Mapping[str, Tensor]:
    import torch

    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest not in published_digests():
            raise BackboneError(
                f"{path}: a TorchScript archive is a program, and this one (SHA-256 {digest}) is not among those that "
                "OpenAI published; save its state_dict() where you trust it and give that file"
            )
        file.seek(0)
        state: Mapping[str, Tensor] = torch.jit.load(file, map_location="cpu").state_dict()
    return state


def _unreadable(path: Path) -> BackboneError:
    return BackboneError(
        f"{path}: not a checkpoint of plain tensors: torn, another format, or it holds Python objects, which are "
        "never loaded; save the model's state_dict() with torch.save or safetensors"
    )

"""Reads checkpoint files without running code from them."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpgp.core.errors import BackboneError
from fedpgp.core.text import first_of

if TYPE_CHECKING:
    from torch import Tensor, nn

OPENAI_EXTRAS = ("input_resolution", "context_length", "vocab_size")  # OpenAI's state dicts hold these too


def read(path: Path) -> tuple[dict[str, Tensor], bool]:
    """Read the tensors of a checkpoint, and whether it has OpenAI's format and was thus trained with QuickGELU.

    It is a state dict, an open_clip training checkpoint, a safetensors file or an archive of OpenAI.

    Raises:
        BackboneError: the file is missing or damaged, contains anything but tensors, or is a TorchScript archive
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
    return tensors, archive or None not in extras


def is_archive(path: Path) -> bool:
    """Return whether a file is a TorchScript archive, by its list of contents."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        return False
    return any(name.endswith("/constants.pkl") or "/code/" in name for name in names)


def published_digests() -> frozenset[str]:
    """Return the SHA-256 digests of the archives that OpenAI published, which are part of their URLs."""
    from open_clip import pretrained

    urls = (pretrained.get_pretrained_url(*entry) for entry in pretrained.list_pretrained())
    return frozenset(url.split("/")[-2] for url in urls if "openaipublic" in url)


def fill(model: nn.Module, weights: Mapping[str, Tensor], what: str) -> None:
    """Copy weights into an open_clip `CLIP` or `CustomTextCLIP`; names of older formats are translated.

    Raises:
        BackboneError: tensors are missing, unknown, of another shape or not finite; starts with `what`.
    """
    from open_clip.convert import convert_state_dict
    from open_clip.model import convert_to_custom_text_state_dict

    tensors = dict(convert_state_dict(model, dict(weights)))
    if hasattr(model, "text"):
        tensors = convert_to_custom_text_state_dict(tensors)
    expected = model.state_dict()
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
    if any(misfits.values()):
        difference = "; ".join(f"{kind}: {first_of(names, 3)}" for kind, names in misfits.items() if names)
        raise BackboneError(f"{what}: the checkpoint belongs to another model: {difference}; check backbone.name")
    floats = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
    not_finite = [name for name, tensor in floats.items() if not tensor.isfinite().all()]
    if not_finite:
        raise BackboneError(f"{what}: not finite: {first_of(not_finite, 3)}; the file is damaged, fetch it again")
    model.load_state_dict(tensors)


def _open(path: Path) -> Any:
    import torch
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # parsers raise anything for foreign or damaged files
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
        f"{path}: not a checkpoint of plain tensors: damaged, another format, or it contains Python objects, which are "
        "never loaded; save the model's state_dict() with torch.save or safetensors"
    )

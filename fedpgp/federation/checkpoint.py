"""The state of a federation on disk: one checksummed file per round, enough to go on from bit for bit."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch

from fedpgp.errors import RunError
from fedpgp.files import write_durably
from fedpgp.tree import ParamTree


@dataclass(frozen=True)
class State:
    """All that a federation carries from one round to the next."""

    round: int
    """last round done; 0: none"""
    shared: ParamTree
    """what the server holds"""
    personal: ParamTree
    """what the clients hold, stacked: every entry is (K, ...)"""


def save(folder: Path, state: State, config_digest: str) -> dict[str, Any]:
    """Write `state` into `folder`, durably.

    Returns:
        The reference that `load` needs: file, round, bytes, crc32, config_digest and the keys in order. Plain JSON.
    """
    parts = {"shared": state.shared, "personal": state.personal}
    tensors = {f"{part}/{key}": value for part, tree in parts.items() for key, value in tree.items()}
    content = safetensors.torch.save({key: value.detach().cpu().contiguous() for key, value in tensors.items()})
    path = folder / f"{state.round:06d}.safetensors"
    write_durably(path, content)
    return {
        "file": path.name,
        "round": state.round,
        "bytes": len(content),
        "crc32": zlib.crc32(content),
        "config_digest": config_digest,
        **{part: list(tree) for part, tree in parts.items()},
    }


def load(folder: Path, reference: Mapping[str, Any], config_digest: str) -> State:
    """The state that `save` wrote, on the CPU.

    Raises:
        RunError: the checkpoint belongs to another configuration, is missing, or is torn.
    """
    path = folder / reference["file"]
    if reference["config_digest"] != config_digest:
        raise RunError(f"{path}: belongs to configuration {reference['config_digest']}, not to {config_digest}")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RunError(f"{path}: checkpoint cannot be read ({error.strerror})") from None
    if len(content) != reference["bytes"]:
        raise RunError(f"{path}: torn checkpoint, {len(content)} bytes instead of {reference['bytes']}")
    if zlib.crc32(content) != reference["crc32"]:
        raise RunError(f"{path}: damaged checkpoint, its checksum differs from the one that was recorded")
    tensors = safetensors.torch.load(content)
    shared, personal = ({key: tensors[f"{part}/{key}"] for key in reference[part]} for part in ("shared", "personal"))
    return State(reference["round"], shared, personal)


def prune(folder: Path, keep: Collection[str]) -> None:
    """Remove all checkpoints but the files named in `keep`."""
    for path in folder.glob("*.safetensors"):
        if path.name not in keep:
            path.unlink()

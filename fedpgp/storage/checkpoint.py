"""The state of a federation on disk: a base and what changed since, checksummed, enough to go on from bit for bit."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from fedpgp.core.errors import RunError
from fedpgp.core.files import write_durably
from fedpgp.core.tree import rows
from fedpgp.federation.state import State

LONGEST_CHAIN = 20
"""Files that a state is read from at most; then a new base is written."""
DELTA_SHARE = 1 / 3
"""Largest share of the clients that a delta holds; above it a base costs no more."""
ROWS = "rows"


def save(
    folder: Path,
    state: State,
    config_digest: str,
    changed: np.ndarray | None = None,
    previous: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write `state` into `folder`, durably: whole, or as what changed since `previous`.

    Args:
        changed: clients whose personal parameters differ from the state that `previous` refers to; None: all.
        previous: reference of the round before; None: there is none to build upon.

    Returns:
        The reference that `load` needs: round, config_digest, the keys in order, and the files from the base on with
        their lengths and checksums. Plain JSON.
    """
    clients = len(next(iter(state.personal.values()), ()))
    files: list[dict[str, Any]] = list(previous["files"]) if previous else []
    few = changed is not None and clients > 0 and len(changed) <= DELTA_SHARE * clients
    tensors = {f"shared/{key}": value for key, value in state.shared.items()}
    if few and changed is not None and 0 < len(files) < LONGEST_CHAIN:
        index = torch.from_numpy(np.asarray(changed, dtype=np.int64))
        tensors |= {ROWS: index, **{f"personal/{key}": value for key, value in rows(state.personal, index).items()}}
    else:
        files = []
        tensors |= {f"personal/{key}": value for key, value in state.personal.items()}
    content = safetensors.torch.save({key: value.detach().cpu().contiguous() for key, value in tensors.items()})
    path = folder / f"{state.round:06d}.safetensors"
    write_durably(path, content)
    return {
        "round": state.round,
        "config_digest": config_digest,
        "shared": list(state.shared),
        "personal": list(state.personal),
        "files": [*files, {"file": path.name, "bytes": len(content), "crc32": zlib.crc32(content)}],
    }


def load(folder: Path, reference: Mapping[str, Any], config_digest: str) -> State:
    """The state that `save` wrote, on the CPU.

    Raises:
        RunError: the checkpoint belongs to another configuration, or a file of it is missing, torn or damaged.
    """
    if reference["config_digest"] != config_digest:
        newest = folder / reference["files"][-1]["file"]
        raise RunError(f"{newest}: belongs to configuration {reference['config_digest']}, not to {config_digest}")
    first, *deltas = (_read(folder, item) for item in reference["files"])
    personal = {key: first[f"personal/{key}"].clone() for key in reference["personal"]}  # to be written to
    newest = deltas[-1] if deltas else first
    for delta in deltas:
        for key, value in personal.items():
            value[delta[ROWS]] = delta[f"personal/{key}"]
    return State(reference["round"], {key: newest[f"shared/{key}"] for key in reference["shared"]}, personal)


def files_of(reference: Mapping[str, Any]) -> set[str]:
    """The names of the files that a reference needs."""
    return {item["file"] for item in reference["files"]}


def superfluous(folder: Path, keep: Collection[str]) -> list[Path]:
    """All checkpoints but the files named in `keep`."""
    return [path for path in folder.glob("*.safetensors") if path.name not in keep]


def _read(folder: Path, item: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    path = folder / item["file"]
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RunError(f"{path}: checkpoint cannot be read ({error.strerror})") from None
    if len(content) != item["bytes"]:
        raise RunError(f"{path}: torn checkpoint, {len(content)} bytes instead of {item['bytes']}")
    if zlib.crc32(content) != item["crc32"]:
        raise RunError(f"{path}: damaged checkpoint, its checksum differs from the one that was recorded")
    return safetensors.torch.load(content)

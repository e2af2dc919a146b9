"""Checkpoints of a federation: a base and deltas with checksums, from which a run resumes bit for bit."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np

from fedpgp.core.errors import RunError
from fedpgp.core.files import access_errors, write_durably
from fedpgp.core.tree import ParamTree, rows
from fedpgp.federation.state import State

LONGEST_CHAIN = 20  # most files that a state is read from; then a new base is written
DELTA_SHARE = 1 / 3  # largest share of clients in a delta; a larger delta would cost as much as a base
ROWS = "rows"
COMMON, OF_CLIENTS = ("shared", "server", "privacy"), ("personal", "kept")
"""The trees of a state that have no client axis, and those that are stacked (K, ...)."""


def save(
    folder: Path,
    state: State,
    config_digest: str,
    changed: np.ndarray | None = None,
    previous: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write a state durably, as a base or as a delta to `previous`.

    Returns the reference for `load`, as plain JSON: round, config_digest, keys in order, and the files from the base on
    with lengths and checksums.

    Args:
        changed: clients whose own entries differ from those of `previous`; None: all.
        previous: reference of the previous round; None: write a base.
    """
    import safetensors.torch
    import torch

    common = {name: getattr(state, name) for name in COMMON}
    of_clients = {name: getattr(state, name) for name in OF_CLIENTS}
    stacked = _prefixed(of_clients)
    clients = len(next(iter(stacked.values()), ()))
    files: list[dict[str, Any]] = list(previous["files"]) if previous else []
    delta = changed is not None and 0 < len(files) < LONGEST_CHAIN and len(changed) <= DELTA_SHARE * clients
    tensors = _prefixed(common)
    if delta and clients:
        index = torch.from_numpy(np.asarray(changed, dtype=np.int64))
        tensors |= {ROWS: index, **rows(stacked, index)}
    else:
        files = []
        tensors |= stacked
    content = safetensors.torch.save({key: value.detach().cpu().contiguous() for key, value in tensors.items()})
    path = folder / f"{state.round:06d}.safetensors"
    write_durably(path, content)
    return {
        "round": state.round,
        "config_digest": config_digest,
        **{name: list(tree) for name, tree in {**common, **of_clients}.items()},
        "files": [*files, {"file": path.name, "bytes": len(content), "crc32": zlib.crc32(content)}],
    }


def load(folder: Path, reference: Mapping[str, Any], config_digest: str, arrays: bool = False) -> State:
    """Load the state of a reference, on the CPU; raise `RunError` if it is another configuration's or damaged.

    Args:
        arrays: load NumPy arrays in place of tensors, without importing torch.
    """
    if reference["config_digest"] != config_digest:
        newest = folder / reference["files"][-1]["file"]
        raise RunError(f"{newest}: belongs to configuration {reference['config_digest']}, not {config_digest}")
    first, *deltas = (_read(folder, item, arrays) for item in reference["files"])
    newest = deltas[-1] if deltas else first
    stacked = {name: deepcopy(first[name]) for name in _names(reference, OF_CLIENTS)}  # writable
    for delta in deltas:
        for name, value in stacked.items():
            value[delta[ROWS]] = delta[name]
    tensors = {name: newest[name] for name in _names(reference, COMMON)} | stacked
    trees = {tree: {key: tensors[f"{tree}/{key}"] for key in reference.get(tree, ())} for tree in COMMON + OF_CLIENTS}
    return State(reference["round"], **trees)


def files_of(reference: Mapping[str, Any]) -> set[str]:
    """Names of the files of a reference."""
    return {item["file"] for item in reference["files"]}


def superfluous(folder: Path, keep: Collection[str]) -> list[Path]:
    """List the checkpoint files whose names are not in `keep`."""
    return [path for path in folder.glob("*.safetensors") if path.name not in keep]


def _prefixed(trees: Mapping[str, ParamTree]) -> ParamTree:
    return {f"{name}/{key}": value for name, tree in trees.items() for key, value in tree.items()}


def _names(reference: Mapping[str, Any], trees: Sequence[str]) -> list[str]:
    return [f"{tree}/{key}" for tree in trees for key in reference.get(tree, ())]  # older ones have fewer trees


def _read(folder: Path, item: Mapping[str, Any], arrays: bool) -> dict[str, Any]:
    path = folder / item["file"]
    try:
        with access_errors(path):
            content = path.read_bytes()
    except OSError as error:
        raise RunError(f"{path}: checkpoint cannot be read ({error.strerror})") from None
    if len(content) != item["bytes"]:
        raise RunError(f"{path}: truncated checkpoint, {len(content)} bytes instead of {item['bytes']}")
    if zlib.crc32(content) != item["crc32"]:
        raise RunError(f"{path}: damaged checkpoint, its checksum differs from the recorded one")
    if not arrays:
        import safetensors.torch

        return safetensors.torch.load(content)
    import safetensors.numpy

    try:
        return safetensors.numpy.load(content)
    except (KeyError, TypeError) as error:
        raise RunError(f"{path}: has numbers that NumPy lacks ({error})") from None

"""Checkpoints of a federation: files with checksums of what changed, from which a run resumes bit for bit."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import numpy as np

from fedpgp.core.errors import RunError
from fedpgp.core.files import access_errors, write_durably
from fedpgp.core.tree import ParamTree, rows
from fedpgp.federation.client_rows import ClientRows, InMemory, OnDisk, PersonalOf
from fedpgp.federation.state import State
from fedpgp.storage import segments

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
    """Write a state durably: as a base, or as what changed since `previous`.

    Returns the reference for `load`, as plain JSON: round, config_digest, keys in order, and the files from the base on
    with lengths and checksums. Rows that are held on disk never form a base, see `segments`; then the reference also
    has the number of clients and whether their first rows differ.

    Args:
        changed: clients whose own entries differ from those of `previous`; None: all. Rows on disk know their own.
        previous: reference of the previous round; None: there is none.
    """
    common = {name: getattr(state, name) for name in COMMON}
    of_clients = {name: getattr(state, name) for name in OF_CLIENTS}
    on_disk = {name: rows for name, rows in of_clients.items() if isinstance(rows, OnDisk)}
    files: list[dict[str, Any]] = list(previous["files"]) if previous else []
    reference: dict[str, Any] = {
        "round": state.round,
        "config_digest": config_digest,
        **{name: list(tree) for name, tree in {**common, **of_clients}.items()},
    }
    if on_disk:
        files = _save_segment(folder, state.round, _prefixed(common), on_disk, files)
        reference["clients"] = max(rows.num_clients for rows in on_disk.values())
        reference["differs"] = any(rows.first.personal_of is not None for rows in on_disk.values())
        return {**reference, "files": files}
    return {**reference, "files": _save_stacked(folder, state.round, common, of_clients, changed, files)}


def _save_stacked(
    folder: Path,
    round: int,
    common: Mapping[str, ParamTree],
    of_clients: Mapping[str, ClientRows],
    changed: np.ndarray | None,
    files: list[dict[str, Any]],
) -> list[dict[str, Any]]:
    """Write a base, or a delta to the `files` of the round before."""
    import torch

    tensors, stacked = _prefixed(common), _prefixed(of_clients)
    clients = len(next(iter(stacked.values()), ()))
    delta = changed is not None and 0 < len(files) < LONGEST_CHAIN and len(changed) <= DELTA_SHARE * clients
    if delta and clients:
        index = torch.from_numpy(np.asarray(changed, dtype=np.int64))
        return [*files, _write(folder, f"{round:06d}", tensors | {ROWS: index, **rows(stacked, index)})]
    return [_write(folder, f"{round:06d}", tensors | stacked)]


def _save_segment(
    folder: Path, round: int, common: ParamTree, trees: Mapping[str, OnDisk], files: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Write the rows that changed since the `files` of the round before, merged with some of these."""
    since = files[-1]["segment"] if files else 0
    changed = sum(map(len, segments.pieces(trees, since)))
    files = files[: segments.kept(files, changed)]
    *more, last = segments.pieces(trees, files[-1]["segment"] if files else 0)
    for number, clients in enumerate(more):
        item = _write(folder, f"{round:06d}-{number:04d}", segments.tensors(trees, clients))
        files.append({**item, "segment": round, "rows": len(clients)})
    content = common | segments.first_tensors(trees) | segments.tensors(trees, last)
    return [*files, {**_write(folder, f"{round:06d}", content), "segment": round, "rows": len(last)}]


def _write(folder: Path, name: str, tensors: ParamTree) -> dict[str, Any]:
    """Write a file durably; return what a reference says of it."""
    import safetensors.torch

    content = safetensors.torch.save({key: value.detach().cpu().contiguous() for key, value in tensors.items()})
    path = folder / f"{name}.safetensors"
    write_durably(path, content)
    return {"file": path.name, "bytes": len(content), "crc32": zlib.crc32(content)}


def load(
    folder: Path,
    reference: Mapping[str, Any],
    config_digest: str,
    arrays: bool = False,
    *,
    scratch: Path | None = None,
    personal_of: PersonalOf | None = None,
    clients: np.ndarray | None = None,
) -> State:
    """Load the state of a reference, on the CPU; raise `RunError` if it is another configuration's or damaged.

    Rows that were held on disk are again, and are read file by file.

    Args:
        arrays: load NumPy arrays in place of tensors, without importing torch unless rows are held on disk.
        scratch: folder of such rows; None: that of temporary files.
        personal_of: in which first rows of clients differ, if they do.
        clients: load only the rows of these, if they are held on disk; others have their first row. None: all.
    """
    if reference["config_digest"] != config_digest:
        newest = folder / reference["files"][-1]["file"]
        raise RunError(f"{newest}: belongs to configuration {reference['config_digest']}, not {config_digest}")
    if "clients" in reference:
        return _load_segments(folder, reference, arrays, scratch or Path(gettempdir()), personal_of, clients)
    first, *deltas = (_read(folder, item, arrays) for item in reference["files"])
    newest = deltas[-1] if deltas else first
    stacked = {name: deepcopy(first[name]) for name in _names(reference, OF_CLIENTS)}  # writable
    for delta in deltas:
        for name, value in stacked.items():
            value[delta[ROWS]] = delta[name]
    tensors = {name: newest[name] for name in _names(reference, COMMON)} | stacked
    trees = {tree: {key: tensors[f"{tree}/{key}"] for key in reference.get(tree, ())} for tree in COMMON + OF_CLIENTS}
    return _state(reference["round"], trees, {name: InMemory(trees[name]) for name in OF_CLIENTS})


def _load_segments(
    folder: Path,
    reference: Mapping[str, Any],
    arrays: bool,
    scratch: Path,
    personal_of: PersonalOf | None,
    wanted: np.ndarray | None,
) -> State:
    *older, item = reference["files"]
    if reference["differs"] and personal_of is None and (wanted is None or len(wanted)):
        raise RunError(f"{folder / item['file']}: the first rows of clients differ by method; export single clients")
    newest = _read(folder, item, arrays=False)
    trees = {}
    for name in OF_CLIENTS:
        if keys := reference[name]:
            first = segments.first_rows(newest, name, keys)
            first = replace(first, personal_of=personal_of) if name == "personal" else first
            trees[name] = OnDisk(scratch, reference["clients"], first)
    for tree in trees.values() if arrays else ():
        tree.check_fits()
    for one in older:
        segments.restore(trees, one["segment"], _read(folder, one, arrays=True), wanted)
    content = {name: value.numpy() for name, value in newest.items()}
    segments.restore(trees, item["segment"], content, wanted)
    common = {tree: {key: newest[f"{tree}/{key}"] for key in reference[tree]} for tree in COMMON}
    of_clients: dict[str, ClientRows] = {name: trees.get(name, InMemory({})) for name in OF_CLIENTS}
    if arrays:
        common = {name: {key: value.numpy() for key, value in tree.items()} for name, tree in common.items()}
        of_clients = {
            name: InMemory({key: value.numpy() for key, value in tree.items()}) for name, tree in of_clients.items()
        }
    return _state(reference["round"], common, of_clients)


def _state(round: int, common: Mapping[str, ParamTree], of_clients: Mapping[str, ClientRows]) -> State:
    return State(
        round, common["shared"], of_clients["personal"], common["server"], of_clients["kept"], common["privacy"]
    )


def files_of(reference: Mapping[str, Any]) -> set[str]:
    """Names of the files of a reference."""
    return {item["file"] for item in reference["files"]}


def written_in(round: int, reference: Mapping[str, Any]) -> list[str]:
    """Names of the files of a reference that were written in a round."""
    return [item["file"] for item in reference["files"] if item["file"].startswith(f"{round:06d}")]


def superfluous(folder: Path, keep: Collection[str]) -> list[Path]:
    """List the checkpoint files whose names are not in `keep`."""
    return [path for path in folder.glob("*.safetensors") if path.name not in keep]


def _prefixed(trees: Mapping[str, Mapping[str, Any]]) -> ParamTree:
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

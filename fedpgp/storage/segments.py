"""Checkpoints of rows that are held on disk: files of what changed, merged so that there are few and none is large."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from fedpgp.core.tree import ParamTree
from fedpgp.federation.client_rows import Arrays, FirstRows, OnDisk

CLIENTS, FIRST = "rows", "first"
"""In a file: the clients whose rows it has, and the prefix of the row of those that never trained."""
FILE_BYTES = 2**26
"""Most bytes of rows in a file, unless one row has more."""
MOST_SEGMENTS = 20
"""Segments are merged when there would be more: those that a state is read from."""

Files = Sequence[Mapping[str, Any]]
"""Files of a reference; those with the same `segment`, the round in which they were written, are a segment: all rows
that changed after the segment before it."""


def kept(files: Files, changed: int) -> int:
    """How many of the files of the round before remain, while the others are merged with the rows that changed.

    All, until there are too many segments. Then a segment is merged with all later ones if these have as many rows, so
    that each remaining one is larger than all after it: a row is written again a logarithmic number of times.

    Args:
        changed: rows that changed in this round.
    """
    segments = [(len(own), sum(one["rows"] for one in own)) for own in _segments(files)]
    if len(segments) < MOST_SEGMENTS:
        return len(files)
    later = [changed + sum(rows for _, rows in segments[index + 1 :]) for index in range(len(segments))]
    stay = next((index for index, (_, rows) in enumerate(segments) if rows <= later[index]), len(segments))
    return sum(count for count, _ in segments[:stay])


def pieces(trees: Mapping[str, OnDisk], since: int) -> list[np.ndarray]:
    """The clients whose rows changed after round `since`, divided among files; at least one, which may have none."""
    clients = np.unique(np.concatenate([rows.changed_after(since) for rows in trees.values()]))
    size = max(1, FILE_BYTES // sum(rows.row_bytes for rows in trees.values()))
    return [clients[start : start + size] for start in range(0, max(1, len(clients)), size)]


def tensors(trees: Mapping[str, OnDisk], clients: np.ndarray) -> ParamTree:
    """The content of a file: the rows of these clients."""
    import torch

    own = {f"{name}/{key}": value for name, rows in trees.items() for key, value in rows.of(clients).items()}
    return {key: torch.from_numpy(value) for key, value in {CLIENTS: clients, **own}.items()}


def first_tensors(trees: Mapping[str, OnDisk]) -> ParamTree:
    """What the newest file has in addition: the row of the clients that never trained."""
    return {f"{FIRST}/{name}/{key}": value for name, rows in trees.items() for key, value in rows.first.common.items()}


def first_rows(content: ParamTree, name: str, keys: Sequence[str]) -> FirstRows:
    """What `first_tensors` wrote of a tree."""
    return FirstRows({key: content[f"{FIRST}/{name}/{key}"] for key in keys})


def restore(trees: Mapping[str, OnDisk], segment: int, content: Arrays, wanted: np.ndarray | None) -> None:
    """Write the rows of a file of a segment into the trees; `wanted`: of these clients alone."""
    chosen = slice(None) if wanted is None else np.isin(content[CLIENTS], wanted)
    for name, rows in trees.items():
        own = {key: np.asarray(content[f"{name}/{key}"])[chosen] for key in rows}
        rows.write(segment, np.asarray(content[CLIENTS])[chosen], own)


def _segments(files: Files) -> list[list[Mapping[str, Any]]]:
    return [list(own) for _, own in groupby(files, key=lambda one: one["segment"])]

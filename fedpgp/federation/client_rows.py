"""The parameters of single clients, stacked by client: in memory, or in a file that grows as clients train."""

from __future__ import annotations

import mmap
import os
import tempfile
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedpgp.core import memory
from fedpgp.core.errors import RunError
from fedpgp.core.text import memory_size
from fedpgp.core.tree import ParamTree, num_bytes, stack

if TYPE_CHECKING:
    from torch import Tensor

Arrays = Mapping[str, np.ndarray]
PersonalOf = Callable[[int, ParamTree], ParamTree]
"""`DiffersByClient.personal_of`: the entries in which a client's first row differs from that of all."""
CHUNK_BYTES = 2**26
"""By how much the file grows at a time."""


class ClientRows(Mapping[str, "Tensor"]):
    """A parameter tree with a client axis in front: `rows[key]` is (K, ...), of all clients."""

    @property
    @abstractmethod
    def num_bytes(self) -> int:
        """Bytes of the rows of all clients."""

    @abstractmethod
    def of(self, clients: np.ndarray) -> dict[str, np.ndarray]:
        """The rows of some clients (M, ...), ascending; they may share memory with the tree and are only read."""

    @abstractmethod
    def write(self, round: int, clients: np.ndarray, tree: Arrays) -> None:
        """Replace the rows of some clients (M, ...), ascending, by those after `round`; other keys keep theirs."""


class InMemory(ClientRows):
    """All rows as stacked tensors, or as NumPy arrays."""

    def __init__(self, tree: Mapping[str, Any]) -> None:
        self._tree = dict(tree)

    def __getitem__(self, key: str) -> Tensor:
        value: Tensor = self._tree[key]
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._tree)

    def __len__(self) -> int:
        return len(self._tree)

    @property
    def num_bytes(self) -> int:
        """See `ClientRows.num_bytes`."""
        return sum(value.nbytes for value in self._tree.values())

    def of(self, clients: np.ndarray) -> dict[str, np.ndarray]:
        """See `ClientRows.of`."""
        return {key: np.asarray(value)[_index(clients)] for key, value in self._tree.items()}

    def write(self, round: int, clients: np.ndarray, tree: Arrays) -> None:
        """See `ClientRows.write`."""
        for key, value in tree.items():
            np.asarray(self._tree[key])[_index(clients)] = value  # shares the memory of a tensor


@dataclass(frozen=True)
class FirstRows:
    """The rows of clients that were never written: one row for all, in which single clients may differ."""

    common: ParamTree  # without the client axis
    personal_of: PersonalOf | None = None
    """None: no client differs"""

    def of(self, clients: np.ndarray) -> ParamTree:
        """The first rows of some clients (M, ...)."""
        tree = stack(self.common, len(clients))
        if self.personal_of is not None:
            for index, client in enumerate(clients.tolist()):
                for key, value in self.personal_of(client, self.common).items():
                    tree[key][index] = value
        return tree


class OnDisk(ClientRows):
    """Rows in a memory-mapped file, in the order in which clients are first written; others take no space.

    The file has no name and ends with this object: it is a cache of what checkpoints hold. Its space is reserved before
    it is used, so that a full disk is an `OSError` of `write`.

    Args:
        folder: where the file lies.
    """

    def __init__(self, folder: Path, clients: int, first: FirstRows) -> None:
        self.first = first
        self.changed = np.zeros(clients, np.int32)
        """the round of each client's last change, of a merged checkpoint an upper bound; 0: never written"""
        fields = [(key, value.numpy().dtype, tuple(value.shape)) for key, value in first.common.items()]
        self._row = np.dtype(fields)
        self._slots = np.full(clients, -1, np.int32)
        self._used = 0
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        self._map: mmap.mmap | None = None
        self._records = np.empty(0, self._row)

    def __getitem__(self, key: str) -> Tensor:
        import torch

        self.check_fits()
        shape = (len(self._slots), *self.first.common[key].shape)
        found = np.empty(shape, self._row[key].base)
        for start in range(0, len(found), step := max(1, CHUNK_BYTES // self._row.itemsize)):
            clients = np.arange(start, min(start + step, len(found)))
            found[clients] = self.of(clients)[key]
        return torch.from_numpy(found)

    def __iter__(self) -> Iterator[str]:
        return iter(self.first.common)

    def __len__(self) -> int:
        return len(self.first.common)

    @property
    def num_bytes(self) -> int:
        """See `ClientRows.num_bytes`."""
        return len(self._slots) * self._row.itemsize

    @property
    def num_clients(self) -> int:
        """Number of all clients, K."""
        return len(self.changed)

    @property
    def row_bytes(self) -> int:
        """Bytes of the row of one client."""
        return self._row.itemsize

    def check_fits(self) -> None:
        """Raise `RunError` if the rows of all clients do not fit into memory."""
        if (free := memory.free()) is not None and self.num_bytes > free:
            raise RunError(
                f"the parameters of all {self.num_clients} clients take {memory_size(self.num_bytes)} of memory and "
                f"{memory_size(free)} are free; use those of single clients"
            )

    def changed_after(self, round: int) -> np.ndarray:
        """The clients whose rows changed in later rounds, ascending."""
        return np.flatnonzero(self.changed > round)

    def of(self, clients: np.ndarray) -> dict[str, np.ndarray]:
        """See `ClientRows.of`."""
        return _columns(self._rows_of(clients))

    def write(self, round: int, clients: np.ndarray, tree: Arrays) -> None:
        """See `ClientRows.write`."""
        if not tree:
            return
        rows = np.empty(len(clients), self._row) if len(tree) == len(self) else self._rows_of(clients)
        for key, value in tree.items():
            rows[key] = value
        new = clients[self._slots[clients] < 0]
        self._reserve(self._used + len(new))
        self._slots[new] = np.arange(self._used, self._used + len(new))
        self._used += len(new)
        self._records[self._slots[clients]] = rows
        self.changed[clients] = round
        self._release()

    def _rows_of(self, clients: np.ndarray) -> np.ndarray:
        slots = self._slots[clients]
        rows, new = np.empty(len(clients), self._row), slots < 0
        rows[~new] = self._records[slots[~new]]
        if new.any():
            for key, value in self.first.of(clients[new]).items():
                rows[key][new] = value.numpy()
        self._release()
        return rows

    def _reserve(self, count: int) -> None:
        """Let the file have room for that many rows."""
        if count <= len(self._records):
            return
        held = len(self._records) * self._row.itemsize
        size = -(-count * self._row.itemsize // CHUNK_BYTES) * CHUNK_BYTES
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(self._file.fileno(), held, size - held)
        else:  # macOS
            os.ftruncate(self._file.fileno(), size)
        self._map = mmap.mmap(self._file.fileno(), size)
        self._records = np.frombuffer(self._map, self._row, size // self._row.itemsize)

    def _release(self) -> None:
        """Leave the pages of the file to the kernel's cache, so that they do not count as memory of this process."""
        if self._map is not None:
            self._map.madvise(mmap.MADV_DONTNEED)


@dataclass(frozen=True)
class Place:
    """Where the rows of all clients are held: in memory up to a limit, beyond it in a file."""

    limit: float  # bytes of all rows together
    folder: Path  # of the file

    def hold(self, clients: int, *firsts: FirstRows) -> tuple[ClientRows, ...]:
        """The rows of clients that were never written, of each kind of parameters."""
        if clients * sum(num_bytes(first.common) for first in firsts) > self.limit:
            return tuple(OnDisk(self.folder, clients, first) if first.common else InMemory({}) for first in firsts)
        return tuple(InMemory(first.of(np.arange(clients))) for first in firsts)


IN_MEMORY = Place(inf, Path())


def _columns(rows: np.ndarray) -> dict[str, np.ndarray]:
    return {key: np.ascontiguousarray(rows[key]) for key in rows.dtype.names or ()}


def _index(clients: np.ndarray) -> np.ndarray | slice:
    """The sorted clients as an index: a slice, which copies nothing, if they are consecutive."""
    first, last = int(clients[0]), int(clients[-1])
    return slice(first, last + 1) if last - first + 1 == len(clients) else clients

"""Arrays of different lengths, one for each client, as one array: a million clients are no million Python objects."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np


@dataclass(frozen=True, eq=False)
class Ragged(Sequence[np.ndarray]):
    """A sequence of K arrays, which are views of a flat one.

    Args:
        flat: the arrays one after the other. [n]
        ends: where each of them ends. int64 [K]
    """

    flat: np.ndarray
    ends: np.ndarray

    @classmethod
    def of(cls, arrays: Iterable[np.ndarray]) -> Ragged:
        """Put arrays one after the other; a `Ragged` stays as it is."""
        if isinstance(arrays, Ragged):
            return arrays
        parts = list(arrays)
        flat = np.concatenate(parts) if parts else np.empty(0, np.int64)
        return cls(flat, np.cumsum([len(part) for part in parts], dtype=np.int64))

    @classmethod
    def joined(cls, parts: Sequence[Ragged]) -> Ragged:
        """The arrays of several sequences."""
        ends = np.cumsum(np.concatenate([part.counts for part in parts]), dtype=np.int64)
        return cls(np.concatenate([part.flat for part in parts]), ends)

    @property
    def counts(self) -> np.ndarray:
        """The length of each array. int64 [K]"""
        return np.diff(self.ends, prepend=0)

    @property
    def owners(self) -> np.ndarray:
        """The number of the array that each item of `flat` belongs to. int64 [n]"""
        return np.repeat(np.arange(len(self)), self.counts)

    def only(self, chosen: np.ndarray) -> Ragged:
        """The arrays with only those items of `flat` that are chosen. bool [n]"""
        before = np.concatenate([[0], np.cumsum(chosen)])
        return Ragged(self.flat[chosen], before[self.ends])

    def taken(self, values: np.ndarray) -> Ragged:
        """The arrays with the values at their items, which are indices."""
        return Ragged(values[self.flat], self.ends)

    def placed(self, at: np.ndarray, length: int) -> Ragged:
        """A sequence of that length with the arrays at ascending numbers `at`, and empty ones elsewhere."""
        counts = np.zeros(length, np.int64)
        counts[at] = self.counts
        return Ragged(self.flat, np.cumsum(counts))

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...

    @overload
    def __getitem__(self, index: slice) -> Ragged: ...

    def __getitem__(self, index: int | slice) -> np.ndarray | Ragged:
        if isinstance(index, slice):
            return Ragged.of([self[one] for one in range(*index.indices(len(self)))])
        own = range(len(self))[index]  # also from the end; raises IndexError
        found: np.ndarray = self.flat[self.ends[own - 1] if own else 0 : self.ends[own]]
        return found

    def __iter__(self) -> Iterator[np.ndarray]:
        start = 0
        for end in self.ends.tolist():
            yield self.flat[start:end]
            start = end

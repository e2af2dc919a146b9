"""The data of an experiment, divided among clients: who trains on which images, and who is tested on which."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from fedpgp.data.partition import Labelled
from fedpgp.data.ragged import Ragged

OF_PART = "/"
"""Between the kind of a class set and the title of its part in a union: `base/dtd`."""


@dataclass(frozen=True, kw_only=True)
class EvaluationSet(Labelled):
    """Images of one split and one class set; `labels` are numbered within the class set."""

    split: str  # val | test
    class_set: str  # a key of `FederatedData.class_sets`
    rows: np.ndarray  # manifest rows, ascending. int64 [n]
    members: Sequence[np.ndarray] | None = None  # per client, positions of its Local images; None: novel or held out
    held_out: bool = False  # whether these are the images of a held-out domain or data set
    clients: np.ndarray | None = None  # the clients whose models are tested on it, ascending; None: all

    @property
    def kind(self) -> str:
        """Which classes of its data set: base, novel or all."""
        return self.class_set.partition(OF_PART)[0]

    @property
    def metric(self) -> str:
        """Name of the accuracy on the whole set."""
        return "held_out" if self.held_out else self.kind

    def tested(self, clients: np.ndarray) -> np.ndarray:
        """Which of the clients are tested on it (K,)."""
        return np.ones(len(clients), bool) if self.clients is None else np.isin(clients, self.clients)


@dataclass(frozen=True)
class FederatedData:
    """The data of an experiment, divided among clients: manifest rows and labels, no images.

    Arrays given as `train_rows` or `train_labels` are put one after the other.
    """

    client_names: tuple[str, ...]
    class_names: tuple[str, ...]
    domains: tuple[str, ...]
    class_sets: Mapping[
        str, tuple[int, ...]
    ]  # ascending global labels of `base` and `novel`, or of `all`, of each part
    train_set: str  # class set for training: `base` or `all`; in a union that of the first clients, see `train_sets`
    train_rows: Ragged  # per client, its training images. int64 [n_k]
    train_labels: Ragged  # per client, their labels within their `train_set_of`. int64 [n_k]
    evaluation_sets: tuple[EvaluationSet, ...]  # non-empty sets for validation and testing
    manifest_digest: str
    unseen_clients: tuple[int, ...] = ()  # those that never train, ascending
    own_classes: bool = False  # whether each client trains among the classes of its own images alone
    train_sets: tuple[str, ...] = ()  # per client, its class set for training; empty: `train_set`
    part_of: Mapping[str, str] = field(default_factory=dict)  # of a union, the part that a domain belongs to

    def __post_init__(self) -> None:
        for name in ("train_rows", "train_labels"):
            object.__setattr__(self, name, Ragged.of(getattr(self, name)))

    @property
    def num_clients(self) -> int:
        """Number of clients."""
        return len(self.client_names)

    @cached_property
    def training_clients(self) -> np.ndarray:
        """The clients that train, ascending: all but the unseen ones. int64 [n]"""
        return np.setdiff1d(np.arange(self.num_clients), self.unseen_clients)

    @property
    def train_kind(self) -> str:
        """Which classes of a data set are trained on: base or all."""
        return self.train_set.partition(OF_PART)[0]

    def train_set_of(self, client: int) -> str:
        """The class set on which a client trains."""
        return self.train_sets[client] if self.train_sets else self.train_set

    def global_labels(self, client: int) -> np.ndarray:
        """Labels of a client's training images among all classes of the data. int64 [n_k]"""
        labels: np.ndarray = np.array(self.class_sets[self.train_set_of(client)])[self.train_labels[client]]
        return labels

    def training_classes(self, client: int) -> np.ndarray:
        """The classes among which a client trains, ascending, as labels among all classes of the data. int64 [C]"""
        if self.own_classes:
            return np.unique(self.global_labels(client))
        return np.array(self.class_sets[self.train_set_of(client)])

    @cached_property
    def training_rows(self) -> np.ndarray:
        """Training rows of all clients, ascending. int64 [n]"""
        return np.unique(self.train_rows.flat)

    @cached_property
    def evaluation_rows(self) -> np.ndarray:
        """Rows of all evaluation sets, ascending, disjoint from the training rows. int64 [n]"""
        return np.unique(np.concatenate([np.empty(0, np.int64), *(pool.rows for pool in self.evaluation_sets)]))

    @cached_property
    def rows(self) -> np.ndarray:
        """Training and evaluation rows, ascending. int64 [n]"""
        return np.union1d(self.training_rows, self.evaluation_rows)

    @cached_property
    def digest(self) -> str:
        """Sixteen hex digits over all fields."""
        divided, arrays = [self.train_rows, self.train_labels], [self.train_rows.flat, self.train_labels.flat]
        lengths = [count for one in divided for count in one.counts.tolist()]
        for pool in self.evaluation_sets:
            of_pool = [pool.rows, pool.labels, pool.domains]
            of_clients = Ragged.of(pool.members or ())
            arrays += [*of_pool, of_clients.flat]
            lengths += [*map(len, of_pool), *of_clients.counts.tolist()]
        named = (self.client_names, self.class_names, self.domains, self.class_sets, self.train_set)
        names = [*named, self.manifest_digest, *([self.unseen_clients] if self.unseen_clients else [])]
        names += ["own"] * self.own_classes + [[self.train_sets, self.part_of]] * bool(self.part_of)
        evaluation_sets = [(pool.split, pool.metric, pool.members is not None) for pool in self.evaluation_sets]
        digest = hashlib.sha256(json.dumps([names, evaluation_sets, lengths]).encode())
        for array in arrays:
            digest.update(np.ascontiguousarray(array, "<i8").data)
        return digest.hexdigest()[:16]

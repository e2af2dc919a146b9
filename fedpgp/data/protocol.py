"""Defines training and evaluation images per client: base and novel classes, shots, validation, held-out domains."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from fedpgp.config import PartitionSettings, ProtocolSettings
from fedpgp.core.errors import DataError
from fedpgp.core.seeding import numpy_generator, share_of, shuffled_ranks
from fedpgp.core.text import did_you_mean, first_of
from fedpgp.data.partition import Labelled, assign

if TYPE_CHECKING:
    from fedpgp.data.manifest import Manifest

SPLITS = ("train", "val", "test")
EVERY_DOMAIN = "all"


@dataclass(frozen=True, kw_only=True)
class EvaluationSet(Labelled):
    """Images of one split and one class set; `labels` are numbered within the class set."""

    split: str  # val | test
    class_set: str  # a key of `FederatedData.class_sets`
    rows: np.ndarray  # manifest rows, ascending. int64 [n]
    members: tuple[np.ndarray, ...] | None = None  # per client, positions of its Local images; None: novel or held out
    held_out: bool = False  # whether these are the images of the held-out domain

    @property
    def metric(self) -> str:
        """Name of the accuracy on the whole set."""
        return "held_out" if self.held_out else self.class_set


@dataclass(frozen=True)
class FederatedData:
    """The data of an experiment, divided among clients: manifest rows and labels, no images."""

    client_names: tuple[str, ...]
    class_names: tuple[str, ...]
    domains: tuple[str, ...]
    class_sets: Mapping[str, tuple[int, ...]]  # ordered global labels of `base` and `novel`, or of `all`
    train_set: str  # class set for training: `base` or `all`
    train_rows: tuple[np.ndarray, ...]  # per client, its training images. int64 [n_k]
    train_labels: tuple[np.ndarray, ...]  # per client, their labels within `train_set`. int64 [n_k]
    evaluation_sets: tuple[EvaluationSet, ...]  # non-empty sets for validation and testing
    manifest_digest: str
    unseen_clients: tuple[int, ...] = ()  # those that never train, ascending
    own_classes: bool = False  # whether each client trains among the classes of its own images alone

    @property
    def num_clients(self) -> int:
        """Number of clients."""
        return len(self.client_names)

    @cached_property
    def training_clients(self) -> np.ndarray:
        """The clients that train, ascending: all but the unseen ones. int64 [n]"""
        return np.setdiff1d(np.arange(self.num_clients), self.unseen_clients)

    def global_labels(self, client: int) -> np.ndarray:
        """Labels of a client's training images among all classes of the data. int64 [n_k]"""
        labels: np.ndarray = np.array(self.class_sets[self.train_set])[self.train_labels[client]]
        return labels

    def training_classes(self, client: int) -> np.ndarray:
        """The classes among which a client trains, ascending, as labels among all classes of the data. int64 [C]"""
        return np.unique(self.global_labels(client)) if self.own_classes else np.array(self.class_sets[self.train_set])

    @cached_property
    def training_rows(self) -> np.ndarray:
        """Training rows of all clients, ascending. int64 [n]"""
        return np.unique(np.concatenate(self.train_rows))

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
        arrays = [*self.train_rows, *self.train_labels]
        for pool in self.evaluation_sets:
            arrays += [pool.rows, pool.labels, pool.domains, *(pool.members or ())]
        named = (self.client_names, self.class_names, self.domains, self.class_sets, self.train_set)
        names = [*named, self.manifest_digest, *([self.unseen_clients] if self.unseen_clients else [])]
        names += ["own"] * self.own_classes
        evaluation_sets = [(pool.split, pool.metric, pool.members is not None) for pool in self.evaluation_sets]
        digest = hashlib.sha256(json.dumps([names, evaluation_sets, [len(array) for array in arrays]]).encode())
        for array in arrays:
            digest.update(array.astype("<i8").tobytes())
        return digest.hexdigest()[:16]


def build(manifest: Manifest, partition: PartitionSettings, protocol: ProtocolSettings, seed: int) -> FederatedData:
    """Divide a manifest among clients.

    If the data have no validation split, `val_shots` images per class and domain are first taken from train. Shots are
    drawn per client and class; fewer shots are a subset of more. A client's Local images are those of val and test
    that the partition assigns to it: its classes, its domain, or its share.

    Metrics for model selection, on validation images, which are never trained on:

    * base_to_novel: `val/local`, `val/base`, `val/novel` and their harmonic mean `val/hm`; selecting by `val/novel` or
      `val/hm` uses labels of novel classes.
    * all_classes: `val/local` and `val/all`.
    * leave_one_domain_out: the same two, on the training domains only. All images of the held-out domain, of any
      split, form one test set: `test/held_out`.

    Raises:
        DataError: too few classes, an unknown held-out domain, clients without training images, or none that trains.
    """
    class_sets = divide_classes(len(manifest.class_names), protocol)
    train_set = "base" if "base" in class_sets else "all"
    held_out = _held_out(manifest, protocol)
    domains = [number for number in range(len(manifest.domains)) if number != held_out]
    client_names = _client_names(manifest, domains, partition)
    splits = np.where(manifest.domain_ids == held_out, "held", _splits(manifest, protocol.val_shots, seed))
    evaluation_sets = {
        (split, name): _pool(manifest, splits == split, split, name, classes)
        for split in SPLITS
        for name, classes in class_sets.items()
    }
    slots = np.searchsorted(domains, np.arange(len(manifest.domains)))
    divided = {split: evaluation_sets[split, train_set] for split in SPLITS}
    divided_by = {split: Labelled(labels=pool.labels, domains=slots[pool.domains]) for split, pool in divided.items()}
    local = assign(partition, divided_by, len(client_names), seed)
    train = evaluation_sets["train", train_set]
    chosen = list(local["train"])
    if protocol.shots is not None:  # the first of each class, in a random order of the client's images
        for client, own in enumerate(chosen):
            ranks = shuffled_ranks(train.labels[own], numpy_generator(seed, "shots", client))
            chosen[client] = own[ranks < protocol.shots]
    idle = [name for name, own in zip(client_names, chosen, strict=True) if not len(own)]
    if idle:
        raise DataError(
            f"partition: no training image for {first_of(idle, 20)} ({len(train.rows)} images in "
            f"{train_set} classes); give a smaller partition.clients or another partition.scheme"
        )
    tested = [
        replace(pool, members=local[split]) if name == train_set else pool
        for (split, name), pool in evaluation_sets.items()
        if split != "train"
    ]
    if held_out is not None:
        held = _pool(manifest, splits == "held", "test", train_set, class_sets[train_set])
        tested.append(replace(held, held_out=True))
    if not any(len(pool.rows) for pool in tested):
        raise DataError("protocol: no image is left to validate or to test on; see data.train_fraction")
    return FederatedData(
        client_names=client_names,
        class_names=manifest.class_names,
        domains=manifest.domains,
        class_sets=class_sets,
        train_set=train_set,
        train_rows=tuple(train.rows[own] for own in chosen),
        train_labels=tuple(train.labels[own] for own in chosen),
        evaluation_sets=tuple(pool for pool in tested if len(pool.rows)),
        manifest_digest=manifest.digest,
        unseen_clients=_unseen(len(client_names), partition.unseen_clients, seed),
        own_classes=protocol.train_classes == "own",
    )


def _unseen(num_clients: int, share: float, seed: int) -> tuple[int, ...]:
    """Choose the clients that never train."""
    if not share:
        return ()
    if num_clients < 2:
        raise DataError("partition.unseen_clients: the only client has to train; give 0, or more clients")
    return tuple(share_of(np.arange(num_clients), share, numpy_generator(seed, "unseen_clients")).tolist())


def folds(protocol: ProtocolSettings, domains: Sequence[str]) -> tuple[ProtocolSettings, ...]:
    """Expand `held_out: all` into one protocol per domain of the data; return others unchanged."""
    if protocol.held_out != EVERY_DOMAIN:
        return (protocol,)
    return tuple(protocol.model_copy(update={"held_out": domain}) for domain in domains)


def _held_out(manifest: Manifest, protocol: ProtocolSettings) -> int | None:
    """Return the index of the held-out domain."""
    if protocol.held_out is None:
        return None
    known = ", ".join(manifest.domains)
    if len(manifest.domains) < 2:
        raise DataError("protocol: leave_one_domain_out needs data with 2 domains or more; these have 1")
    if protocol.held_out == EVERY_DOMAIN:
        raise DataError(
            f"protocol.held_out: all means {len(manifest.domains)} experiments, one for each domain; a single run "
            f"holds out one of {known} (for all of them run a sweep)"
        )
    if protocol.held_out not in manifest.domains:
        hint = did_you_mean(protocol.held_out, manifest.domains, "give one of them")
        raise DataError(f"protocol.held_out: no domain {protocol.held_out!r} in the data; {hint} (known: {known})")
    return manifest.domains.index(protocol.held_out)


def divide_classes(num_classes: int, protocol: ProtocolSettings) -> dict[str, tuple[int, ...]]:
    """Return the ordered labels of each class set, that for training first; raise `DataError` if there are too few."""
    labels = tuple(range(num_classes))
    if protocol.name != "base_to_novel":
        return {"all": labels}
    if num_classes < 2:
        raise DataError(
            "protocol: base_to_novel needs at least 2 classes, the data have 1; give protocol.name=all_classes"
        )
    half = (num_classes + 1) // 2
    return {"base": labels[:half], "novel": labels[half:]}


def _client_names(manifest: Manifest, domains: Sequence[int], partition: PartitionSettings) -> tuple[str, ...]:
    """Number the clients, or name them after the training `domains`."""
    if partition.scheme == "domain":
        if len(manifest.domains) < 2 and partition.clients_per_domain == 1:
            raise DataError("partition: the data have one domain only; give another partition.scheme than domain")
        names = [manifest.domains[domain] for domain in domains]
        if partition.clients_per_domain == 1:
            return tuple(names)
        return tuple(f"{name} {number}" for name in names for number in range(partition.clients_per_domain))
    if partition.clients is None:
        raise DataError(f"partition.clients: give the number of clients with partition.scheme={partition.scheme}")
    return tuple(f"client {client}" for client in range(partition.clients))


def _splits(manifest: Manifest, val_shots: int, seed: int) -> np.ndarray:
    """Return the splits; without val, `val_shots` per (class, domain) move from train, but never its last image."""
    splits = manifest.splits.copy()
    if np.any(splits == "val"):
        return splits
    train = np.flatnonzero(splits == "train")
    keys = manifest.labels[train].astype(np.int64) * len(manifest.domains) + manifest.domain_ids[train]
    ranks = shuffled_ranks(keys, numpy_generator(seed, "validation"))
    counts = np.bincount(keys)[keys]
    splits[train[ranks < np.minimum(val_shots, counts - 1)]] = "val"
    return splits


def _pool(manifest: Manifest, chosen: np.ndarray, split: str, name: str, classes: tuple[int, ...]) -> EvaluationSet:
    """Select the images of a class set among the chosen ones [n] of the manifest."""
    number = np.full(len(manifest.class_names), -1)
    number[list(classes)] = np.arange(len(classes))
    rows = np.flatnonzero(chosen & (number[manifest.labels] >= 0))
    labels = number[manifest.labels[rows]]
    return EvaluationSet(split=split, class_set=name, rows=rows, labels=labels, domains=manifest.domain_ids[rows])

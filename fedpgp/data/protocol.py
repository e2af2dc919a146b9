"""What is trained on and what is tested: base and novel classes, shots, validation, per client."""

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
from fedpgp.core.seeding import numpy_generator, shuffled_ranks
from fedpgp.core.text import did_you_mean, first_of
from fedpgp.data.partition import Labelled, assign

if TYPE_CHECKING:
    from fedpgp.data.manifest import Manifest

SPLITS = ("train", "val", "test")
EVERY_DOMAIN = "all"


@dataclass(frozen=True, kw_only=True)
class EvaluationSet(Labelled):
    """Images of one split and one class set; `labels` are numbered within the class set."""

    split: str
    """val | test"""
    class_set: str
    """a key of `FederatedData.class_sets`"""
    rows: np.ndarray
    """manifest rows, ascending. int64 [n]"""
    members: tuple[np.ndarray, ...] | None = None
    """per client, the positions in this pool that are its Local images; None: novel classes, held-out domain"""
    held_out: bool = False
    """whether these are the images of the domain that nobody trains on"""

    @property
    def metric(self) -> str:
        """What accuracy on the whole pool is called."""
        return "held_out" if self.held_out else self.class_set


@dataclass(frozen=True)
class FederatedData:
    """The data of an experiment, divided among clients: rows of the manifest and labels, no images."""

    client_names: tuple[str, ...]
    class_names: tuple[str, ...]
    domains: tuple[str, ...]
    class_sets: Mapping[str, tuple[int, ...]]
    """ordered global labels of `base` and `novel`, or of `all`"""
    train_set: str
    """the class set that is trained on: `base` or `all`"""
    train_rows: tuple[np.ndarray, ...]
    """per client, its training images. int64 [n_k]"""
    train_labels: tuple[np.ndarray, ...]
    """per client, their labels within `train_set`. int64 [n_k]"""
    evaluation_sets: tuple[EvaluationSet, ...]
    """what is evaluated on; pools without images are left out"""
    manifest_digest: str

    @property
    def num_clients(self) -> int:
        """Number of clients."""
        return len(self.client_names)

    @cached_property
    def training_rows(self) -> np.ndarray:
        """Rows that some client trains on, ascending. int64 [n]"""
        return np.unique(np.concatenate(self.train_rows))

    @cached_property
    def evaluation_rows(self) -> np.ndarray:
        """Rows of all pools, ascending; none of them is trained on. int64 [n]"""
        return np.unique(np.concatenate([np.empty(0, np.int64), *(pool.rows for pool in self.evaluation_sets)]))

    @cached_property
    def rows(self) -> np.ndarray:
        """All rows that the experiment can use, ascending. int64 [n]"""
        return np.union1d(self.training_rows, self.evaluation_rows)

    @cached_property
    def digest(self) -> str:
        """Sixteen hex digits over everything above."""
        arrays = [*self.train_rows, *self.train_labels]
        for pool in self.evaluation_sets:
            arrays += [pool.rows, pool.labels, pool.domains, *(pool.members or ())]
        names = [
            self.client_names,
            self.class_names,
            self.domains,
            self.class_sets,
            self.train_set,
            self.manifest_digest,
        ]
        evaluation_sets = [(pool.split, pool.metric, pool.members is not None) for pool in self.evaluation_sets]
        digest = hashlib.sha256(json.dumps([names, evaluation_sets, [len(array) for array in arrays]]).encode())
        for array in arrays:
            digest.update(array.astype("<i8").tobytes())
        return digest.hexdigest()[:16]


def build(manifest: Manifest, partition: PartitionSettings, protocol: ProtocolSettings, seed: int) -> FederatedData:
    """Divide a manifest among clients.

    Without a validation split of its own, `val_shots` images per class and domain are taken from train first.
    Shots are drawn per client and class; fewer shots are a part of more. Local images of a client are those of
    val and test that the partition gives it: its classes, its domain, or its share.

    What to select by, all of it on validation images, which nobody trains on:

    * base_to_novel: `val/local`, `val/base`, `val/novel` and their harmonic mean `val/hm`; choosing by `val/novel` or
      `val/hm` uses labels of novel classes.
    * all_classes: `val/local` and `val/all`.
    * leave_one_domain_out: the same two, on the training domains alone. Of the held-out domain there is one pool, all
      its images whatever their split, and it counts as test: `test/held_out`.

    Raises:
        DataError: too few classes, a held-out domain that does not exist, or clients with nothing to train on (all of
            them named).
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
    chosen = [_shots(train.labels, own, protocol.shots, seed, client) for client, own in enumerate(local["train"])]
    _refuse_idle(client_names, chosen, train)
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
    )


def folds(protocol: ProtocolSettings, domains: Sequence[str]) -> tuple[ProtocolSettings, ...]:
    """The experiments that a protocol stands for: with `held_out: all` one for each domain of the data, else one."""
    if protocol.held_out != EVERY_DOMAIN:
        return (protocol,)
    return tuple(protocol.model_copy(update={"held_out": domain}) for domain in domains)


def _refuse_idle(client_names: Sequence[str], chosen: Sequence[np.ndarray], train: EvaluationSet) -> None:
    idle = [name for name, own in zip(client_names, chosen, strict=True) if not len(own)]
    if idle:
        raise DataError(
            f"partition: no training image for {first_of(idle, 20)} ({len(train.rows)} images in "
            f"{train.class_set} classes); give a smaller partition.clients or another partition.scheme"
        )


def _held_out(manifest: Manifest, protocol: ProtocolSettings) -> int | None:
    """The number of the held-out domain."""
    if protocol.held_out is None:
        return None
    known = ", ".join(manifest.domains)
    if len(manifest.domains) < 2:
        raise DataError("protocol: leave_one_domain_out needs data with 2 domains or more; these have 1")
    if protocol.held_out == EVERY_DOMAIN:
        raise DataError(
            f"protocol.held_out: all stands for {len(manifest.domains)} experiments, one for each domain; a single run "
            f"holds out one of {known} (all of them: as the folds of a sweep)"
        )
    if protocol.held_out not in manifest.domains:
        hint = did_you_mean(protocol.held_out, manifest.domains, "give one of them")
        raise DataError(f"protocol.held_out: no domain {protocol.held_out!r} in the data; {hint} (known: {known})")
    return manifest.domains.index(protocol.held_out)


def divide_classes(num_classes: int, protocol: ProtocolSettings) -> dict[str, tuple[int, ...]]:
    """The ordered labels of each class set; the first one is trained on.

    Raises:
        DataError: too few classes to be divided.
    """
    labels = tuple(range(num_classes))
    if protocol.name != "base_to_novel":
        return {"all": labels}
    if num_classes < 2:
        raise DataError(
            "protocol: base_to_novel needs 2 classes or more, the data have 1; give protocol.name=all_classes"
        )
    half = (num_classes + 1) // 2
    return {"base": labels[:half], "novel": labels[half:]}


def _client_names(manifest: Manifest, domains: Sequence[int], partition: PartitionSettings) -> tuple[str, ...]:
    """Clients are numbered, or named after those `domains` that are trained on."""
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
    """The manifest's splits; if none is val, `val_shots` per (class, domain) leave train, but never its last image."""
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
    """The images of a class set among those chosen [n] of the manifest."""
    number = np.full(len(manifest.class_names), -1)
    number[list(classes)] = np.arange(len(classes))
    rows = np.flatnonzero(chosen & (number[manifest.labels] >= 0))
    labels = number[manifest.labels[rows]]
    return EvaluationSet(split=split, class_set=name, rows=rows, labels=labels, domains=manifest.domain_ids[rows])


def _shots(labels: np.ndarray, own: np.ndarray, shots: int | None, seed: int, client: int) -> np.ndarray:
    """The first `shots` of each class in a random order of the client's positions."""
    if shots is None:
        return own
    return own[shuffled_ranks(labels[own], numpy_generator(seed, "shots", client)) < shots]

"""Defines training and evaluation images per client: base and novel classes, shots, validation, held-out domains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from fedpgp.config import PartitionSettings, ProtocolSettings
from fedpgp.core.errors import DataError
from fedpgp.core.seeding import derive_seed, numpy_generator, share_of, shuffled_ranks
from fedpgp.core.text import did_you_mean, first_of
from fedpgp.data.federated import OF_PART, EvaluationSet, FederatedData
from fedpgp.data.partition import Labelled, assign
from fedpgp.data.ragged import Ragged

if TYPE_CHECKING:
    from fedpgp.data.manifest import Manifest

SPLITS = ("train", "val", "test")
EVERY_DOMAIN = "all"


def build(manifest: Manifest, partition: PartitionSettings, protocol: ProtocolSettings, seed: int) -> FederatedData:
    """Divide a manifest among clients; in a union each data set among clients of its own.

    If the data have no validation split, `val_shots` images per class and domain are first taken from train. Shots are
    drawn per client and class; fewer shots are a subset of more. A client's Local images are those of val and test
    that the partition assigns to it: its classes, its domain, or its share.

    Metrics for model selection, on validation images, which are never trained on:

    * base_to_novel: `val/local`, `val/base`, `val/novel` and their harmonic mean `val/hm`; selecting by `val/novel` or
      `val/hm` uses labels of novel classes.
    * all_classes: `val/local` and `val/all`.
    * cross_data: the same two, on the data sets that train. The test images of each other one, with all its classes,
      form a test set: `test/held_out`.
    * leave_one_domain_out: the same two, on the training domains only. All images of the held-out domain, of any
      split, form one test set: `test/held_out`.

    Raises:
        DataError: too few classes, an unknown held-out domain, clients without training images, or none that trains.
    """
    parts = _parts(manifest)
    trains = [_trains(part, parts, protocol) for part in parts]
    held_out = _held_out(manifest, protocol)
    divided = []
    class_sets: dict[str, tuple[int, ...]] = {}
    unseen_parts = []
    for part, training in zip(parts, trains, strict=True):
        try:
            class_sets |= (own := _class_sets(part, protocol))
            if training:
                divided.append(_divide(manifest, part, own, held_out, partition, protocol, seed))
        except DataError as error:
            raise DataError(f"{part.title}: {error}" if part.title else str(error)) from None
        if not training:
            (name,) = own
            pool = _pool(manifest, part.rows & (manifest.splits == "test"), "test", name, own[name])
            unseen_parts.append(replace(pool, held_out=True))
    return _joined(manifest, class_sets, divided, unseen_parts, partition, protocol, seed)


@dataclass(frozen=True)
class _Part:
    """A data set of a union, or the only one."""

    title: str  # empty: the only one
    classes: tuple[int, ...]  # labels among all classes
    domains: tuple[int, ...]
    rows: np.ndarray  # whether an image belongs to it. bool [n]

    def seed(self, seed: int) -> int:
        """The seed of its draws."""
        return derive_seed(seed, "part", self.title) if self.title else seed


@dataclass(frozen=True)
class _Divided:
    """A part, divided among clients of its own."""

    client_names: tuple[str, ...]
    train_set: str
    train_rows: Ragged
    train_labels: Ragged
    evaluation_sets: tuple[EvaluationSet, ...]  # `members` of these clients alone


def _parts(manifest: Manifest) -> tuple[_Part, ...]:
    if not manifest.parts:
        everything = np.ones(len(manifest), bool)
        return (_Part("", tuple(range(len(manifest.class_names))), tuple(range(len(manifest.domains))), everything),)
    parts, first_class, first_domain = [], 0, 0
    for one in manifest.parts:
        classes = tuple(range(first_class, first_class := first_class + len(one.class_names)))
        domains = tuple(range(first_domain, first_domain := first_domain + len(one.domains)))
        parts.append(_Part(one.name, classes, domains, np.isin(manifest.domain_ids, domains)))
    return tuple(parts)


def _trains(part: _Part, parts: Sequence[_Part], protocol: ProtocolSettings) -> bool:
    """Whether a data set is trained on; raise `DataError` if the protocol names none of them."""
    if protocol.name != "cross_data":
        return True
    titles = [one.title for one in parts]
    key, wanted = ("source", protocol.source) if protocol.held_out is None else ("held_out", protocol.held_out)
    if wanted == EVERY_DOMAIN and key == "held_out":
        raise DataError(
            f"protocol.held_out: all means {len(parts)} experiments, one for each data set; a single run holds out one "
            f"of {', '.join(titles)} (for all of them run a sweep)"
        )
    if wanted not in titles:
        hint = did_you_mean(str(wanted), titles, "give one of them")
        raise DataError(f"protocol.{key}: no data set {wanted!r} in the union; {hint} (known: {', '.join(titles)})")
    return (part.title == wanted) == (key == "source")


def _class_sets(part: _Part, protocol: ProtocolSettings) -> dict[str, tuple[int, ...]]:
    """The class sets of a part by their names, that for training first."""
    return {
        f"{kind}{OF_PART}{part.title}" if part.title else kind: tuple(part.classes[label] for label in labels)
        for kind, labels in divide_classes(len(part.classes), protocol).items()
    }


def _divide(
    manifest: Manifest,
    part: _Part,
    class_sets: Mapping[str, tuple[int, ...]],
    held_out: int | None,
    partition: PartitionSettings,
    protocol: ProtocolSettings,
    seed: int,
) -> _Divided:
    """Divide the images of a part among its clients."""
    if not np.any(part.rows & (manifest.splits == "train")):
        raise DataError("data: all images are for testing; train on another data set")
    seed, train_set = part.seed(seed), next(iter(class_sets))
    domains = [number for number in part.domains if number != held_out]
    client_names = _client_names(manifest, part, domains, partition)
    splits = np.where(manifest.domain_ids == held_out, "held", _splits(manifest, part, protocol.val_shots, seed))
    evaluation_sets = {
        (split, name): _pool(manifest, part.rows & (splits == split), split, name, classes)
        for split in SPLITS
        for name, classes in class_sets.items()
    }
    slots = np.searchsorted(domains, np.arange(len(manifest.domains)))
    divided = {split: evaluation_sets[split, train_set] for split in SPLITS}
    divided_by = {split: Labelled(labels=pool.labels, domains=slots[pool.domains]) for split, pool in divided.items()}
    local = assign(partition, divided_by, len(client_names), seed)
    train = evaluation_sets["train", train_set]
    chosen = _shots(local["train"], train.labels, protocol.shots, seed)
    if len(empty := np.flatnonzero(chosen.counts == 0)):
        idle = [client_names[client] for client in empty]
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
    return _Divided(
        client_names=client_names,
        train_set=train_set,
        train_rows=chosen.taken(train.rows),
        train_labels=chosen.taken(train.labels),
        evaluation_sets=tuple(tested),
    )


def _shots(images: Ragged, labels: np.ndarray, shots: int | None, seed: int) -> Ragged:
    """The first `shots` images of each class of each client, in a random order of the client's images; None: all.

    Args:
        labels: those at the positions that `images` has.
    """
    if shots is None:
        return images
    own, owners = labels[images.flat], images.owners
    kept, cells = np.ones(len(own), bool), owners * (1 + own.max(initial=0)) + own
    found, counts = np.unique(cells, return_counts=True)
    ends = images.ends
    for client in np.unique(found[counts > shots] // (1 + own.max(initial=0))):  # others keep all in any order
        part = slice(ends[client - 1] if client else 0, ends[client])
        kept[part] = shuffled_ranks(own[part], numpy_generator(seed, "shots", int(client))) < shots
    return images.only(kept)


def _joined(
    manifest: Manifest,
    class_sets: Mapping[str, tuple[int, ...]],
    divided: Sequence[_Divided],
    unseen_parts: Sequence[EvaluationSet],
    partition: PartitionSettings,
    protocol: ProtocolSettings,
    seed: int,
) -> FederatedData:
    """The clients of all parts in one federation, numbered part after part, each tested on its own part."""
    num_clients = sum(len(one.client_names) for one in divided)
    tested, first = list(unseen_parts), 0
    for one in divided:
        own = np.arange(first, first + len(one.client_names))
        first += len(own)
        for pool in one.evaluation_sets:
            members = None if pool.members is None else Ragged.of(pool.members).placed(own, num_clients)
            tested.append(replace(pool, members=members, clients=own if manifest.parts else None))
    if not any(len(pool.rows) for pool in tested):
        raise DataError("protocol: no image is left to validate or to test on; see data.train_fraction")
    return FederatedData(
        client_names=tuple(name for one in divided for name in one.client_names),
        class_names=manifest.class_names,
        domains=manifest.domains,
        class_sets=class_sets,
        train_set=divided[0].train_set,
        train_rows=Ragged.joined([one.train_rows for one in divided]),
        train_labels=Ragged.joined([one.train_labels for one in divided]),
        evaluation_sets=tuple(pool for pool in tested if len(pool.rows)),
        manifest_digest=manifest.digest,
        unseen_clients=_unseen(num_clients, partition.unseen_clients, seed),
        own_classes=protocol.train_classes == "own",
        train_sets=tuple(one.train_set for one in divided for _ in one.client_names) if manifest.parts else (),
        part_of={
            manifest.domains[domain]: part.title for part in _parts(manifest) for domain in part.domains if part.title
        },
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


def held_out_names(manifest: Manifest) -> tuple[str, ...]:
    """What `held_out: all` holds out in turn, and what accuracies are reported of: domains, or parts of a union."""
    return tuple(part.name for part in manifest.parts) or manifest.domains


def _held_out(manifest: Manifest, protocol: ProtocolSettings) -> int | None:
    """Return the index of the held-out domain."""
    if protocol.name != "leave_one_domain_out" or protocol.held_out is None:
        return None
    if manifest.parts:
        raise DataError("protocol: leave_one_domain_out is for one data set; in a union give protocol.name=cross_data")
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


def _client_names(
    manifest: Manifest, part: _Part, domains: Sequence[int], partition: PartitionSettings
) -> tuple[str, ...]:
    """Number the clients of a part, or name them after its training `domains`."""
    if partition.scheme == "domain":
        if len(manifest.domains) < 2 and partition.clients_per_domain == 1:
            raise DataError("partition: the data have one domain only; give another partition.scheme than domain")
        names = [manifest.domains[domain] for domain in domains]
        if partition.clients_per_domain == 1:
            return tuple(names)
        return tuple(f"{name} {number}" for name in names for number in range(partition.clients_per_domain))
    clients = partition.clients.get(part.title) if isinstance(partition.clients, dict) else partition.clients
    if clients is None:
        where = f"partition.clients.{part.title}" if partition.clients else "partition.clients"
        raise DataError(f"{where}: give the number of clients with partition.scheme={partition.scheme}")
    return tuple(f"{part.title or 'client'} {client}" for client in range(clients))


def _splits(manifest: Manifest, part: _Part, val_shots: int, seed: int) -> np.ndarray:
    """Return the splits; in a part without val, `val_shots` per (class, domain) move from train, never the last one."""
    splits = manifest.splits.copy()
    if np.any(splits[part.rows] == "val"):
        return splits
    train = np.flatnonzero((splits == "train") & part.rows)
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

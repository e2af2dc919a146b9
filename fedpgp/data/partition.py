"""Divides images among clients: pure functions from labels and domains to one index array per client.

The partitions of the FedPGP and FedOTP authors are reproduced exactly, for comparison with their numbers.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedpgp.config import PartitionSettings
from fedpgp.core.errors import DataError
from fedpgp.core.seeding import numpy_generator, shuffled_order
from fedpgp.data.ragged import Ragged

NOBODY = -1
ATTEMPTS = 100
AUTHORS_CLASS_SEED = 2023


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """The labels and domains of the images of a split. [n] each"""

    labels: np.ndarray
    domains: np.ndarray


BySplit = Mapping[str, np.ndarray]
"""Per split, the label or the client (its owner) of each image. [n]"""


def assign(
    settings: PartitionSettings, splits: Mapping[str, Labelled], num_clients: int, seed: int
) -> Mapping[str, Ragged]:
    """Divide the images of every split among the clients, all splits in the same way as `train`.

    Returns:
        Per split, an ascending array of positions for each client; they are disjoint. With scheme `domain`, which
        expects domains 0, 1, ..., `clients_per_domain` consecutive clients share a domain.

    Raises:
        DataError: the scheme leaves clients without training images.
    """
    generator = numpy_generator(seed, "partition", settings.scheme)
    labels = {split: images.labels for split, images in splits.items()}
    match settings.scheme:
        case "pathological":
            owners = _pathological(labels, num_clients, settings.classes_per_client, generator)
        case "authors_2023":
            owners = _authors_2023(labels, num_clients)
        case "iid":
            owners = _iid(labels, num_clients, generator)
        case "domain":
            owners = _domain(settings, splits, generator)
        case "dirichlet" if settings.authors:
            owners = _authors_dirichlet(settings, labels, num_clients, seed)
        case "dirichlet":
            owners = _dirichlet(settings, labels, num_clients, generator)
    positions = {}
    for split, owner in owners.items():
        order = np.argsort(owner, kind="stable")
        bounds = np.searchsorted(owner[order], np.arange(num_clients + 1))
        positions[split] = Ragged(order[bounds[0] : bounds[-1]], bounds[1:] - bounds[0])
    return positions


def _pathological(labels: BySplit, num_clients: int, per_client: int | None, generator: np.random.Generator) -> BySplit:
    """Assign disjoint classes, whose numbers differ by at most one; or `per_client` classes each, shared evenly.

    Classes without training images are not assigned.
    """
    classes = generator.permutation(np.unique(labels["train"]))
    if per_client is not None:
        return _share(labels, _deal(classes, num_clients, per_client, generator), generator)
    if len(classes) < num_clients:
        raise DataError(
            f"partition: {num_clients} clients with disjoint classes, but only {len(classes)} classes to train on; "
            f"give partition.clients={len(classes)} or fewer, partition.classes_per_client, or another partition.scheme"
        )
    return _by_class(labels, np.array_split(classes, num_clients))


def _authors_2023(labels: BySplit, num_clients: int) -> BySplit:
    """Assign the authors' blocks of round(C / K) classes, after a shuffle with a fixed seed; the last is the rest."""
    classes = list(range(_num_classes(labels)))
    random.Random(AUTHORS_CLASS_SEED).shuffle(classes)
    width = round(len(classes) / num_clients)  # Python's rounding, to the even number
    starts = [client * width for client in range(num_clients)]
    blocks = [classes[start:end] for start, end in zip(starts, [*starts[1:], len(classes)], strict=True)]
    idle = [str(client) for client, own in enumerate(blocks) if not own]
    if idle:
        raise DataError(
            f"partition: the authors' assignment of {len(classes)} classes leaves client {', '.join(idle)} "
            "without any; give a smaller partition.clients, or partition.scheme=pathological"
        )
    return _by_class(labels, blocks)


def _by_class(labels: BySplit, classes: Sequence[Sequence[int] | np.ndarray]) -> BySplit:
    """Give each client all images of its classes."""
    owner_of_class = np.full(_num_classes(labels), NOBODY)
    for client, own in enumerate(classes):
        owner_of_class[own] = client
    return {split: owner_of_class[own] for split, own in labels.items()}


def _deal(classes: np.ndarray, num_clients: int, per_client: int, generator: np.random.Generator) -> np.ndarray:
    """Assign distinct classes to each client; the classes' numbers of clients differ by at most one. [K, k]"""
    if per_client > len(classes):
        raise DataError(f"partition.classes_per_client: {per_client}, but only {len(classes)} classes are trained on")
    parts = [classes]
    for count in range(len(classes), num_clients * per_client, len(classes)):
        begun = parts[-1][len(classes) - count % per_client :]  # classes of the client that is not complete yet
        fresh = generator.permutation(classes)
        has = np.isin(fresh, begun)
        parts.append(np.concatenate([fresh[~has], fresh[has]]))
    return np.concatenate(parts)[: num_clients * per_client].reshape(num_clients, per_client)


def _share(labels: BySplit, classes_Kk: np.ndarray, generator: np.random.Generator) -> BySplit:
    """Divide the images of each class evenly among its clients; a class without clients is not assigned."""
    owners = {split: np.full(len(own), NOBODY) for split, own in labels.items()}
    for label in np.unique(classes_Kk):
        clients = np.flatnonzero((classes_Kk == label).any(axis=1))
        for split, own in labels.items():
            images = generator.permutation(np.flatnonzero(own == label))
            owners[split][images] = clients[np.arange(len(images)) % len(clients)]
    return owners


def _domain(settings: PartitionSettings, splits: Mapping[str, Labelled], generator: np.random.Generator) -> BySplit:
    """Divide each domain d among the clients d k, d k + 1, ..., d k + k - 1, where k = `clients_per_domain`."""
    each = settings.clients_per_domain
    owners = {split: images.domains.astype(np.int64) * each for split, images in splits.items()}
    if each == 1:
        return owners
    for domain in np.unique(splits["train"].domains):
        inside = {split: np.flatnonzero(images.domains == domain) for split, images in splits.items()}
        labels = {split: splits[split].labels[rows] for split, rows in inside.items()}
        within = _dirichlet(settings, labels, each, generator) if settings.label_skew else _iid(labels, each, generator)
        for split, rows in inside.items():
            owners[split][rows] += within[split]
    return owners


def _authors_dirichlet(settings: PartitionSettings, labels: BySplit, num_clients: int, seed: int) -> BySplit:
    """Draw train and test like the authors, who have no validation images; these follow the training shares."""
    names, train = ["train", "test"], labels["train"]
    least, drawn = settings.min_per_client, [labels[name] for name in names]
    parts = authors_labeldir(drawn, num_clients, settings.beta, least, ATTEMPTS, seed)
    if parts is None:
        raise _too_little(settings, num_clients, len(train))
    owners = {split: np.full(len(own), NOBODY) for split, own in labels.items()}
    for name, clients in zip(names, parts, strict=True):
        for client, own in enumerate(clients):
            owners[name][own] = client
    cells = _num_classes(labels) * num_clients
    held_CK = np.bincount(train * num_clients + owners["train"], minlength=cells).reshape(-1, num_clients)
    shares_CK = held_CK / np.maximum(held_CK.sum(axis=1, keepdims=True), 1)
    for name in labels.keys() - names:
        owners[name] = _cut(shares_CK, labels[name], numpy_generator(seed, "partition", "validation"))
    return owners


def authors_labeldir(
    splits: Sequence[np.ndarray], num_clients: int, beta: float, least: int, attempts: int, seed: int
) -> list[list[np.ndarray]] | None:
    """Draw the authors' `noniid-labeldir` with numpy's legacy generator.

    Class by class, the images of every split are shuffled and cut by the same shares ~ Dirichlet(beta), rounded down.
    A client that has an equal part of the training images already gets none of the class.

    Args:
        splits: labels of train and test, [n] each.
        least: minimum number of images per client and split.

    Returns:
        Per split and client, positions in the authors' order; None if all `attempts` draws gave too few.
    """
    generator = np.random.RandomState(seed)
    for _ in range(attempts):
        parts = _draw(splits, num_clients, beta, generator)
        if parts is not None and min(len(own) for split in parts for own in split) >= least:
            for client in range(num_clients):
                for split in parts:
                    generator.shuffle(split[client])
            return parts
    return None


def _draw(
    splits: Sequence[np.ndarray], num_clients: int, beta: float, generator: np.random.RandomState
) -> list[list[np.ndarray]] | None:
    """Make one attempt; None if no client may take another class."""
    pieces: list[list[list[np.ndarray]]] = [[[] for _ in range(num_clients)] for _ in splits]
    held = np.zeros(num_clients)
    for label in range(1 + max(int(labels.max(initial=-1)) for labels in splits)):
        images = [np.flatnonzero(labels == label) for labels in splits]
        for own in images:
            generator.shuffle(own)
        shares = generator.dirichlet(np.full(num_clients, beta)) * (held < len(splits[0]) / num_clients)
        if not shares.sum() > 0:
            return None
        ends = np.cumsum(shares / shares.sum())
        for part, own in zip(pieces, images, strict=True):
            for client, piece in enumerate(np.split(own, (ends * len(own)).astype(int)[:-1])):
                part[client].append(piece)
        held += [len(client[-1]) for client in pieces[0]]
    return [[np.concatenate(client) for client in part] for part in pieces]


def _iid(labels: BySplit, num_clients: int, generator: np.random.Generator) -> BySplit:
    """Deal out images class by class: class counts and sizes of any two clients differ by at most one."""
    owners = {}
    for split, own in labels.items():
        owners[split] = np.empty(len(own), np.int64)
        owners[split][shuffled_order(own, generator)] = np.arange(len(own)) % num_clients
    return owners


def _dirichlet(
    settings: PartitionSettings, labels: BySplit, num_clients: int, generator: np.random.Generator
) -> BySplit:
    """Divide each class by shares from Dirichlet(beta), the same in all splits (Hsu et al., 2019).

    Draws are repeated until every client has `min_per_client` training images.
    """
    num_classes = _num_classes(labels)
    totals_C = np.bincount(labels["train"], minlength=num_classes)
    for _ in range(ATTEMPTS):
        shares_CK = generator.dirichlet(np.full(num_clients, settings.beta), num_classes)
        if _counts(shares_CK, totals_C).sum(axis=0).min() >= settings.min_per_client:
            return {split: _cut(shares_CK, own, generator) for split, own in labels.items()}
    raise _too_little(settings, num_clients, len(labels["train"]))


def _too_little(settings: PartitionSettings, num_clients: int, total: int) -> DataError:
    return DataError(
        f"partition: in {ATTEMPTS} draws of Dirichlet({settings.beta}), one of the {num_clients} clients always had "
        f"fewer than {settings.min_per_client} of the {total} training images; give a larger partition.beta, "
        "a smaller partition.clients or a smaller partition.min_per_client"
    )


def _cut(shares_CK: np.ndarray, labels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Assign a client to each image, so that every class is divided by its shares. [n]"""
    num_classes, num_clients = shares_CK.shape
    counts_CK = _counts(shares_CK, np.bincount(labels, minlength=num_classes))
    owner = np.empty(len(labels), np.int64)
    clients = np.tile(np.arange(num_clients), num_classes)
    owner[shuffled_order(labels, generator)] = np.repeat(clients, counts_CK.ravel())
    return owner


def _counts(shares_CK: np.ndarray, totals_C: np.ndarray) -> np.ndarray:
    """Round the shares to numbers of images per class and client that add up to the totals. [C, K]"""
    ends_CK = np.rint(np.cumsum(shares_CK, axis=1) * totals_C[:, None]).astype(np.int64)
    ends_CK[:, -1] = totals_C
    return np.diff(ends_CK, axis=1, prepend=0)


def _num_classes(labels: BySplit) -> int:
    return 1 + max(int(own.max(initial=-1)) for own in labels.values())

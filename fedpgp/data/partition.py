"""Who holds which images: pure functions from labels and domains to one index array per client."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from fedpgp.config import PartitionSettings
from fedpgp.data.grouping import shuffled_order
from fedpgp.errors import DataError
from fedpgp.seeding import numpy_generator

NOBODY = -1
ATTEMPTS = 100


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """The labels and domains of the images of a split. [n] each"""

    labels: np.ndarray
    domains: np.ndarray


Owners = Mapping[str, np.ndarray]
"""Per split, the client that holds each image. [n]"""


def assign(
    settings: PartitionSettings, splits: Mapping[str, Labelled], num_clients: int, seed: int
) -> Mapping[str, tuple[np.ndarray, ...]]:
    """Divide the images of every split among the clients, all splits in the same way as `train`.

    Returns:
        per split, one ascending array of positions per client; arrays are disjoint.

    Raises:
        DataError: the scheme cannot give every client something to train on.
    """
    generator = numpy_generator(seed, "partition", settings.scheme)
    match settings.scheme:
        case "pathological":
            owners = _pathological(splits, num_clients, generator)
        case "iid":
            owners = _iid(splits, num_clients, generator)
        case "domain":
            owners = {split: images.domains for split, images in splits.items()}
        case "dirichlet":
            owners = _dirichlet(splits, num_clients, settings.beta, settings.min_per_client, generator)
    return {split: _positions(owner, num_clients) for split, owner in owners.items()}


def _pathological(splits: Mapping[str, Labelled], num_clients: int, generator: np.random.Generator) -> Owners:
    """Disjoint classes; their numbers differ by one at most. A class without training images belongs to nobody."""
    classes = generator.permutation(np.unique(splits["train"].labels))
    if len(classes) < num_clients:
        raise DataError(
            f"partition: {num_clients} clients with disjoint classes, but only {len(classes)} classes to train on; "
            f"give partition.clients={len(classes)} or fewer, or another partition.scheme"
        )
    owner_of_class = np.full(_num_classes(splits), NOBODY)
    for client, own in enumerate(np.array_split(classes, num_clients)):
        owner_of_class[own] = client
    return {split: owner_of_class[images.labels] for split, images in splits.items()}


def _iid(splits: Mapping[str, Labelled], num_clients: int, generator: np.random.Generator) -> Owners:
    """Dealt out like cards, class after class: class counts and sizes of any two clients differ by one at most."""
    owners = {}
    for split, images in splits.items():
        owner = np.empty(len(images.labels), np.int64)
        owner[shuffled_order(images.labels, generator)] = np.arange(len(owner)) % num_clients
        owners[split] = owner
    return owners


def _dirichlet(
    splits: Mapping[str, Labelled], num_clients: int, beta: float, least: int, generator: np.random.Generator
) -> Owners:
    """Each class in proportions drawn from Dirichlet(beta), the same in all splits (Hsu et al., 2019).

    Drawn again until every client has `least` training images.
    """
    num_classes = _num_classes(splits)
    totals = {split: np.bincount(images.labels, minlength=num_classes) for split, images in splits.items()}
    for _ in range(ATTEMPTS):
        shares_CK = generator.dirichlet(np.full(num_clients, beta), num_classes)
        if _counts(shares_CK, totals["train"]).sum(axis=0).min() >= least:
            break
    else:
        raise DataError(
            f"partition: in {ATTEMPTS} draws of Dirichlet({beta}), one of the {num_clients} clients always had fewer "
            f"than {least} of the {totals['train'].sum()} training images; give a larger partition.beta, "
            "a smaller partition.clients or a smaller partition.min_per_client"
        )
    owners = {}
    for split, images in splits.items():
        clients = np.tile(np.arange(num_clients), num_classes)
        owner = np.empty(len(images.labels), np.int64)
        owner[shuffled_order(images.labels, generator)] = np.repeat(clients, _counts(shares_CK, totals[split]).ravel())
        owners[split] = owner
    return owners


def _counts(shares_CK: np.ndarray, totals_C: np.ndarray) -> np.ndarray:
    """Whole numbers of images per class and client that add up to the totals. [C, K]"""
    ends_CK = np.rint(np.cumsum(shares_CK, axis=1) * totals_C[:, None]).astype(np.int64)
    ends_CK[:, -1] = totals_C
    return np.diff(ends_CK, axis=1, prepend=0)


def _num_classes(splits: Mapping[str, Labelled]) -> int:
    return 1 + max((int(images.labels.max()) for images in splits.values() if len(images.labels)), default=-1)


def _positions(owner: np.ndarray, num_clients: int) -> tuple[np.ndarray, ...]:
    order = np.argsort(owner, kind="stable")
    bounds = np.searchsorted(owner[order], np.arange(num_clients + 1))
    return tuple(order[start:end] for start, end in pairwise(bounds))

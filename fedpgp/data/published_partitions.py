"""The partitions of the FedPGP and FedOTP authors, reproduced exactly for comparison with their numbers."""

import random
from collections.abc import Sequence

import numpy as np

CLASS_SEED = 2023


def class_blocks(num_classes: int, num_clients: int) -> list[list[int]]:
    """Cut the classes into the authors' blocks of round(C / K), after a shuffle with a fixed seed.

    The last client gets the rest; late clients may get none.
    """
    classes = list(range(num_classes))
    random.Random(CLASS_SEED).shuffle(classes)
    width = round(num_classes / num_clients)  # Python's rounding, to the even number
    starts = [client * width for client in range(num_clients)]
    ends = [*starts[1:], num_classes]
    return [classes[start:end] for start, end in zip(starts, ends, strict=True)]


def dirichlet(
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
    equal_part = len(splits[0]) / num_clients
    for _ in range(attempts):
        parts = _draw(splits, num_clients, beta, equal_part, generator)
        if parts is not None and min(len(own) for split in parts for own in split) >= least:
            for client in range(num_clients):
                for split in parts:
                    generator.shuffle(split[client])
            return parts
    return None


def _draw(
    splits: Sequence[np.ndarray], num_clients: int, beta: float, equal_part: float, generator: np.random.RandomState
) -> list[list[np.ndarray]] | None:
    """Make one attempt; None if no client may take another class."""
    pieces: list[list[list[np.ndarray]]] = [[[] for _ in range(num_clients)] for _ in splits]
    held = np.zeros(num_clients)
    for label in range(1 + max(int(labels.max(initial=-1)) for labels in splits)):
        images = [np.flatnonzero(labels == label) for labels in splits]
        for own in images:
            generator.shuffle(own)
        shares = generator.dirichlet(np.full(num_clients, beta)) * (held < equal_part)
        if not shares.sum() > 0:
            return None
        ends = np.cumsum(shares / shares.sum())
        for part, own in zip(pieces, images, strict=True):
            for client, piece in enumerate(np.split(own, (ends * len(own)).astype(int)[:-1])):
                part[client].append(piece)
        held += [len(client[-1]) for client in pieces[0]]
    return [[np.concatenate(client) for client in part] for part in pieces]

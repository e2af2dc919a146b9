"""Tables of image counts: of a manifest, and of its division among clients."""

from collections.abc import Iterable

import numpy as np
import pyarrow as pa

from fedpgp.data.manifest import Manifest
from fedpgp.data.protocol import FederatedData


def manifest_table(manifest: Manifest) -> pa.Table:
    """Count the images of each split, class and domain: `split`, `class`, `domain`, `images`; no empty rows."""
    names, splits = np.unique(manifest.splits, return_inverse=True)
    counts = _counts([splits, manifest.labels, manifest.domain_ids])
    return pa.table(
        {
            "split": [str(name) for name in names[counts[0]]],
            "class": [manifest.class_names[label] for label in counts[1]],
            "domain": [manifest.domains[domain] for domain in counts[2]],
            "images": counts[3],
        }
    )


def partition_table(manifest: Manifest, data: FederatedData) -> pa.Table:
    """Count the images of each client, split, class and domain, without empty rows.

    Columns `client`, `split` (train: after shots; val and test: its Local images), `class`, `domain`, `images`.
    """
    held = [("train", list(data.train_rows))]
    for pool in data.evaluation_sets:
        if pool.members is not None:
            held.append((pool.split, [pool.rows[own] for own in pool.members]))
    tables = [_of_split(manifest, data, split, rows) for split, rows in held]
    return pa.concat_tables(tables).combine_chunks()


def _of_split(manifest: Manifest, data: FederatedData, split: str, rows: list[np.ndarray]) -> pa.Table:
    clients = np.repeat(np.arange(len(rows)), [len(own) for own in rows])
    every = np.concatenate(rows)
    client, label, domain, images = _counts([clients, manifest.labels[every], manifest.domain_ids[every]])
    return pa.table(
        {
            "client": [data.client_names[number] for number in client],
            "split": pa.repeat(split, len(images)),
            "class": [manifest.class_names[number] for number in label],
            "domain": [manifest.domains[number] for number in domain],
            "images": images,
        }
    )


def _counts(keys: Iterable[np.ndarray]) -> list[np.ndarray]:
    """Return the distinct combinations of the keys, ascending, and their counts."""
    combinations, counts = np.unique(np.stack(list(keys)), axis=1, return_counts=True)
    return [*combinations, counts]

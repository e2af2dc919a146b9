"""What a manifest contains: image counts, and what reading every image finds."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pyarrow as pa
from PIL import Image

from fedpgp.config import DataSettings
from fedpgp.core.errors import DataError
from fedpgp.data import sources
from fedpgp.data.exif import orientation
from fedpgp.data.federated import FederatedData
from fedpgp.data.manifest import Manifest
from fedpgp.data.protocol import SPLITS
from fedpgp.data.ragged import Ragged

CHUNK = 512


def manifest_table(manifest: Manifest) -> pa.Table:
    """Count the images of each split, class and domain: `split`, `class`, `domain`, `images`; no empty rows."""
    names, splits = np.unique(manifest.splits, return_inverse=True)
    return _counted(
        {
            "split": (names.tolist(), splits),
            "class": (manifest.class_names, manifest.labels),
            "domain": (manifest.domains, manifest.domain_ids),
        }
    )


def partition_table(manifest: Manifest, data: FederatedData) -> pa.Table:
    """Count the images of each client, split, class and domain, without empty rows.

    Columns `client`, `split` (train: after shots; val and test: its Local images), `class`, `domain`, `images`.
    """
    held = [("train", data.train_rows)]
    for pool in data.evaluation_sets:
        if pool.members is not None:
            held.append((pool.split, Ragged.of(pool.members).taken(pool.rows)))
    tables = []
    for split, rows in held:
        images = rows.flat
        tables.append(
            _counted(
                {
                    "client": (data.client_names, rows.owners),
                    "split": ([split], np.zeros_like(images)),
                    "class": (manifest.class_names, manifest.labels[images]),
                    "domain": (manifest.domains, manifest.domain_ids[images]),
                }
            )
        )
    return pa.concat_tables(tables).combine_chunks()


def empty_classes(manifest: Manifest) -> list[str]:
    """List the classes that have no image in a split."""
    lines = []
    for split in np.unique(manifest.splits):
        counts = np.bincount(manifest.labels[manifest.splits == split], minlength=len(manifest.class_names))
        lines += [f"{manifest.class_names[label]}: no {split} image" for label in np.flatnonzero(counts == 0)]
    return lines


@dataclass(frozen=True)
class Findings:
    """The result of reading all images."""

    unreadable: list[str]
    """one error message per image"""
    leaks: list[tuple[str, str]]
    """pairs of equal pictures in two splits, each as `SPLIT NAME`, in the order train, val, test"""
    repeated: list[tuple[str, str]]
    """pairs of equal pictures within one split: the first one, and its duplicate"""
    rotated: list[str]
    """names of images with an EXIF orientation, which are used as stored"""
    content: str
    """sixteen hex digits over all names and pixels: equal for copies of the data at any location"""


def read_all(manifest: Manifest, settings: DataSettings, progress: Callable[[int, int], None]) -> Findings:
    """Decode every image and compare pixels, so that duplicates are found in any file format."""
    unreadable: list[str] = []
    held: dict[bytes, dict[str, int]] = {}
    repeated: list[tuple[str, str]] = []
    rotated: list[str] = []
    content = hashlib.sha256()
    for row, image in _images(manifest, settings, unreadable, progress):
        picture = hashlib.blake2b(f"{image.size}".encode() + image.tobytes(), digest_size=16).digest()
        content.update(_name(manifest, row).encode() + picture)
        if orientation(image) != 1:
            rotated.append(_name(manifest, row))
        first = held.setdefault(picture, {}).setdefault(str(manifest.splits[row]), row)
        if first != row:
            repeated.append((_name(manifest, first), _name(manifest, row)))
    leaks = [
        (f"{one} {_name(manifest, rows[one])}", f"{other} {_name(manifest, rows[other])}")
        for rows in held.values()
        for one, other in combinations([split for split in SPLITS if split in rows], 2)
    ]
    return Findings(unreadable, leaks, repeated, rotated, content.hexdigest()[:16])


def _counted(keys: Mapping[str, tuple[Sequence[str], np.ndarray]]) -> pa.Table:
    """Count the distinct combinations of keys, ascending; a key has its names and, per image, the index of one."""
    sizes = [len(names) for names, _ in keys.values()]
    found, images = np.unique(np.ravel_multi_index([ids for _, ids in keys.values()], sizes), return_counts=True)
    columns = {
        key: pa.array(names, pa.string()).take(pa.array(ids))
        for (key, (names, _)), ids in zip(keys.items(), np.unravel_index(found, sizes), strict=True)
    }
    return pa.table({**columns, "images": images})


def _images(
    manifest: Manifest, settings: DataSettings, unreadable: list[str], progress: Callable[[int, int], None]
) -> Iterator[tuple[int, Image.Image]]:
    """Yield the readable images with their rows; the errors of the others are added to `unreadable`."""
    source, total, row = sources.open_source(settings), len(manifest), 0
    while row < total:
        end = min(total, row + CHUNK)
        try:
            for image in source.read(manifest.table.slice(row, end - row)):
                yield row, image
                row += 1
        except DataError as error:
            unreadable.append(str(error))
            row += 1
        progress(row, total)


def _name(manifest: Manifest, row: int) -> str:
    file, number = manifest.table["file"][row].as_py(), manifest.table["row"][row].as_py()
    return file if number is None else f"{file}, row {number}"

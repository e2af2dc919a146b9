"""Reads every image of a manifest once: what cannot be read, what is there twice, and a digest of all pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from PIL import Image

from fedpgp.config import DataSettings
from fedpgp.core.errors import DataError
from fedpgp.data.manifest import Manifest, open_reader
from fedpgp.data.protocol import SPLITS

CHUNK = 512


@dataclass(frozen=True)
class Findings:
    """What reading all images showed."""

    unreadable: list[str]
    """one message per image that cannot be read"""
    leaks: list[tuple[str, str]]
    """equal pictures in two splits, the split in front of each: train, then val, then test"""
    repeated: list[tuple[str, str]]
    """equal pictures within one split: the first one, and the one that repeats it"""
    content: str
    """sixteen hex digits over all names and pictures: equal for copies of the data, wherever they lie"""


def read_all(manifest: Manifest, settings: DataSettings, progress: Callable[[int, int], None]) -> Findings:
    """Decode every image and compare their pixels; equal pictures are found whatever their file format."""
    unreadable: list[str] = []
    held: dict[bytes, dict[str, int]] = {}
    repeated: list[tuple[str, str]] = []
    content = hashlib.sha256()
    for row, image in _images(manifest, settings, unreadable, progress):
        picture = hashlib.blake2b(f"{image.size}".encode() + image.tobytes(), digest_size=16).digest()
        content.update(_name(manifest, row).encode() + picture)
        first = held.setdefault(picture, {}).setdefault(str(manifest.splits[row]), row)
        if first != row:
            repeated.append((_name(manifest, first), _name(manifest, row)))
    leaks = [
        (f"{one} {_name(manifest, rows[one])}", f"{other} {_name(manifest, rows[other])}")
        for rows in held.values()
        for one, other in combinations([split for split in SPLITS if split in rows], 2)
    ]
    return Findings(unreadable, leaks, repeated, content.hexdigest()[:16])


def empty_classes(manifest: Manifest) -> list[str]:
    """What is missing: classes without an image of a split that the data have."""
    lines = []
    for split in np.unique(manifest.splits):
        counts = np.bincount(manifest.labels[manifest.splits == split], minlength=len(manifest.class_names))
        lines += [f"{manifest.class_names[label]}: no {split} image" for label in np.flatnonzero(counts == 0)]
    return lines


def _images(
    manifest: Manifest, settings: DataSettings, unreadable: list[str], progress: Callable[[int, int], None]
) -> Iterator[tuple[int, Image.Image]]:
    """All that can be read, with their rows; what cannot goes to `unreadable`, and the rest goes on."""
    reader, total, row = open_reader(settings), len(manifest), 0
    while row < total:
        end = min(total, row + CHUNK)
        try:
            for image in reader.read(manifest.table.slice(row, end - row)):
                yield row, image
                row += 1
        except DataError as error:
            unreadable.append(str(error))
            row += 1
        progress(row, total)


def _name(manifest: Manifest, row: int) -> str:
    file, number = manifest.table["file"][row].as_py(), manifest.table["row"][row].as_py()
    return file if number is None else f"{file}, row {number}"

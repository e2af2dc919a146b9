"""Reads every image of a manifest once: what cannot be read, and what is in train and in test at the same time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from fedpgp.config import DataSettings
from fedpgp.data.manifest import Manifest, open_reader
from fedpgp.errors import DataError

CHUNK = 512


@dataclass(frozen=True)
class Findings:
    """What reading all images showed."""

    unreadable: list[str]
    """one message per image that cannot be read"""
    leaks: list[tuple[str, str]]
    """(training image, val or test image) with equal pixels"""
    repeated: int
    """images beyond the first of equal pixels within one split"""


def read_all(manifest: Manifest, settings: DataSettings, progress: Callable[[int, int], None]) -> Findings:
    """Decode every image and compare their pixels; equal pictures are found whatever their file format."""
    unreadable: list[str] = []
    first: dict[tuple[bytes, bool], int] = {}
    held: dict[bytes, int] = {}
    leaks: list[tuple[int, int]] = []
    repeated = 0
    train = manifest.splits == "train"
    for row, image in _images(manifest, settings, unreadable, progress):
        digest = hashlib.blake2b(f"{image.size}".encode() + image.tobytes(), digest_size=16).digest()
        side = bool(train[row])
        if (digest, side) in first:
            repeated += 1
        else:
            first[digest, side] = row
            if digest in held:
                leaks.append((row, held[digest]) if side else (held[digest], row))
            held.setdefault(digest, row)
    names = [(_name(manifest, a), _name(manifest, b)) for a, b in sorted(leaks)]
    return Findings(unreadable, names, repeated)


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

"""CIFAR-10 and CIFAR-100: the python batches, Parquet as on Hugging Face, or image folders train/CLASS, test/CLASS."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from fedpgp.config import DataSettings
from fedpgp.core.errors import DataError
from fedpgp.data.sources import pickles
from fedpgp.data.sources.base import ROW_SCHEMA, SINGLE_DOMAIN, Scan, Source, existing_root
from fedpgp.data.sources.downloads import ORIGINS
from fedpgp.data.sources.files import size_and_time
from fedpgp.data.sources.folder import FolderSource
from fedpgp.data.sources.parquet import ParquetSource

SIDE = 32
BATCHES: Mapping[str, Mapping[str, str]] = {
    "cifar10": {**{f"data_batch_{number}": "train" for number in range(1, 6)}, "test_batch": "test"},
    "cifar100": {"train": "train", "test": "test"},
}
"""File -> split."""
CLASSES = {"cifar10": 10, "cifar100": 100}
NAMES = {"cifar10": ("batches.meta", "label_names"), "cifar100": ("meta", "fine_label_names")}
LABELS = {"cifar10": "labels", "cifar100": "fine_labels"}


def open_cifar(settings: DataSettings) -> Source:
    """The source for whichever of the layouts lies under the root.

    Raises:
        DataError: none of them.
    """
    if isinstance(settings.root, str):
        return Whole(ParquetSource(settings), settings.name)
    root = existing_root(settings)
    for folder in (root, *(root / name for name in ORIGINS[settings.name].folders)):
        if any((folder / file).is_file() for file in BATCHES[settings.name]):
            return CifarBatches(settings.model_copy(update={"root": folder}))
    if any(root.rglob("*.parquet")):
        return Whole(ParquetSource(settings), settings.name)
    if (root / "train").is_dir() and (root / "test").is_dir():
        return Whole(FolderSource(settings), settings.name)
    steps = "; ".join(ORIGINS[settings.name].steps)
    raise DataError(
        f"{root}: no {settings.name}: neither {', '.join(BATCHES[settings.name])}, nor *.parquet, nor train/CLASS and "
        f"test/CLASS; get it: {steps}"
    )


class Whole:
    """A source in a general format that must hold all classes of CIFAR: the 10 are easily taken for the 100."""

    def __init__(self, source: Source, name: str) -> None:
        self.source, self.name = source, name

    def scan(self) -> Scan:
        """The rows of the source."""
        scan = self.source.scan()
        if len(scan.class_names) != CLASSES[self.name]:
            raise DataError(
                f"{self.name}: {len(scan.class_names)} classes in data.root, not {CLASSES[self.name]} "
                f"({', '.join(scan.class_names[:5])}, ...); give the folder of {self.name} alone"
            )
        return scan

    def read(self, rows: pa.Table) -> Iterator[Image.Image]:
        """The images of `rows`, in order."""
        return self.source.read(rows)


class CifarBatches:
    """The python version: pickled batches of 3 x 32 x 32 bytes, read without running what a pickle may contain."""

    def __init__(self, settings: DataSettings) -> None:
        self.root = existing_root(settings)
        self.name = settings.name

    def scan(self) -> Scan:
        """One row per image: `row` is its number in its batch."""
        missing = [file for file in (*BATCHES[self.name], NAMES[self.name][0]) if not (self.root / file).is_file()]
        if missing:
            raise DataError(f"{self.root}: {', '.join(missing)} missing; unpack the whole archive")
        names = self._names()
        if len(names) != CLASSES[self.name]:
            raise DataError(
                f"{self.root / NAMES[self.name][0]}: {len(names)} names, not {CLASSES[self.name]}; fetch it again"
            )
        tables = [self._rows(file, split, len(names)) for file, split in BATCHES[self.name].items()]
        return Scan(names, (SINGLE_DOMAIN,), pa.concat_tables(tables))

    def read(self, rows: pa.Table) -> Iterator[Image.Image]:
        """The images of `rows`, in order; a batch is read once per run of rows in it."""
        for file, run in groupby(zip(rows["file"].to_pylist(), rows["row"].to_pylist(), strict=True), itemgetter(0)):
            if file not in BATCHES[self.name]:
                raise DataError(f"{self.root / file}: not a batch of {self.name}; build the manifest again")
            data, _ = self._batch(file)
            for _, row in run:
                if not 0 <= row < len(data):
                    raise DataError(f"{self.root / file}: row {row} is missing; build the manifest again")
                yield Image.fromarray(np.ascontiguousarray(data[row].reshape(3, SIDE, SIDE).transpose(1, 2, 0)))

    def _names(self) -> tuple[str, ...]:
        file, key = NAMES[self.name]
        names = _get(pickles.read(self.root / file), key)
        if not isinstance(names, list) or not all(isinstance(name, str | bytes) for name in names):
            raise DataError(f"{self.root / file}: no list {key}; fetch it again")
        return tuple(name.decode() if isinstance(name, bytes) else name for name in names)

    def _batch(self, file: str) -> tuple[np.ndarray, np.ndarray]:
        """Images [n, 3072] and labels [n]."""
        tree, path = pickles.read(self.root / file), self.root / file
        data, labels = _get(tree, "data"), np.asarray(_get(tree, LABELS[self.name]))
        if not (isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.shape[1:] == (3 * SIDE * SIDE,)):
            raise DataError(f"{path}: `data` is not an array of n x {3 * SIDE * SIDE} bytes; fetch it again")
        if labels.dtype.kind != "i" or labels.shape != data.shape[:1]:
            raise DataError(f"{path}: `{LABELS[self.name]}` are not {len(data)} numbers; fetch it again")
        return data, labels

    def _rows(self, file: str, split: str, num_classes: int) -> pa.Table:
        _, labels = self._batch(file)
        wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
        if len(wrong):
            raise DataError(
                f"{self.root / file}, row {wrong[0]}: label {labels[wrong[0]]} is out of range of the {num_classes} "
                f"names ({len(wrong)} such rows); fetch it again"
            )
        count = len(labels)
        columns = [
            pa.repeat(file, count),
            pa.array(np.arange(count)),
            pa.array(labels, pa.int32()),
            pa.array(np.zeros(count), pa.int32()),
            pa.repeat(split, count),
            *(pa.repeat(value, count) for value in size_and_time(self.root / file)),
        ]
        return pa.table(columns, schema=ROW_SCHEMA)


def _get(tree: Any, key: str) -> Any:
    """An entry whose key may be text or, from Python 2, bytes."""
    return tree.get(key, tree.get(key.encode())) if isinstance(tree, dict) else None

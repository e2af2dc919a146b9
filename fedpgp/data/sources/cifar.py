"""CIFAR-10 and CIFAR-100: the python batches, Parquet as on Hugging Face, or image folders train/CLASS, test/CLASS."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from PIL import Image

from fedpgp.config import DataSettings
from fedpgp.core.errors import DataError
from fedpgp.data.sources import pickles
from fedpgp.data.sources.base import SINGLE_DOMAIN, SPLIT_NAMES, STATE, Scan, Source, existing_root, image_rows
from fedpgp.data.sources.folder import FolderSource
from fedpgp.data.sources.listing import entries, files_below, is_folder, state
from fedpgp.data.sources.parquet import ParquetSource

SIDE = 32


class CifarSource(Source):
    """CIFAR as batches, Parquet or image folders, whichever the root contains."""

    classes: ClassVar[int]
    batches: ClassVar[Mapping[str, str]]  # file -> split
    names_at: ClassVar[tuple[str, str]]  # file of the class names, and their key in it
    labels_key: ClassVar[str]
    archive: ClassVar[tuple[str, str]]  # file of the download, and its MD5 digest

    @classmethod
    def download(cls, root: Path) -> None:
        """Fetch and unpack the archive. torchvision's CIFAR classes would unpickle the batches."""
        from torchvision.datasets.utils import download_and_extract_archive

        file, md5 = cls.archive
        download_and_extract_archive(f"https://www.cs.toronto.edu/~kriz/{file}", str(root), filename=file, md5=md5)

    @classmethod
    def names_in_root(cls) -> tuple[str, ...]:
        """The unpacked folder, or the batches inside it."""
        return (*cls.folders, *cls.batches)

    def __init__(self, settings: DataSettings) -> None:
        """Find the layout; raise `DataError` if the root has none of them."""
        self._source = self._found(settings)

    def scan(self) -> Scan:
        """List the images; the number of classes must match, as CIFAR-10 and CIFAR-100 are easily confused."""
        scan = self._source.scan()
        if len(scan.class_names) != self.classes:
            raise DataError(
                f"{self.name}: {len(scan.class_names)} classes in data.root, not {self.classes} "
                f"({', '.join(scan.class_names[:5])}, ...); give the folder of {self.name} alone"
            )
        return scan

    def read(self, rows: pa.Table) -> Iterator[Image.Image]:
        """Decode the images of `rows`, in order."""
        return self._source.read(rows)

    def _found(self, settings: DataSettings) -> Source | CifarBatches:
        if isinstance(settings.root, str):
            return ParquetSource(settings)
        root = existing_root(settings)
        for folder in (root, *(root / name for name in self.folders)):
            if any((folder / file).is_file() for file in self.batches):
                return CifarBatches(folder, self)
        if any(files_below(root, ".parquet")):
            return ParquetSource(settings)
        folders = {SPLIT_NAMES.get(entry.name.lower()) for entry in entries(root) if is_folder(entry)}
        if {"train", "test"} <= folders:
            return FolderSource(settings)
        raise DataError(
            f"{root}: no {self.name}: neither {', '.join(self.batches)}, nor *.parquet, nor train/CLASS and "
            f"test/CLASS; get it: {'; '.join(self.steps)}"
        )


class Cifar10(CifarSource):
    """Ten classes."""

    name, classes, labels_key, names_at = "cifar10", 10, "labels", ("batches.meta", "label_names")
    batches: ClassVar = {**{f"data_batch_{number}": "train" for number in range(1, 6)}, "test_batch": "test"}
    folders = ("cifar-10-batches-py",)
    steps = (
        "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz -> ROOT/cifar-10-batches-py",
        "or https://huggingface.co/datasets/uoft-cs/cifar10 (parquet) -> ROOT/*.parquet",
    )
    archive: ClassVar = ("cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a")


class Cifar100(CifarSource):
    """A hundred classes, by their fine labels."""

    name, classes, labels_key, names_at = "cifar100", 100, "fine_labels", ("meta", "fine_label_names")
    batches: ClassVar = {"train": "train", "test": "test"}
    folders = ("cifar-100-python",)
    steps = (
        "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz -> ROOT/cifar-100-python",
        "or https://huggingface.co/datasets/uoft-cs/cifar100 (parquet) -> ROOT/*.parquet",
    )
    archive: ClassVar = ("cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85")


class CifarBatches:
    """The python version: pickled batches of 3 x 32 x 32 bytes, read by `pickles`, which runs no code."""

    def __init__(self, root: Path, data: CifarSource) -> None:
        self.root, self.data = root, data

    def scan(self) -> Scan:
        """One row per image: `row` is its number in its batch."""
        missing = [file for file in (*self.data.batches, self.data.names_at[0]) if not (self.root / file).is_file()]
        if missing:
            raise DataError(f"{self.root}: {', '.join(missing)} missing; unpack the whole archive")
        names = self._names()
        tables = [self._rows(file, split) for file, split in self.data.batches.items()]
        return Scan(names, (SINGLE_DOMAIN,), pa.concat_tables(tables), numbered=True, root=self.root)

    def read(self, rows: pa.Table) -> Iterator[Image.Image]:
        """Decode the images of `rows`, in order; a batch is read once per run of rows in it."""
        for file, run in groupby(zip(rows["file"].to_pylist(), rows["row"].to_pylist(), strict=True), itemgetter(0)):
            if file not in self.data.batches:
                raise DataError(f"{self.root / file}: not a batch of {self.data.name}; build the manifest again")
            data, _ = self._batch(file)
            for _, row in run:
                if not 0 <= row < len(data):
                    raise DataError(f"{self.root / file}: row {row} is missing; build the manifest again")
                yield Image.fromarray(np.ascontiguousarray(data[row].reshape(3, SIDE, SIDE).transpose(1, 2, 0)))

    def _names(self) -> tuple[str, ...]:
        file, key = self.data.names_at
        names = _get(pickles.read(self.root / file), key)
        if not isinstance(names, list) or not all(isinstance(name, str | bytes) for name in names):
            raise DataError(f"{self.root / file}: no list {key}; fetch it again")
        if len(names) != self.data.classes:
            raise DataError(f"{self.root / file}: {len(names)} names, not {self.data.classes}; fetch it again")
        return tuple(name.decode() if isinstance(name, bytes) else name for name in names)

    def _batch(self, file: str) -> tuple[np.ndarray, np.ndarray]:
        """Images [n, 3072] and labels [n]."""
        tree, path = pickles.read(self.root / file), self.root / file
        data, labels = _get(tree, "data"), np.asarray(_get(tree, self.data.labels_key))
        if not (isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.shape[1:] == (3 * SIDE * SIDE,)):
            raise DataError(f"{path}: `data` is not an array of n x {3 * SIDE * SIDE} bytes; fetch it again")
        if labels.dtype.kind != "i" or labels.shape != data.shape[:1]:
            raise DataError(f"{path}: `{self.data.labels_key}` are not {len(data)} numbers; fetch it again")
        return data, labels

    def _rows(self, file: str, split: str) -> pa.Table:
        _, labels = self._batch(file)
        wrong = np.flatnonzero((labels < 0) | (labels >= self.data.classes))
        if len(wrong):
            raise DataError(
                f"{self.root / file}, row {wrong[0]}: label {labels[wrong[0]]} is out of range of the "
                f"{self.data.classes} names ({len(wrong)} such rows); fetch it again"
            )
        columns = {"file": file, "row": np.arange(len(labels)), "label": labels, "domain": 0, "split": split}
        columns |= zip(STATE, state(self.root / file), strict=True)
        return image_rows(len(labels), **columns)


def _get(tree: Any, key: str) -> Any:
    """Get an entry whose key is text or, from Python 2, bytes."""
    return tree.get(key, tree.get(key.encode())) if isinstance(tree, dict) else None

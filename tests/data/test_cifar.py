"""CIFAR in its three forms, and the pickles of its python version."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedpgp.config import DataSettings
from fedpgp.core.errors import DataError
from fedpgp.data import manifest
from fedpgp.data.manifest import Manifest
from fedpgp.data.sources import open_source

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def batch(size: int, first: int, key: str = "labels", classes: int = 10) -> dict[str, object]:
    """`size` images whose red is their number, green 7 and blue 9; labels count up."""
    data = np.zeros((size, 3, 32, 32), np.uint8)
    data[:, 0] = np.arange(first, first + size)[:, None, None]
    data[:, 1], data[:, 2] = 7, 9
    labels = [(first + number) % classes for number in range(size)]
    return {"batch_label": "training batch", "data": data.reshape(size, 3072), key: labels}


def write(path: Path, tree: object, protocol: int = 2) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(tree, protocol))


@pytest.fixture
def cifar10(tmp_path: Path) -> Path:
    """The python version, 4 images per batch; keys as bytes in the second, as Python 3 reads Python 2."""
    folder = tmp_path / "cifar-10-batches-py"
    for number in range(5):
        tree = batch(4, 4 * number)
        write(folder / f"data_batch_{number + 1}", {k.encode(): v for k, v in tree.items()} if number == 1 else tree)
    write(folder / "test_batch", batch(6, 100))
    write(folder / "batches.meta", {"label_names": list(NAMES), "num_vis": 3072})
    return folder


def build(root: Path, name: str = "cifar10") -> Manifest:
    return manifest.build(DataSettings(name=name, root=root))  # type: ignore[arg-type]


def test_batches_in_order_with_official_names(cifar10: Path) -> None:
    for root in (cifar10, cifar10.parent):
        built = build(root)
        assert built.class_names == NAMES
        assert built.labels.tolist() == [n % 10 for n in range(20)] + [n % 10 for n in range(100, 106)]
        assert built.splits.tolist() == ["train"] * 20 + ["test"] * 6
    settings = DataSettings(name="cifar10", root=cifar10.parent)
    images = list(open_source(settings).read(built.table.take([25, 0, 7])))
    assert [image.getpixel((31, 0)) for image in images] == [(105, 7, 9), (0, 7, 9), (7, 7, 9)]
    assert images[0].size == (32, 32)


def test_hundred_classes_with_fine_labels(tmp_path: Path) -> None:
    names = [f"class {number}" for number in range(100)]
    for file in ("train", "test"):
        write(tmp_path / file, {**batch(120, 0, "fine_labels", 100), "coarse_labels": [0] * 120})
    write(tmp_path / "meta", {"fine_label_names": names, "coarse_label_names": ["x"] * 20})
    built = build(tmp_path, "cifar100")
    assert built.class_names == tuple(names)
    assert sorted(built.labels.tolist()) == sorted([*range(100), *range(20)] * 2)


def test_parquet_and_folders(parquet_file: Callable[..., Path], image_tree: Callable[..., Path]) -> None:
    parquet_file("train-0.parquet", list(range(10)), names=NAMES)
    parquet_root = parquet_file("test-0.parquet", [3], names=NAMES)
    assert build(parquet_root).class_names == NAMES
    assert manifest.build(DataSettings(name="cifar10", root=parquet_root.as_uri())).class_names == NAMES
    root = image_tree(*(f"{split}/{name}/0.png" for split in ("train", "test") for name in NAMES))
    assert build(root).class_names == NAMES
    for split in ("train", "test"):
        (root / split).rename(root / split.capitalize())
    assert build(root).class_names == NAMES
    with pytest.raises(DataError, match=r"cifar100: 10 classes in data.root, not 100 \(airplane, automobile, .*alone"):
        build(root, "cifar100")


def test_other_layouts_say_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"neither data_batch_1, .* nor \*.parquet, nor train/CLASS .*get it: https"):
        build(tmp_path)


def test_missing_batches_are_all_named(cifar10: Path) -> None:
    (cifar10 / "data_batch_2").unlink()
    (cifar10 / "batches.meta").unlink()
    with pytest.raises(DataError, match=r"data_batch_2, batches.meta missing; unpack the whole archive"):
        build(cifar10)


class Code:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return Path.touch, (self.path,)


def test_a_batch_with_code_in_it_is_not_run(cifar10: Path, tmp_path: Path) -> None:
    write(cifar10 / "data_batch_3", {**batch(4, 0), "filenames": [Code(tmp_path / "ran")]})
    with pytest.raises(DataError, match=r"data_batch_3: rejected: it refers to \S+, which is code"):
        build(cifar10)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({**batch(4, 0), "data": np.zeros((4, 100), np.uint8)}, "`data` is not an array of n x 3072 bytes"),
        ({**batch(4, 0), "data": [1, 2]}, "`data` is not an array"),
        ({**batch(4, 0), "labels": [0, 1]}, "`labels` are not 4 numbers"),
        ({**batch(4, 0), "labels": [0, 1, 10, 2]}, r"row 2: label 10 is out of range of the 10 names \(1 such rows\)"),
        ([1], "`data` is not an array"),
    ],
)
def test_bad_batches(tree: object, message: str, cifar10: Path) -> None:
    write(cifar10 / "data_batch_1", tree)
    with pytest.raises(DataError, match=rf"data_batch_1.*{message}"):
        build(cifar10)


def test_the_reader_knows_its_files(cifar10: Path) -> None:
    table = build(cifar10).table
    write(cifar10 / "test_batch", batch(2, 0))
    with pytest.raises(DataError, match=r"test_batch: row 2 is missing; build the manifest again"):
        list(open_source(DataSettings(name="cifar10", root=cifar10)).read(table))

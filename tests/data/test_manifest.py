"""The manifest: canonical order, class names, own splits, identity, storage."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedpgp.config import DataSettings, PartitionSettings, ProtocolSettings
from fedpgp.core.errors import DataError
from fedpgp.data import manifest, protocol
from fedpgp.data.manifest import Manifest

Tree = Callable[..., Path]


def build(root: Path, **settings: object) -> Manifest:
    return manifest.build(DataSettings(name="folder", root=root, **settings))


def split_counts(built: Manifest) -> list[list[int]]:
    """Per class: train, val, test."""
    return [
        [int(((built.labels == label) & (built.splits == split)).sum()) for split in ("train", "val", "test")]
        for label in range(len(built.class_names))
    ]


def images(**classes: int) -> list[str]:
    return [f"{name}/{number:03d}.png" for name, count in classes.items() for number in range(count)]


def test_own_split_takes_the_fractions_of_every_class(image_tree: Tree) -> None:
    root = image_tree(*images(a=10, b=20, c=1, d=2, e=3))
    counts = split_counts(build(root, train_fraction=0.5, val_fraction=0.2))
    assert counts == [[5, 2, 3], [10, 4, 6], [1, 0, 0], [1, 0, 1], [2, 0, 1]]
    assert split_counts(build(root, train_fraction=0.1, val_fraction=0.8))[3:] == [[1, 0, 1], [1, 1, 1]]
    assert split_counts(build(root, train_fraction=0.5, val_fraction=0))[0] == [5, 0, 5]


def test_own_split_is_by_domain_too(image_tree: Tree) -> None:
    root = image_tree(*(f"{domain}/cat/{number}.png" for domain in ("art", "photo") for number in range(4)))
    built = manifest.build(DataSettings(name="domain_folder", root=root, val_fraction=0.25))
    for domain in (0, 1):
        assert sorted(built.splits[built.domain_ids == domain]) == ["test", "train", "train", "val"]


def test_own_split_depends_on_its_seed_alone(image_tree: Tree) -> None:
    root = image_tree(*images(a=40))
    same, again, other = (build(root, split_seed=seed) for seed in (1, 1, 2))
    assert same.digest == again.digest != other.digest
    train = same.splits == "train"
    assert 5 < np.sum(train & (other.splits == "train")) < 15  # 10 expected of 20
    assert not np.array_equal(train, np.arange(40) < 20)


def test_a_single_named_split_is_cut(image_tree: Tree) -> None:
    root = image_tree(*(f"train/{file}" for file in images(a=10)))
    assert split_counts(build(root)) == [[5, 2, 3]]


def test_a_source_with_splits_needs_train_and_test(image_tree: Tree) -> None:
    with pytest.raises(DataError, match=r"no test split, only train and val; rename a split"):
        build(image_tree("train/a/0.png", "val/a/0.png"))


def test_class_names_in_another_order_move_the_labels(image_tree: Tree) -> None:
    root = image_tree("ice_cream/0.png", "cat/0.png", "dog/0.png")
    built = build(root, class_names=("dog", "ice cream", "cat"))
    assert dict(zip(built.table["file"].to_pylist(), built.labels.tolist(), strict=True)) == {
        "cat/0.png": 2,
        "dog/0.png": 0,
        "ice_cream/0.png": 1,
    }


def test_class_names_can_rename_in_place(image_tree: Tree) -> None:
    built = build(image_tree("cat/0.png", "n01/0.png"), class_names=("cat", "tench"))
    assert built.class_names == ("cat", "tench")
    assert built.labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("cat",), r"1 names for 2 classes \(cat, dog\)"),
        (("dog", "bird"), "cat -> dog, dog -> bird; .* write data.class_names="),
        (("ice cream", "ice_cream"), "duplicate class names .*: ice cream"),
    ],
)
def test_class_names_that_do_not_fit(names: tuple[str, ...], message: str, image_tree: Tree) -> None:
    with pytest.raises(DataError, match=message):
        build(image_tree("cat/0.png", "dog/0.png"), class_names=names)


def test_folders_that_read_the_same(image_tree: Tree) -> None:
    with pytest.raises(DataError, match=r"ice cream, sea horse; rename one of each"):
        build(image_tree(*images(**{"ice cream": 1, "ice_cream": 1, "sea_horse": 1, "sea horse": 1, "dog": 1})))


def test_digest_is_of_the_content_not_of_the_place(image_tree: Tree, tmp_path: Path) -> None:
    root = image_tree(*images(a=3, b=2))
    digest = build(root).digest
    assert len(digest) == 16
    copy = shutil.copytree(root, tmp_path / "copy")
    assert build(copy).digest == digest
    (copy / "b/001.png").write_bytes((copy / "b/001.png").read_bytes() + b"x")
    larger = build(copy).digest
    (copy / "b/001.png").rename(copy / "b/002.png")
    renamed = build(copy).digest
    names = build(root, class_names={"a": "c"}).digest
    assert len({digest, larger, renamed, names}) == 4


def test_files_digest_sees_a_replaced_image_of_equal_size_and_no_names(image_tree: Tree) -> None:
    """Cached features are keyed by it: other labels or splits of the same files need no new encoding."""
    root = image_tree(*images(a=30, b=20))
    before = build(root)
    renamed = build(root, class_names={"a": "c", "b": "d"})
    for same in (renamed, build(root, train_fraction=0.3), build(root, split_seed=7)):
        assert same.digest != before.digest
        assert same.files_digest == before.files_digest
    image = root / "b/001.png"
    image.write_bytes(bytes(reversed(image.read_bytes())))
    os.utime(image, ns=(0, image.stat().st_mtime_ns + 1))
    after = build(root)
    assert after.digest == before.digest
    assert after.files_digest != before.files_digest


def test_rows_are_sorted_by_path_whatever_the_scan_order(image_tree: Tree) -> None:
    built = build(image_tree("a/0.png", "a/1.png", "a b/0.png"))
    assert built.class_names == ("a", "a b")
    assert built.table["file"].to_pylist() == ["a b/0.png", "a/0.png", "a/1.png"]
    assert built.labels.tolist() == [1, 0, 0]


def test_arrays_follow_the_table(image_tree: Tree) -> None:
    built = build(image_tree(*images(b=2, a=1)))
    assert len(built) == 3
    assert built.labels.tolist() == [0, 1, 1]
    assert built.domain_ids.tolist() == [0, 0, 0]
    assert set(built.splits) <= {"train", "val", "test"}


def test_saved_and_loaded_is_the_same(image_tree: Tree, tmp_path: Path) -> None:
    built = build(image_tree(*images(a=3, b=2)))
    path = tmp_path / "new" / "manifest.arrow"
    built.save(path)
    built.save(path)
    loaded = Manifest.load(path)
    assert loaded == built
    assert loaded.digest == built.digest
    assert [file.name for file in path.parent.iterdir()] == ["manifest.arrow"]


def test_torn_missing_or_altered_manifests_are_refused(image_tree: Tree, tmp_path: Path) -> None:
    path = tmp_path / "manifest.arrow"
    with pytest.raises(DataError, match=r"no such manifest; build it again"):
        Manifest.load(path)
    build(image_tree(*images(a=3, b=2))).save(path)
    whole = path.read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"manifest.arrow: not a complete manifest; delete the file"):
            Manifest.load(path)
    path.write_bytes(whole.replace(b"a/000.png", b"a/009.png"))
    with pytest.raises(DataError, match=r"content and digest of the manifest differ"):
        Manifest.load(path)


@pytest.mark.parametrize(
    ("name", "manifest_digest", "data_digest"),
    [
        ("icons", "29c64268c9719427", "5c897aa271facc2e"),
        ("shapes", "5e65bbd0c986c336", "faa703c1f6a7e367"),
    ],
)
def test_digests_of_the_built_in_data_never_change(name: str, manifest_digest: str, data_digest: str) -> None:
    """Runs on disk are found and compared by these digests, which cover every row, split and client."""
    built = manifest.build(DataSettings(name=name))
    data = protocol.build(built, PartitionSettings(clients=2), ProtocolSettings(shots=2), seed=3)
    assert (built.digest, data.digest) == (manifest_digest, data_digest)

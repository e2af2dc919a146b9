"""The few-shot data sets in their real layouts: split files, official annotations, and what is refused."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
from built import build
from scipy.io import savemat

from fedpgp import config
from fedpgp.core.errors import DataError
from fedpgp.data import sources
from fedpgp.data.manifest import Manifest
from fedpgp.data.sources.splits import SPLITS

Write = Callable[..., Path]


def held(built: Manifest) -> dict[str, Counter[str]]:
    """Per split, images by class name."""
    names = [built.class_names[label] for label in built.labels]
    return {split: Counter(n for n, s in zip(names, built.splits, strict=True) if s == split) for split in SPLITS}


@pytest.fixture
def write(tmp_path: Path, png: Callable[[], bytes]) -> Write:
    """Write files under the root: images from a list, texts from a mapping."""

    def files(images: list[str], texts: dict[str, str] | None = None) -> Path:
        for name, content in [*((image, png()) for image in images), *((texts or {}).items())]:
            path = tmp_path / "root" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return tmp_path / "root"

    return files


def split_file(**splits: list[tuple[str, int, str]]) -> str:
    return json.dumps({"train": [], "val": [], "test": [], **splits})


@pytest.fixture
def pets(write: Write) -> Path:
    """Two breeds with 10 + 5 images each, as the archives unpack: ids from 1, comments, macOS leftovers."""
    names = ["Abyssinian", "american_bulldog"]
    images = [f"{name}_{number}" for name in names for number in range(1, 16)]
    line = {
        f"{name}_{number}": f"{name}_{number} {index} 1 1"
        for index, name in enumerate(names, 1)
        for number in range(1, 16)
    }
    trainval = [line[f"{name}_{number}"] for name in names for number in range(1, 11)]
    test = [line[f"{name}_{number}"] for name in names for number in range(11, 16)]
    return write(
        [f"images/{image}.jpg" for image in images] + ["images/._Abyssinian_1.jpg"],
        {
            "annotations/trainval.txt": "\n".join(trainval) + "\n",
            "annotations/test.txt": "#Image CLASS-ID SPECIES BREED ID\n" + "\n".join(test) + "\n",
        },
    )


def test_split_file_decides(pets: Path) -> None:
    (pets / "split_zhou_OxfordPets.json").write_text(
        split_file(
            train=[("american_bulldog_1.jpg", 0, "american_bulldog"), ("Abyssinian_11.jpg", 1, "abyssinian")],
            val=[("Abyssinian_2.jpg", 1, "abyssinian")],
            test=[("american_bulldog_3.jpg", 0, "american_bulldog")],
        )
    )
    built = build("oxford_pets", pets)
    assert built.class_names == ("american_bulldog", "abyssinian")
    assert list(zip(built.table["file"].to_pylist(), built.labels.tolist(), built.splits.tolist(), strict=True)) == [
        ("images/Abyssinian_11.jpg", 1, "train"),
        ("images/Abyssinian_2.jpg", 1, "val"),
        ("images/american_bulldog_1.jpg", 0, "train"),
        ("images/american_bulldog_3.jpg", 0, "test"),
    ]


def test_pets_from_the_annotations(pets: Path) -> None:
    built = build("oxford_pets", pets)
    assert built.class_names == ("abyssinian", "american_bulldog")
    assert held(built) == {
        "train": {"abyssinian": 8, "american_bulldog": 8},
        "val": {"abyssinian": 2, "american_bulldog": 2},
        "test": {"abyssinian": 5, "american_bulldog": 5},
    }
    test = built.table.filter(built.splits == "test")["file"].to_pylist()
    assert all(11 <= int(re.findall(r"\d+", file)[0]) <= 15 for file in test)


def test_the_shuffle_is_that_of_coop(pets: Path) -> None:
    """Python's generator, class after class in the order of the list; the first fifth is validation."""
    generator = random.Random(1)
    expected = set()
    for name in ("Abyssinian", "american_bulldog"):
        numbers = list(range(1, 11))
        generator.shuffle(numbers)
        expected |= {f"images/{name}_{number}.jpg" for number in numbers[:2]}
    built = build("oxford_pets", pets)
    assert set(built.table.filter(built.splits == "val")["file"].to_pylist()) == expected


def test_a_made_split_is_kept_in_the_format_of_coop(pets: Path) -> None:
    built = build("oxford_pets", pets)
    kept = pets / "split_seed1_OxfordPets.json"
    split = json.loads(kept.read_text())
    assert list(split) == ["train", "val", "test"]
    assert sorted(split["test"])[0] == ["Abyssinian_11.jpg", 0, "abyssinian"]
    (pets / "annotations/test.txt").unlink()
    assert build("oxford_pets", pets).digest == built.digest
    kept.rename(pets / "split_zhou_OxfordPets.json")
    assert build("oxford_pets", pets, split_seed=2).digest == built.digest


def test_the_seed_of_the_split(pets: Path) -> None:
    one, two = (build("oxford_pets", pets, split_seed=seed) for seed in (1, 2))
    assert one.digest != two.digest
    assert {path.name for path in pets.glob("*.json")} == {
        "split_seed1_OxfordPets.json",
        "split_seed2_OxfordPets.json",
    }


def test_nothing_is_written_into_a_read_only_folder(pets: Path) -> None:
    pets.chmod(0o555)
    try:
        digest = build("oxford_pets", pets).digest
        assert list(pets.glob("*.json")) == []
        assert build("oxford_pets", pets).digest == digest
    finally:
        pets.chmod(0o755)


def test_a_folder_of_another_user_is_read(
    pets: Path, shared_root: Path, as_user: Callable[..., AbstractContextManager[None]]
) -> None:
    own = shared_root / "pets"
    shutil.copytree(pets, own)
    own.chmod(0o755)
    with as_user(1501):
        digest = build("oxford_pets", own).digest
    assert list(own.glob("*.json")) == []
    assert build("oxford_pets", own).digest == digest


def test_the_folder_may_be_that_above(pets: Path) -> None:
    digest = build("oxford_pets", pets).digest
    for name in ("oxford_pets", "oxford-iiit-pet"):
        pets = pets.rename(pets.with_name(name))
        assert build("oxford_pets", pets.parent).digest == digest


def test_flowers_labels_count_from_1(write: Write) -> None:
    labels = np.array([[2] * 10 + [1] * 20], np.uint8)
    root = write(
        [f"jpg/image_{number:05d}.jpg" for number in range(1, 31)],
        {"cat_to_name.json": json.dumps({"1": "pink primrose", "2": "hard-leaved pocket orchid"})},
    )
    savemat(root / "imagelabels.mat", {"labels": labels})
    built = build("flowers102", root)
    assert built.class_names == ("pink primrose", "hard-leaved pocket orchid")
    assert built.labels.tolist() == [1] * 10 + [0] * 20
    assert held(built) == {
        split: {"hard-leaved pocket orchid": count, "pink primrose": 2 * count}
        for split, count in (("train", 5), ("val", 2), ("test", 3))
    }


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        ([[0, 1]], {"1": "a"}, r"imagelabels.mat: class ids count from 1; found 0"),
        ([[1, 2]], {"1": "a"}, r"cat_to_name.json: no name for class 2; fetch it again"),
    ],
)
def test_flowers_refusals(labels: list[list[int]], names: dict[str, str], message: str, write: Write) -> None:
    root = write(["jpg/image_00001.jpg", "jpg/image_00002.jpg"], {"cat_to_name.json": json.dumps(names)})
    with pytest.raises(
        DataError, match=r"imagelabels.mat: cannot be read .No such file.*; see `fedpgp data prepare flowers102`"
    ):
        build("flowers102", root)
    (root / "imagelabels.mat").write_bytes(b"MATLAB 5.0 MAT-file" + bytes(200))
    with pytest.raises(DataError, match=r"imagelabels.mat: not a MATLAB file with `labels`"):
        build("flowers102", root)
    savemat(root / "imagelabels.mat", {"labels": np.array(labels, np.uint8)})
    with pytest.raises(DataError, match=message):
        build("flowers102", root)


def test_dtd_has_its_official_split(write: Write) -> None:
    images = [f"{name}/{name}_{number:04d}.jpg" for name in ("banded", "blotchy") for number in range(6)]
    parts = {"train": [0, 1], "val": [2, 3], "test": [4, 5]}
    texts = {
        f"labels/{split}1.txt": "\n".join(f"{name}/{name}_{n:04d}.jpg" for name in ("banded", "blotchy") for n in own)
        for split, own in parts.items()
    }
    built = build("dtd", write([f"images/{image}" for image in images], texts))
    assert built.class_names == ("banded", "blotchy")
    assert built.splits.tolist() == ["train", "train", "val", "val", "test", "test"] * 2


def test_dtd_without_labels_is_cut_as_coop_does(write: Write) -> None:
    built = build("dtd", write([f"images/{name}/{n}.jpg" for name in ("banded", "zigzagged") for n in range(10)]))
    assert held(built) == {
        split: dict.fromkeys(("banded", "zigzagged"), count) for split, count in (("train", 5), ("val", 2), ("test", 3))
    }


@pytest.mark.parametrize("kind", ["txt", "json"])
def test_food_follows_its_meta_files(kind: str, write: Write) -> None:
    names = ("apple_pie", "waffles")
    lists = {
        split: {name: [f"{name}/{number}" for number in own] for name in names}
        for split, own in (("train", range(10)), ("test", range(10, 14)))
    }
    text = {split: "\n".join(line for own in by_class.values() for line in own) for split, by_class in lists.items()}
    texts = {f"meta/{split}.{kind}": text[split] if kind == "txt" else json.dumps(lists[split]) for split in lists}
    built = build("food101", write([f"images/{name}/{n}.jpg" for name in names for n in range(14)], texts))
    assert built.class_names == names
    assert held(built) == {
        split: dict.fromkeys(names, count) for split, count in (("train", 8), ("val", 2), ("test", 4))
    }


def test_caltech_leaves_two_folders_out_and_renames_four(write: Write) -> None:
    folders = ["BACKGROUND_Google", "Faces", "Faces_easy", "Leopards", "Motorbikes", "accordion", "airplanes"]
    root = write([f"101_ObjectCategories/{name}/image_{n:04d}.jpg" for name in folders for n in range(1, 11)])
    built = build("caltech101", root)
    assert built.class_names == ("face", "leopard", "motorbike", "accordion", "airplane")
    assert not any("easy" in file or "BACKGROUND" in file for file in built.table["file"].to_pylist())


def test_classes_too_small_to_be_cut_are_all_named(write: Write) -> None:
    root = write([f"101_ObjectCategories/{name}/{n}.jpg" for name in ("ant", "bee", "cat") for n in range(2)])
    with pytest.raises(DataError, match=r"too few images .*: ant \(2\), bee \(2\), cat \(2\)"):
        build("caltech101", root)


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (split_file(train=[("gone.jpg", 0, "a")]), r"1 images are not in data.root: images/gone.jpg; .* other data"),
        (split_file(train=[("a.jpg", 0, "a"), ("a.jpg", 0, "a")]), r"1 images are listed twice: images/a.jpg"),
        (split_file(train=[("a.jpg", 0, "a")], test=[("a.jpg", 0, "a")]), "listed twice"),
        (split_file(train=[("../../secret.jpg", 0, "a")]), r"have \.\. in their name: \.\./\.\./secret.jpg"),
        (split_file(train=[("a\\..\\b.jpg", 0, "a")]), r"have \.\. in their name"),
        (split_file(train=[("a.jpg", 0, "a"), ("b.jpg", 2, "b")]), r"without gaps; wrong or missing: 1"),
        (split_file(train=[("a.jpg", -1, "a")]), r"without gaps; wrong or missing: -1"),
        (split_file(train=[("a.jpg", 0, "a"), ("b.jpg", 0, "b")]), r"label 0 is 'a' and 'b'"),
        (split_file(), "without gaps"),
        ('{"train": []}', r"expected train, val and test as lists .*KeyError: 'val'"),
        ('{"train": [[1, 2]], "val": [], "test": []}', "expected train, val and test as lists"),
        ('{"train": [["a.jpg", "x", "a"]], "val": [], "test": []}', "expected train, val and test as lists"),
        ("[]", "expected a mapping"),
        ('{"train": [[', "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
    ],
)
def test_bad_split_files(split: str, message: str, write: Write) -> None:
    root = write(["images/a.jpg", "images/b.jpg"], {"split_zhou_OxfordPets.json": split})
    with pytest.raises(DataError, match=rf"split_zhou_OxfordPets.json: .*{message}"):
        build("oxford_pets", root)


def test_the_split_of_another_data_set_is_named(pets: Path) -> None:
    (pets / "split_zhou_Food101.json").write_text(split_file())
    with pytest.raises(DataError, match=r"split_zhou_Food101.json is not split_zhou_OxfordPets.json, the split of ox"):
        build("oxford_pets", pets)


def test_a_loop_of_links_is_no_image(pets: Path) -> None:
    (pets / "images/Abyssinian_1.jpg").unlink()
    (pets / "images/Abyssinian_1.jpg").symlink_to(pets / "images/Abyssinian_1.jpg")
    with pytest.raises(DataError, match=r"Abyssinian_1.jpg"):
        build("oxford_pets", pets)


def test_annotations_that_are_not_text_or_of_other_columns(pets: Path) -> None:
    path = pets / "annotations/trainval.txt"
    path.write_bytes(b"\xff\xfe 1 1 1\n")
    with pytest.raises(DataError, match=r"trainval.txt: not UTF-8"):
        build("oxford_pets", pets)
    path.write_text("Abyssinian_1 1\n")
    with pytest.raises(DataError, match=r"trainval.txt: 'Abyssinian_1 1' is not IMAGE CLASS SPECIES BREED"):
        build("oxford_pets", pets)
    path.unlink()
    with pytest.raises(DataError, match=r"trainval.txt: cannot be read \(No such file"):
        build("oxford_pets", pets)


def test_names_of_images_that_are_not_utf8(write: Write) -> None:
    root = write([f"101_ObjectCategories/ant/{n}.jpg" for n in range(10)])
    os.rename(root / "101_ObjectCategories/ant/0.jpg", os.fsencode(root) + b"/101_ObjectCategories/ant/\xff.jpg")
    with pytest.raises(DataError, match=r"ant: a file name is not UTF-8"):
        build("caltech101", root)


@pytest.mark.parametrize("name", ["oxford_pets", "flowers102", "dtd", "caltech101", "food101"])
def test_a_folder_of_something_else_says_what_is_missing_and_where_from(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"{name} needs the folder \w+ here; get it: http.*split_zhou_"):
        build(name, tmp_path)


def test_templates_are_those_of_coop() -> None:
    prompts = {
        "oxford_pets": "a photo of a {}, a type of pet.",
        "flowers102": "a photo of a {}, a type of flower.",
        "dtd": "{} texture.",
        "food101": "a photo of {}, a type of food.",
        "caltech101": "a photo of a {}.",
        "domainnet": "a photo of a {}.",
    }
    for name, prompt in prompts.items():
        experiment = config.parse({"data": {"name": name}})
        assert sources.complete(experiment).data.prompt == prompt
        given = config.override({"data": {"name": name}}, ["data.template=my {}"])
        assert sources.complete(config.parse(given)).data.prompt == "my {}"

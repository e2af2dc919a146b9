"""ImageNet and its variants in their published layouts: order and names of classes, splits, and what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from built import build

from fedpgp.config import DataSettings, PartitionSettings, ProtocolSettings
from fedpgp.core.errors import DataError
from fedpgp.data import manifest, protocol
from fedpgp.data.sources import open_source

CLIP_NAMES = {
    "n03773504": "missile",
    "n04008634": "missile",
    "n04355933": "sunglasses",
    "n04356056": "sunglasses",
    "n07873807": "pizza",
    "n15075141": "toilet paper",
}
WNIDS = [*(f"n{1440764 + 3 * number:08d}" for number in range(994)), *CLIP_NAMES]
"""A thousand ids in ImageNet's order; the last six are ImageNet's."""
SOME = WNIDS[3::5]
"""Two hundred of them."""
Write = Callable[..., None]


def class_names() -> str:
    """CoOp's classnames.txt, which need not be sorted."""
    return "".join(f"{wnid} {CLIP_NAMES.get(wnid, f'kind {wnid}')}\n" for wnid in reversed(WNIDS))


@pytest.fixture
def write(png: Callable[..., bytes]) -> Write:
    """Write one image into each class folder, and the class names if a folder is given for them."""

    def images(root: Path, folders: list[str], ending: str = "JPEG", names: Path | None = None) -> None:
        for number, folder in enumerate(folders):
            path = root / folder
            path.mkdir(parents=True, exist_ok=True)
            (path / f"{path.name}_{number}.{ending}").write_bytes(png((number % 256, number // 256, len(root.name))))
        if names is not None:
            (names / "classnames.txt").write_text(class_names())

    return images


@pytest.fixture
def coop(tmp_path: Path, write: Write) -> Path:
    """CoOp's folder: images/train/WNID and images/val/WNID, beside what CoOp writes there."""
    root = tmp_path / "imagenet"
    write(root / "images" / "train", WNIDS)
    write(root / "images" / "val", WNIDS, names=root)
    (root / "split_fewshot").mkdir()
    (root / "preprocessed.pkl").touch()
    return root


def test_train_is_for_training_and_val_for_testing(coop: Path) -> None:
    built = build("imagenet", coop)
    files = built.table["file"].to_pylist()
    assert (len(built), len(built.class_names), built.domains) == (2000, 1000, ("default",))
    for file, label, split in zip(files, built.labels, built.splits.tolist(), strict=True):
        _, folder, wnid, _ = file.split("/")
        assert (WNIDS[label], split) == (wnid, {"train": "train", "val": "test"}[folder])
    settings = DataSettings(name="imagenet", root=coop)
    assert next(open_source(settings).read(built.table.take([0]))).size == (5, 4)


def test_names_are_those_of_the_file_and_none_occurs_twice(coop: Path) -> None:
    names = build("imagenet", coop).class_names
    assert names[0] == "kind n01440764"
    assert names[-6:] == ("missile", "projectile", "sunglass", "sunglasses", "pizza", "toilet paper")


def test_all_places_of_the_folders_are_the_same_data(coop: Path) -> None:
    expected = build("imagenet", coop)
    assert build("imagenet", coop.parent).digest == expected.digest
    (coop / "train").symlink_to(coop / "images/train")
    (coop / "val").symlink_to(coop / "images/val")
    assert build("imagenet", coop).digest == expected.digest
    for name in ("train", "val"):
        (coop / name).unlink()
        (coop / "images" / name).rename(coop / name)
    built = build("imagenet", coop)
    assert (built.class_names, built.labels.tolist()) == (expected.class_names, expected.labels.tolist())
    assert built.table["file"].to_pylist() == [
        file.removeprefix("images/") for file in expected.table["file"].to_pylist()
    ]


def test_two_copies_are_refused(coop: Path) -> None:
    shutil.copytree(coop / "images" / "train", coop / "train")
    (coop / "val").mkdir()
    with pytest.raises(
        DataError, match=r"imagenet: imagenet is here twice: images/train, images/val and train, val; move one"
    ):
        build("imagenet", coop)


VARIANTS = {
    "imagenet_v2": ("imagenetv2/imagenetv2-matched-frequency-format-val", [str(n) for n in range(1000)], WNIDS),
    "imagenet_sketch": ("imagenet-sketch/images", WNIDS, WNIDS),
    "imagenet_a": ("imagenet-adversarial/imagenet-a", SOME, SOME),
    "imagenet_r": ("imagenet-rendition/imagenet-r", SOME, SOME),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_have_test_images_of_their_classes_in_order(name: str, tmp_path: Path, write: Write) -> None:
    inner, folders, wnids = VARIANTS[name]
    own = tmp_path / inner.partition("/")[0]
    write(tmp_path / inner, folders, "jpg", names=own)
    (tmp_path / inner / "README.txt").touch()
    built = build(name, own)
    assert set(built.splits) == {"test"}
    names = {**CLIP_NAMES, "n04008634": "projectile", "n04355933": "sunglass"}
    assert built.class_names == tuple(names.get(wnid, f"kind {wnid}") for wnid in wnids)
    for file, label in zip(built.table["file"].to_pylist(), built.labels, strict=True):
        assert file.split("/")[-2] == folders[label]
    assert build(name, tmp_path).digest == built.digest
    if name != "imagenet_sketch":
        assert build(name, tmp_path / inner).digest == built.digest
    (tmp_path / "imagenet").mkdir()
    (own / "classnames.txt").rename(tmp_path / "imagenet/classnames.txt")
    for root in (own, tmp_path):
        assert build(name, root).digest == built.digest


def test_a_part_of_the_classes_has_the_names_of_all(tmp_path: Path, write: Write) -> None:
    """One `missile` keeps its name and one `sunglasses` does not, as in ImageNet, though each is alone here."""
    write(tmp_path / "imagenet-r", [*WNIDS[:198], "n03773504", "n04355933"], "jpg", names=tmp_path)
    assert build("imagenet_r", tmp_path).class_names[-3:] == ("kind n01441355", "missile", "sunglass")


def test_nobody_trains_on_a_variant(tmp_path: Path, write: Write) -> None:
    write(tmp_path / "imagenet-a", SOME, names=tmp_path)
    built = build("imagenet_a", tmp_path)
    with pytest.raises(DataError, match=r"^data: all images are for testing; train on another data set$"):
        protocol.build(built, PartitionSettings(), ProtocolSettings(), seed=1)
    assert np.bincount(built.labels).tolist() == [1] * 200


def test_imagenet_trains_and_its_variants_test(coop: Path, write: Write) -> None:
    """A union: all images of the variants are tested, with the classes that they have."""
    around = coop.parent
    write(around / "imagenet-adversarial/imagenet-a", SOME)
    write(around / "imagenet-sketch/images", WNIDS)
    names = ("imagenet", "imagenet_a", "imagenet_sketch")
    data_settings = DataSettings(name="union", parts=tuple({"name": name, "root": around} for name in names))
    union = manifest.build(data_settings)
    cross = ProtocolSettings(name="cross_data", source="imagenet", val_shots=1)
    data = protocol.build(union, PartitionSettings(scheme="iid", clients=2), cross, seed=1)
    assert sum(len(own) for own in data.train_rows) == 1000
    held_out = {pool.class_set: len(pool.rows) for pool in data.evaluation_sets if pool.held_out}
    assert held_out == {"all/imagenet_a": 200, "all/imagenet_sketch": 1000}
    assert union.texts[1000:1200] == tuple(union.texts[3:1000:5])


def first_line(text: str) -> Callable[[Path], object]:
    return lambda root: (root / "classnames.txt").write_text(text + class_names())


def without_last_line(root: Path) -> None:
    (root / "classnames.txt").write_text("\n".join(class_names().splitlines()[:-1]))


def unpacked_twice(root: Path) -> None:
    (root / "imagenet-a" / WNIDS[0]).mkdir()
    (root / "imagenet-a" / WNIDS[0] / "0.jpg").write_bytes((next((root / "imagenet-a").rglob("*.jpg"))).read_bytes())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: (root / "classnames.txt").unlink(), r"classnames.txt: cannot be read \(No such .*\); see"),
        (lambda root: (root / "classnames.txt").rename(root / "ClassNames.txt"), r"ClassNames.txt: rename it to class"),
        (first_line("tench\n"), r"classnames.txt: 'tench' is not WNID NAME, or its WNID occurs twice; fetch"),
        (first_line("n01440764\n"), r"classnames.txt: 'n01440764' is not WNID NAME"),
        (first_line("n01440764 fish\n"), r"classnames.txt: 'n01440764 kind n01440764' is not WNID NAME, or its WNID"),
        (first_line("n99999999 thing\n"), r"classnames.txt: 1001 classes, not ImageNet's 1000; fetch the file again"),
        (without_last_line, r"classnames.txt: 999 classes, not ImageNet's 1000"),
        (lambda root: (root / "imagenet-a" / SOME[0]).rename(root / "imagenet-a/n00000001"), r"n00000001 is not a cla"),
        (unpacked_twice, r"201 class folders, not 200; unpack all of imagenet_a \(a part of it: data.name=folder\)$"),
        (lambda root: shutil.rmtree(root / "imagenet-a" / SOME[7]), r"199 class folders, not 200"),
        (lambda root: next((root / "imagenet-a" / SOME[7]).iterdir()).unlink(), rf"no image in the class .*{SOME[7]}"),
        (lambda root: (root / "imagenet-a").rename(root / "a"), r"imagenet_a needs the folder imagenet-a here; get it"),
    ],
)
def test_refusals(spoil: Callable[[Path], object], message: str, tmp_path: Path, write: Write) -> None:
    write(tmp_path / "imagenet-a", SOME, "jpg", names=tmp_path)
    spoil(tmp_path)
    with pytest.raises(DataError, match=message) as told:
        build("imagenet_a", tmp_path)
    assert "\n" not in str(told.value)


def test_validation_images_that_are_not_sorted_into_classes(tmp_path: Path, write: Write) -> None:
    write(tmp_path / "train", WNIDS[:3], names=tmp_path)
    (tmp_path / "val").mkdir()
    shutil.copy(next((tmp_path / "train").rglob("*.JPEG")), tmp_path / "val" / "ILSVRC2012_val_00000001.JPEG")
    with pytest.raises(DataError, match=r"no class folder: val; expected images/train/WNID/image and images/val/WNID"):
        build("imagenet", tmp_path)

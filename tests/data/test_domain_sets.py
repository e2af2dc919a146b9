"""PACS, Office-Home, VLCS and Terra Incognita in their published layouts, and what is refused."""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from built import build, rows

from fedpgp.config import PartitionSettings, ProtocolSettings
from fedpgp.core.errors import DataError
from fedpgp.data import protocol
from fedpgp.data.sources.domain_sets import (
    OFFICE_HOME_DOMAINS,
    PACS_CLASSES,
    PACS_DOMAINS,
    TERRA_CLASSES,
    TERRA_DOMAINS,
    VLCS_CLASSES,
    VLCS_DOMAINS,
)

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, png: Callable[..., bytes]) -> Write:
    """Write images that differ below a folder of the given name."""

    def files(root: str, images: list[str]) -> Path:
        for number, image in enumerate(images):
            path = tmp_path / root / image
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png((number % 256, number // 256, 3)))
        return tmp_path / root

    return files


def pacs_images(domain: str) -> list[str]:
    """Ten images per class; names differ by domain."""
    names = {"art_painting": "pic_{:03d}.jpg", "cartoon": "pic_{:03d}.jpg", "photo": "056_{:04d}.jpg"}
    return [
        f"{domain}/{name}/{names.get(domain, 'n02103406_{}-1.png').format(n)}"
        for name in PACS_CLASSES
        for n in range(10)
    ]


def write_lists(folder: Path) -> None:
    """The official lists: the last tenth is crossval, test has both; labels count from 1."""
    folder.mkdir(exist_ok=True)
    for domain in PACS_DOMAINS:
        lines = [f"{file} {1 + PACS_CLASSES.index(file.split('/')[1])}\n" for file in pacs_images(domain)]
        parts = {"crossval": lines[9::10], "train": [line for n, line in enumerate(lines) if n % 10 < 9], "test": lines}
        for part, own in parts.items():
            (folder / f"{domain}_{part}_kfold.txt").write_text("".join(own))


@pytest.fixture
def pacs(write: Write) -> Path:
    """Dassl's folder: images and splits."""
    root = write("pacs", [f"images/{image}" for domain in PACS_DOMAINS for image in pacs_images(domain)])
    write_lists(root / "splits")
    return root


def test_pacs_follows_its_lists(pacs: Path) -> None:
    built = build("pacs", pacs)
    assert (built.class_names, built.domains, len(built)) == (PACS_CLASSES, PACS_DOMAINS, 280)
    for file, name, domain, split in rows(built):
        assert file.startswith(f"images/{domain}/{name}/")
        assert split == ("test" if "9." in file or "9-1." in file else "train")
    assert build("pacs", pacs.parent).digest == built.digest


def test_the_held_out_domain_has_all_its_images(pacs: Path) -> None:
    """As in the literature: training on the others, testing on the union of train and crossval."""
    held_out = ProtocolSettings(name="leave_one_domain_out", held_out="sketch", val_shots=1)
    data = protocol.build(build("pacs", pacs), PartitionSettings(scheme="domain", clients=None), held_out, seed=1)
    assert data.client_names == PACS_DOMAINS[:3]
    assert [len(own) for own in data.train_rows] == [63 - 7, 63 - 7, 63 - 7]
    assert {(pool.split, pool.metric): len(pool.rows) for pool in data.evaluation_sets} == {
        ("val", "all"): 21, ("test", "all"): 21, ("test", "held_out"): 70,
    }  # fmt: skip


@pytest.mark.parametrize(("images", "lists"), [("pacs_data", "pacs_label"), ("", "splits"), ("", "")])
def test_pacs_in_its_other_layouts(images: str, lists: str, pacs: Path) -> None:
    expected = build("pacs", pacs)
    for domain in PACS_DOMAINS:
        (pacs / images).mkdir(exist_ok=True)
        (pacs / "images" / domain).rename(pacs / images / domain)
    (pacs / "images").rmdir()
    shutil.rmtree(pacs / "splits")
    write_lists(pacs / lists)
    built = build("pacs", pacs)
    assert built.splits.tolist() == expected.splits.tolist()
    assert [row[1:] for row in rows(built)] == [row[1:] for row in rows(expected)]


def test_pacs_of_domainbed_has_no_lists(pacs: Path) -> None:
    (pacs / "images").rename(pacs.parent / "PACS")
    built = build("pacs", pacs.parent)
    assert (built.class_names, built.domains, len(built)) == (PACS_CLASSES, PACS_DOMAINS, 280)
    assert Counter(built.splits.tolist()) == {"train": 4 * 7 * 5, "val": 4 * 7 * 2, "test": 4 * 7 * 3}


def test_the_damaged_sketch_is_left_out(pacs: Path, caplog: pytest.LogCaptureFixture) -> None:
    damaged = pacs / "images/sketch/dog/n02103406_4068-1.png"
    damaged.write_bytes(b"")
    with (pacs / "splits/sketch_train_kfold.txt").open("a") as list_file:
        list_file.write("sketch/dog/n02103406_4068-1.png 1\n")
    with caplog.at_level(logging.WARNING, "fedpgp"):
        assert len(build("pacs", pacs)) == 280
    assert [record.getMessage() for record in caplog.records] == [f"{pacs}: 1 file is left out: 1 not in {pacs}/*.txt"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("photo/dog/056_0000.jpg 2", r"photo_train_kfold.txt: '.* 2': the label of dog is 1; fetch the list again"),
        ("photo/dog/056_0000.jpg 0", r"photo_train_kfold.txt: '.* 0': the label of dog is 1"),
        ("photo/zebra/056_0000.jpg 8", r"photo_train_kfold.txt: 'zebra' is not a class of pacs; it is a list of other"),
        ("sketch/dog/n02103406_0-1.png 1", r"is not photo/CLASS/IMAGE LABEL; it is a list of other data"),
        ("photo/dog/056_0000.jpg", r"is not photo/CLASS/IMAGE LABEL"),
        ("photo/dog/056_7777.jpg 1", r"1 images are not in data.root: images/photo/dog/056_7777.jpg"),
        ("photo/dog/056_0000.jpg 1", r"1 images are listed twice: images/photo/dog/056_0000.jpg"),
        ("photo/dog/../x.jpg 1", r"is not photo/CLASS/IMAGE LABEL"),
    ],
)
def test_bad_lists_of_pacs(line: str, message: str, pacs: Path) -> None:
    with (pacs / "splits/photo_train_kfold.txt").open("a") as list_file:
        list_file.write(line + "\n")
    with pytest.raises(DataError, match=message):
        build("pacs", pacs)


def test_refusals_of_pacs(pacs: Path) -> None:
    (pacs / "splits/cartoon_crossval_kfold.txt").unlink()
    with pytest.raises(DataError, match=r"the list cartoon_crossval_kfold.txt is missing; fetch all lists or remove"):
        build("pacs", pacs)
    shutil.rmtree(pacs / "splits")
    for domain in PACS_DOMAINS:
        shutil.rmtree(pacs / "images" / domain / "house")
    with pytest.raises(DataError, match=r"no folder of the class house; unpack all of pacs"):
        build("pacs", pacs)
    (pacs / "images/photo").rename(pacs / "images/Photo")
    with pytest.raises(DataError, match=r"images/Photo: rename it to photo, the name that is expected"):
        build("pacs", pacs)
    shutil.rmtree(pacs / "images/Photo")
    with pytest.raises(DataError, match=r"pacs: pacs needs the folder images/photo here; get it: PACS.zip"):
        build("pacs", pacs)


OFFICE_CLASSES = ("Alarm_Clock", "TV", "Table", "ToothBrush", *(f"Thing_{number:02d}" for number in range(61)))
RELEASED = {"art": "Art", "clipart": "Clipart", "product": "Product", "real_world": "Real World"}


@pytest.fixture
def office(write: Write) -> Path:
    """The release: a blank in the name of a domain, five numbered images per class, beside two lists of files."""
    root = write(
        "OfficeHomeDataset_10072016",
        [f"{d}/{name}/{n:05d}.jpg" for d in RELEASED.values() for name in OFFICE_CLASSES for n in range(1, 6)],
    )
    (root / "ImageInfo.csv").write_text("Alarm_Clock,1\n")
    return root


@pytest.mark.parametrize("real", ["Real World", "RealWorld", "Real_World", "Real"])
def test_office_home_in_the_names_of_its_domains(real: str, office: Path) -> None:
    (office / "Real World").rename(office / real)
    built = build("office_home", office.parent)
    assert (built.class_names, built.domains) == (tuple(sorted(OFFICE_CLASSES)), OFFICE_HOME_DOMAINS)
    folders = {**RELEASED, "real_world": real}
    assert all(file.startswith(f"{folders[domain]}/{name}/") for file, name, domain, _ in rows(built))
    assert Counter(built.splits.tolist()) == {"train": 4 * 65 * 2, "val": 4 * 65, "test": 4 * 65 * 2}


def test_office_home_of_dassl_is_split_by_folders(write: Write) -> None:
    parts = {"train": range(1, 5), "val": range(5, 6)}
    root = write(
        "office_home_dg",
        [
            f"{domain}/{split}/{name}/{n:05d}.jpg"
            for domain in OFFICE_HOME_DOMAINS
            for split, numbers in parts.items()
            for name in OFFICE_CLASSES
            for n in numbers
        ],
    )
    built = build("office_home", root)
    assert (len(built.class_names), len(built)) == (65, 4 * 65 * 5)
    for file, name, domain, split in rows(built):
        assert file.split("/")[:3] == [domain, {"train": "train", "test": "val"}[split], name]
    shutil.rmtree(root / "product/val")
    with pytest.raises(DataError, match=r"office_home_dg: no folder product/val; unpack all of office_home"):
        build("office_home", root)


def test_office_home_with_a_missing_class_or_two_copies(office: Path) -> None:
    for domain in RELEASED.values():
        shutil.rmtree(office / domain / "TV")
    with pytest.raises(DataError, match=r"OfficeHomeDataset_10072016: 64 classes, not 65; unpack all of office_home"):
        build("office_home", office)
    (office / "RealWorld").mkdir()
    with pytest.raises(DataError, match=r"office_home is here twice: Art, .*, Real World and Art, .*, RealWorld; move"):
        build("office_home", office)


VLCS_FOLDERS = ("CALTECH", "LABELME", "PASCAL", "SUN")
VLCS_PARTS = {"train": range(6), "crossval": range(6, 8), "test": range(8, 11)}


@pytest.fixture
def vlcs(write: Write) -> Path:
    """Dassl's folder: class folders 0 to 4 in three parts, and all images once more in `full`."""
    parts = {**VLCS_PARTS, "full": range(11)}
    return write(
        "VLCS",
        [
            f"{domain}/{part}/{label}/imgs_{number}.jpg"
            for domain in VLCS_FOLDERS
            for part, numbers in parts.items()
            for label in range(5)
            for number in numbers
        ],
    )


def test_vlcs_of_dassl_has_three_parts(vlcs: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "fedpgp"):
        built = build("vlcs", vlcs)
    assert (built.class_names, built.domains, len(built)) == (VLCS_CLASSES, VLCS_DOMAINS, 4 * 5 * 11)
    for file, name, domain, split in rows(built):
        part = {"train": "train", "val": "crossval", "test": "test"}[split]
        expected = [domain.upper(), part, str(VLCS_CLASSES.index(name))]
        assert file.split("/")[:3] == expected
    assert [record.getMessage() for record in caplog.records] == [f"{vlcs}: 4 folders are left out"]
    assert build("vlcs", vlcs.parent).digest == built.digest


def test_vlcs_of_domainbed_has_class_folders(write: Write) -> None:
    folders = {"caltech": "Caltech101", "labelme": "LabelMe", "pascal": "VOC2007", "sun": "SUN09"}
    root = write("VLCS", [f"{d}/{c}/{n}.jpg" for d in folders.values() for c in VLCS_CLASSES for n in range(10)])
    built = build("vlcs", root)
    assert (built.class_names, built.domains, len(built)) == (VLCS_CLASSES, VLCS_DOMAINS, 200)
    assert all(file.startswith(f"{folders[domain]}/{name}/") for file, name, domain, _ in rows(built))


def test_refusals_of_vlcs(vlcs: Path) -> None:
    shutil.rmtree(vlcs / "PASCAL/crossval")
    with pytest.raises(DataError, match=r"VLCS: no folder PASCAL/crossval; unpack all of vlcs"):
        build("vlcs", vlcs)
    for domain, part in ((domain, part) for domain in VLCS_FOLDERS for part in VLCS_PARTS):
        shutil.rmtree(vlcs / domain / part, ignore_errors=True)
    with pytest.raises(DataError, match=r"no image in the class folder: CALTECH/full \(5 folders\)"):
        build("vlcs", vlcs)


@pytest.fixture
def terra(write: Write) -> Path:
    """DomainBed's folders; no location has every class, and names are ids."""
    return write(
        "terra_incognita",
        [
            f"{place}/{name}/58{number:02d}b-23d2-11e8-a6a3-ec086b02610b.jpg"
            for place in TERRA_DOMAINS
            for name in TERRA_CLASSES
            if (place, name) != ("location_46", "bobcat")
            for number in range(4)
        ],
    )


def test_terra_incognita_has_four_places(terra: Path) -> None:
    built = build("terra_incognita", terra)
    assert (built.class_names, built.domains) == (TERRA_CLASSES, TERRA_DOMAINS)
    assert len(built) == 4 * (4 * 10 - 1)
    assert all(file.startswith(f"{domain}/{name}/") for file, name, domain, _ in rows(built))
    assert build("terra_incognita", terra.parent).digest == built.digest


def test_refusals_of_terra_incognita(terra: Path) -> None:
    (terra / "location_38/bat").mkdir()
    shutil.copy(next((terra / "location_38/bird").iterdir()), terra / "location_38/bat/1.jpg")
    with pytest.raises(DataError, match=r"bat is not a class of terra_incognita; remove it"):
        build("terra_incognita", terra)
    shutil.rmtree(terra / "location_100")
    with pytest.raises(DataError, match=r"terra_incognita needs the folder location_100 here; get it: https://lila"):
        build("terra_incognita", terra)

"""Office-Caltech10 and DomainNet: ordered names, published lists, and what is refused."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from built import build, rows

from fedpgp.config import DataSettings
from fedpgp.core.errors import DataError
from fedpgp.data.sources import open_source
from fedpgp.data.sources.domains import DOMAINNET10_CLASSES, DOMAINNET_DOMAINS, OFFICE_CLASSES, OFFICE_DOMAINS

Tree = Callable[..., Path]


@pytest.fixture
def office(image_tree: Tree) -> Path:
    """Folder names as in the original release: backpack, laptop."""
    old = {"back_pack": "backpack", "laptop_computer": "laptop"}
    return image_tree(
        *(f"{d}/{old.get(c, c)}/frame_{n:04d}.jpg" for d in OFFICE_DOMAINS for c in OFFICE_CLASSES for n in range(3))
    )


def fedbn_lists(root: Path, domains: tuple[str, ...], classes: tuple[str, ...], base: str = "data/Some_Name") -> None:
    """As FedBN's: (paths, class names), both object arrays; image 2 of each class is for testing."""
    for domain in domains:
        for split, numbers in (("train", (0, 1)), ("test", (2,))):
            pairs = [(f"{base}/{domain}/{c}/frame_{n:04d}.jpg", c) for n in numbers for c in classes]
            paths, names = (np.array(column, dtype=object) for column in zip(*pairs, strict=True))
            (root / f"{domain}_{split}.pkl").write_bytes(pickle.dumps((paths, names)))


def test_office_has_its_names_in_fixed_order(office: Path) -> None:
    built = build("office_caltech10", office)
    assert built.class_names == OFFICE_CLASSES
    assert built.domains == OFFICE_DOMAINS
    assert len(built) == 120
    assert all(file.split("/")[1][:4] == name.replace("_", "")[:4] for file, name, _, _ in rows(built))
    assert {split for *_, split in rows(built)} == {"train", "val", "test"} - {"val"}


def test_fedbns_lists_are_followed(office: Path) -> None:
    fedbn_lists(office, OFFICE_DOMAINS, OFFICE_CLASSES)
    built = build("office_caltech10", office)
    assert len(built) == 120
    for file, name, domain, split in rows(built):
        assert split == ("test" if file.endswith("2.jpg") else "train")
        assert file.startswith(f"{domain}/")
        assert file.split("/")[1] == {"back_pack": "backpack", "laptop_computer": "laptop"}.get(name, name)


def test_a_list_with_code_in_it_is_not_run(office: Path, tmp_path: Path) -> None:
    fedbn_lists(office, OFFICE_DOMAINS, OFFICE_CLASSES)
    (office / "dslr_test.pkl").write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "ran").encode() + b"'\ntR.")
    with pytest.raises(DataError, match=r"dslr_test.pkl: rejected: it refers to os.system, which is code"):
        build("office_caltech10", office)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ((["a/amazon/bike/frame_0000.jpg"], ["mug"]), "image and label do not match"),
        ((["a/dslr/bike/frame_0000.jpg"], ["bike"]), "image and label do not match"),
        ((["a/amazon/tiger/frame_0000.jpg"], ["tiger"]), "'tiger' is not a class of office_caltech10; it is a list"),
        ((["a/amazon/bike/frame_0000.jpg"], []), "1 paths but 0 class names"),
        ({"a": 1}, "not a pair of paths and class names"),
        ((["a/amazon/bike/frame_9999.jpg"], ["bike"]), "1 images are not in data.root: amazon/bike/frame_9999.jpg"),
        ((["a/amazon/bike/frame_0000.jpg"] * 2, ["bike"] * 2), "listed twice: amazon/bike/frame_0000.jpg"),
    ],
)
def test_bad_lists(content: object, message: str, office: Path) -> None:
    fedbn_lists(office, OFFICE_DOMAINS, OFFICE_CLASSES)
    (office / "amazon_train.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match=message):
        build("office_caltech10", office)


def test_all_lists_or_none(office: Path) -> None:
    fedbn_lists(office, OFFICE_DOMAINS[:3], OFFICE_CLASSES)
    with pytest.raises(DataError, match=r"the list webcam_train.pkl, webcam_test.pkl is missing; fetch all lists"):
        build("office_caltech10", office)


def test_office_refuses_missing_domains_and_other_classes(office: Path) -> None:
    (office / "amazon/tiger").mkdir()
    (office / "amazon/tiger/0.png").write_bytes((office / "amazon/bike/frame_0000.jpg").read_bytes())
    with pytest.raises(DataError, match=r"tiger is not a class of office_caltech10"):
        build("office_caltech10", office)
    (office / "dslr").rename(office / "other")
    with pytest.raises(DataError, match=r"office_caltech10 needs the folder dslr here; get it"):
        build("office_caltech10", office)


def write_official(root: Path, classes: tuple[str, ...], per_class: int = 3) -> None:
    """DomainNet's own lists: labels in the order of all classes; the last image of a class is for testing."""
    for domain in DOMAINNET_DOMAINS:
        for split, numbers in (("train", range(per_class - 1)), ("test", range(per_class - 1, per_class))):
            lines = [f"{domain}/{c}/{domain}_{n}.jpg {label}" for label, c in enumerate(classes) for n in numbers]
            (root / f"{domain}_{split}.txt").write_text("\n".join(lines) + "\n")


ALL = ("aircraft_carrier", *DOMAINNET10_CLASSES, "The_Eiffel_Tower", "zigzag")


@pytest.fixture
def domainnet(image_tree: Tree) -> Path:
    return image_tree(*(f"{d}/{c}/{d}_{n}.jpg" for d in DOMAINNET_DOMAINS for c in ALL for n in range(3)))


def test_domainnet_takes_labels_from_the_official_lists(domainnet: Path) -> None:
    write_official(domainnet, ALL)
    built = build("domainnet", domainnet)
    assert built.class_names == ALL
    assert built.domains == DOMAINNET_DOMAINS
    assert len(built) == 6 * len(ALL) * 3
    assert all(split == ("test" if file.endswith("2.jpg") else "train") for file, _, _, split in rows(built))
    assert all(file.split("/")[1] == name for file, name, _, _ in rows(built))


@pytest.mark.parametrize("lists", [True, False])
def test_ten_classes_by_name(lists: bool, domainnet: Path) -> None:
    if lists:
        write_official(domainnet, ALL)
    built = build("domainnet10", domainnet)
    assert built.class_names == DOMAINNET10_CLASSES
    assert len(built) == 6 * 10 * 3
    assert all(file.split("/")[1] == name for file, name, _, _ in rows(built))


def test_ten_classes_from_fedbns_lists(image_tree: Tree) -> None:
    root = image_tree(
        *(f"{d}/{c}/frame_{n:04d}.jpg" for d in DOMAINNET_DOMAINS for c in DOMAINNET10_CLASSES for n in range(3))
    )
    fedbn_lists(root, DOMAINNET_DOMAINS, DOMAINNET10_CLASSES, base="DomainNet")
    assert [len(build("domainnet10", root)), build("domainnet10", root).class_names] == [180, DOMAINNET10_CLASSES]


def test_domainnet_without_lists_sorts_the_folders(domainnet: Path) -> None:
    assert build("domainnet", domainnet).class_names == tuple(sorted(ALL))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("clipart/bird/clipart_0.jpg", "is not clipart/CLASS/IMAGE LABEL"),
        ("sketch/bird/sketch_0.jpg 1", "is not clipart/CLASS/IMAGE LABEL; it is a list of other data"),
        ("clipart/bird/clipart_0.jpg 7", "labels must be 0, 1, 2, ... and belong to one class folder each"),
        ("clipart/bird/clipart_0.jpg 99", "labels must be 0, 1, 2"),
        ("clipart/../../x.jpg 1", "is not clipart/CLASS/IMAGE LABEL"),
        ("clipart/../x.jpg 1", "labels must be|have .. in their name"),
        ("clipart/bird/gone.jpg 1", "not in data.root: clipart/bird/gone.jpg"),
    ],
)
def test_bad_official_lists(line: str, message: str, domainnet: Path) -> None:
    write_official(domainnet, ALL)
    path = domainnet / "clipart_train.txt"
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(DataError, match=message):
        build("domainnet", domainnet)


@pytest.mark.slow
def test_a_hundred_thousand_files(tmp_path: Path) -> None:
    """A sixth of DomainNet in empty files, in a sixth of the time and memory that all of it may take."""
    import resource
    import time

    for domain in DOMAINNET_DOMAINS:
        for number in range(345):
            folder = tmp_path / domain / f"class_{number:03d}"
            folder.mkdir(parents=True)
            for image in range(49):
                (folder / f"{image:06d}.jpg").touch()
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    built = build("domainnet", tmp_path)
    assert len(built) == 6 * 345 * 49
    assert len(built.digest) == 16
    assert time.perf_counter() - start < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 170 * 1024


SHARED = Path(__file__).parents[2].parent / "shared" / "data"


@pytest.mark.skipif(not SHARED.is_dir(), reason="no photos beside the project")
@pytest.mark.parametrize(
    ("name", "images", "classes", "domains"),
    [("office_caltech10", 2533, 10, 4), ("caltech101", 2400, 100, 1), ("cifar10", 60000, 10, 1)],
)
def test_real_downloads(name: str, images: int, classes: int, domains: int) -> None:
    built = build(name, SHARED)
    assert (len(built), len(built.class_names), len(built.domains)) == (images, classes, domains)
    settings = DataSettings(name=name, root=SHARED)  # type: ignore[arg-type]
    sample = built.table.take(np.linspace(0, images - 1, 10).astype(int))
    assert all(image.mode == "RGB" for image in open_source(settings).read(sample))

"""Downloads: what is there is left alone, what cannot come is explained."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

import pytest
from torchvision.datasets.utils import extract_archive

from fedpgp.core.errors import DataError
from fedpgp.data.prepare import prepare
from fedpgp.data.sources import SOURCES

Tree = Callable[..., Path]
IMAGES = [f"101_ObjectCategories/{name}/{number}.jpg" for name in ("ant", "bee") for number in range(10)]


def never(root: Path) -> None:
    raise AssertionError("downloaded again")


def test_what_is_usable_is_left_alone(image_tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SOURCES["caltech101"], "download", staticmethod(never))
    assert len(prepare("caltech101", image_tree(*IMAGES), lambda line: None)) == 20


def test_a_download_is_verified(image_tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(root: Path) -> None:
        image_tree(*IMAGES).rename(root / "caltech101")

    monkeypatch.setattr(SOURCES["caltech101"], "download", staticmethod(download))
    said: list[str] = []
    assert len(prepare("caltech101", tmp_path / "new", said.append)) == 20
    assert said == [f"downloading caltech101 to {tmp_path / 'new'}"]
    monkeypatch.setattr(SOURCES["caltech101"], "download", staticmethod(lambda root: None))
    with pytest.raises(DataError, match="caltech101 needs the folder 101_ObjectCategories here"):
        prepare("caltech101", tmp_path / "empty", said.append)


def test_without_a_network_the_steps_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(root: Path) -> None:
        raise URLError("no route")

    monkeypatch.setattr(SOURCES["cifar10"], "download", staticmethod(offline))
    with pytest.raises(DataError) as caught:
        prepare("cifar10", tmp_path, lambda line: None)
    lines = str(caught.value).splitlines()
    assert lines[0] == "cifar10: could not be downloaded (<urlopen error no route>); run this again, or by hand:"
    assert lines[1].startswith("  https://www.cs.toronto.edu") and str(tmp_path) in lines[1]  # noqa: PT018
    assert lines[-1] == f"then: fedpgp data check cifar10 --root {tmp_path}"


def test_a_failed_download_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of an archive would be taken for the whole by the next call."""

    def torn(root: Path) -> None:
        (root / "caltech101/101_ObjectCategories/ant").mkdir(parents=True)
        raise OSError("no space left")

    monkeypatch.setattr(SOURCES["caltech101"], "download", staticmethod(torn))
    (tmp_path / "mine.txt").write_text("mine")
    for root in (tmp_path, tmp_path / "new", tmp_path / "deep/er"):
        with pytest.raises(DataError, match=r"could not be downloaded \(no space left\)"):
            prepare("caltech101", root, lambda line: None)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("kind", ["path", "link"])
def test_an_archive_that_leaves_its_folder_is_refused(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file beside the folder, or one that is written through a link to outside."""
    archive, root = tmp_path / "hostile.tar.gz", tmp_path / "root"
    with tarfile.open(archive, "w:gz") as tar:
        if kind == "link":
            link = tarfile.TarInfo("out")
            link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path)
            tar.addfile(link)
        file = tarfile.TarInfo("../../escaped.txt" if kind == "path" else "out/escaped.txt")
        tar.addfile(file, io.BytesIO())

    def unpack(fresh: Path) -> None:
        extract_archive(str(archive), str(fresh))

    monkeypatch.setattr(SOURCES["caltech101"], "download", staticmethod(unpack))
    with pytest.raises(DataError, match=r"outside|to an absolute path"):
        prepare("caltech101", root, lambda line: None)
    assert [path.name for path in tmp_path.rglob("*")] == ["hostile.tar.gz"]


def test_what_is_in_the_way_is_named_before_anything_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SOURCES["caltech101"], "download", staticmethod(never))
    (tmp_path / "caltech101").mkdir()
    with pytest.raises(DataError, match="caltech101 is there already but not usable; complete it or move it away"):
        prepare("caltech101", tmp_path, lambda line: None)


def test_data_sets_that_nobody_offers(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"office_caltech10: cannot be downloaded automatically; by hand:\n  office_caltech_10.zip"
    ):
        prepare("office_caltech10", tmp_path, lambda line: None)
    with pytest.raises(DataError, match=r"shapes: nothing to prepare; known data sets: oxford_pets, flowers102"):
        prepare("shapes", tmp_path, lambda line: None)


@pytest.mark.parametrize("name", ["stanford_cars", "ucf101", "imagenet", "imagenet_v2", "pacs", "office_home", "vlcs"])
def test_what_torchvision_does_not_offer_has_steps(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"^{name}: cannot be downloaded automatically; by hand:\n  "):
        prepare(name, tmp_path, lambda line: None)


@pytest.mark.parametrize("name", ["fgvc_aircraft", "sun397", "eurosat"])
def test_what_torchvision_offers_is_downloaded(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its classes exist, and nothing but the download itself is replaced."""
    from torchvision import datasets
    from torchvision.datasets import utils

    fetched: list[str] = []

    def fetch(url: str, *arguments: object, **named: object) -> None:
        fetched.append(url)
        raise OSError("no network")

    for module in (utils, datasets.fgvc_aircraft, datasets.sun397, datasets.eurosat):
        monkeypatch.setattr(module, "download_and_extract_archive", fetch)
    with pytest.raises(
        DataError, match=rf"^{name}: could not be downloaded \(no network\); run this again, or by hand:\n  http"
    ):
        prepare(name, tmp_path, lambda line: None)
    assert len(fetched) == 1
    assert list(tmp_path.iterdir()) == []

"""Folders of images: layouts, links, what is left out, and what operating systems leave."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from fedpgp.config import DataSettings
from fedpgp.core.errors import DataError
from fedpgp.data import manifest
from fedpgp.data.manifest import Manifest
from fedpgp.data.sources import decoding, open_source
from fedpgp.data.sources.listing import SUFFIXES

Tree = Callable[..., Path]


def build(root: Path, name: str = "folder") -> Manifest:
    return manifest.build(DataSettings(name=name, root=root))


def files(built: Manifest) -> list[str]:
    return list(built.table["file"].to_pylist())


@pytest.fixture
def messages(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.WARNING, "fedpgp")
    return lambda: [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_ending_of_a_readable_format_is_read(suffix: str, tmp_path: Path) -> None:
    kind = Image.registered_extensions()[suffix]
    assert kind in decoding.FORMATS
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for ending in (suffix, suffix.upper()):
            Image.new("1" if suffix == ".pbm" else "L", (4, 4), 1).save(tmp_path / name / f"0{ending}", kind)
    built = build(tmp_path)
    assert len(built) == 4
    images = open_source(DataSettings(name="folder", root=tmp_path)).read(built.table)
    assert [image.size for image in images] == [(4, 4)] * 4


def test_no_ending_of_a_readable_format_is_missing() -> None:
    known = {ending for ending, kind in Image.registered_extensions().items() if kind in decoding.FORMATS}
    assert known - set(SUFFIXES) <= {".pfm"}  # float pixels, which are refused


def test_what_is_left_out_is_counted_by_kind(image_tree: Tree, messages: Callable[[], list[str]]) -> None:
    root = image_tree(
        *(f"{name}/{file}" for name in ("cat", "dog") for file in ("0.png", "1.heic", "2.HEIC")),
        "cat/inner/3.png", "cat/Thumbs.db", "cat/.hidden.png", "dog/list.csv", "top.png", "LICENSE",
    )  # fmt: skip
    for name in ("cat", "dog"):
        (root / name / "noending").write_text("text")
    assert files(build(root)) == ["cat/0.png", "dog/0.png"]
    (message,) = messages()
    assert message == (
        f"{root}: 9 files and folders are left out: 4 .heic, 2 without an ending, 1 .csv, "
        "1 .png outside the class folders, 1 folder"
    )


def test_a_file_without_an_ending_is_an_image_if_its_content_is(
    image_tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = image_tree("cat/0.png", "dog/0.png", "dog/b")
    Image.new("RGB", (4, 4)).save(root / "cat" / "a", "JPEG")
    opened: list[Path] = []
    original = Image.open
    monkeypatch.setattr(Image, "open", lambda path, **given: opened.append(path) or original(path, **given))
    (root / "cat" / "torn").write_bytes(b"\x89PNG\r\n\x1a\n")
    (root / "dog" / "notes").write_text("text")
    Image.new("RGB", (4, 4)).save(root / "dog" / "c", "BMP")
    assert files(build(root)) == ["cat/0.png", "cat/a", "dog/0.png", "dog/b", "dog/c"]
    assert [path.name for path in opened] == ["torn", "c", "notes"]  # of which the first bytes do not tell


def test_folders_and_files_beside_parquet_files_are_counted(
    image_tree: Tree, parquet_file: Tree, messages: Callable[[], list[str]]
) -> None:
    build(image_tree("cat/0.png", "dog/0.png", "cat/inner/0.png"))
    root = parquet_file("data/train-0.parquet", ["a", "b"])
    for name in ("README.md", ".gitattributes", "data/train-1.parquet.part", "data/Thumbs.db"):
        (root / name).touch()
    (root / "blob").write_bytes((root / "data/train-0.parquet").read_bytes())
    (root / "data/train-2.parquet").symlink_to(root / "blob")  # as in Hugging Face's cache
    for place in (root, root.as_uri()):
        build(place, "parquet")
    assert messages() == [
        f"{root.parent / 'images'}: 1 folder is left out",
        f"{root}: 2 files are left out: 1 .md, 1 .part",
        f"{root.as_uri()}: 3 files are left out: 1 .md, 1 .part, 1 without an ending",
    ]


def test_nothing_is_said_if_nothing_is_left_out(image_tree: Tree, messages: Callable[[], list[str]]) -> None:
    build(image_tree("cat/0.png", "dog/0.png", "README.md", "cat/.DS_Store"))
    assert messages() == []


def test_a_class_folder_without_images_says_what_it_has(image_tree: Tree) -> None:
    root = image_tree("cat/0.png", "dog/c.heic")
    for name in ("a", "b"):
        (root / "dog" / name).write_text("text")
    with pytest.raises(
        DataError, match=r"no image in the class folder: dog \(2 without an ending, 1 .heic\); expected"
    ):
        build(root)


JUNK = ("__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information", ".git", "#recycle")


@pytest.mark.parametrize("junk", JUNK)
@pytest.mark.parametrize("above", ["", "train/", "train/cat/"])
def test_junk_is_ignored_at_every_level(
    junk: str, above: str, image_tree: Tree, messages: Callable[[], list[str]]
) -> None:
    good = ["train/cat/0.png", "train/dog/0.png", "test/cat/0.png", "test/dog/0.png"]
    root = image_tree(*good, f"{above}{junk}/cat/._0.png", f"{above}{junk}/0.png")
    assert files(build(root)) == sorted(good)
    assert messages() == []


def test_junk_is_ignored_in_domain_folders_class_lists_and_parquet(
    image_tree: Tree, parquet_file: Tree, tmp_path: Path
) -> None:
    root = image_tree("photo/cat/0.png", "photo/dog/0.png", "__MACOSX/photo/cat/0.png", "photo/@eaDir/0.png")
    assert build(root, "domain_folder").domains == ("photo",)
    root = tmp_path / "caltech"
    for name in ("ant", "bee", "__MACOSX"):
        for number in range(10):
            path = root / "101_ObjectCategories" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 4)).save(path)
    assert build(root, "caltech101").class_names == ("ant", "bee")
    parquet_file("__MACOSX/train.parquet", [1, 1])
    root = parquet_file("train.parquet", ["a", "b"])
    assert files(build(root, "parquet")) == ["train.parquet"] * 2


@pytest.mark.parametrize("odd", ["annotations", "labels", "extra"])
def test_an_odd_folder_beside_splits_is_named_alone(odd: str, image_tree: Tree) -> None:
    root = image_tree("train/cat/0.png", "test/cat/0.png", f"{odd}/cat/0.xml")
    (root / "val").mkdir()
    with pytest.raises(DataError, match=rf"beside test, train, val there is {odd}, which is no split: move it away"):
        build(root)


def test_splits_may_have_capitals(image_tree: Tree, parquet_file: Tree) -> None:
    built = build(image_tree("Train/cat/0.png", "TEST/cat/0.png", "Valid/cat/0.png"))
    assert dict(zip(files(built), built.splits.tolist(), strict=True)) == {
        "TEST/cat/0.png": "test", "Train/cat/0.png": "train", "Valid/cat/0.png": "val",
    }  # fmt: skip
    parquet_file("Train-0.parquet", ["a", "b"])
    built = build(parquet_file("Test.PARQUET", ["b", "a"]), "parquet")
    assert built.splits.tolist() == ["test", "test", "train", "train"]


@pytest.mark.parametrize(
    ("train", "test"),
    [("cifar_train", "cifar_test"), ("train0", "eval0"), ("x-training-0", "testing"), ("a/train/0", "b/test/0")],
)
def test_splits_have_the_words_of_hugging_face(train: str, test: str, parquet_file: Tree, image_tree: Tree) -> None:
    parquet_file(f"{train}.parquet", ["a", "b"])
    built = build(parquet_file(f"{test}.parquet", ["a", "b"]), "parquet")
    assert dict(zip(files(built), built.splits.tolist(), strict=True)) == {
        f"{train}.parquet": "train", f"{test}.parquet": "test",
    }  # fmt: skip
    assert build(image_tree("Training/cat/0.png", "Testing/cat/0.png")).splits.tolist() == ["test", "train"]


def test_blank_domains_are_refused(parquet_file: Tree) -> None:
    with pytest.raises(DataError, match=r"parquet: a domain has an empty name; rename it"):
        build(parquet_file("a.parquet", ["a", "b"], domain=["x", "  "]), "parquet")


def test_labels_in_two_unicode_forms_are_one_class(parquet_file: Tree) -> None:
    built = build(parquet_file("a.parquet", ["\u00c9", "E\u0301", "cat"]), "parquet")
    assert (built.class_names, built.labels.tolist()) == (("cat", "\u00c9"), [1, 1, 0])


def test_a_class_called_test_with_images_is_a_class(image_tree: Tree) -> None:
    assert build(image_tree("test/0.png", "test/inner/x.txt", "bus/0.png")).class_names == ("bus", "test")


@pytest.mark.parametrize("linked", ["", "train", "train/cat", "train/cat/0.png"])
def test_links_are_followed_at_every_level(linked: str, image_tree: Tree, tmp_path: Path) -> None:
    root = image_tree("train/cat/0.png", "train/dog/0.png", "test/cat/0.png", "test/dog/0.png")
    expected = build(root)
    away = (root / linked).rename(tmp_path / "elsewhere")
    (root / linked).symlink_to(away)
    built = build(root)
    assert (built.digest, files(built)) == (expected.digest, files(expected))
    assert len(list(open_source(DataSettings(name="folder", root=root)).read(built.table))) == 4


def test_linked_folders_of_parquet_files_are_followed_once(parquet_file: Tree, tmp_path: Path) -> None:
    root = parquet_file("data/train-0.parquet", ["a", "b"])
    (root / "data").rename(tmp_path / "elsewhere")
    (root / "data").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "again").symlink_to(root)
    built = build(root, "parquet")
    assert files(built) == ["data/train-0.parquet"] * 2
    assert len(list(open_source(DataSettings(name="parquet", root=root)).read(built.table))) == 2


@pytest.mark.parametrize("target", ["gone", "lost"])
def test_a_link_to_a_missing_class_folder_is_named(target: str, image_tree: Tree) -> None:
    root = image_tree("cat/0.png", "dog/0.png")
    (root / "lost").symlink_to(root / target)  # nowhere, or a loop
    with pytest.raises(DataError, match=r"lost: cannot be read \((No such file|Too many levels).*; repair or remove"):
        build(root)


def test_folders_of_the_same_name_in_two_unicode_forms_are_one_class(image_tree: Tree) -> None:
    composed, decomposed = "\u00c9pagneul", "E\u0301pagneul"
    root = image_tree(f"train/{composed}/0.png", "train/cat/0.png", f"test/{decomposed}/0.png", "test/cat/0.png")
    built = build(root)
    assert built.class_names == (decomposed, "cat")
    assert [file.split("/")[1] == "cat" for file in files(built)] == [label == 1 for label in built.labels]

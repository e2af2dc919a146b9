"""Reading every image once: all that is wrong is listed, not the first."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fedpgp.config import DataSettings
from fedpgp.data import manifest, summary

Tree = Callable[..., Path]


@pytest.fixture
def root(image_tree: Tree, png: Callable[..., bytes]) -> Path:
    """Two classes with four training and two test images each, all different."""
    files = [f"{split}/{c}/{n}.png" for c in "ab" for split, count in (("train", 4), ("test", 2)) for n in range(count)]
    root = image_tree(*files)
    for number, file in enumerate(files):
        (root / file).write_bytes(png((number, 1, 2)))
    return root


def findings(root: Path) -> summary.Findings:
    settings = DataSettings(name="folder", root=root)
    seen: list[tuple[int, int]] = []
    found = summary.read_all(manifest.build(settings), settings, lambda done, total: seen.append((done, total)))
    assert seen[-1] == (12, 12)
    return found


@pytest.mark.parametrize("chunk", [1, 5, 512])
def test_all_unreadable_images_are_listed(root: Path, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summary, "CHUNK", chunk)
    whole = (root / "train/a/1.png").read_bytes()
    (root / "train/a/0.png").write_bytes(b"")
    (root / "train/a/1.png").write_bytes(whole[: len(whole) // 2])
    (root / "test/b/1.png").write_bytes(b"<html>")
    messages = findings(root).unreadable
    assert [message.split(": ")[0].removeprefix(f"{root}/") for message in messages] == [
        "test/b/1.png",
        "train/a/0.png",
        "train/a/1.png",
    ]
    assert "0 bytes" in messages[1]


def test_equal_pixels_in_train_and_test_are_found(root: Path) -> None:
    assert findings(root) == summary.Findings([], [], [], [], findings(root).content)
    (root / "test/b/0.png").write_bytes((root / "train/a/2.png").read_bytes())
    (root / "train/b/3.png").write_bytes((root / "train/b/2.png").read_bytes())
    found = findings(root)
    assert found.leaks == [("train train/a/2.png", "test test/b/0.png")]
    assert found.repeated == [("train/b/2.png", "train/b/3.png")]


def test_a_picture_in_all_three_splits_is_named_with_each_pair(root: Path) -> None:
    picture = (root / "train/a/2.png").read_bytes()
    for copy in ("val/a/0.png", "test/a/1.png"):
        (root / copy).parent.mkdir(parents=True, exist_ok=True)
        (root / copy).write_bytes(picture)
    (root / "val/a/1.png").write_bytes((root / "test/a/0.png").read_bytes())
    (root / "val/b").mkdir()
    (root / "val/b/0.png").write_bytes((root / "test/b/0.png").read_bytes() + b"new bytes, old picture")
    settings = DataSettings(name="folder", root=root)
    found = summary.read_all(manifest.build(settings), settings, lambda done, total: None)
    assert sorted(found.leaks) == [
        ("train train/a/2.png", "test test/a/1.png"),
        ("train train/a/2.png", "val val/a/0.png"),
        ("val val/a/0.png", "test test/a/1.png"),
        ("val val/a/1.png", "test test/a/0.png"),
        ("val val/b/0.png", "test test/b/0.png"),
    ]


def test_the_content_digest_is_of_pictures_not_of_the_place(root: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(root, tmp_path / "copy", copy_function=shutil.copyfile)
    content = findings(root).content
    assert findings(copy).content == content
    ours, theirs = (copy / f"train/a/{number}.png" for number in (0, 1))
    swapped = ours.read_bytes(), theirs.read_bytes()
    ours.write_bytes(swapped[1])
    theirs.write_bytes(swapped[0])
    assert findings(copy).content != content


def test_the_file_format_does_not_hide_a_repetition(root: Path) -> None:
    from PIL import Image

    Image.open(root / "train/a/2.png").save(root / "test/b/0.png", "BMP")
    assert findings(root).leaks == [("train train/a/2.png", "test test/b/0.png")]


def test_classes_without_images_are_listed(root: Path) -> None:
    settings = DataSettings(name="folder", root=root)
    assert summary.empty_classes(manifest.build(settings)) == []
    for number in range(2):
        (root / f"test/b/{number}.png").unlink()
    (root / "test/b").rmdir()
    assert summary.empty_classes(manifest.build(settings)) == ["b: no test image"]


def test_photos_that_are_stored_lying_are_listed(root: Path) -> None:
    from PIL import Image

    exif = Image.Exif()
    for orientation, file in ((6, "train/a/0.png"), (1, "train/a/1.png"), (3, "test/b/0.png")):
        exif[0x112] = orientation
        Image.open(root / file).convert("RGB").save(root / file, "JPEG", exif=exif)
    assert findings(root).rotated == ["test/b/0.png", "train/a/0.png"]

"""The content digest sees every replaced image, and hashes a file once for a storage root."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fedpgp.config import DataSettings
from fedpgp.core.errors import DataError
from fedpgp.data import content, manifest

Tree = Callable[..., Path]
PICTURES = ("cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png")


def digest(root: Path | str, store: Path, name: str = "folder", **settings: object) -> str | None:
    built = manifest.build(DataSettings(name=name, root=root, **settings))  # type: ignore[arg-type]
    return content.digest(built, store)


def replace(path: Path, data: bytes) -> None:
    """Write other bytes of the same size, and restore the times, as rsync, tar and copies into containers do."""
    before = path.stat()
    assert len(data) == before.st_size
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.fixture
def root(image_tree: Tree) -> Path:
    return image_tree(*PICTURES)


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were hashed, once the index keeps files however new they are."""
    monkeypatch.setattr(content, "RECENT_NS", 0)
    found: list[Path] = []
    original = content.Hashes._hash

    def counted(self: content.Hashes, numbers: Sequence[int]) -> None:
        found.extend(Path(self._where(number)) for number in numbers)
        original(self, numbers)

    monkeypatch.setattr(content.Hashes, "_hash", counted)
    return found


def test_a_replaced_image_of_equal_size_and_time_is_seen(root: Path, tmp_path: Path, png: Callable[..., bytes]) -> None:
    before = digest(root, tmp_path)
    replace(root / "dog/1.png", png((201, 0, 0)))
    assert digest(root, tmp_path) != before


def test_two_exchanged_images_are_seen(root: Path, tmp_path: Path, png: Callable[..., bytes]) -> None:
    (root / "cat/1.png").write_bytes(png((201, 0, 0)))
    before = digest(root, tmp_path)
    replace(root / "cat/0.png", png((201, 0, 0)))
    replace(root / "cat/1.png", png())
    assert digest(root, tmp_path) != before


def test_copies_names_times_and_other_files_do_not_count(root: Path, tmp_path: Path) -> None:
    before = digest(root, tmp_path)
    copy = shutil.copytree(root, tmp_path / "copy", copy_function=shutil.copyfile)
    (copy / "cat/notes.txt").write_text("not an image")
    (copy / "dog").rename(copy / "wolf")
    assert digest(copy, tmp_path) == before


def test_a_file_is_hashed_once_and_again_only_after_a_change(
    root: Path, tmp_path: Path, png: Callable[..., bytes], hashed: list[Path]
) -> None:
    before = digest(root, tmp_path)
    assert sorted(hashed) == sorted(root / name for name in PICTURES)
    del hashed[:]
    assert digest(root, tmp_path) == before
    assert hashed == []
    replace(root / "cat/0.png", png((201, 0, 0)))
    digest(root, tmp_path)
    assert hashed == [root / "cat/0.png"]


def test_a_file_changed_just_now_is_not_trusted_by_its_time(root: Path, tmp_path: Path) -> None:
    digest(root, tmp_path)
    assert not (tmp_path / content.FOLDER).exists()  # nothing to keep yet


@pytest.mark.parametrize("damage", [b"", b"not arrow", None], ids=["empty", "other", "cut"])
def test_a_damaged_index_is_made_anew(root: Path, tmp_path: Path, hashed: list[Path], damage: bytes | None) -> None:
    before = digest(root, tmp_path)
    (index,) = (tmp_path / content.FOLDER).iterdir()
    whole = index.read_bytes()
    index.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    del hashed[:]
    assert digest(root, tmp_path) == before
    assert len(hashed) == len(PICTURES)
    assert index.read_bytes() == whole


def test_nothing_is_hashed_or_written_on_its_own(root: Path, tmp_path: Path, hashed: list[Path]) -> None:
    store = tmp_path / "store"
    hashes = content.Hashes(manifest.build(DataSettings(name="folder", root=root)), store)
    assert (hashes.digest, hashed) == (None, [])
    hashes.fill(2)  # the first two images
    assert (hashes.digest, hashed) == (None, [root / name for name in PICTURES[:2]])
    hashes.fill()
    assert len(hashed) == len(PICTURES)
    assert not store.exists()
    assert hashes.digest == digest(root, store)
    assert content.Hashes(manifest.build(DataSettings(name="folder", root=root)), store).digest == hashes.digest


def test_rows_of_a_file_count(parquet_file: Callable[..., Path], tmp_path: Path) -> None:
    root = parquet_file("train-0.parquet", [0, 1, 0, 1], ["cat", "dog"])
    parquet_file("test-0.parquet", [0, 1], ["cat", "dog"])
    built = manifest.build(DataSettings(name="parquet", root=root))
    first, last = (dataclasses.replace(built, table=built.table.slice(start, 2)) for start in (2, 4))
    assert first.table["file"].equals(last.table["file"])
    assert content.digest(first, tmp_path) != content.digest(last, tmp_path)


def test_a_folder_of_another_user_is_read_but_not_needed(
    root: Path, shared_root: Path, as_user: Callable[..., AbstractContextManager[None]], hashed: list[Path]
) -> None:
    root = shutil.copytree(root, shared_root.parent / "images")
    with as_user(1501):
        before = digest(root, shared_root)
    folder = shared_root / content.FOLDER
    assert folder.stat().st_mode & 0o777 == 0o775  # the group may write, whatever the umask
    folder.chmod(0o755)
    del hashed[:]
    with as_user(1502):
        assert digest(root, shared_root) == before
    assert hashed == []
    Image.new("RGB", (8, 8)).save(root / "cat/0.png")
    with as_user(1502):
        assert digest(root, shared_root) != before


def test_a_file_that_is_gone_is_an_error(root: Path, tmp_path: Path) -> None:
    built = manifest.build(DataSettings(name="folder", root=root))
    (root / "cat/0.png").unlink()
    with pytest.raises(DataError, match=r"cat/0\.png: cannot be read \(No such file"):
        content.digest(built, tmp_path)


@pytest.mark.parametrize("uri", [False, True], ids=["folder", "local URI"])
def test_a_parquet_file_is_hashed_once_for_all_its_rows(
    parquet_file: Callable[..., Path], tmp_path: Path, hashed: list[Path], png: Callable[..., bytes], uri: bool
) -> None:
    root = parquet_file("train-0.parquet", [0, 1, 0, 1], ["cat", "dog"])
    parquet_file("test-0.parquet", [0, 1], ["cat", "dog"])
    where = root.as_uri() if uri else root
    before = digest(where, tmp_path, "parquet")
    assert sorted(path.name for path in hashed) == ["test-0.parquet", "train-0.parquet"]
    file = root / "test-0.parquet"
    table, stat = pq.read_table(file), file.stat()
    images = [{"bytes": png((9, number, 9)), "path": f"{number}.png"} for number in range(2)]
    pq.write_table(table.set_column(0, "image", pa.array(images, table.schema.field("image").type)), file)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert digest(where, tmp_path, "parquet") != before


def test_drawn_images_have_no_content_digest(tmp_path: Path) -> None:
    assert content.digest(manifest.build(DataSettings(name="shapes")), tmp_path) is None


PLUGIN = """
from pathlib import Path

import pyarrow as pa
from PIL import Image

from fedpgp.data.sources.base import Scan, Source, image_rows
{kind}
"""
NAMES = """
class Mine:
    class_names = ("cat", "dog")

    def rows(self):
        return [(f"{name}/{number}.png", label) for label, name in enumerate(self.class_names) for number in range(2)]
"""
OWN = """
class Mine(Source):
    def __init__(self, settings):
        self.root = Path(settings.root)

    def scan(self):
        files = sorted(path.relative_to(self.root).as_posix() for path in self.root.rglob("*.png"))
        sizes = [(self.root / file).stat().st_size for file in files]
        labels = [int(file.startswith("dog")) for file in files]
        rows = image_rows(len(files), file=files, label=labels, domain=0, size=sizes, modified=0)
        return Scan(("cat", "dog"), ("default",), rows)

    def read(self, rows):
        for file in rows["file"].to_pylist():
            yield Image.open(self.root / file).convert("RGB")
"""


@pytest.mark.parametrize("kind", [NAMES, OWN], ids=["rows", "source"])
def test_files_of_a_source_outside_the_package_count(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, png: Callable[..., bytes], kind: str
) -> None:
    (tmp_path / f"mine{len(kind)}.py").write_text(PLUGIN.format(kind=kind))
    monkeypatch.chdir(tmp_path)
    name = f"mine{len(kind)}:Mine"
    before = digest(root, tmp_path, name)
    replace(root / "cat/0.png", png((201, 0, 0)))
    assert digest(root, tmp_path, name) != before


def test_files_on_another_machine_are_known_by_name_size_and_time(root: Path, tmp_path: Path) -> None:
    built = manifest.build(DataSettings(name="folder", root=root))
    remote = manifest.Manifest(built.name, built.class_names, built.domains, built.table)
    assert content.digest(remote, tmp_path) == remote.files_digest

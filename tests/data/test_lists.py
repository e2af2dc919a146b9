"""Lists of images: names in other forms than on disk, names that are refused, and files that are not listed."""

from __future__ import annotations

import json
import logging
import os
import pickle
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from built import build

from fedpgp.config import DataSettings
from fedpgp.core.errors import DataError
from fedpgp.data.manifest import Manifest
from fedpgp.data.sources import open_source
from fedpgp.data.sources.domains import DOMAINNET_DOMAINS, OFFICE_CLASSES, OFFICE_DOMAINS
from fedpgp.data.sources.lists import listed

Tree = Callable[..., Path]
COMPOSED, DECOMPOSED = "\u00c9pagneul", "E\u0301pagneul"


def read(built: Manifest, root: Path) -> int:
    return len(list(open_source(DataSettings(name=built.name, root=root)).read(built.table)))


def pets(root: Path, *names: str) -> Manifest:
    """Build a split file of the names: one class each, in train and test alternately."""
    split: dict[str, list[object]] = {"train": [], "val": [], "test": []}
    for label, name in enumerate(names):
        split["test" if label % 2 else "train"].append([name, label, f"breed {label}"])
    (root / "split_zhou_OxfordPets.json").write_text(json.dumps(split))
    return build("oxford_pets", root)


@pytest.mark.parametrize(("on_disk", "in_list"), [(COMPOSED, DECOMPOSED), (DECOMPOSED, COMPOSED)])
def test_another_unicode_form_of_a_name_is_found(on_disk: str, in_list: str, image_tree: Tree) -> None:
    root = image_tree(f"images/{on_disk}/{on_disk}_1.jpg", "images/pug.jpg")
    built = pets(root, f"{in_list}/{in_list}_1.jpg", "pug.jpg")
    assert built.table["file"].to_pylist() == sorted([f"images/{on_disk}/{on_disk}_1.jpg", "images/pug.jpg"])
    assert read(built, root) == 2


def test_an_exact_name_is_taken_before_one_in_another_form(image_tree: Tree) -> None:
    root = image_tree(f"images/{COMPOSED}.jpg", f"images/{DECOMPOSED}.jpg")
    assert sorted(pets(root, f"{COMPOSED}.jpg", f"{DECOMPOSED}.jpg").table["file"].to_pylist()) == [
        f"images/{DECOMPOSED}.jpg", f"images/{COMPOSED}.jpg",
    ]  # fmt: skip


def test_two_forms_of_one_file_are_a_repetition(image_tree: Tree) -> None:
    with pytest.raises(DataError, match=r"1 images are listed twice: images/"):
        pets(image_tree(f"images/{COMPOSED}.jpg"), f"{COMPOSED}.jpg", f"{DECOMPOSED}.jpg")


@pytest.mark.parametrize(
    ("on_disk", "in_list"), [("a.JPG", "a.jpg"), ("Sub/a.jpg", "sub/a.jpg"), (f"{COMPOSED}.jpg", "e\u0301pagneul.jpg")]
)
def test_names_that_differ_in_capitals_say_what_is_there(on_disk: str, in_list: str, image_tree: Tree) -> None:
    root = image_tree(f"images/{on_disk}", "images/b.jpg")
    with pytest.raises(DataError, match=rf"not in data.root: images/{in_list} \(there is images/{on_disk}, with other"):
        pets(root, in_list, "b.jpg")


def test_backslashes_are_separators_unless_the_file_has_them_in_its_name(image_tree: Tree) -> None:
    root = image_tree("images/sub/a.jpg", "images/sub\\b.jpg", "images/sub/b.jpg")
    built = pets(root, "sub\\a.jpg", "sub\\b.jpg", "sub/b.jpg")
    assert sorted(built.table["file"].to_pylist()) == ["images/sub/a.jpg", "images/sub/b.jpg", "images/sub\\b.jpg"]
    assert read(built, root) == 3


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("../a.jpg", r"1 images have \.\. in their name: \.\./a.jpg; use a list whose names are relative"),
        ("x\\..\\a.jpg", r"have \.\. in their name"),
        ("/images/a.jpg", "1 images have an absolute path: /images/a.jpg; use a list whose names are relative"),
        ("C:\\images\\a.jpg", "have an absolute path: C:"),
        ("\\images\\a.jpg", "have an absolute path"),
        ("a\0.jpg", "have a NUL character in their name"),
        ("sub\\c.jpg", r"are not in data.root: images/sub\\c.jpg; unpack all images"),
    ],
)
def test_each_refusal_states_its_own_reason(name: str, reason: str, image_tree: Tree) -> None:
    with pytest.raises(DataError, match=reason):
        pets(image_tree("images/a.jpg"), name, "a.jpg")


def test_a_split_file_with_a_byte_order_mark(image_tree: Tree) -> None:
    root = image_tree("images/a.jpg", "images/b.jpg")
    pets(root, "a.jpg", "b.jpg")
    path = root / "split_zhou_OxfordPets.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(build("oxford_pets", root)) == 2


def test_lists_of_dtd_and_food_may_have_backslashes(image_tree: Tree, tmp_path: Path) -> None:
    names = [f"{name}\\{number}.jpg" for name in ("banded", "dotted") for number in range(9)]
    root = image_tree(*(f"images/{name}".replace("\\", "/") for name in names))
    for folder, lists in (("labels", {"train1": 0, "val1": 1, "test1": 2}), ("meta", {"train": 0, "test": 1})):
        (root / folder).mkdir()
        for list_name, start in lists.items():
            lines = [name.removesuffix(".jpg" if folder == "meta" else "") for name in names[start :: len(lists)]]
            (root / folder / f"{list_name}.txt").write_text("\r\n".join(lines), newline="")
    assert build("dtd", root).class_names == build("food101", root).class_names == ("banded", "dotted")


def test_lists_of_domains_in_other_forms(image_tree: Tree) -> None:
    root = image_tree(*(f"{d}/{c}/{n}.jpg" for d in DOMAINNET_DOMAINS for c in (DECOMPOSED, "cat") for n in range(2)))
    for domain in DOMAINNET_DOMAINS:
        for number, split in enumerate(("train", "test")):
            lines = [f"{domain}\\{name}\\{number}.jpg {label}" for label, name in enumerate((COMPOSED, "cat"))]
            (root / f"{domain}_{split}.txt").write_text("\n".join(lines))
    built = build("domainnet", root)
    assert (len(built), built.class_names, read(built, root)) == (24, (COMPOSED, "cat"), 24)


def test_pickled_lists_in_another_unicode_form(image_tree: Tree) -> None:
    images = [f"{d}/{c}/{DECOMPOSED}_{n}.jpg" for d in OFFICE_DOMAINS for c in OFFICE_CLASSES for n in range(2)]
    root = image_tree(*images)
    for domain in OFFICE_DOMAINS:
        for number, split in enumerate(("train", "test")):
            paths = [f"data/{domain}/{name}/{COMPOSED}_{number}.jpg" for name in OFFICE_CLASSES]
            pair = (np.array(paths, object), np.array(OFFICE_CLASSES, object))
            (root / f"{domain}_{split}.pkl").write_bytes(pickle.dumps(pair))
    assert build("office_caltech10", root).table["file"].to_pylist() == sorted(images)


@pytest.mark.parametrize("linked", ["", "images", "images/sub", "images/sub/a.jpg"])
@pytest.mark.parametrize("above", [False, True])
def test_links_are_followed_at_every_level(linked: str, above: bool, image_tree: Tree, tmp_path: Path) -> None:
    root = image_tree("oxford_pets/images/sub/a.jpg", "oxford_pets/images/b.jpg")
    own = root / "oxford_pets"
    expected = pets(own, "sub/a.jpg", "b.jpg")
    away = (own / linked).rename(tmp_path / "elsewhere")
    (own / linked).symlink_to(away)
    given = root if above else own
    built = build("oxford_pets", given)
    assert (built.digest, read(built, given)) == (expected.digest, 2)


def test_files_that_a_list_does_not_name_are_counted(image_tree: Tree, caplog: pytest.LogCaptureFixture) -> None:
    root = image_tree("images/a.jpg", "images/b.jpg", "images/c.jpg", "images/c.mat", "images/.x.jpg")
    with caplog.at_level(logging.WARNING, "fedpgp"):
        assert len(pets(root, "a.jpg", "b.jpg")) == 2
    assert [record.getMessage() for record in caplog.records] == [
        f"{root}: 2 files are left out: 1 .mat, 1 not in split_zhou_OxfordPets.json"
    ]


def test_folders_that_a_list_does_not_name_are_counted(image_tree: Tree, caplog: pytest.LogCaptureFixture) -> None:
    root = image_tree("images/pug/a.jpg", "images/cat/a.jpg", "images/pug/more/a.jpg", "images/x.mat", "other/a.jpg")
    (root / "images" / "__MACOSX").mkdir()
    pets(root, "pug/a.jpg")
    assert [record.getMessage() for record in caplog.records] == [
        f"{root}: 3 files and folders are left out: 2 folders, 1 .mat"
    ]


def test_names_may_begin_with_a_dot(image_tree: Tree) -> None:
    root = image_tree("images/pug/1.jpg", "images/cat/1.jpg")
    built = pets(root, "./pug/1.jpg", ".//cat/./1.jpg")
    assert built.table["file"].to_pylist() == ["images/cat/1.jpg", "images/pug/1.jpg"]
    (root / "split_zhou_OxfordPets.json").unlink()
    for file, lines in (("train", "./cat/1\n./pug/1\n"), ("test", ".\\cat\\1\n")):
        (root / "meta").mkdir(exist_ok=True)
        (root / "meta" / f"{file}.txt").write_text(lines)
    with pytest.raises(DataError, match=r"^the official lists of food101: 1 images are listed twice: .*cat/1.jpg"):
        build("food101", root)
    (root / "meta" / "train.txt").write_text("./pug/1\n")
    assert build("food101", root).class_names == ("cat", "pug")


def test_a_split_of_lists_that_cannot_be_used_is_not_saved(image_tree: Tree) -> None:
    root = image_tree("images/cat/1.jpg")
    (root / "meta").mkdir()
    for file in ("train", "test"):
        (root / "meta" / f"{file}.txt").write_text("cat/2\n")
    with pytest.raises(DataError, match=r"^the official lists of food101: 2 images are not in data.root: images/cat/2"):
        build("food101", root)
    assert not list(root.glob("split_*"))


@pytest.mark.parametrize(("there", "expected"), [("Images", "images"), ("Meta", "meta")])
def test_folders_in_other_capitals_say_which_name_is_expected(there: str, expected: str, image_tree: Tree) -> None:
    root = image_tree("images/cat/1.jpg")
    (root / "meta").mkdir()
    (root / expected).rename(root / there)
    with pytest.raises(DataError, match=rf"{there}: rename it to {expected}, the name that is expected"):
        build("food101", root)


@pytest.mark.parametrize("name", ["split_zhou_oxfordpets.json", "split_zhou_OxfordPets.json.txt"])
def test_a_split_file_of_nearly_the_expected_name_is_named(name: str, image_tree: Tree) -> None:
    root = image_tree("images/a.jpg")
    (root / name).write_text("{}")
    with pytest.raises(DataError, match=rf"{name} is not split_zhou_OxfordPets.json, .*: rename it if"):
        build("oxford_pets", root)


def test_links_that_lead_nowhere_are_named(image_tree: Tree) -> None:
    root = image_tree("images/a.jpg", "images/b.jpg")
    (root / "images/a.jpg").unlink()
    (root / "images/a.jpg").symlink_to(root / "gone.jpg")
    with pytest.raises(DataError, match=r"images/a.jpg \(a link to .*gone.jpg, which leads nowhere\)"):
        pets(root, "a.jpg", "b.jpg")
    (root / "images").rename(root / "elsewhere")
    (root / "images").symlink_to(root / "gone")
    with pytest.raises(DataError, match=r"images: a link to .*gone, which leads nowhere; correct the link"):
        build("oxford_pets", root)
    (root.parent / "link").symlink_to("gone")
    with pytest.raises(DataError, match=r"link: a link to gone, which leads nowhere; correct the link"):
        build("folder", root.parent / "link")


def test_columns_of_lists_may_be_apart_by_tabs(image_tree: Tree) -> None:
    names = ("pug", "cat")
    root = image_tree(
        *(f"images/{name}_{number}.jpg" for name in names for number in range(6)),
        *(f"{domain}/{name}/{number}.jpg" for domain in DOMAINNET_DOMAINS for name in names for number in range(2)),
    )
    (root / "annotations").mkdir()
    for file, numbers in (("trainval", range(5)), ("test", [5])):
        lines = [f"{name}_{number}\t{label}\t1\t1\n" for label, name in enumerate(names, 1) for number in numbers]
        (root / "annotations" / f"{file}.txt").write_text("".join(lines))
    assert build("oxford_pets", root).class_names == names
    for domain in DOMAINNET_DOMAINS:
        for number, split in enumerate(("train", "test")):
            lines = [f"{domain}/{name}/{number}.jpg\t{label}\n" for label, name in enumerate(names)]
            (root / f"{domain}_{split}.txt").write_text("".join(lines))
    assert build("domainnet", root).class_names == names
    (root / "clipart_test.txt").rename(root / "Clipart_test.txt")
    with pytest.raises(DataError, match=r"Clipart_test.txt: rename it to clipart_test.txt"):
        build("domainnet", root)


def test_each_folder_is_listed_a_few_times_however_many_names_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listings: list[str] = []

    def count(name: str) -> None:
        original = getattr(os, name)
        monkeypatch.setattr(os, name, lambda path: listings.append(name) or original(path))

    (tmp_path / "images").mkdir()
    for number in range(2000):
        (tmp_path / "images" / f"{number}.jpg").touch()
    names = [(f"x{number}.jpg", 0, 0, None) for number in range(20_000)]
    count("listdir")
    count("scandir")
    with pytest.raises(DataError, match=r"20000 images are not in data.root"):
        listed(tmp_path, names, "a list", "images")
    # for size and time, before and after a search for other forms; then root and folder, in two forms of their names
    assert Counter(listings) == {"scandir": 2, "listdir": 4}

"""Class names: which name a class gets, and which lists of names are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedpgp import config
from fedpgp.config import DataSettings
from fedpgp.core.errors import ConfigError, DataError
from fedpgp.data import manifest
from fedpgp.data.class_names import assign, in_order
from fedpgp.data.manifest import Manifest

Tree = Callable[..., Path]
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def names_of(built: Manifest) -> dict[str, str]:
    """The class name of each image."""
    return {
        file if row is None else f"{file} {row}": built.class_names[label]
        for file, row, label in zip(
            built.table["file"].to_pylist(), built.table["row"].to_pylist(), built.labels, strict=True
        )
    }


def assigned(found: tuple[str, ...], given: object, numbered: bool = False) -> dict[str, str]:
    """The new name of each name found."""
    names, labels = assign(found, given, numbered)  # type: ignore[arg-type]
    return {old: names[label] for old, label in zip(found, labels, strict=True)}


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (["10", "2", "0"], ("0", "2", "10")),
        (["010", "002", "9"], ("002", "9", "010")),
        (["banana", "Zebra", "apple"], ("Zebra", "apple", "banana")),
        (["10", "2", "a"], ("10", "2", "a")),
        (["2", "²"], ("2", "²")),
    ],
)
def test_names_found_are_sorted_as_text_and_numbers_as_numbers(found: list[str], expected: tuple[str, ...]) -> None:
    assert in_order(found) == expected


@pytest.mark.parametrize("name", ["folder", "domain_folder"])
def test_names_of_numbered_folders_are_in_the_order_of_the_numbers(name: str, image_tree: Tree) -> None:
    above = "" if name == "folder" else "photo/"
    root = image_tree(*(f"{above}{number}/0.png" for number in range(11)))
    built = manifest.build(DataSettings(name=name, root=root, class_names=WORDS))
    assert names_of(built) == {f"{above}{number}/0.png": word for number, word in enumerate(WORDS)}


def test_names_of_numbers_in_a_string_column_are_in_the_order_of_the_numbers(parquet_file: Tree) -> None:
    root = parquet_file("a.parquet", [str(number) for number in range(11)])
    built = manifest.build(DataSettings(name="parquet", root=root, class_names=WORDS))
    assert names_of(built) == {f"a.parquet {number}": word for number, word in enumerate(WORDS)}


@pytest.mark.parametrize(
    ("found", "given", "numbered", "pairs"),
    [
        (("Zebra", "apple", "banana"), ("a", "b", "c"), False, "Zebra -> a, apple -> b, banana -> c"),
        (("Zebra", "apple", "banana"), ("a", "b", "c"), True, "Zebra -> a, apple -> b, banana -> c"),
        (("c1", "c10", "c2"), ("one", "two", "ten"), True, "c1 -> one, c10 -> two, c2 -> ten"),
        (("0", "1", "10", "2"), ("zero", "one", "two", "ten"), True, "10 -> two"),
        (("0", "1", "3"), ("zero", "one", "two"), False, "3 -> two"),
        (
            ("cat", "dog"),
            ("Hund", "Katze"),
            False,
            r'cat -> Hund, dog -> Katze; .* data.class_names=\{"cat": ..., "dog":',
        ),
        (("cat", "dog"), ("dog", "bird"), False, "cat -> dog, dog -> bird"),
        (("cat", "dog"), ("dog", "bird"), True, "cat -> dog, dog -> bird"),
        (("n01440764", "n01443537"), ("tench", "goldfish"), False, "n01440764 -> tench"),
    ],
)
def test_lists_of_new_names_whose_position_nobody_sees_are_refused(
    found: tuple[str, ...], given: tuple[str, ...], numbered: bool, pairs: str
) -> None:
    with pytest.raises(DataError, match=rf"^data.class_names: new names in a list would be .*{pairs}"):
        assign(found, given, numbered)


@pytest.mark.parametrize(
    ("found", "given", "numbered", "expected"),
    [
        (("cat", "dog"), ("Katze", "Hund"), True, ("Katze", "Hund")),  # label ids 0 and 1
        (("1", "2"), ("one", "two"), False, ("one", "two")),
        (("00", "01", "02"), ("zero", "one", "two"), False, ("zero", "one", "two")),
        (("cat", "dog"), ("Dog", "CAT"), False, ("CAT", "Dog")),
        (("cat", "n01"), ("cat", "tench"), False, ("cat", "tench")),  # one name, whose class is the only one left
        (("Zebra", "apple"), {"apple": "Apfel"}, False, ("Zebra", "Apfel")),
        (("0", "1"), {"1": "one", "0": "zero"}, False, ("zero", "one")),
        (("ice_cream", "E\u0301t\u00e9"), {"ice cream": "gelato"}, False, ("gelato", "E\u0301t\u00e9")),
        (("ice_cream", "E\u0301"), {"\u00c9": "letter"}, False, ("ice_cream", "letter")),
        (("E\u0301", "ice_cream"), ("ice cream", "\u00c9"), False, ("\u00c9", "ice cream")),
    ],
)
def test_names_whose_class_is_known_are_taken(
    found: tuple[str, ...], given: object, numbered: bool, expected: tuple[str, ...]
) -> None:
    assert tuple(assigned(found, given, numbered).values()) == expected


def test_a_mapping_keeps_the_order_of_labels(image_tree: Tree) -> None:
    root = image_tree("10/0.png", "9/0.png", "b/0.png")
    settings = config.parse(
        config.override({"data": {"name": "folder", "root": str(root)}}, ["data.class_names={10: ten, 9: nine}"])
    )
    built = manifest.build(settings.data)
    assert (built.class_names, built.labels.tolist()) == (("ten", "nine", "b"), [0, 1, 2])
    assert config.parse(json.loads(settings.model_dump_json())) == settings
    assert len({settings.data, settings.data.model_copy(), settings.data.model_copy(update={"views": 2})}) == 2


def test_a_mapping_names_label_ids_without_metadata(parquet_file: Tree) -> None:
    root = parquet_file("a.parquet", [0, 1])
    settings = DataSettings(name="parquet", root=root, class_names={"1": "dog", "0": "cat"})
    assert names_of(manifest.build(settings)) == {"a.parquet 0": "cat", "a.parquet 1": "dog"}
    parquet_file("a.parquet", [3, 10, 3])
    settings = DataSettings(name="parquet", root=root, class_names={"10": "ten"})
    assert names_of(manifest.build(settings)) == {"a.parquet 0": "3", "a.parquet 1": "ten", "a.parquet 2": "3"}
    parquet_file("a.parquet", [3, 10, -1])
    with pytest.raises(DataError, match=r"a.parquet, row 2: no label \(1 such rows\)"):
        manifest.build(settings)


@pytest.mark.parametrize(("one", "other"), [("a_b", "a b"), ("caf\u00e9", "cafe\u0301")])
def test_two_new_names_for_one_class_are_refused(one: str, other: str) -> None:
    with pytest.raises(DataError, match="duplicate class names"):
        assign((one, "c"), {one: "x", other: "y"}, numbered=False)


def test_a_mapping_of_unknown_classes_is_refused() -> None:
    with pytest.raises(DataError, match=r"^data.class_names: no class zebra in the data; did you mean Zebra\?"):
        assign(("Zebra", "apple"), {"zebra": "x"}, False)
    with pytest.raises(DataError, match=r"^duplicate class names .*: \u00c9"):
        assign(("\u00c9", "E\u0301"), None, False)
    with pytest.raises(DataError, match=r"^duplicate class names .*: apple"):
        assign(("Zebra", "apple"), {"Zebra": "apple"}, False)


@pytest.mark.parametrize("pair", [("A", "a"), ("hot dog", "hot  dog"), ("\u00c9t\u00e9", "e\u0301te\u0301")])
def test_names_that_the_tokenizer_does_not_tell_apart_are_refused(pair: tuple[str, str]) -> None:
    for given in (None, pair):
        with pytest.raises(DataError, match=rf"^duplicate class names .*: {pair[0]} and {pair[1]}; rename"):
            assign(pair, given, False)
    assert assigned(pair, {pair[0]: "capital"}) == {pair[0]: "capital", pair[1]: pair[1]}


@pytest.mark.parametrize("names", [{"a": ["b"]}, {10: "ten"}, "a", ["a", 1]])
def test_names_that_are_not_text_are_refused(names: object) -> None:
    with pytest.raises(ConfigError, match=r"^config: data.class_names.*: .*(string|quotes|tuple|list)"):
        config.parse({"data": {"class_names": names}})


@pytest.mark.parametrize("blank", ["", "  ", "_", "_ _", "\u200b", "&nbsp;"])
def test_names_of_which_nothing_is_left_are_refused(
    blank: str, image_tree: Tree, parquet_file: Tree, tmp_path: Path
) -> None:
    expected = r"^empty class names \(underscores read as spaces\): '.*' of label 0; rename"
    root = image_tree("cat/0.png", "dog/0.png")
    for names in ((blank, "dog"), {"cat": blank}):
        with pytest.raises(DataError, match=expected):
            manifest.build(DataSettings(name="folder", root=root, class_names=names))
    labels = parquet_file("a.parquet", [0, 1], names=[blank, "dog"])
    with pytest.raises(DataError, match=expected):
        manifest.build(DataSettings(name="parquet", root=labels))
    split = {"train": [["a.jpg", 0, blank]], "val": [], "test": [["b.jpg", 1, "b"]]}
    (tmp_path / "images").mkdir(exist_ok=True)
    for file in ("a.jpg", "b.jpg"):
        Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(tmp_path / "images" / file)
    (tmp_path / "split_zhou_OxfordPets.json").write_text(json.dumps(split))
    with pytest.raises(DataError, match=expected):
        manifest.build(DataSettings(name="oxford_pets", root=tmp_path))


def test_a_folder_without_a_readable_name_is_refused_unless_it_is_given_one(image_tree: Tree) -> None:
    root = image_tree("_/0.png", "dog/0.png", "+/0.png")
    with pytest.raises(DataError, match=r"^empty class names .*: '_' of label 1; rename"):
        manifest.build(DataSettings(name="folder", root=root))
    built = manifest.build(DataSettings(name="folder", root=root, class_names={"_": "underscore"}))
    assert built.class_names == ("+", "underscore", "dog")

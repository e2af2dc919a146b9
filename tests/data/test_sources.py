"""Each on-disk format: what is listed, what is read, what is refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fedpgp.config import DataSettings
from fedpgp.core.errors import ConfigError, DataError
from fedpgp.data import manifest
from fedpgp.data.manifest import Manifest
from fedpgp.data.sources import SOURCES, check, open_source
from fedpgp.data.sources.shapes import CLASS_NAMES, COLORS, OUTLINES, STYLES, draw

Tree = Callable[..., Path]


def folder(root: Path, **settings: object) -> DataSettings:
    return DataSettings(name="folder", root=root, **settings)


def parquet(root: Path, **settings: object) -> DataSettings:
    return DataSettings(name="parquet", root=root, **settings)


def rows(built: Manifest) -> list[tuple[object, ...]]:
    """(file, row, class name, domain) in order."""
    columns = (built.table[name].to_pylist() for name in ("file", "row", "label", "domain"))
    return [
        (file, row, built.class_names[label], built.domains[domain])
        for file, row, label, domain in zip(*columns, strict=True)
    ]


def test_every_source_declares_what_is_known_of_it() -> None:
    for name, source in SOURCES.items():
        assert source.name == name
        assert source.template.count("{}") == 1
        assert source.needs_root == (name not in ("icons", "shapes"))
        assert bool(source.steps) == bool(source.folders)


def test_unknown_data_and_a_missing_root_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^data.name: unknown data set 'icon'; did you mean icons\? \(known: icons"):
        check(DataSettings(name="icon"))
    with pytest.raises(ConfigError, match=r"^data: root is required for data 'dtd'; give data.root=FOLDER$"):
        check(DataSettings(name="dtd"))


def test_folder_lists_images_and_ignores_the_rest(image_tree: Tree) -> None:
    root = image_tree("dog/b.JPG", "dog/a.png", "cat/x.png", ".git/x.png", "dog/.DS_Store", "dog/notes.txt", "top.png")
    built = manifest.build(folder(root))
    assert built.class_names == ("cat", "dog")
    assert rows(built) == [
        ("cat/x.png", None, "cat", "default"),
        ("dog/a.png", None, "dog", "default"),
        ("dog/b.JPG", None, "dog", "default"),
    ]
    assert built.table["size"].to_pylist() == [(root / "cat/x.png").stat().st_size] * 3


def test_folder_takes_splits_from_the_top_level(image_tree: Tree) -> None:
    root = image_tree("train/cat/0.png", "train/dog/0.png", "validation/dog/0.png", "test/cat/0.png")
    built = manifest.build(folder(root))
    assert built.class_names == ("cat", "dog")
    assert dict(zip(built.table["file"].to_pylist(), built.splits, strict=True)) == {
        "test/cat/0.png": "test",
        "train/cat/0.png": "train",
        "train/dog/0.png": "train",
        "validation/dog/0.png": "val",
    }


def test_a_class_called_train_is_a_class(image_tree: Tree) -> None:
    assert manifest.build(folder(image_tree("train/0.png", "bus/0.png"))).class_names == ("bus", "train")


def test_domain_folder_may_lack_classes_in_a_domain(image_tree: Tree) -> None:
    root = image_tree("photo/cat/0.png", "photo/dog/0.png", "art/dog/0.png")
    built = manifest.build(DataSettings(name="domain_folder", root=root))
    assert built.domains == ("art", "photo")
    assert rows(built) == [
        ("art/dog/0.png", None, "dog", "art"),
        ("photo/cat/0.png", None, "cat", "photo"),
        ("photo/dog/0.png", None, "dog", "photo"),
    ]


def test_folder_names_all_empty_classes(image_tree: Tree) -> None:
    root = image_tree("cat/0.png", "cow/notes.txt")
    (root / "dog").mkdir()
    with pytest.raises(DataError, match=r"no image in the class folder: cow \(1 .txt\), dog; expected class/image"):
        manifest.build(folder(root))


def test_wrong_layout_names_the_other_one(image_tree: Tree) -> None:
    with pytest.raises(DataError, match=r"photo \(1 folder\); .* give data.name=domain_folder"):
        manifest.build(folder(image_tree("photo/cat/0.png")))
    with pytest.raises(DataError, match=r"no class folder: cat; .* give data.name=folder"):
        manifest.build(DataSettings(name="domain_folder", root=image_tree("cat/0.png") / "photo"))


@pytest.mark.parametrize("name", ["folder", "domain_folder", "parquet"])
def test_missing_and_empty_roots(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data.root: .*nowhere: no such folder; give data.root=FOLDER"):
        manifest.build(DataSettings(name=name, root=tmp_path / "nowhere"))  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"no (class folder|domain folder|[*].parquet file)"):
        manifest.build(DataSettings(name=name, root=tmp_path))  # type: ignore[arg-type]


def test_broken_and_circular_links_are_named(image_tree: Tree) -> None:
    root = image_tree("cat/0.png")
    (root / "cat/1.png").symlink_to(root / "cat/gone.png")
    with pytest.raises(DataError, match=r"1.png: cannot be read \(No such file"):
        manifest.build(folder(root))
    (root / "cat/1.png").unlink()
    (root / "cat/1.png").symlink_to(root / "cat/1.png")
    with pytest.raises(DataError, match=r"1.png: cannot be read \(Too many levels"):
        manifest.build(folder(root))


def test_a_manifest_cannot_lead_the_reader_out_of_the_root(image_tree: Tree) -> None:
    root = image_tree("cat/0.png", "../secret.png")
    with pytest.raises(DataError, match=r"is outside data.root"):
        next(open_source(folder(root)).read(pa.table({"file": ["../secret.png"], "row": [None]})))


def test_folder_names_that_are_not_utf8(image_tree: Tree) -> None:
    root = image_tree("cat/0.png")
    os.rename(root / "cat/0.png", os.fsencode(root / "cat") + b"/\xff.png")
    with pytest.raises(DataError, match=r"a file name is not UTF-8"):
        manifest.build(folder(root))


def test_folder_reads_rgb_in_the_order_asked(image_tree: Tree, png: Callable[..., bytes]) -> None:
    root = image_tree("cat/0.png", "cat/1.png", "cat/2.png")
    (root / "cat/1.png").write_bytes(png((0, 7, 0)))
    table = manifest.build(folder(root)).table.take([1, 0])
    images = list(open_source(folder(root)).read(table))
    assert [(image.mode, image.getpixel((0, 0))) for image in images] == [("RGB", (0, 7, 0)), ("RGB", (200, 0, 0))]


def test_a_file_that_vanished_is_named(image_tree: Tree) -> None:
    root = image_tree("cat/0.png", "cat/1.png")
    table = manifest.build(folder(root)).table
    (root / "cat/1.png").unlink()
    with pytest.raises(DataError, match=r"cat/1.png: cannot be read \(No such file"):
        list(open_source(folder(root)).read(table))


def test_parquet_takes_names_and_splits_from_the_files(parquet_file: Tree) -> None:
    parquet_file("data/train-00000-of-00001.parquet", [1, 0], names=["cat", "dog"])
    parquet_file("data/validation-00000-of-00001.parquet", [1], names=["cat", "dog"])
    root = parquet_file("test/0000.parquet", [0], names=["cat", "dog"])
    built = manifest.build(parquet(root))
    assert built.class_names == ("cat", "dog")
    assert [(row[1], row[2]) for row in rows(built)] == [(0, "dog"), (1, "cat"), (0, "dog"), (0, "cat")]
    assert list(built.splits) == ["train", "train", "val", "test"]


def test_parquet_reads_across_row_groups_in_any_order(parquet_file: Tree) -> None:
    root = parquet_file("train-0.parquet", [0] * 10, names=["cat"], row_group_size=3)
    table = manifest.build(parquet(root)).table
    for order in (range(10), [9, 0, 5, 4, 4, 2]):
        images = open_source(parquet(root)).read(table.take(list(order)))
        assert [image.getpixel((0, 0))[0] for image in images] == list(order)  # type: ignore[index]


def test_parquet_behind_a_uri_is_the_same_data(parquet_file: Tree) -> None:
    parquet_file("train-0.parquet", [0, 1] * 4, names=["cat", "dog"])
    root = parquet_file("test-0.parquet", [1, 0], names=["cat", "dog"])
    here, there = parquet(root), DataSettings(name="parquet", root=root.as_uri())
    built = manifest.build(there)
    assert built.files_digest == manifest.build(here).files_digest
    ways = [[image.tobytes() for image in open_source(one).read(built.table)] for one in (here, there)]
    assert ways[0] == ways[1]
    assert len(ways[0]) == 10


def test_a_uri_that_cannot_be_used_is_refused_without_its_password(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data.root: file://.*nowhere: no such folder"):
        open_source(DataSettings(name="parquet", root=f"{tmp_path.as_uri()}/nowhere"))
    with pytest.raises(DataError, match=r"data.root: ftp://\*\*\*@host/x: .*URI") as told:
        open_source(DataSettings(name="parquet", root="ftp://me:secret@host/x"))
    assert "secret" not in str(told.value)
    with pytest.raises(DataError, match="folder needs a folder of this machine; of a URI only Parquet is read"):
        open_source(DataSettings(name="folder", root=tmp_path.as_uri()))


def test_parquet_string_labels_and_domains(parquet_file: Tree) -> None:
    root = parquet_file("a.parquet", ["dog", "cat", "dog"], domain=["photo", "art", "art"])
    built = manifest.build(parquet(root))
    assert (built.class_names, built.domains) == (("cat", "dog"), ("art", "photo"))
    assert [row[2:] for row in rows(built)] == [("dog", "photo"), ("cat", "art"), ("dog", "art")]


def test_parquet_numbered_domains_become_names(parquet_file: Tree) -> None:
    assert manifest.build(parquet(parquet_file("a.parquet", ["x", "y"], domain=[3, 1]))).domains == ("1", "3")


def test_parquet_prefers_fine_labels(tmp_path: Path, png: Callable[[], bytes]) -> None:
    table = pa.table({"img": [png()], "coarse_label": ["animal"], "fine_label": ["cat"]})
    pq.write_table(table, tmp_path / "a.parquet")
    assert manifest.build(parquet(tmp_path)).class_names == ("cat",)


def test_parquet_without_names_asks_for_them(parquet_file: Tree) -> None:
    root = parquet_file("a.parquet", [0, 1])
    with pytest.raises(DataError, match=r"holds numbers and the metadata no names; give data.class_names="):
        manifest.build(parquet(root))
    assert manifest.build(parquet(root, class_names=("cat", "dog"))).class_names == ("cat", "dog")


@pytest.mark.parametrize("bad", [-1, 2, None])
def test_parquet_label_out_of_range_names_file_and_row(bad: int | None, parquet_file: Tree) -> None:
    root = parquet_file("train-0.parquet", [0, 1, bad, bad], names=["cat", "dog"])
    wrong = "no label" if bad is None else f"label {bad} is out of range of the 2 names, which count from 0"
    expected = rf"train-0.parquet, row 2: {wrong} \(2 such rows\)"
    with pytest.raises(DataError, match=expected):
        manifest.build(parquet(root))


def test_parquet_with_paths_instead_of_images_says_so(tmp_path: Path) -> None:
    images = pa.array(
        [{"bytes": None, "path": "a.png"}] * 2, pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    )
    pq.write_table(pa.table({"image": images, "label": ["cat", "dog"]}), tmp_path / "a.parquet")
    built = manifest.build(parquet(tmp_path))
    with pytest.raises(DataError, match=r"a.parquet, row 0: only the path 'a.png', not the image; save"):
        next(open_source(parquet(tmp_path)).read(built.table))


def test_parquet_refuses_files_that_do_not_belong_together(parquet_file: Tree) -> None:
    parquet_file("train-0.parquet", [0], names=["cat", "dog"])
    root = parquet_file("test-0.parquet", [0], names=["dog", "cat"])
    with pytest.raises(DataError, match=r"class names of train-0.parquet differ from those of test-0.parquet"):
        manifest.build(parquet(root))
    parquet_file("extra.parquet", [0], names=["cat", "dog"])
    with pytest.raises(DataError, match=r"no split in the name of extra.parquet"):
        manifest.build(parquet(root))


def test_parquet_without_the_columns(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1], "b": [2]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"no image column .none has a fitting type.; call it 'image'"):
        manifest.build(parquet(tmp_path))
    pq.write_table(pa.table({"image": [b""], "a": [1], "b": [2]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"no label column .several could be it: a, b.; call it 'label'"):
        manifest.build(parquet(tmp_path))


def test_torn_parquet_is_named(parquet_file: Tree) -> None:
    root = parquet_file("a.parquet", ["cat", "dog"])
    path = root / "a.parquet"
    table = manifest.build(parquet(root)).table
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"a.parquet: not a complete Parquet file"):
        manifest.build(parquet(root))
    path.write_bytes(whole[:4] + bytes(200) + whole[204:])
    with pytest.raises(DataError, match=r"a.parquet"):
        list(open_source(parquet(root)).read(table))


def test_parquet_that_shrank_or_lost_an_image(parquet_file: Tree) -> None:
    root = parquet_file("a.parquet", ["cat", "dog"])
    table = manifest.build(parquet(root)).table
    parquet_file("a.parquet", ["cat"])
    with pytest.raises(DataError, match=r"a.parquet: row 1 is missing; build the manifest again"):
        list(open_source(parquet(root)).read(table))
    pq.write_table(pa.table({"image": [b"", None], "label": ["cat", "dog"]}), root / "a.parquet")
    with pytest.raises(DataError, match=r"a.parquet, row 1: the image is empty"):
        list(open_source(parquet(root)).read(table.slice(1)))


def test_a_loop_of_folders_ends(parquet_file: Tree, image_tree: Tree) -> None:
    root = parquet_file("a.parquet", ["cat", "dog"])
    (root / "again").symlink_to(root)
    assert len(manifest.build(parquet(root))) == 2
    root = image_tree("cat/0.png")
    (root / "cat" / "again").symlink_to(root)
    assert len(manifest.build(folder(root))) == 1


def test_shapes_are_balanced_and_named_by_composition() -> None:
    built = manifest.build(DataSettings(name="shapes"))
    assert len(built) == 30 * 3 * 40
    assert built.domains == STYLES
    assert set(np.bincount(built.labels * 3 + built.domain_ids)) == {40}
    for half in (CLASS_NAMES[:15], CLASS_NAMES[15:]):
        colors, shapes = (set(words) for words in zip(*(name.split() for name in half), strict=True))
        assert (colors, shapes) == (set(COLORS), set(OUTLINES))


def test_shapes_are_read_in_order_and_always_the_same() -> None:
    table = manifest.build(DataSettings(name="shapes")).table
    chosen = table.take([3599, 0, 1])
    images = list(open_source(DataSettings(name="shapes")).read(chosen))
    again = list(open_source(DataSettings(name="shapes")).read(table.take([0])))
    assert [image.size for image in images] == [(48, 48)] * 3
    assert images[1].tobytes() == again[0].tobytes() != images[2].tobytes()


def test_shapes_show_their_color_and_style() -> None:
    filled, outline = (np.asarray(draw("red", "circle", style, 0)).astype(int) for style in ("filled", "outline"))
    inked = [(image[..., 0] - image[..., 1] > 60).sum() for image in (filled, outline)]
    assert inked[0] > 2 * inked[1] > 100


def test_shapes_of_another_version_are_refused() -> None:
    with pytest.raises(DataError, match=r"not a drawing of this version"):
        list(
            open_source(DataSettings(name="shapes")).read(
                pa.table({"file": ["shapes-0/filled/red circle"], "row": [0]})
            )
        )


SHARED = Path(__file__).parents[2].parent / "shared" / "data"


@pytest.mark.skipif(not SHARED.is_dir(), reason="no photos beside the project")
@pytest.mark.parametrize(
    ("name", "root", "images", "classes", "domains"),
    [
        ("domain_folder", "office_caltech10", 2533, 10, 4),
        ("folder", "caltech-101/101_ObjectCategories", 2412, 102, 1),
        ("parquet", "cifar10", 60000, 10, 1),
    ],
)
def test_real_photos(name: str, root: str, images: int, classes: int, domains: int) -> None:
    settings = DataSettings(name=name, root=SHARED / root)  # type: ignore[arg-type]
    built = manifest.build(settings)
    assert (len(built), len(built.class_names), len(built.domains)) == (images, classes, domains)
    sample = built.table.take(np.linspace(0, images - 1, 20).astype(int))
    assert all(image.mode == "RGB" for image in open_source(settings).read(sample))

"""Data sources from a file of a user's own: the README's example, files with splits and domains, refusals."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fedpgp.config import DataSettings, Experiment
from fedpgp.core import plugins
from fedpgp.core.errors import ConfigError, DataError
from fedpgp.data import manifest, sources

README = Path(__file__).parents[2] / "README.md"
CLASSES = """
from PIL import Image
from fedpgp.data.sources.base import Source
from fedpgp.data.sources.folder import FolderSource

BOTH = [(Image.new("RGB", (9, 9), (n, label, 0)), label) for label in (0, 1) for n in range(3)]

class Files:
    class_names = ["cat", "dog"]
    def __init__(self, settings): self.root = settings.root
    def rows(self):
        yield "x.png", 0, "train", "photo"
        yield "y.png", 1, "train", "sketch"
        yield "z.png", 1, "test", "photo"

class Half(FolderSource):
    def _images(self, folder):
        files, stats = super()._images(folder)
        return files[::2], stats[::2]

class Base:
    class_names = ["cat", "dog"]
    def rows(self): return BOTH

class Nothing: pass
class Set:
    def __init__(self, settings): pass
class Abstract(Source): pass
class Template(Base): template = "a photo"
class NoRows(Base): rows = lambda self: []
class Range(Base): class_names = ["cat"]
class Words(Base): rows = lambda self: [(BOTH[0][0], "cat")]
class Empty(Base): class_names = ["cat", ""]
class Twice(Base): class_names = ["cat", "cat"]
class Text(Base): class_names = "cat"
class Split(Base): rows = lambda self: [(*BOTH[0], "extra")]
class Number(Base): rows = lambda self: [(3, 0)]
class Mixed(Base): rows = lambda self: [*BOTH, ("a.png", 0)]
class Raises(Base): rows = lambda self: 1 / 0
class Absent(Base): rows = lambda self: [("nope.png", 0)]
class Absolute(Files):
    def rows(self):
        for name, *about in super().rows():
            yield self.root / name, *about
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with the example of the README in `my_data.py`, and more classes in `more.py`."""
    section = README.read_text(encoding="utf-8").split("## Your data", 1)[1].split("\n## ", 1)[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    (tmp_path / "my_data.py").write_text(code, encoding="utf-8")
    (tmp_path / "more.py").write_text(CLASSES, encoding="utf-8")
    monkeypatch.setattr(plugins, "_loaded", {})
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    plugins.forget("my_data", "more")


def settings(name: str, **given: object) -> DataSettings:
    return DataSettings(name=name, **given)  # type: ignore[arg-type]


def test_the_example_of_the_readme_is_a_data_set(folder: Path) -> None:
    squares = settings("my_data:Squares")
    built = manifest.build(squares)
    assert built.class_names == ("red", "green", "blue", "black")
    assert [sum(built.labels == label) for label in range(4)] == [12] * 4
    assert set(built.splits) == {"train", "val", "test"}
    images = list(sources.open_source(squares).read(built.table.take([47, 0])))
    assert [(image.size, image.getpixel((0, 0))) for image in images] == [
        ((31, 31), (0, 0, 0)),
        ((20, 20), (255, 0, 0)),
    ]
    assert sources.complete(Experiment(data=squares)).data.prompt == "a {} square."


def test_another_image_is_another_data_set(folder: Path) -> None:
    first = manifest.build(settings("my_data:Squares"))
    code = (folder / "my_data.py").read_text()
    (folder / "my_data.py").write_text(code.replace('"red", "green"', '"green", "red"'))
    second = manifest.build(settings("my_data:Squares", class_names=("red", "green", "blue", "black")))
    assert first.digest != second.digest
    assert first.files_digest != second.files_digest


def test_files_have_splits_and_domains(folder: Path, image_tree: Callable[..., Path]) -> None:
    root = image_tree("x.png", "y.png", "z.png")
    built = manifest.build(settings("more:Files", root=root))
    assert (built.class_names, built.domains) == (("cat", "dog"), ("photo", "sketch"))
    assert built.table["file"].to_pylist() == ["x.png", "y.png", "z.png"]
    assert built.labels.tolist() == [0, 1, 1]
    assert built.domain_ids.tolist() == [0, 1, 0]
    assert built.splits.tolist() == ["train", "train", "test"]
    (image,) = sources.open_source(settings("more:Files", root=root)).read(built.table.slice(0, 1))
    assert image.getpixel((0, 0)) == (200, 0, 0)
    (root.parent / "link").symlink_to(root)
    for given in (root, root.parent / "link"):
        assert manifest.build(settings("more:Absolute", root=given)).table.equals(built.table)
    with pytest.raises(DataError, match=r"^data.root: more:Files needs the folder of the data set; give data.root="):
        manifest.build(settings("more:Files"))


def test_a_built_in_source_can_be_changed(folder: Path, image_tree: Callable[..., Path]) -> None:
    root = image_tree(*(f"{name}/{number}.png" for name in ("cat", "dog") for number in range(4)))
    built = manifest.build(settings("more:Half", root=root))
    assert built.table["file"].to_pylist() == ["cat/0.png", "cat/2.png", "dog/0.png", "dog/2.png"]
    with pytest.raises(ConfigError, match=r"^data: root is required for data 'more:Half'"):
        manifest.build(settings("more:Half"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Nothing", "data.name: more:Nothing is not a data source: missing class_names, rows"),
        ("Set", "data.name: more:Set is not a data source: missing class_names, rows"),
        ("Abstract", "data.name: more:Abstract is not a data source: missing __init__, read, scan"),
        (
            "Template",
            "data.name: more:Template is not a data source: template is 'a photo', "
            "not a text with one {} for the class name",
        ),
        ("NoRows", "data more:NoRows: rows gives no image"),
        ("Range", "data more:Range: row 3: label 1 is not one of 0 to 0"),
        ("Words", "data more:Words: row 0: label 'cat' is not one of 0 to 1"),
        ("Empty", "data more:Empty: class_names: name 1 is empty"),
        ("Twice", "data more:Twice: class_names: cat occurs twice"),
        ("Text", "data more:Text: class_names: 'cat' is not a list of names"),
        ("Split", "data more:Split: row 0: split 'extra' is not train, val or test"),
        (
            "Number",
            "data more:Number: row 0: its image is a int; give file names for all rows, "
            "or bytes and PIL images for all",
        ),
        (
            "Mixed",
            "data more:Mixed: row 6: its image is a str; give file names for all rows, or bytes and PIL images for all",
        ),
        ("Raises", "data more:Raises: it raised ZeroDivisionError: division by zero ({0}/more.py, line 39)"),
        ("Bases", "data.name: more has no class Bases; did you mean Base?"),
    ],
)
def test_what_is_no_data_source_is_refused_in_a_line(folder: Path, name: str, message: str) -> None:
    with pytest.raises((ConfigError, DataError)) as caught:
        manifest.build(settings(f"more:{name}"))
    assert str(caught.value) == message.replace("{0}", str(folder))

"""Classes from files and packages outside: where they are found, what they are hashed by, and how they travel."""

from __future__ import annotations

import logging
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from fedpgp.core import plugins
from fedpgp.core.errors import ConfigError
from fedpgp.core.plugins import METHODS, Code

MINE = "class Mine:\n    number = 1\n"


def find(name, group=METHODS):
    return plugins.find("method.name", group, name)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A working folder with `mine.py` that is not on `sys.path`; nothing stays imported."""
    monkeypatch.setattr(plugins, "_loaded", {})
    monkeypatch.setattr(plugins, "_announced", set())
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    yield tmp_path
    assert sys.path == path
    plugins.forget("mine", "other", "pack", "bad")


def package(folder):
    (folder / "pack" / "deep").mkdir(parents=True)
    (folder / "pack" / "__init__.py").write_text("")
    (folder / "pack" / "deep" / "__init__.py").write_text("from ..number import NUMBER\n")
    (folder / "pack" / "number.py").write_text("NUMBER = 7\n")
    (folder / "pack" / "mine.py").write_text("from pack.deep import NUMBER\n\n\nclass Mine:\n    number = NUMBER\n")


def test_other_names_are_no_plugins():
    assert find("fedpgp") is None


def test_a_file_in_the_working_folder_is_found_and_named_once(folder, caplog):
    with caplog.at_level(logging.INFO):
        first, again = find("mine:Mine"), find("mine:Mine")
    assert first.kind.number == 1
    assert first.kind is again.kind
    assert first.identity == {"name": "mine:Mine", "digest": first.code.digest}
    assert caplog.messages == [f"loading method mine:Mine from {folder / 'mine.py'}"]


def test_an_edited_file_is_imported_again_even_in_the_same_second(folder):
    first = find("mine:Mine")
    (folder / "mine.py").write_text(MINE.replace("1", "2"))  # of equal size, and of an equal time to Python's cache
    second = find("mine:Mine")
    assert (first.kind.number, second.kind.number) == (1, 2)
    assert first.code.digest != second.code.digest


def test_two_folders_have_modules_of_one_name(folder, monkeypatch):
    (folder / "next").mkdir()
    (folder / "next" / "mine.py").write_text(MINE.replace("1", "3"))
    assert find("mine:Mine").kind.number == 1
    monkeypatch.chdir(folder / "next")
    assert find("mine:Mine").kind.number == 3
    monkeypatch.chdir("/")
    with pytest.raises(ConfigError, match="no module mine in / or in the environment"):
        find("mine:Mine")


def test_the_digest_is_that_of_all_python_files_of_the_package(folder):
    package(folder)
    first = find("pack.mine:Mine")
    assert first.kind.number == 7
    (folder / "pack" / "notes.txt").write_text("not code")
    assert find("pack.mine:Mine").code.digest == first.code.digest
    (folder / "pack" / "number.py").write_text("NUMBER = 8\n")
    assert find("pack.mine:Mine").code.digest != first.code.digest
    assert find("pack.mine:Mine").kind.number == 8


@pytest.mark.parametrize("name", ["mine:Mine", "pack.mine:Mine"])
def test_unpickled_code_makes_its_classes_importable_where_the_files_are_not(folder, name):
    package(folder)
    found = find(name)
    sent = pickle.dumps((plugins.to_send(), found.kind, found.kind()))
    (folder / "sent").write_bytes(sent)
    (folder / "mine.py").unlink()
    (folder / "pack").rename(folder / "gone")
    read = (
        "import pickle, sys; code, kind, own = pickle.load(open(sys.argv[1], 'rb'));"
        "from fedpgp.core import plugins; found = plugins.find('method.name', plugins.METHODS, sys.argv[2]);"
        "assert found.kind is kind is type(own), found; print(kind.number, found.code.digest)"
    )
    done = subprocess.run([sys.executable, "-c", read, folder / "sent", name], capture_output=True, text=True, cwd="/")
    assert done.stdout == f"{found.kind.number} {found.code.digest}\n", done.stderr
    assert done.stderr == ""


def test_code_that_comes_back_is_not_taken_for_sent(folder):
    find("mine:Mine")
    assert pickle.loads(pickle.dumps(plugins.to_send())) == plugins.to_send()
    (folder / "mine.py").write_text(MINE.replace("1", "2"))
    assert find("mine:Mine").kind.number == 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mines:Mine", "no module mines in {0} or in the environment; did you mean mine?"),
        ("zzz:Mine", "no module zzz in {0} or in the environment; modules in that folder: bad, mine, pack"),
        ("half:Mine", "no module half in {0} or in the environment; add half/__init__.py"),
        ("pack.mien:Mine", "no module pack.mien in {0}; did you mean pack.mine?"),
        ("mine:Mina", "mine has no class Mina; did you mean Mine?"),
        ("mine:number", "mine has no class number; it has Mine"),
        ("mine.py:Mine", "mine.py:Mine: give a module instead of a file: mine:Mine"),
        ("./mine.py:Mine", "./mine.py:Mine: give a module instead of a file: mine:Mine"),
        ("mine:", "mine:: write it as MODULE:CLASS, for example my_module:MyClass"),
        ("bad:Mine", "bad cannot be imported: ZeroDivisionError: division by zero ({0}/bad.py, line 2)"),
        ("json:Mine", "another module json is imported already ({1}); rename your file"),
    ],
)
def test_what_cannot_be_used_is_named_in_a_line(folder, name, message):
    package(folder)
    (folder / "half").mkdir()
    (folder / "bad.py").write_text("\n1 / 0\n")
    if name.startswith("json"):
        (folder / "json.py").write_text(MINE)
    with pytest.raises(ConfigError) as caught:
        find(name)
    assert str(caught.value) == f"method.name: {message}".format(folder, sys.modules["json"].__file__)


def test_a_module_beside_it_is_no_part_of_it(folder):
    (folder / "bad.py").write_text("import mine\n")
    message = r"bad cannot be imported: ModuleNotFoundError: .*; only its own file or package is sent to workers"
    with pytest.raises(ConfigError, match=message):
        find("bad:Mine")


def test_installed_code_is_hashed_and_not_sent(folder):
    found = find("yaml:SafeLoader")
    assert len(found.code.digest) == 16
    assert found.code.installed
    assert plugins.to_send() == ()


def test_entry_points_are_found_by_their_names(folder, monkeypatch):
    distribution(folder / "env", "other", "[fedpgp.methods]\nown = other:Mine\ngone = nowhere:Mine\n")
    (folder / "env" / "other.py").write_text(MINE)
    monkeypatch.syspath_prepend(folder / "env")
    assert dict(plugins.installed(METHODS)) == {"own": "own-package", "gone": "own-package"}
    assert find("own").target == "other:Mine"
    assert find("own").kind.number == 1
    with pytest.raises(ConfigError, match="no module nowhere"):
        find("gone")
    error = plugins.unknown("method.name", "method", METHODS, "won", ["fedpgp"])
    assert str(error) == "method.name: unknown method 'won'; did you mean own? (known: fedpgp, own, gone)"
    monkeypatch.undo()


def distribution(folder: Path, module: str, entries: str) -> None:
    """What an installer writes for a package with entry points."""
    info = folder / "own_package-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entries)


def test_the_order_of_files_and_the_folder_do_not_matter():
    files = {"a/__init__.py": b"", "a/b.py": b"x"}
    same = Code("a", "/elsewhere", dict(reversed(files.items())))
    assert Code("a", "/here", files).digest == same.digest
    assert Code("a", "/here", {"a/__init__.py": b"x", "a/b.py": b""}).digest != same.digest

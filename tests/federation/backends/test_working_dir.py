"""The listed files are those that Ray packs, and an upload over the limit is rejected."""

from __future__ import annotations

import random
import zipfile
from pathlib import Path

import pytest
from ray._private import ray_constants
from ray._private.runtime_env import packaging
from typer.testing import CliRunner

from fedpgp.cli import app
from fedpgp.core.errors import UserError
from fedpgp.core.text import MIB
from fedpgp.federation.backends import working_dir

CHECKOUT = Path(__file__).parents[3]


@pytest.fixture
def folder(tmp_path):
    """A checkout with an environment, a store, data and a notebook of 91 MiB."""
    files = {
        ".gitignore": b".venv/\nstore/\n", ".rayignore": b"/data/\n", "sweep.py": b"12345", "fedpgp/data/x.py": b"1",
        ".venv/torch.so": bytes(1000), "store/mlflow.db": bytes(1000), "data/image.jpg": bytes(1000),
        ".git/pack": bytes(1000),
    }  # fmt: skip
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    with (tmp_path / "big.ipynb").open("wb") as file:
        file.truncate(91 * MIB)
    return tmp_path


def packed(folder, target):
    """Names and sizes of what Ray itself packs."""
    excludes = ray_constants.get_runtime_env_default_excludes()
    target.unlink(missing_ok=True)
    packaging.create_package(str(folder), target, include_gitignore=True, excludes=excludes)
    with zipfile.ZipFile(target) as content:
        return {item.filename: item.file_size for item in content.infolist()}


def listed(folder):
    return {str(path): size for path, size in working_dir.scan(folder).files}


def test_the_files_are_those_that_ray_packs(folder, tmp_path_factory):
    found = listed(folder)
    assert found == packed(folder, tmp_path_factory.mktemp("zip") / "package.zip")
    assert found == {
        "big.ipynb": 91 * MIB, "sweep.py": 5, "fedpgp/data/x.py": 1, ".gitignore": 14, ".rayignore": 7,
    }  # fmt: skip


PATTERNS = (
    "/a.txt", "a.txt", "sub", "sub/", "/sub/", "*.bin", "sub/*", "sub/**", "**/deep", "sub/**/a.txt", "sub/deep/*.txt",
    "**", "*", "!a.txt", "!sub", "!sub/deep/", "!*.bin", "[ab].txt", "[!a].txt", "?.txt", "\\#hash", "\\!not", "a\\*b",
    "a[*]b", "# comment", "", "/", "  b.txt  ", "[a.txt", "sub//deep", "[^a].txt", "//a.txt",
)  # fmt: skip
NAMES = ("a.txt", "b.txt", "^.txt", "#hash", "!not", "a*b", "axb", "[a.txt", "x.bin")


@pytest.mark.parametrize("seed", range(40))
def test_random_ignore_files_are_read_as_ray_reads_them(seed, tmp_path):
    """If this fails after an upgrade, Ray has changed its rules: adapt `working_dir`."""
    chance, folder = random.Random(seed), tmp_path / "folder"
    for parent in (".", "sub", "sub/deep", "other/sub"):
        (folder / parent).mkdir(parents=True, exist_ok=True)
        for name in NAMES:
            (folder / parent / name).write_text(name)
    for parent, name in ((".", ".gitignore"), (".", ".rayignore"), ("sub", ".gitignore"), ("other", ".rayignore")):
        if chance.random() < 0.7:
            (folder / parent / name).write_text("\n".join(chance.choices(PATTERNS, k=chance.randint(1, 3))))
    assert listed(folder) == packed(folder, tmp_path / "package.zip")


def test_the_defaults_and_the_variables_are_those_of_ray(folder, monkeypatch):
    assert ray_constants.RAY_RUNTIME_ENV_DEFAULT_EXCLUDES == working_dir.DEFAULT_EXCLUDES
    monkeypatch.setenv(ray_constants.RAY_RUNTIME_ENV_IGNORE_GITIGNORE, "1")
    assert "store/mlflow.db" in listed(folder)
    monkeypatch.setenv("RAY_OVERRIDE_RUNTIME_ENV_DEFAULT_EXCLUDES", "store, fedpgp")
    assert ray_constants.get_runtime_env_default_excludes() == ["store", "fedpgp"]
    assert ".git/pack" in listed(folder)
    assert not [name for name in listed(folder) if name.startswith(("store", "fedpgp"))]


def test_an_upload_over_the_limit_is_rejected_with_its_largest_files(folder):
    with pytest.raises(UserError, match=r"(?s)91\.0 MiB in 5 files.*\.rayignore.*91\.0 MiB  big\.ipynb\n"):
        working_dir.scan(folder).check()
    (folder / ".rayignore").write_text("/data/\n*.ipynb\n")
    working_dir.scan(folder).check()


def test_the_command_shows_sizes(folder):
    (folder / "big.ipynb").unlink()
    answer = CliRunner().invoke(app, ["check-upload", str(folder)])
    assert answer.exit_code == 0
    assert "0.0 MiB in 4 files, the largest:" in answer.stdout
    assert ".gitignore" in answer.stdout


def test_a_missing_folder_is_rejected(tmp_path):
    with pytest.raises(UserError, match="nowhere: not a folder"):
        working_dir.scan(tmp_path / "nowhere")


def test_this_checkout_can_be_submitted():
    found = working_dir.scan(CHECKOUT)
    found.check()
    names = {path.parts[0] for path, _ in found.files}
    assert {"pipelines", "fedpgp", "tune_configs"} <= names
    assert not names & {"tests", ".git", ".venv"}

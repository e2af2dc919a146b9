"""What a submitted job sends is what Ray would pack, and too much of it is refused by name."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from ray._private import ray_constants
from ray._private.runtime_env import packaging
from typer.testing import CliRunner

from fedpgp.cli import app
from fedpgp.core.errors import UserError
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
        file.truncate(91 * working_dir.MIB)
    return tmp_path


def packed(folder, target):
    """Names and sizes of what Ray itself packs."""
    excludes = ray_constants.get_runtime_env_default_excludes()
    packaging.create_package(str(folder), target, include_gitignore=True, excludes=excludes)
    with zipfile.ZipFile(target) as content:
        return {item.filename: item.file_size for item in content.infolist()}


def test_it_counts_what_ray_packs(folder, tmp_path_factory):
    found = {str(path): size for path, size in working_dir.of(folder).files}
    assert found == packed(folder, tmp_path_factory.mktemp("zip") / "package.zip")
    assert found == {
        "big.ipynb": 91 * working_dir.MIB, "sweep.py": 5, "fedpgp/data/x.py": 1, ".gitignore": 14, ".rayignore": 7,
    }  # fmt: skip


def test_too_much_is_refused_with_the_biggest_files(folder):
    with pytest.raises(UserError, match=r"(?s)91\.0 MiB in 5 files.*\.rayignore.*91\.0 MiB  big\.ipynb\n"):
        working_dir.of(folder).check()
    (folder / ".rayignore").write_text("/data/\n*.ipynb\n")
    working_dir.of(folder).check()


def test_the_command_shows_sizes(folder):
    (folder / "big.ipynb").unlink()
    answer = CliRunner().invoke(app, ["check-upload", str(folder)])
    assert answer.exit_code == 0
    assert "0.0 MiB in 4 files, the biggest:" in answer.stdout
    assert ".gitignore" in answer.stdout


def test_what_is_no_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="nowhere: not a folder"):
        working_dir.of(tmp_path / "nowhere")


def test_this_checkout_can_be_submitted():
    found = working_dir.of(CHECKOUT)
    found.check()
    names = {path.parts[0] for path, _ in found.files}
    assert {"pipelines", "fedpgp", "tune_configs"} <= names
    assert not names & {"tests", ".git", ".venv"}

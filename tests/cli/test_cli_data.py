"""`fedpgp data ...` as a person calls it."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from fedpgp.analysis import label_alignment
from fedpgp.cli import data as command_line
from fedpgp.cli import shared
from fedpgp.config import DataSettings
from fedpgp.core.callbacks import RunCallback
from fedpgp.core.errors import ConfigError, DataError
from fedpgp.data import content, manifest, summary
from fedpgp.data.sources import decoding


def call(*arguments: str) -> str:
    result = CliRunner().invoke(command_line.app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


@pytest.fixture(autouse=True)
def _to_the_runner(monkeypatch):
    """Consoles find the standard output of the moment."""
    monkeypatch.setattr(shared.out, "_file", None)
    monkeypatch.setattr(shared.err, "_file", None)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number, name in enumerate(("ant", "bee")):
        for image in range(10):
            path = tmp_path / "data/101_ObjectCategories" / name / f"{image}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            data = io.BytesIO()
            Image.new("RGB", (8, 8), (number, image, 0)).save(data, "PNG")
            path.write_bytes(data.getvalue())
    return tmp_path / "data"


def test_check_by_name(root: Path) -> None:
    output = call("check", "caltech101", "--root", str(root))
    assert "caltech101: 20 images, 2 classes, 1 domains, splits test, train, val" in output
    assert [
        word for line in output.splitlines() if line.startswith(" ant ") for word in line.split() if word.isdigit()
    ] == [*("5", "2", "3", "10")]
    assert "unreadable images: none" in output
    assert "zero-shot check skipped: the backbone does not know such images" in output


def test_check_hashes_the_files_as_it_decodes_them_and_keeps_nothing(root: Path, monkeypatch) -> None:
    monkeypatch.setattr(summary, "CHUNK", 5)
    (here := root.parent / "here").mkdir()
    monkeypatch.chdir(here)
    events: list[str] = []
    decode, fill = decoding.decode, content.Hashes.fill
    monkeypatch.setattr(decoding, "decode", lambda *given: events.append("decode") or decode(*given))
    monkeypatch.setattr(content.Hashes, "fill", lambda self, rows=None: events.append(f"to {rows}") or fill(self, rows))
    output = call("check", "caltech101", "--root", str(root))
    assert events == [word for rows in (5, 10, 15, 20) for word in (*["decode"] * 5, f"to {rows}")]
    built = manifest.build(DataSettings(name="caltech101", root=root))
    assert list(here.iterdir()) == []
    assert f"content digest: {content.digest(built, here)} (of the files" in output


def test_check_counts_photos_that_are_stored_lying(root: Path) -> None:
    assert "EXIF" not in call("check", "caltech101", "--root", str(root))
    exif = Image.Exif()
    exif[0x112] = 8
    Image.new("RGB", (8, 8)).save(root / "101_ObjectCategories/ant/0.png", "PNG", exif=exif)
    output = call("check", "caltech101", "--root", str(root))
    assert "with an EXIF orientation other than 1, used as stored (not rotated): 1\n" in output
    assert "  101_ObjectCategories/ant/0.png\n" in output


def test_check_lists_all_that_cannot_be_read_and_fails(root: Path, capsys) -> None:
    for image in (3, 7):
        (root / f"101_ObjectCategories/bee/{image}.png").write_bytes(b"")
    with pytest.raises(DataError, match="2 images cannot be read"):
        call("check", "caltech101", "--root", str(root))
    result = CliRunner().invoke(command_line.app, ["check", "caltech101", "--root", str(root)])
    assert "bee/3.png: the image is empty" in result.output
    assert "bee/7.png: the image is empty" in result.output
    assert "unreadable" not in call("check", "caltech101", "--root", str(root), "--quick")


def test_check_fails_loudly_if_names_and_labels_do_not_fit(root: Path, monkeypatch) -> None:
    found = label_alignment.Alignment(
        given=3.0, best=60.0, images=400, classes=2, moved=(("ant", "bee"), ("bee", "ant"))
    )
    monkeypatch.setattr(label_alignment, "can_judge", lambda settings: True)
    monkeypatch.setattr(label_alignment, "zero_shot", lambda settings, callback: found)
    with pytest.raises(DataError, match="names and labels do not match"):
        call("check", "caltech101", "--root", str(root))
    result = CliRunner().invoke(command_line.app, ["check", "caltech101", "--root", str(root)])
    assert "zero-shot accuracy on 400 training images: 3.0 %, best naming 60.0 %" in result.output
    assert "ant -> bee" in result.output
    guessed = label_alignment.Alignment(given=51.0, best=52.0, images=400, classes=2, moved=())
    monkeypatch.setattr(label_alignment, "zero_shot", lambda settings, callback: guessed)
    with pytest.raises(DataError, match="that of guessing among 2 classes"):
        call("check", "caltech101", "--root", str(root))
    doubtful = label_alignment.Alignment(80.0, 100.0, 40, 2, (("ant", "bee"), ("bee", "ant")), gained=8)
    monkeypatch.setattr(label_alignment, "zero_shot", lambda settings, callback: doubtful)
    assert "ant -> bee" in call("check", "caltech101", "--root", str(root))
    fine = label_alignment.Alignment(given=90.0, best=90.0, images=400, classes=2, moved=())
    monkeypatch.setattr(label_alignment, "zero_shot", lambda settings, callback: fine)
    assert "90.0 %" in call("check", "caltech101", "--root", str(root))


def test_check_takes_an_experiment_and_changes(root: Path) -> None:
    output = call("check", "shapes", "--quick", "data.name=caltech101", f"data.root={root}")
    assert "Images by domain" in call("check", "shapes", "--quick")
    assert "caltech101: 20 images" in output
    with pytest.raises(ConfigError, match="root is required for data 'caltech101'"):
        call("check", "caltech101")
    with pytest.raises(ConfigError, match="no such file, and no shipped experiment"):
        call("check", "caltech")


def test_show_draws_the_partition_and_the_clients(root: Path, tmp_path: Path) -> None:
    changes = ["data.name=caltech101", f"data.root={root}", "partition.clients=2", "protocol.name=all_classes"]
    output = call("show", "shapes", *changes, "--out", str(tmp_path / "figures"))
    files = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert files == ["client-0000-client-0.png", "client-0001-client-1.png", "partition.png", "partition.svg"]
    assert output.count("figure: ") == 4
    call("show", "shapes", *changes, "--out", str(tmp_path / "few"), "--clients", "0")
    assert {path.name for path in (tmp_path / "few").iterdir()} == {"partition.png", "partition.svg"}


def test_names_and_folders_are_what_they_are(tmp_path: Path, monkeypatch) -> None:
    """Brackets in names are no colours, and ~ is the home folder."""
    for name in ("cat [red]", "[bold]dog"):
        for image in range(4):
            (tmp_path / "photos" / name).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (image, 0, 0)).save(tmp_path / "photos" / name / f"{image}.png")
    output = call("check", "folder", "--root", str(tmp_path / "photos"))
    assert " cat [red]" in output
    assert " [bold]dog" in output
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    output = call("show", "shapes", "storage.root=~/st", "partition.clients=2", "--clients", "0")
    assert f"figure: {tmp_path}/home/st/figures/shapes/partition.png" in output
    assert not (tmp_path / "~").exists()


def test_show_draws_nothing_if_an_image_cannot_be_read(root: Path, tmp_path: Path) -> None:
    changes = ["data.name=caltech101", f"data.root={root}", "partition.clients=2", "protocol.name=all_classes"]
    for image in range(10):
        (root / f"101_ObjectCategories/bee/{image}.png").write_bytes(b"<html>")
    with pytest.raises(DataError, match=r"bee/\d.png: not an image"):
        call("show", "shapes", *changes, "--out", str(tmp_path / "figures"))
    assert not (tmp_path / "figures").exists()


def test_prepare_says_that_it_is_ready(root: Path) -> None:
    assert f"ready: data.name=caltech101 data.root={root}" in call("prepare", "caltech101", "--root", str(root))


def test_zero_shot_check_runs_the_backbone(tmp_path: Path) -> None:
    """Random weights know nothing, but go the whole way."""
    from fedpgp import config

    settings = config.parse({"data": {"name": "shapes"}, "storage": {"root": str(tmp_path)}})
    found = label_alignment.zero_shot(settings, RunCallback())
    assert found.images == 30 * 8 // 2
    assert not found.exchanged
    assert not label_alignment.can_judge(settings)

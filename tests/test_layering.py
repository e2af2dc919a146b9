"""The house keeps its floors: who may import whom, and which file alone imports a heavy library."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "fedpgp"

FOUNDATION = {"errors", "seeding", "files", "secrets"}
CONFIG = FOUNDATION | {"config"}
DATA = CONFIG | {"data"}
CLIP = DATA | {"clip"}
METHODS = CONFIG | {"tree", "clip", "methods"}
RECORDS = {"records", "evaluation"}
FEDERATION = CLIP | METHODS | RECORDS | {"federation"}
STORE = FOUNDATION | RECORDS | {"identity", "federation", "store", "recorded", "rounds", "runs", "remote"}

MAY_IMPORT = {
    "secrets": set(), "errors": set(), "seeding": set(), "files": set(),
    "tree": set(), "records": set(), "provenance": set(),
    "upload": {"errors"},
    "config": {"errors"}, "evaluation": {"records"}, "data": DATA, "clip": CLIP, "methods": METHODS,
    "federation": FEDERATION, "recorded": {"errors", "files"}, "store": STORE,
    "identity": set(), "rounds": RECORDS | {"errors"}, "runs": {"files", "remote"}, "remote": {"errors", "files"},
    "tracking": STORE | {"sweeps.folder", "report", "comparison", "gather", "tree"},
    "comparison": {"errors", "evaluation"}, "groups": {"comparison"},
    "gather": STORE | {"config", "comparison", "groups", "sweeps.folder"},
    "report.rows": STORE | {"comparison"},
    "reproduce": CLIP | STORE | {"comparison", "gather", "report.rows", "sweeps"},
    "report": STORE | {"analysis", "comparison", "learned", "report.rows", "reproduce", "sweeps"},
    "learned": CONFIG | STORE | {"clip", "analysis"}, "analysis": set(),
    "prompt": METHODS, "export": METHODS | STORE | {"data", "prompt"}, "serving": CONFIG | {"data", "prompt"},
    "planning": CLIP | METHODS | {"remote"}, "resuming": CONFIG | STORE | {"comparison", "planning"},
    "experiment": FEDERATION | STORE | {"planning", "provenance", "resuming"},
    "needs": FEDERATION | {"planning", "experiment"},
    "launch": FEDERATION | STORE | {"planning", "needs", "experiment", "tracking"},
    "doctor": FEDERATION | STORE | {"authentication", "planning", "needs", "provenance", "sweeps.folder", "tracking"},
    "sweeps.folder": STORE, "sweeps": FEDERATION | STORE | {"planning", "experiment", "launch", "tracking"},
}  # fmt: skip

ONLY_IN = {
    "ray": {
        "federation/actors.py",
        "federation/driver.py",
        "sweeps/progress.py",
        "sweeps/trial.py",
        "sweeps/tuning.py",
        "upload.py",
    },
    "mlflow": {
        "serving.py",
        "tracking/connection.py",
        "tracking/entries.py",
        "tracking/origins.py",
        "tracking/runs.py",
        "tracking/sweeps.py",
        "tracking/view.py",
    },
    "typer": {
        "cli/__init__.py",
        "cli/anatomy.py",
        "cli/bench.py",
        "cli/data.py",
        "cli/doctor.py",
        "cli/export.py",
        "cli/report.py",
        "cli/reproduce.py",
        "cli/settings.py",
        "cli/sweep.py",
        "cli/track.py",
    },
    "matplotlib": {
        "report/confusion.py",
        "report/curves.py",
        "report/figures.py",
        "report/gallery.py",
        "report/grids.py",
        "report/progress.py",
        "report/prompts.py",
        "report/style.py",
        "report/tradeoff.py",
    },
}


def modules():
    return sorted(PACKAGE.rglob("*.py"))


def imported(path):
    """Full names of everything a file imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (item.name for item in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{item.name}" for item in node.names)


def room(name):
    """`fedpgp.clip.prompt_encoder` is in the room `clip`; a file may have a room of its own."""
    parts = name.split(".")
    found = [own for own in (".".join(parts[1:3]), ".".join(parts[1:2])) if own in MAY_IMPORT]
    return found[0] if parts[0] == "fedpgp" and found else None


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_go_one_way(path):
    place = path.relative_to(PACKAGE).as_posix()
    own = room(f"fedpgp.{place.removesuffix('.py').replace('/', '.')}")
    rooms = {room(name) for name in imported(path)} - {None, own}
    if own is not None:
        allowed = MAY_IMPORT[own]
        assert {one for one in rooms if not {one, one.split(".")[0]} & (allowed | {own})} == set()
    libraries = {name.split(".")[0] for name in imported(path)} & ONLY_IN.keys()
    assert {library for library in libraries if place not in ONLY_IN[library]} == set()
    if "rich" in {name.split(".")[0] for name in imported(path)}:
        assert own == "report" or place.startswith("cli")


def test_every_file_says_why_it_exists():
    assert [path for path in modules() if not ast.get_docstring(ast.parse(path.read_text()))] == []


def test_importing_the_package_is_light():
    import subprocess
    import sys

    code = "import sys, fedpgp.cli; print({'torch', 'ray', 'mlflow', 'open_clip', 'pyarrow'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"

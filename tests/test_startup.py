"""What a command and a client actor wait for when they start: the modules that are imported, counted and not timed."""

from __future__ import annotations

import subprocess
import sys

import pytest

LIBRARIES = {
    "mlflow", "matplotlib", "numpy", "open_clip", "pandas", "PIL", "pyarrow", "pydantic", "ray", "rich", "scipy",
    "timm", "torch", "torchvision", "typer", "yaml",
}  # fmt: skip


def brought(code, before=""):
    """Which libraries, and modules of ours, `code` brings that `before` has not."""
    lines = f"{before}\nimport sys\nearlier = set(sys.modules)\n{code}\nprint(*(set(sys.modules) - earlier))"
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=True)
    new = set(done.stdout.split())
    return {name.split(".")[0] for name in new} & LIBRARIES, {name for name in new if name.startswith("fedpgp.")}


def test_the_package_brings_nothing():
    assert brought("import fedpgp") == (set(), set())


def test_the_command_line_brings_what_it_prints_with():
    assert brought("import fedpgp.cli")[0] == {"rich", "typer"}


@pytest.mark.parametrize(
    ("modules", "allowed"),
    [
        ("fedpgp.federation.backends.actors", set()),
        ("fedpgp.federation.worker, fedpgp.methods.fedpgp", {"pyarrow", "pydantic", "yaml"}),
    ],
    ids=["ready", "holding a job"],
)
def test_a_client_actor_brings_little_more_than_ray_and_torch(modules, allowed):
    """No open_clip, timm, torchvision or Pillow, and no reader of data sets."""
    libraries, ours = brought(f"import {modules}", before="import numpy, ray, torch")
    assert libraries <= allowed
    assert not {name for name in ours if name.startswith("fedpgp.data.sources")}

"""Checks which modules the package, the command line and a client actor import when they start; nothing is timed."""

from __future__ import annotations

import subprocess
import sys

import pytest

LIBRARIES = {
    "mlflow", "matplotlib", "numpy", "open_clip", "pandas", "PIL", "pyarrow", "pydantic", "ray", "rich", "scipy",
    "timm", "torch", "torchvision", "typer", "yaml",
}  # fmt: skip


def imported(code, before=""):
    """The libraries and the modules of fedpgp that a new process imports for `code`, without those of `before`."""
    lines = f"{before}\nimport sys\nearlier = set(sys.modules)\n{code}\nprint(*(set(sys.modules) - earlier))"
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=True)
    new = set(done.stdout.split())
    return {name.split(".")[0] for name in new} & LIBRARIES, {name for name in new if name.startswith("fedpgp.")}


def test_the_package_imports_no_library_and_no_module_of_its_own():
    """The public API imports at first use, so that `import fedpgp` takes well under 0.1 s."""
    assert imported("import fedpgp") == (set(), set())


def test_the_command_line_imports_what_it_prints_with():
    assert imported("import fedpgp.cli")[0] == {"rich", "typer"}


@pytest.mark.parametrize("module", ["terminal", "writing"])
def test_reports_and_lists_of_runs_need_no_torch(module):
    libraries, _ = imported(f"import fedpgp.analysis.report.{module}")
    assert not libraries & {"mlflow", "open_clip", "pandas", "ray", "scipy", "timm", "torch", "torchvision"}


@pytest.mark.parametrize(
    ("modules", "allowed"),
    [
        ("fedpgp.federation.backends.actors", set()),
        ("fedpgp.federation.worker, fedpgp.methods.fedpgp", {"pyarrow", "pydantic", "yaml"}),
    ],
    ids=["ready", "holding a job"],
)
def test_a_client_actor_imports_little_beyond_ray_and_torch(modules, allowed):
    """No open_clip, timm, torchvision or Pillow, and no reader of data sets."""
    libraries, own = imported(f"import {modules}", before="import numpy.random, ray, torch")
    assert libraries <= allowed
    assert not {name for name in own if name.startswith("fedpgp.data.sources")}

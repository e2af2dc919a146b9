"""A local Ray cluster is a new one, and accepts only processes that have its token."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

HOST = """
import ray
from fedpgp.config import ResourceSettings
from fedpgp.federation.backends import ray_cluster
with ray_cluster.connected(ResourceSettings(actors=1)):
    print(ray.get_runtime_context().gcs_address, flush=True)
    input()
"""
GUEST = """
import sys
from fedpgp.config import ResourceSettings
from fedpgp.core.errors import ResourceError
from fedpgp.federation.backends import ray_cluster
try:
    with ray_cluster.connected(ResourceSettings(address=sys.argv[1])):
        print("is in")
except ResourceError as error:
    print(error)
"""


@pytest.fixture
def host(tmp_path):
    """A process with a local Ray, and a home folder of its own: its address and its token."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {"HOME": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-c", HOST], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        address = process.stdout.readline().strip()
        yield address, (tmp_path / ".ray" / "auth_token").read_text().strip()
        process.communicate("\n", timeout=60)


def visit(address, **environment):
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | environment
    command = [sys.executable, "-c", GUEST, address]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False).stdout


@pytest.mark.slow
def test_only_its_token_opens_it(host, tmp_path):
    address, token = host
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    known = {"HOME": str(elsewhere), "RAY_AUTH_MODE": "token"}
    assert visit(address, **known, RAY_AUTH_TOKEN=token) == "is in\n"
    for stranger in ({**known, "RAY_AUTH_TOKEN": "0" * len(token)}, {"HOME": str(elsewhere)}):
        answer = visit(address, **stranger)
        assert "is in" not in answer
        assert answer == "" or "RAY_AUTH_TOKEN" in answer


@pytest.mark.slow
def test_the_note_of_another_cluster_is_not_followed():
    """`ray start` writes the address of its cluster into the temporary folder, and leaves it there if it is killed."""
    with tempfile.TemporaryDirectory() as folder:  # a short path, as Ray's sockets need
        note = Path(folder) / "ray" / "ray_current_cluster"
        note.parent.mkdir()
        note.write_text("127.0.0.1:9")
        env = {**os.environ, "RAY_TMPDIR": folder}
        command = [sys.executable, "-c", HOST]
        done = subprocess.run(command, env=env, input="\n", capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stdout.startswith("127.0.0.1:9\n")

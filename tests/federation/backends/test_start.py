"""Whatever keeps Ray from starting is found before, or reported in one line."""

from __future__ import annotations

import os
import socket
import tempfile
import threading
from pathlib import Path

import pytest
import ray

from fedpgp.config import ResourceSettings
from fedpgp.core.errors import ResourceError
from fedpgp.federation import backends
from fedpgp.federation.backends import ray_cluster

LOCAL = ResourceSettings(actors=1)


@pytest.fixture(autouse=True)
def _no_ray(monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    for name in ("RAY_TMPDIR", "TMPDIR", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def short():
    """A folder with a path short enough for sockets, which `tmp_path` has not."""
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as folder:
        yield Path(folder)


def refused(resources=LOCAL):
    """The message with which both the check and the start refuse."""
    with pytest.raises(ResourceError) as caught:
        ray_cluster.check_start(resources)
    with pytest.raises(ResourceError) as started, ray_cluster.connected(resources):
        pass
    assert str(started.value) == str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["TMPDIR", "RAY_TMPDIR"])
def test_a_folder_too_long_for_sockets(short, monkeypatch, name):
    socket = ray_cluster.SOCKET.format(pid=os.getpid())
    left = 107 - len(f"/{socket}") - len(f"{short}/")
    monkeypatch.setenv(name, str(short / ("x" * left)))
    ray_cluster.check_start(LOCAL)
    folder = f"{short}/{'ä' * (left // 2 + 1)}"  # counted in bytes
    monkeypatch.setenv(name, folder)
    assert refused() == (
        f"{name}: Ray cannot start in {folder}: the path has {len(folder.encode())} bytes, and Ray's sockets below it "
        f"allow {106 - len(socket)}; set {name} to a shorter one"
    )


def test_rays_own_variable_comes_first(monkeypatch):
    assert ray_cluster.temporary_folder() == ("TMPDIR", Path("/tmp"))
    monkeypatch.setenv("TMPDIR", "/a")
    assert ray_cluster.temporary_folder() == ("TMPDIR", Path("/a"))
    monkeypatch.setenv("RAY_TMPDIR", "/b")
    assert ray_cluster.temporary_folder() == ("RAY_TMPDIR", Path("/b"))


def test_a_file_or_a_full_disk_instead_of_a_folder(short, monkeypatch):
    file = short / "f"
    file.touch()
    monkeypatch.setenv("TMPDIR", str(file))
    assert refused().endswith(f"{file} is not a writable folder; set TMPDIR to another folder")
    monkeypatch.setenv("TMPDIR", str(short))
    monkeypatch.setattr("shutil.disk_usage", lambda place: type("Usage", (), {"free": 4096}))
    assert refused().endswith("4.1 kB are free; make room, or set TMPDIR to another folder")


def test_a_relative_folder_which_ray_waits_for_in_vain(monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", "rel")
    assert refused() == "RAY_TMPDIR: Ray cannot start in rel: the path is relative; set RAY_TMPDIR to an absolute one"


def test_a_home_that_may_not_be_written(short, shared_root, as_user, monkeypatch):
    def init(**settings):
        (shared_root / ".ray").mkdir()

    shared_root.chmod(0o755)
    short.chmod(0o777)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setenv("TMPDIR", str(short))
    told = rf"machine: {shared_root} may not be written by you \(uid 1502\)"
    with as_user(1502), pytest.raises(ResourceError, match=told), ray_cluster.connected(LOCAL):
        pass


def test_a_folder_of_another_user(shared_root, as_user, monkeypatch):
    shared_root.chmod(0o755)
    monkeypatch.setenv("RAY_TMPDIR", str(shared_root))
    with as_user(1502):
        found = refused()
    assert f"RAY_TMPDIR: Ray cannot start in {shared_root}: {shared_root} may not be written by you (uid 1502)" in found
    assert found.endswith(", or set RAY_TMPDIR to another folder")


@pytest.mark.parametrize("address", ["nonsense", "http://127.0.0.1:8265", "127.0.0.1:99999", "localhost:", "a b:1"])
def test_an_address_of_another_form(monkeypatch, address):
    monkeypatch.setenv("RAY_ADDRESS", address)
    told = "is not the address of a cluster; give HOST:PORT, ray://HOST:PORT or auto"
    assert refused() == f"RAY_ADDRESS={address} {told}"
    assert refused(ResourceSettings(address=address)).startswith(f"resources.address={address} is not the address")


def test_memory_or_a_network_that_ray_would_wait_for_in_vain(short, shared_root, as_user, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(short))
    with monkeypatch.context() as patched:
        patched.setattr(
            "socket.create_connection", lambda *given, **more: _raise(OSError(101, "Network is unreachable"))
        )
        told = "its processes cannot connect at 127.0.0.1 (Network is unreachable); bring the loopback interface up"
        assert told in refused()
    short.chmod(0o777)
    shared_root.chmod(0o755)
    monkeypatch.setattr(ray_cluster, "SHARED_MEMORY", shared_root)
    with as_user(1502):
        assert f"it keeps objects in {shared_root}, and {shared_root} may not be written by you" in refused()


def _raise(error):
    raise error


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-OpenSSH_9.2\r\n", b""])
def test_a_program_other_than_ray_at_the_address(monkeypatch, answer):
    monkeypatch.setattr(ray_cluster, "CONNECT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            for _ in range(2):
                connection, _ = server.accept()
                connection.sendall(answer)
                held.append(connection)  # an empty answer: it says nothing

        held: list[socket.socket] = []
        thread = threading.Thread(target=serve)
        thread.start()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        told = f"Ray at {address}: what listens there is not Ray; give the address of its head"
        assert refused(ResourceSettings(address=address)) == told
        thread.join()
        for connection in held:
            connection.close()


@pytest.mark.parametrize(
    "error", [OSError("AF_UNIX path"), ValueError("no port\nleft"), AssertionError(), KeyError("x")]
)
def test_whatever_the_start_raises_is_one_line(short, monkeypatch, error):
    def init(**settings):
        raise error

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setenv("TMPDIR", str(short))
    with pytest.raises(ResourceError) as caught, ray_cluster.connected(LOCAL):
        pass
    text = str(caught.value)
    assert text.startswith(f"Ray cannot start on this machine: {type(error).__name__}")
    assert f"{short}/ray/session_latest/logs" in text
    assert "\n" not in text
    assert caught.value.__suppress_context__


def test_another_version_of_ray_is_named_and_a_token_is_not_blamed():
    text = (
        "Version mismatch: The cluster was started with:\n    Ray: 2.60.0\n    Python: 3.11.7\nThis process on node "
        "10.77.0.4 was started with:\n    Ray: 2.40.0\n    Python: 3.11.7\n"
    )
    told = str(ray_cluster._unreachable("10.77.0.1:6379", RuntimeError(text)))
    assert told == f"Ray at 10.77.0.1:6379: {' '.join(text.split())}; install the same version on every node"


def test_a_variable_that_ray_cannot_parse_is_named(monkeypatch):
    backends.check_variables.cache_clear()
    monkeypatch.setenv("RAY_enable_timeline", "1")
    monkeypatch.setenv("RAY_object_spilling_threshold", "abc")
    with pytest.raises(ResourceError, match=r"^RAY_object_spilling_threshold=abc: Ray cannot parse the value; correct"):
        backends.check_variables()
    monkeypatch.delenv("RAY_object_spilling_threshold")
    backends.check_variables()
    backends.check_variables.cache_clear()

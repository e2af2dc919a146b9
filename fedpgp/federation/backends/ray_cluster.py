"""Connects this process to Ray: a cluster, or a local one, and before that what would keep it from starting."""

import gc
import logging
import os
import re
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from fedpgp.config import ResourceSettings
from fedpgp.core.errors import ResourceError
from fedpgp.core.files import denied, explain, in_the_way
from fedpgp.core.text import disk_size
from fedpgp.federation.backends import versions
from fedpgp.federation.backends.actors import nodes
from fedpgp.federation.backends.choice import cluster_address, on_cluster
from fedpgp.federation.resources import share_heaps

log = logging.getLogger(__name__)
NAMESPACE = "fedpgp"
WATCH_SECONDS = 5.0
HEAD_SECONDS = 20.0
"""Time without an answer of the head after which a person is told."""
CONNECT_SECONDS = 10.0
HTTP2_SETTINGS = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])  # its type is the fourth byte; servers of HTTP/2 answer with one
HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + HTTP2_SETTINGS
CLUSTER_ID = "/ray.rpc.NodeInfoGcsService/GetClusterId"
"""The first request of a process that connects to a head."""
NO_TOKEN = "this machine has no token of the cluster"
TOKEN_ADVICE = "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or ~/.ray/auth_token) as on the head"
MAX_SOCKET_PATH = 107
"""Bytes of the path of a Unix socket."""
MAX_PORT = 65535
SHARED_MEMORY = Path("/dev/shm")
SOCKET = "ray/session_2026-01-01_00-00-00_000000_{pid}/sockets/plasma_store"
"""The longest socket path of a session below Ray's temporary folder; the dates of all sessions are equally long."""
SESSION_BYTES = 10**7
"""Bytes that the files of a new session need."""


@contextmanager
def connected(resources: ResourceSettings) -> Iterator[None]:
    """Connect to Ray: an open connection, the cluster at `resources.address` or RAY_ADDRESS, or else a new local one.

    Clusters require their token; a local one creates its own and requires it on every interface. The process gets few
    malloc heaps, because it will have many threads. Raises `ResourceError` if there is no cluster at the address, if
    it requires a token, or if Ray cannot start here, for whatever cause.
    """
    if ray.is_initialized():
        yield
        return
    check_start(resources)
    address = cluster_address(resources)
    options: dict[str, Any] = {"address": address}
    if address is None:  # "local": not the cluster that `ray start` has left a note of on this machine
        options = {"address": "local", "num_cpus": own_cpus(resources), "include_dashboard": False}
    share_heaps()
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR, **options)
    except Exception as error:  # whatever the environment made Ray raise
        if ray.is_initialized():
            ray.shutdown()
        raise (_unreachable(address, error) if address else _not_started(error)) from None
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)  # ray's own handler ends the process at once
    ended = threading.Event()
    if address is not None and not ray.util.client.ray.is_connected():
        threading.Thread(target=_watch, args=(ray.get_runtime_context().gcs_address, ended), daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        gc.collect()  # handles that are freed after the shutdown, by any thread, let Ray end the process
        ray.shutdown()


def _watch(address: str, ended: threading.Event) -> None:
    """Say so if the head of a cluster is gone: Ray ends this process a minute later, without a word of advice."""
    host, _, port = address.rpartition(":")
    since = time.monotonic()
    while not ended.wait(WATCH_SECONDS):
        try:
            socket.create_connection((host, int(port)), WATCH_SECONDS).close()
            since = time.monotonic()
        except OSError:
            if time.monotonic() - since > HEAD_SECONDS:
                log.warning(
                    "Ray's head at %s has not answered for %.0f s; unless it comes back, this command ends: start Ray "
                    "again, then continue with --resume",
                    address,
                    time.monotonic() - since,
                )
                return


def check_start(resources: ResourceSettings) -> None:
    """Raise `ResourceError` if the environment lets no cluster be reached, or none be started. Starts nothing."""
    if ray.is_initialized():
        return
    address = cluster_address(resources)
    if address is None:
        _check_temporary_folder(*temporary_folder())
        _check_machine()
    else:
        name = "resources.address" if resources.address else "RAY_ADDRESS"
        form = re.fullmatch(r"auto|local|(ray://)?([^\s/:]+|\[[0-9A-Fa-f:]+\]):(?P<port>\d+)", address)
        if form is None or int(form["port"] or 0) > MAX_PORT:
            raise ResourceError(
                f"{name}={address} is not the address of a cluster; give HOST:PORT, ray://HOST:PORT or auto"
            )
        _check_reachable(address)


def temporary_folder() -> tuple[str, Path]:
    """The variable that names Ray's temporary folder, and the folder, in which a local Ray makes `ray/session_...`.

    Ray looks at TMPDIR on Linux alone.
    """
    names = ("RAY_TMPDIR", "TMPDIR") if sys.platform.startswith("linux") else ("RAY_TMPDIR",)
    given = next((name for name in names if name in os.environ), None)
    return given or "TMPDIR", Path(os.environ[given] if given else "/tmp")


def _check_temporary_folder(variable: str, folder: Path) -> None:
    about = f"{variable}: Ray cannot start in {folder}"
    advice = f"set {variable} to another folder"
    longest = MAX_SOCKET_PATH - len(SOCKET.format(pid=os.getpid())) - 1
    if (length := len(os.fsencode(folder.absolute()))) > longest:
        raise ResourceError(
            f"{about}: the path has {length} bytes, and Ray's sockets below it allow {longest}; "
            f"set {variable} to a shorter one"
        )
    if not folder.is_absolute():
        raise ResourceError(f"{about}: the path is relative; set {variable} to an absolute one")
    sessions = folder / "ray"
    if (problem := denied(sessions, writing=True)) is not None:
        raise ResourceError(f"{about}: {problem}, or {advice}")
    if (found := in_the_way(sessions)) is not None:
        raise ResourceError(f"{about}: {found} is not a writable folder; {advice}")
    existing = next(one for one in (sessions.absolute(), *sessions.absolute().parents) if one.exists())
    if (free := shutil.disk_usage(existing).free) < SESSION_BYTES:
        raise ResourceError(f"{about}: {disk_size(free)} are free; make room, or {advice}")


def _check_machine() -> None:
    """Check what Ray waits for in vain until its start times out: memory for objects, and a network in this machine."""
    if SHARED_MEMORY.is_dir() and (problem := denied(SHARED_MEMORY, writing=True)) is not None:
        raise ResourceError(f"Ray cannot start on this machine: it keeps objects in {SHARED_MEMORY}, and {problem}")
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        what = f"its processes cannot connect at 127.0.0.1 ({error.strerror or error}); bring the loopback interface up"
        raise ResourceError(f"Ray cannot start on this machine: {what}") from None


def _not_started(error: Exception) -> ResourceError:
    variable, folder = temporary_folder()
    if isinstance(error, PermissionError):  # such as a home folder, where Ray writes its token
        return ResourceError(f"Ray cannot start on this machine: {explain(error, folder)}")
    return ResourceError(
        f"Ray cannot start on this machine: {_what(error)}; its logs are in {folder}/ray/session_latest/logs; "
        f"check {variable}, the RAY_* variables, and free ports, memory and disk space"
    )


def _what(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]


def _check_reachable(address: str) -> None:
    """Check that a server of gRPC, as Ray's are, answers: Ray itself retries for minutes and then ends the process."""
    parsed = re.fullmatch(r"(?:ray://)?([^/:]+):(\d+)", address)
    if parsed is None:
        return
    try:
        with socket.create_connection((parsed[1], int(parsed[2])), timeout=CONNECT_SECONDS) as connection:
            if os.environ.get("RAY_USE_TLS", "0") != "0":
                return  # the answer is encrypted
            connection.sendall(HTTP2_PREFACE)
            answer = connection.recv(len(HTTP2_SETTINGS))
    except TimeoutError:
        answer = b""
    except (OSError, OverflowError) as error:
        what = error.strerror if isinstance(error, OSError) else error
        raise ResourceError(
            f"Ray at {address}: {what}; check the address, and that the head runs (`ray start --head`)"
        ) from None
    if answer[3:4] != HTTP2_SETTINGS[3:4]:
        raise ResourceError(f"Ray at {address}: what listens there is not Ray; give the address of its head")
    _check_token(address)


def _check_token(address: str) -> None:
    """Check that the head takes this machine's token: Ray itself asks twenty times, and then does not say why not."""
    import grpc  # only where there is a cluster

    if (loader := getattr(ray._raylet, "AuthenticationTokenLoader", None)) is None:  # a Ray without tokens
        return
    try:
        headers = loader.instance().get_token_for_http_header()
    except ray.exceptions.AuthenticationError:  # none, though RAY_AUTH_MODE asks for one: Ray says so at once
        return
    with grpc.insecure_channel(address.removeprefix("ray://"), options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary(CLUSTER_ID)(b"", timeout=CONNECT_SECONDS, metadata=list(headers.items()))
        except grpc.RpcError as error:  # what else it says, Ray says again
            if error.code() is not grpc.StatusCode.UNAUTHENTICATED:
                return
            what = "the token of this machine is not the cluster's" if headers else NO_TOKEN
            raise ResourceError(f"Ray at {address}: {what}; {TOKEN_ADVICE}") from None


def _unreachable(address: str, error: Exception) -> ResourceError:
    what = " ".join(str(error).split()) or type(error).__name__
    if "ersion mismatch" in what:
        return ResourceError(f"Ray at {address}: {what}; {versions.ADVICE}")
    if "authentication token" in what:
        what = NO_TOKEN
    elif "No node info found" in str(error.__cause__):
        return ResourceError(
            f"Ray at {address}: this machine is no node of the cluster; run `ray start --address={address}` here, run "
            "this command on a node, or send it with `ray job submit`"
        )
    return ResourceError(f"Ray at {address}: {what[:200]}; if the cluster uses token authentication, {TOKEN_ADVICE}")


def own_cpus(resources: ResourceSettings) -> int:
    """CPUs of a local cluster: at least those that the actors reserve, even if the machine has fewer cores."""
    return max(os.cpu_count() or 1, int(resources.actors * resources.cpus_per_actor + 0.999))


def cluster(resources: ResourceSettings) -> list[Mapping[str, float]] | None:
    """The resources of each node of the cluster; None: a local one would be started.

    Raises as `connected` and `versions.check` do.
    """
    if not on_cluster(resources):
        return None
    with connected(resources):
        versions.check(versions.alive())
        return nodes()


def one_folder(resources: ResourceSettings) -> bool:
    """Whether all processes have the same permanent working folder: one node, and not the temporary folder of a job."""
    if not on_cluster(resources):
        return True
    with connected(resources):
        return len(nodes()) == 1 and not ray.get_runtime_context().runtime_env.get("working_dir")

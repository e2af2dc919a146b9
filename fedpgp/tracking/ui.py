"""MLflow's own user interface on the store of a storage root, for this machine only, until it is stopped."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from fedpgp.core.errors import FedPGPError, RunError, UserError
from fedpgp.tracking import default_view
from fedpgp.tracking.connection import ENVIRONMENT, connect, default_uri, told

HOST = "127.0.0.1"
PORT = 5000
START_SECONDS = 120.0
END_SECONDS = 10.0


class PortError(UserError):
    """Someone else listens there."""


def store_of(root: Path) -> str:
    """The URI of a storage root's MLflow store.

    Raises:
        RunError: it has none.
    """
    if not (root / "mlflow.db").is_file():
        raise RunError(
            f"{root}: no MLflow store here (no mlflow.db); give the storage.root of your runs. `fedpgp track sync "
            f"{root}` makes one from runs that were not mirrored, and runs with a tracking.uri of their own are there"
        )
    return default_uri(root)


def page_of(uri: str) -> str:
    """Where the runs are, below the address of the user interface: its start page shows language models, not runs.

    Raises:
        FedPGPError: the store cannot be read, or takes no view of its runs.
    """
    with told(uri):
        client = connect(uri)
        experiments = client.search_experiments(filter_string="name != 'Default'", max_results=2)
        if len(experiments) != 1:
            return "/#/experiments?workflowType=machine_learning"
        shown = default_view.renew(client, experiments[0].experiment_id)
    page = f"/#/experiments/{experiments[0].experiment_id}/runs?workflowType=machine_learning"
    return f"{page}&viewStateShareKey={shown}" if shown else page


@contextmanager
def serving(uri: str, port: int | None) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The user interface, ready to be opened: its address and its process. Ends with all its children.

    Args:
        port: None: 5000, or a free one if that is taken.

    Raises:
        PortError: the port is taken.
        FedPGPError: it did not start.
    """
    chosen = _port(port)
    address = f"http://{HOST}:{chosen}"
    command = [
        sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--host", HOST, "--port", str(chosen),
        "--workers", "1",
    ]  # fmt: skip
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            command, env={**os.environ, **ENVIRONMENT}, stdout=said, stderr=said, stdin=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        try:
            _wait(process, address, said)
            yield address, process
        finally:
            _end(process)


def _port(wanted: int | None) -> int:
    for port in (wanted,) if wanted else (PORT, 0):
        with socket.socket() as free:
            free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                free.bind((HOST, port))
            except OSError:
                continue
            return int(free.getsockname()[1])
    raise PortError(f"port {wanted} is taken; give another one with --port")


def _wait(process: subprocess.Popen[bytes], address: str, said: IO[bytes]) -> None:
    """Until it answers."""
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        if process.poll() is not None:
            said.seek(0)
            last = said.read().decode(errors="replace").strip().rpartition("\n")[2]
            raise FedPGPError(f"mlflow server ended at once: {last or 'it said nothing'}")
        with suppress(OSError), urllib.request.urlopen(f"{address}/health", timeout=5):
            return
        time.sleep(0.2)
    raise FedPGPError(f"mlflow server did not answer for {START_SECONDS:g} seconds")


def _end(process: subprocess.Popen[bytes]) -> None:
    """The process and all that it has started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(END_SECONDS)

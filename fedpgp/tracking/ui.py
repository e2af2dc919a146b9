"""Serve MLflow's user interface for the store of a storage root, on this machine only, until it is stopped."""

from __future__ import annotations

import json
import os
import shlex
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
from typing import IO, TYPE_CHECKING

from fedpgp.config import TrackingSettings, tracking_uri
from fedpgp.core.errors import FedPGPError, RunError, UserError
from fedpgp.core.files import check_readable
from fedpgp.core.text import redacted
from fedpgp.federation.metrics import on_test_images
from fedpgp.storage import copies
from fedpgp.tracking.connection import ENVIRONMENT, connect, default_uri, mlflow_errors
from fedpgp.tracking.descriptions import accuracies
from fedpgp.tracking.mirror import sync_all
from fedpgp.tracking.mlflow_runs import SWEEP_TAG
from fedpgp.tracking.uri_check import check_settings
from fedpgp.tracking.writers import SPACE

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

HOST = "127.0.0.1"
PORT = 5000
START_SECONDS = 120.0
END_SECONDS = 10.0
VIEW = "fedpgp"
VIEW_TAG_PREFIX = "mlflow.sharedViewState."
"""Tag of an experiment that holds a shared view of its table of runs, as MLflow's Share button writes it.

MLflow does not document it. Its web page reads the tag `mlflow.sharedViewState.KEY` when the address has
`viewStateShareKey=KEY`; the value may be plain JSON. A test compares these names with those in the page's scripts.
"""
MAX_SWEEPS = 20
"""The number of sweeps, newest first, whose columns are shown."""


def store_of(root: Path) -> str:
    """The URI of the MLflow store of the runs: that of the environment, else that of their storage root.

    Raises `ConfigError` if MLflow can never open it, and `RunError` if it does not exist yet or may not be
    read.
    """
    uri = tracking_uri.uri_of(None)
    if uri is not None:
        check_settings(TrackingSettings())
    path = tracking_uri.local_path(uri or default_uri(root))
    if path is not None:
        check_readable(path)
    if path is not None and not path.exists():
        variable = f"{tracking_uri.URI_VARIABLE}: {path}: no MLflow store here"
        here = f"{root}: no MLflow store here (no mlflow.db); give the storage.root of your runs"
        sync = f"fedpgp track sync {shlex.quote(str(root))}"
        raise RunError(
            f"{variable if uri else here}. `{sync}` creates it from runs that were not mirrored; runs with their own "
            "tracking.uri are in that store"
        )
    return uri or default_uri(root)


def store_at(place: str) -> tuple[str, str]:
    """The URI of the MLflow store for the runs at a URI of an object store, and a line that says what it is.

    That of the environment, or else a local one that is built from the rows there, and brought up to date.
    """
    if tracking_uri.uri_of(None) is not None:
        return store_of(Path()), f"the store of {tracking_uri.URI_VARIABLE}; without it, one is built from the rows"
    store = default_uri(copies.root_of(place))
    count = sum(1 for _ in sync_all(copies.local(place), store))
    return store, f"built from {count} runs and sweeps at {redacted(place)}, without what they have learned"


def page_of(uri: str) -> str:
    """The path of the page that lists the runs. MLflow's start page shows language models instead."""
    with mlflow_errors(uri):
        client = connect(uri)
        experiments = client.search_experiments(filter_string="name != 'Default'", max_results=2)
        if len(experiments) != 1:
            return "/#/experiments?workflowType=machine_learning"
        experiment, share = experiments[0].experiment_id, ""
        if columns := _columns(client, experiment):  # without sweeps, MLflow's default columns stay
            client.set_experiment_tag(experiment, VIEW_TAG_PREFIX + VIEW, json.dumps({"selectedColumns": columns}))
            share = f"&viewStateShareKey={VIEW}"
    return f"/#/experiments/{experiment}/runs?workflowType=machine_learning{share}"


def _columns(client: MlflowClient, experiment: str) -> list[str]:
    """The columns of an experiment's runs: searched parameters, metric and test accuracies of its sweeps."""
    sweeps = client.search_runs([experiment], f"tags.`{SWEEP_TAG}` LIKE '%'", max_results=MAX_SWEEPS)
    params = [
        name.removeprefix(SPACE).rpartition(".")[0]  # `method.rank` of `space.method.rank.grid_search`
        for sweep in sweeps
        for name in sorted(sweep.data.params)
        if name.startswith(SPACE)
    ]
    metrics = []
    for sweep in sweeps:
        metrics += [sweep.data.params["tune.metric"]]
        metrics += [name for name in accuracies(sweep.data.metrics) if on_test_images(name)]
    return list(dict.fromkeys([f"params.`{name}`" for name in params] + [f"metrics.`{name}`" for name in metrics]))


@contextmanager
def serving(uri: str, port: int | None) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Run the server until the context ends; yields its address, once it answers, and its process.

    Args:
        port: None: 5000, or a free one if that is taken. Another port that is taken raises `UserError`.
    """
    chosen = _port(port)
    address = f"http://{HOST}:{chosen}"
    command = [
        sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--host", HOST, "--port", str(chosen),
        "--workers", "1",
    ]  # fmt: skip
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command, env={**os.environ, **ENVIRONMENT}, stdout=output, stderr=output, stdin=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        try:
            _wait(process, address, output)
            yield address, process
        finally:
            _end(process)


def _port(wanted: int | None) -> int:
    for port in (wanted,) if wanted else (PORT, 0):
        with socket.socket() as free:
            free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                free.bind((HOST, port))
            except PermissionError:
                raise UserError(
                    f"port {port} may not be used by you; give another one, above 1023, with --port"
                ) from None
            except OSError:
                continue
            return int(free.getsockname()[1])
    raise UserError(f"port {wanted} is taken; give another one with --port")


def _wait(process: subprocess.Popen[bytes], address: str, output: IO[bytes]) -> None:
    """Wait until the server answers."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            output.seek(0)
            last = output.read().decode(errors="replace").strip().rpartition("\n")[2]
            raise FedPGPError(f"mlflow server ended at once: {last or 'no output'}")
        with suppress(OSError), urllib.request.urlopen(f"{address}/health", timeout=5):
            return
        time.sleep(0.2)
    raise FedPGPError(f"mlflow server did not answer for {START_SECONDS:g} seconds")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process and all its children."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(END_SECONDS)

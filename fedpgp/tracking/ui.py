"""Serve MLflow's user interface for the store of a storage root, on this machine only, from this process."""

from __future__ import annotations

import logging
import os
import shlex
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fedpgp.config import TrackingSettings, tracking_uri
from fedpgp.config.tracking_uri import local_path
from fedpgp.core.errors import RunError, UserError
from fedpgp.core.files import check_readable
from fedpgp.core.text import redacted
from fedpgp.storage import copies
from fedpgp.tracking.connection import ENVIRONMENT, default_uri, mlflow_errors
from fedpgp.tracking.mirror import sync_all
from fedpgp.tracking.uri_check import check_settings

if TYPE_CHECKING:
    from werkzeug.serving import BaseWSGIServer

HOST = "127.0.0.1"
PORT = 5000
STORE, REGISTRY, ARTIFACTS = (
    "_MLFLOW_SERVER_FILE_STORE", "_MLFLOW_SERVER_REGISTRY_STORE", "_MLFLOW_SERVER_ARTIFACT_ROOT",
)  # fmt: skip
"""Environment variables with which `mlflow server` tells its application what to serve.

They are not documented; a test compares them with the names in MLflow.
"""
NO_ASSISTANT = (
    "<style>[data-assistant-ui]{display:none!important}</style>"
    '<script>localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1","true")</script>'
)
"""Put into the page, which otherwise opens a panel for a language model that is not there."""
NO_JOBS = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
QUIET = ("werkzeug", "mlflow", "alembic")
"""Loggers with a line per request, or per step of the start."""


def store_of(root: Path) -> str:
    """The URI of the MLflow store of the runs: that of the environment, else that of their storage root.

    Raises `ConfigError` if MLflow can never open it, and `RunError` if it does not exist yet or may not be
    read.
    """
    uri = tracking_uri.uri_of(None)
    if uri is not None:
        check_settings(TrackingSettings())
    path = local_path(uri or default_uri(root))
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


@contextmanager
def serving(uri: str, port: int | None) -> Iterator[str]:
    """Serve from threads of this process until the context ends; yields the address. Once in a process.

    This is MLflow's application without what `mlflow server` adds for language models: a supervisor, workers for jobs,
    a gateway and an assistant.

    Args:
        port: None: 5000, or a free one if that is taken. Another port that is taken raises `UserError`.
    """
    with _bound(port) as listening:
        with mlflow_errors(uri):
            server = _server(uri, listening)
        thread = threading.Thread(target=server.serve_forever, name="mlflow server", daemon=True)
        thread.start()
        try:
            yield f"http://{HOST}:{server.port}"
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


def _server(uri: str, listening: socket.socket) -> BaseWSGIServer:
    """MLflow's application for a store, behind a listening socket."""
    path = local_path(uri)
    root = ((path.parent if path else Path()).absolute() / "mlartifacts").as_uri()
    os.environ |= {**ENVIRONMENT, STORE: uri, REGISTRY: uri, ARTIFACTS: root, **NO_JOBS}  # before the import reads them
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.ERROR)
    from mlflow.server import app, handlers
    from werkzeug.serving import make_server

    handlers.initialize_backend_stores(uri, uri, root)
    page = (Path(str(app.static_folder)) / "index.html").read_text(encoding="utf-8")
    app.view_functions["serve"] = lambda: page.replace("</head>", f"{NO_ASSISTANT}</head>")
    return make_server(HOST, listening.getsockname()[1], app, threaded=True, fd=listening.fileno())


def _bound(wanted: int | None) -> socket.socket:
    """A socket that listens at the port, or at a free one."""
    for port in (wanted,) if wanted else (PORT, 0):
        bound = socket.socket()
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind((HOST, port))
            bound.listen()  # two sockets may be bound to a port, but only one listens
        except PermissionError:
            bound.close()
            raise UserError(f"port {port} may not be used by you; give another one, above 1023, with --port") from None
        except OSError:
            bound.close()
            continue
        return bound
    raise UserError(f"port {wanted} is taken; give another one with --port")

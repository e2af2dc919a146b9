"""Create and connect to an MLflow store, without its log noise; errors are one line without credentials."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from fedpgp.config.tracking_uri import local_path
from fedpgp.core.errors import AccessError, FedPGPError
from fedpgp.core.files import check_readable, check_writable, explain, locked, make_folder, share_with_group
from fedpgp.core.text import cause_line, redacted
from fedpgp.tracking.uri_check import is_server

if TYPE_CHECKING:
    from mlflow.entities import Experiment, RunInfo
    from mlflow.tracking import MlflowClient

log = logging.getLogger("fedpgp.tracking")

ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",  # no usage statistics
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # a run's URL contains the password
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # an unreachable server is tried again at the next round
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}
"""Environment variables of MLflow, unless the user has set them."""

QUIET = {
    "mlflow.store.db.utils": logging.CRITICAL,  # a line per table of a new store; errors are reported below
    "alembic.runtime.migration": logging.WARNING,
    "urllib3.connectionpool": logging.ERROR,  # a line per retry; the final error is reported below
}

KIND = {"mlflow.experimentKind": "custom_model_development"}
"""Makes MLflow's user interface show runs instead of pages for language models."""


def default_uri(root: Path) -> str:
    """The URI of the SQLite store of a storage root."""
    return f"sqlite:///{root.absolute()}/mlflow.db"


def prepare(root: Path, uri: str, experiment: str) -> str:
    """Create the MLflow store and the experiment if they are missing, and return the experiment's id.

    An experiment that was deleted is restored with its runs, until MLflow has removed it for good: MLflow accepts no
    other one of its name. Several processes may call this at once, also of several users of a group, who then share the
    store. Artifacts go to `root/mlartifacts`, unless `uri` is that of a server. Raises `AccessError` if this user may
    not write there.
    """
    make_folder(root)
    remote = is_server(uri)
    with mlflow_errors(uri), nullcontext() if remote else locked(root / ".mlflow.lock"):
        artifacts, database = root.absolute() / "mlartifacts", local_path(uri)
        for path in () if remote else filter(None, (artifacts, database)):
            check_writable(path)
        client = connect(uri)
        found = client.get_experiment_by_name(experiment)
        if database is not None:
            share_with_group(database)
        if not remote:
            make_folder(artifacts)
            share_with_group(artifacts)
        if found is not None:
            if is_deleted(found):
                client.restore_experiment(found.experiment_id)
                log.warning("MLflow at %s: experiment %r was deleted; it is restored", redacted(uri), experiment)
            return str(found.experiment_id)
        location = None if remote else artifacts.as_uri()
        return client.create_experiment(experiment, artifact_location=location, tags=KIND)


def is_deleted(entry: Experiment | RunInfo) -> bool:
    """Whether an experiment or a run was deleted; MLflow keeps it until `mlflow gc`."""
    return bool(entry.lifecycle_stage == "deleted")


def connect(uri: str) -> MlflowClient:
    """Connect to the store; raise `AccessError` for a file that may not be read, which MLflow would retry for long."""
    if (database := local_path(uri)) is not None:
        check_readable(database)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow.tracking import MlflowClient

    for name, level in QUIET.items():
        logging.getLogger(name).setLevel(level)
    return MlflowClient(tracking_uri=uri)


@contextmanager
def mlflow_errors(uri: str) -> Iterator[None]:
    """Turn any error inside into a `FedPGPError` of one line that names the store, without credentials."""
    try:
        yield
    except AccessError as error:
        raise AccessError(f"MLflow at {redacted(uri)}: {error}") from None
    except FedPGPError:
        raise
    except PermissionError as error:
        what = explain(error, local_path(uri) or Path())
        raise AccessError(f"MLflow at {redacted(uri)}: {what}") from None
    except Exception as error:  # whatever MLflow and its libraries raise must not end a run
        raise FedPGPError(f"MLflow at {redacted(uri)}: {redacted(cause_line(error))}") from None

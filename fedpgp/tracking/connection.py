"""The way to an MLflow store: made before it is used, quiet, and its failures told in one line without secrets."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from fedpgp.core.errors import FedPGPError
from fedpgp.core.files import locked
from fedpgp.core.redaction import redacted

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",  # no usage statistics to its makers
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # a run's URL has the password in it
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # a server that is away is asked again at the next round anyway
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}
"""Read by MLflow, where the user has not set it."""

QUIET = {
    "mlflow.store.db.utils": logging.CRITICAL,  # a line per table of a new store, and pages on a failure that is told
    "alembic.runtime.migration": logging.WARNING,
    "urllib3.connectionpool": logging.ERROR,  # a line per retry, where one is told at the end
}

KIND = {"mlflow.experimentKind": "custom_model_development"}
"""Its user interface then shows runs, and nothing of language models."""


def default_uri(root: Path) -> str:
    """The SQLite store of a storage root."""
    return f"sqlite:///{root.absolute()}/mlflow.db"


def prepare(root: Path, uri: str, experiment: str) -> str:
    """Create the MLflow store and the experiment where they are missing. Safe to call from several processes.

    Args:
        root: the storage root; artifacts go to `root/mlartifacts`, unless a server decides.

    Returns:
        The experiment's id.

    Raises:
        FedPGPError: the store cannot be reached.
    """
    root.mkdir(parents=True, exist_ok=True)
    remote = uri.startswith(("http:", "https:", "databricks"))
    with mlflow_errors(uri), nullcontext() if remote else locked(root / ".mlflow.lock"):
        client = connect(uri)
        if (found := client.get_experiment_by_name(experiment)) is not None:
            return str(found.experiment_id)
        location = None if remote else (root.absolute() / "mlartifacts").as_uri()
        return client.create_experiment(experiment, artifact_location=location, tags=KIND)


def connect(uri: str) -> MlflowClient:
    """A client of the store."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow.tracking import MlflowClient

    for name, level in QUIET.items():
        logging.getLogger(name).setLevel(level)
    return MlflowClient(tracking_uri=uri)


@contextmanager
def mlflow_errors(uri: str) -> Iterator[None]:
    """Whatever goes wrong inside becomes one line that names the store and no secret."""
    try:
        yield
    except FedPGPError:
        raise
    except Exception as error:  # a mirror never fails a run, whatever its libraries raise
        what = redacted(str(error)).strip().partition("\n")[0] or type(error).__name__
        raise FedPGPError(f"MLflow at {redacted(uri)}: {what}") from None

"""Create and connect to an MLflow store, without its log noise; errors are one line without credentials."""

from __future__ import annotations

import logging
import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from fedpgp.config.tracking_uri import ID_VARIABLE, experiment_id, experiment_of, local_path
from fedpgp.core.errors import AccessError, ConfigError, FedPGPError
from fedpgp.core.files import check_readable, check_writable, explain, locked, make_folder, share_with_group
from fedpgp.core.text import cause_line, redacted
from fedpgp.tracking.uri_check import is_database, is_server

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
    "mlflow.store.model_registry.abstract_store": logging.WARNING,  # a line per version that a server registers
    "mlflow.store.db.utils": logging.CRITICAL,  # a line per table of a new store; errors are reported below
    "alembic.runtime.migration": logging.WARNING,
    "mlflow.utils.databricks_utils": logging.ERROR,
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
                log.warning(
                    "MLflow at %s: experiment %r was deleted; it is restored with all its runs, also those that were "
                    "deleted singly",
                    redacted(uri),
                    experiment,
                )
            return str(found.experiment_id)
        return _create(client, experiment, None if remote else artifacts.as_uri())


def _create(client: MlflowClient, experiment: str, location: str | None) -> str:
    """Create an experiment, unless another process has just done so; return its id."""
    from mlflow.exceptions import MlflowException

    try:
        return client.create_experiment(experiment, artifact_location=location, tags=KIND)
    except MlflowException as error:
        found = client.get_experiment_by_name(experiment)
        if found is None or error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        return str(found.experiment_id)


def experiment_name(uri: str, setting: str | None) -> str:
    """The experiment of the settings, else the one whose name or number is in the environment, else the default.

    Raises `ConfigError` if the store has none of that number, `FedPGPError` if it cannot be asked.
    """
    number = experiment_id(setting)
    return experiment_of(setting) if number is None else _name_of(uri, number)


@cache
def _name_of(uri: str, number: str) -> str:
    """The name of the experiment of that number."""
    from mlflow.exceptions import MlflowException

    path = local_path(uri)
    about = f"{ID_VARIABLE}={number}: MLflow at {redacted(uri)}"
    otherwise = "give tracking.experiment=NAME"
    try:
        with mlflow_errors(uri):
            try:
                if path is None or path.exists():  # opening it would create it
                    return str(connect(uri).get_experiment(number).name)
            except MlflowException as error:
                if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                    raise
        raise ConfigError(f"{about} has no such experiment; correct the number, or {otherwise}")
    except ConfigError:
        raise
    except FedPGPError as error:
        raise type(error)(f"{error}; {ID_VARIABLE}={number} cannot be looked up: {otherwise}") from None


def is_deleted(entry: Experiment | RunInfo) -> bool:
    """Whether an experiment or a run was deleted; MLflow keeps it until `mlflow gc`."""
    return bool(entry.lifecycle_stage == "deleted")


def connect(uri: str) -> MlflowClient:
    """Connect to the store.

    Raises `AccessError` for a file that may not be read, and SQLAlchemy's error for a database that does not accept the
    connection: MLflow would try again for minutes.
    """
    if (database := local_path(uri)) is not None:
        check_readable(database)
    elif is_database(uri):
        _check_database(uri)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow.tracking import MlflowClient

    for name, level in QUIET.items():
        logging.getLogger(name).setLevel(level)
    return MlflowClient(tracking_uri=uri)


@cache
def _check_database(uri: str) -> None:
    """Connect once to a database that this process has not connected to before; later MLflow does not wait either."""
    from sqlalchemy import create_engine

    engine = create_engine(uri)
    try:
        engine.connect().close()
    finally:
        engine.dispose()


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
        raise FedPGPError(f"MLflow at {redacted(uri)}: {redacted(_explained(error, uri))}") from None


def _explained(error: Exception, uri: str) -> str:
    """The cause in one line, with advice if it does not pass by itself."""
    cause, text = error, cause_line(error)
    while isinstance(cause.__cause__, Exception):
        cause = cause.__cause__
    if type(cause) is sqlite3.DatabaseError:  # not one of its subclasses, such as that of a locked file
        return f"{text}: the file is damaged; move it away, `fedpgp track sync STORAGE_ROOT` writes another one"
    if "database is locked" in text:
        return f"{text}: another program is writing to it; try again when that has ended"
    if (found := re.search(r"schema \(found version (\w+), but expected \w+\)", text)) is not None:
        return f"{found[0]}: {_other_schema(found[1], uri)}"
    if "error code 401" in text:
        return f"{text}; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
    return text


def _other_schema(version: str, uri: str) -> str:
    """What to do about a store that another version of MLflow wrote; the newer ones are not known here."""
    import mlflow
    from mlflow.store import db_migrations

    versions = Path(db_migrations.__file__).parent / "versions"
    if any(versions.glob(f"{version}*.py")):
        return f"an earlier MLflow wrote it; copy it, then run: mlflow db upgrade {uri}"
    return f"a newer MLflow than {mlflow.__version__} wrote it; install that version, or give another tracking.uri"

"""Reject tracking URIs that MLflow can never open, without opening a store or asking a server."""

from importlib.metadata import entry_points
from urllib.parse import urlsplit

from fedpgp.config import TrackingSettings, tracking_uri
from fedpgp.core.errors import ConfigError
from fedpgp.core.text import first_of, one_line, redacted

DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
SERVERS = ("http", "https")
PLUGINS = "mlflow.tracking_store"
"""Group of the entry points with which packages add schemes to MLflow."""
FILE_STORES = "MLFLOW_ALLOW_FILE_STORE"
"""The environment variable without which recent versions of MLflow refuse a folder as a store."""


def check_settings(settings: TrackingSettings) -> None:
    """Raise `ConfigError` if MLflow is on and can never open the store, which may be that of the environment."""
    uri = tracking_uri.given_uri(settings.uri)
    if settings.mlflow and uri is not None:
        given = tracking_uri.URI_VARIABLE if from_environment(uri) else "tracking.uri"
        check_uri(uri, given, "tracking.uri=")


def from_environment(uri: str) -> bool:
    """Whether a URI is the one in the environment, as it is there or with an absolute path."""
    return uri in (tracking_uri.given_uri(None), tracking_uri.uri_of(None))


def check_uri(uri: str, given: str, option: str) -> None:
    """Raise `ConfigError` if MLflow can never open a store.

    Args:
        given: where the URI comes from; the message begins with it.
        option: what another URI is to be written after.
    """
    if (reason := _reason(uri)) is not None:
        raise ConfigError(
            f"{given}: {redacted(uri)}: {redacted(reason)}; give {option}sqlite:///FILE or {option}http://HOST:PORT"
        )


def is_database(uri: str) -> bool:
    """Whether a tracking URI is that of a database."""
    return urlsplit(uri).scheme.partition("+")[0] in DATABASES


def is_server(uri: str) -> bool:
    """Whether a tracking URI is that of a server, which keeps the artifacts itself."""
    return uri.lower().startswith(("http:", "https:", "databricks"))


def _reason(uri: str) -> str | None:
    """Why MLflow can never open a store; None: it may."""
    try:
        parts = urlsplit(uri)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        return one_line(error)
    scheme = parts.scheme
    if uri == "databricks" or scheme == "databricks":
        return None
    if scheme in SERVERS:
        return None if host else "names no server"
    if is_database(uri):
        return _database_reason(uri)
    more = {entry.name for entry in entry_points(group=PLUGINS)}
    if scheme in more:
        return None
    if scheme in ("", "file"):
        return _folder_reason()
    known = first_of([*SERVERS, *DATABASES, "databricks", *sorted(more)])
    return f"MLflow knows no store of the kind {scheme!r} (known: {known})"


def _folder_reason() -> str | None:
    """Why the installed MLflow refuses every folder as a store; None: it does not."""
    from mlflow import environment_variables

    allowed = getattr(environment_variables, FILE_STORES, None)
    return None if allowed is None or allowed.get() else f"MLflow refuses a folder as a store unless {FILE_STORES}=true"


def _database_reason(uri: str) -> str | None:
    """Why SQLAlchemy cannot open a database; None: it may."""
    from sqlalchemy import create_engine
    from sqlalchemy.exc import SQLAlchemyError

    if uri.startswith("sqlite") and tracking_uri.local_path(uri) is None:
        return "names no file"
    try:
        create_engine(uri).dispose()
    except ImportError as error:
        return f"the database's driver is not installed ({one_line(error)})"
    except (SQLAlchemyError, ValueError) as error:
        return one_line(error)
    return None

"""Complete the settings of MLflow from its environment variables, and make the place of a local store absolute."""

import os
import re
from pathlib import Path

from fedpgp.config.settings import TrackingSettings

URI_VARIABLE, EXPERIMENT_VARIABLE = "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"
ID_VARIABLE = "MLFLOW_EXPERIMENT_ID"
"""Environment variables with which all programs of MLflow find a store and an experiment."""
DEFAULT_EXPERIMENT = "fedpgp"

_LOCAL = re.compile(r"(sqlite(?:\+\w+)?:///(?:file:)?|file:(?://(?=/))?|(?![A-Za-z][A-Za-z0-9+.-]+:))([^?]+)(\?.*)?")
"""What comes before the path, the path, and options, in a URI of a database file or a folder, or in a plain path."""
_NO_PATH = ("databricks", ":memory:")


def resolved(settings: TrackingSettings) -> TrackingSettings:
    """Fill in the store and the experiment from the environment; a store that is null afterwards is the default one.

    Without the mirror (`mlflow: false`) an experiment that is given nowhere stays null, until the mirror is asked for;
    also one of which only the number is given: the store knows its name.
    """
    given = settings.experiment or _variable(EXPERIMENT_VARIABLE)
    experiment = given or (DEFAULT_EXPERIMENT if settings.mlflow and experiment_id(None) is None else None)
    return settings.model_copy(update={"uri": uri_of(settings.uri), "experiment": experiment})


def given_uri(setting: str | None) -> str | None:
    """The URI of the settings, else that of the environment; None: neither."""
    return setting or _variable(URI_VARIABLE)


def uri_of(setting: str | None) -> str | None:
    """As `given_uri`, with an absolute path."""
    uri = given_uri(setting)
    return absolute_uri(uri) if uri else None


def experiment_of(setting: str | None) -> str:
    """The experiment of the settings, else that of the environment, else the default."""
    return setting or _variable(EXPERIMENT_VARIABLE) or DEFAULT_EXPERIMENT


def experiment_id(setting: str | None) -> str | None:
    """The number of the experiment in the environment; None: there is none, or a name is given."""
    return None if setting or _variable(EXPERIMENT_VARIABLE) else _variable(ID_VARIABLE)


def local_path(uri: str) -> Path | None:
    """The database file or the folder that a tracking URI names, relative if it is; None: it is not a local file."""
    found = _LOCAL.fullmatch(uri)
    return None if found is None or found[2] in _NO_PATH else Path(found[2]).expanduser()


def is_relative(uri: str) -> bool:
    """Whether a tracking URI names a local file by a path that is relative to the working folder."""
    path = local_path(uri)
    return path is not None and not path.is_absolute()


def absolute_uri(uri: str) -> str:
    """Make the path in a tracking URI absolute; other URIs are returned as they are."""
    found, path = _LOCAL.fullmatch(uri), local_path(uri)
    return uri if found is None or path is None else f"{found[1]}{path.absolute()}{found[3] or ''}"


def _variable(name: str) -> str | None:
    """The value of an environment variable without blanks around it; None: there is none."""
    return os.environ.get(name, "").strip() or None

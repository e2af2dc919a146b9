"""Stores that MLflow can never open are rejected, with what is wrong and what to give."""

from __future__ import annotations

import pytest

from fedpgp.config import TrackingSettings
from fedpgp.core.errors import ConfigError
from fedpgp.tracking import uri_check


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("nonsense://me:secret@x", "MLflow knows no store of the kind 'nonsense'"),
        ("localhost:5000", "MLflow knows no store of the kind 'localhost'"),
        ("databricks-uc://x", "MLflow knows no store of the kind 'databricks-uc'"),
        ("./mlruns", "MLflow refuses a folder as a store unless MLFLOW_ALLOW_FILE_STORE=true"),
        ("file:///tmp/mlruns", "MLflow refuses a folder as a store"),
        ("127.0.0.1:5000", "MLflow refuses a folder as a store"),
        ("http://", "names no server"),
        ("http:localhost:5000", "names no server"),
        ("http://localhost:99999", "Port out of range"),
        ("sqlite:///", "names no file"),
        ("sqlite:///:memory:", "names no file"),
        ("sqlite://rel.db", "names no file"),
        ("sqlite:rel.db", "names no file"),
        ("postgresql+nosuch://me:secret@host/db", "Can't load plugin: sqlalchemy.dialects:postgresql.nosuch"),
        ("mssql+pymssql://me:secret@host/db", "the database's driver is not installed (No module named 'pymssql')"),
    ],
)
def test_what_mlflow_can_never_open_is_rejected_in_one_line_without_secrets(monkeypatch, uri, reason):
    with pytest.raises(ConfigError) as caught:
        uri_check.check_settings(TrackingSettings(uri=uri))
    message = str(caught.value)
    assert message.startswith(f"tracking.uri: {uri.replace('me:secret@', '***@')}: {reason}")
    assert message.endswith("; give tracking.uri=sqlite:///FILE or tracking.uri=http://HOST:PORT")
    assert "\n" not in message
    uri_check.check_settings(TrackingSettings(uri=uri, mlflow=False))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(ConfigError, match=r"^MLFLOW_TRACKING_URI: "):
        uri_check.check_settings(TrackingSettings())


@pytest.mark.parametrize(
    "uri",
    ["sqlite:///rel.db", "sqlite:////a b/x.db", "http://h:1", "HTTPS://u:p@h/path", "databricks", "databricks://p"],
)
def test_what_may_open_is_not(uri):
    uri_check.check_settings(TrackingSettings(uri=uri))


def test_folders_and_more_kinds_are_accepted_where_mlflow_accepts_them(monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri_check.check_settings(TrackingSettings(uri="./mlruns"))
    installed = [type("Entry", (), {"name": "nonsense"})()]
    monkeypatch.setattr(uri_check, "entry_points", lambda group: installed if "tracking_store" in group else [])
    uri_check.check_settings(TrackingSettings(uri="nonsense://x"))

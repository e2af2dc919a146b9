"""The store and the experiment of MLflow: from the settings, else from MLflow's environment variables, and absolute."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedpgp import config
from fedpgp.config import TrackingSettings, tracking_uri


def resolved(**settings):
    return config.absolute(config.parse({"tracking": settings})).tracking


@pytest.mark.parametrize(
    ("given", "absolute"),
    [
        ("sqlite:///rel.db", "sqlite:///HERE/rel.db"),
        ("sqlite:///below/rel.db?timeout=5", "sqlite:///HERE/below/rel.db?timeout=5"),
        ("sqlite+pysqlite:///rel.db", "sqlite+pysqlite:///HERE/rel.db"),
        ("sqlite:///file:rel.db?uri=true", "sqlite:///file:HERE/rel.db?uri=true"),
        ("sqlite:///~/rel.db", "sqlite:///HOME/rel.db"),
        ("./mlruns", "HERE/mlruns"),
        ("mlruns", "HERE/mlruns"),
        ("file:mlruns", "file:HERE/mlruns"),
        ("file:///tmp/mlruns", "file:///tmp/mlruns"),
        ("sqlite:////tmp/a b@c.db", "sqlite:////tmp/a b@c.db"),
        ("sqlite:///:memory:", "sqlite:///:memory:"),
        ("http://me:secret@host:5000", "http://me:secret@host:5000"),
        ("postgresql://host/db", "postgresql://host/db"),
        ("databricks", "databricks"),
    ],
)
def test_local_stores_become_absolute_wherever_they_are_given(tmp_path, monkeypatch, given, absolute):
    monkeypatch.chdir(tmp_path)
    expected = absolute.replace("HERE", str(tmp_path)).replace("HOME", str(Path.home()))
    assert resolved(uri=given).uri == expected
    assert resolved(uri=expected).uri == expected
    assert tracking_uri.is_relative(given) == ("HERE" in absolute)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
    assert resolved().uri == expected


def test_the_environment_is_used_where_nothing_is_given(monkeypatch):
    assert resolved() == TrackingSettings(experiment="fedpgp")
    assert resolved(mlflow=False) == TrackingSettings(mlflow=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    assert resolved() == TrackingSettings(uri="http://host:5000", experiment="mine")
    given = {"uri": "http://other", "experiment": "theirs"}
    assert resolved(**given) == TrackingSettings(**given)
    for variable in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.setenv(variable, " ")
    assert resolved() == TrackingSettings(experiment="fedpgp")


def test_a_number_is_left_to_the_store_unless_a_name_is_given(monkeypatch):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "7")
    assert resolved() == TrackingSettings()
    assert tracking_uri.experiment_id(None) == "7"
    assert resolved(experiment="theirs") == TrackingSettings(experiment="theirs")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    assert resolved() == TrackingSettings(experiment="mine")
    assert tracking_uri.experiment_id(None) is None

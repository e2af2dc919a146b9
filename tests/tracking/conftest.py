"""One MLflow store for all tests of the mirror that may share one: to create one takes seconds."""

from __future__ import annotations

import pytest
from mlflow.tracking import MlflowClient

from fedpgp import tracking


@pytest.fixture(scope="session")
def shared_uri(tmp_path_factory):
    """The store. Tests use experiments of different names."""
    root = tmp_path_factory.mktemp("mlflow")
    tracking.prepare(root, tracking.default_uri(root), "unused")
    return tracking.default_uri(root)


@pytest.fixture(scope="session")
def shared_client(shared_uri):
    """A client of the store."""
    return MlflowClient(shared_uri)

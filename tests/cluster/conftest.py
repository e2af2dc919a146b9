"""The run that is repeated on hosts, made once in one process, and storage roots that its hosts share."""

from __future__ import annotations

import shutil

import pytest
from host_runs import serial_metrics


@pytest.fixture(scope="module")
def serial(tmp_path_factory):
    """The storage root of the run in one process, and its metrics."""
    root = tmp_path_factory.mktemp("serial")
    return root, serial_metrics(root)


@pytest.fixture
def roots(hosts, serial):
    """Make a storage root that the hosts share, with all features."""

    def make(name):
        shutil.copytree(serial[0] / "features", hosts.shared / name / "features")
        return hosts.shared / name

    return make

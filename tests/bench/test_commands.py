"""Timing of commands: of those that end, of those that fail, and of the MLflow UI."""

from __future__ import annotations

import pytest

from fedpgp.bench import commands
from fedpgp.core.errors import FedPGPError


def test_a_command_takes_time_of_the_clock_and_of_the_processor():
    taken = commands.run("--version")
    assert taken.cpu > 0
    assert taken.wall > 0


def test_a_command_that_fails_is_an_error_with_its_last_line(tmp_path):
    with pytest.raises(FedPGPError, match=r"fedpgp report: exit code 2: error: .*none: not a run folder"):
        commands.run("report", str(tmp_path / "none"))


def test_a_storage_root_without_a_store_has_no_page(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(FedPGPError, match=r"fedpgp ui ended without an address: .*no MLflow store here"):
        commands.until_page(tmp_path)

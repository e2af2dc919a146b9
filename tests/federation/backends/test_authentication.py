"""Token authentication is switched on if a token exists, and only then."""

from __future__ import annotations

import os

import pytest

from fedpgp.federation.backends import use_token


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)
    return tmp_path


def test_without_a_token_the_mode_is_not_set(home):
    use_token()
    assert "RAY_AUTH_MODE" not in os.environ


@pytest.mark.parametrize("name", ["RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"])
def test_a_token_in_the_environment_is_used(home, monkeypatch, name):
    monkeypatch.setenv(name, "secret")
    use_token()
    assert os.environ["RAY_AUTH_MODE"] == "token"


def test_a_token_in_the_home_folder_is_used_unless_the_environment_disables_it(home, monkeypatch):
    (home / ".ray").mkdir()
    (home / ".ray/auth_token").write_text("secret")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    use_token()
    assert os.environ["RAY_AUTH_MODE"] == "disabled"
    monkeypatch.delenv("RAY_AUTH_MODE")
    use_token()
    assert os.environ["RAY_AUTH_MODE"] == "token"

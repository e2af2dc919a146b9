"""Authenticate this process to a Ray cluster. Must be called before ray is imported."""

import os
from pathlib import Path

TOKEN_FILE = ".ray/auth_token"
"""Where Ray keeps its token, relative to the home folder."""


def use_token() -> None:
    """Send the token to the cluster if this machine has one; a cluster without authentication ignores it.

    Without `RAY_AUTH_MODE=token` Ray sends no token; with it, Ray refuses to connect if there is no token.
    """
    known = any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    if known or (Path.home() / TOKEN_FILE).is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")

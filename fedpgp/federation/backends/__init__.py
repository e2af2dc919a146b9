"""Backends that run the workers, in this process or on Ray actors, with equal results; and Ray's token."""

import os
from pathlib import Path


def use_token() -> None:
    """Send Ray's token to the cluster if this machine has one. Must be called before ray is imported.

    A cluster without authentication ignores it. Without `RAY_AUTH_MODE=token` Ray sends no token; with it, Ray refuses
    to connect if there is no token.
    """
    known = any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    if known or (Path.home() / ".ray/auth_token").is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")

"""How this process authenticates to a Ray that runs already. To be decided before ray is imported."""

from __future__ import annotations

import os
from pathlib import Path

TOKEN_FILE = ".ray/auth_token"
"""Below the home folder: where Ray keeps its token."""


def use_token() -> None:
    """Show the cluster our token, if there is one; a cluster that wants none does not mind.

    Ray itself shows none to an address that it is given, and with `RAY_AUTH_MODE=token` it refuses to go without.
    """
    known = any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    if known or (Path.home() / TOKEN_FILE).is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")

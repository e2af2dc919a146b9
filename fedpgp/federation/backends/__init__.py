"""Backends that run the workers, in this process or on Ray actors, with equal results; and Ray's environment."""

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from fedpgp.core.errors import ResourceError


def use_token() -> None:
    """Send Ray's token to the cluster if this machine has one. Must be called before ray is imported.

    A cluster without authentication ignores it. Without `RAY_AUTH_MODE=token` Ray sends no token; with it, Ray refuses
    to connect if there is no token.
    """
    known = any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    if known or (Path.home() / ".ray/auth_token").is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


@cache
def check_variables() -> None:
    """Raise `ResourceError` for variables such as `RAY_enable_timeline` with a value that Ray cannot parse.

    Must be called before ray is imported: the import would end the process without a message.
    """
    given = {name: value for name, value in os.environ.items() if re.match("RAY_[a-z]", name)}
    if not given or _importable(given):
        return
    wrong = [f"{name}={value}" for name, value in sorted(given.items()) if not _importable({name: value})]
    raise ResourceError(f"{', '.join(wrong or given)}: Ray cannot parse the value; correct or unset the variable")


def _importable(variables: Mapping[str, str]) -> bool:
    """Whether a process with these variables of Ray survives the import."""
    others = {name: value for name, value in os.environ.items() if not re.match("RAY_[a-z]", name)}
    child = [sys.executable, "-c", "import ray"]
    return subprocess.run(child, env={**others, **variables}, capture_output=True).returncode == 0

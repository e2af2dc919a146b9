"""Credentials stay with the person who gave them: nothing that is written down has them."""

from __future__ import annotations

import re

HIDDEN = "***"


def redacted(text: str) -> str:
    """`text` with the user and password of every URI in it replaced."""
    return re.sub(r"://[^/\s]*@", f"://{HIDDEN}@", text)


def without_user(uri: str) -> str:
    """A URI that was redacted, as it can be used by those who have credentials in their environment."""
    return uri.replace(f"://{HIDDEN}@", "://")

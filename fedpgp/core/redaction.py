"""Removes credentials from everything that is stored or shown."""

import re

HIDDEN = "***"


def redacted(text: str) -> str:
    """Replace the user and password of every URI in `text`."""
    return re.sub(r"://[^/\s]*@", f"://{HIDDEN}@", text)


def without_user(uri: str) -> str:
    """Remove the placeholder from a redacted URI, for use with credentials from the environment."""
    return uri.replace(f"://{HIDDEN}@", "://")

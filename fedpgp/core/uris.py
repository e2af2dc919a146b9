"""URIs of folders in object stores: recognize and join them, and name the local folder that stands for one."""

import hashlib
import re
from pathlib import Path
from typing import TypeGuard

CACHE = Path(".cache") / "fedpgp"
"""Below the home folder: roots of runs whose storage is a URI, and copies of what is read from URIs."""


def is_uri(place: object) -> TypeGuard[str]:
    """Whether a place is a URI (`s3://BUCKET/FOLDER`) and not a local path."""
    return isinstance(place, str) and "://" in place


def above(uri: str, levels: int = 1) -> str:
    """The URI of the folder around that of `uri`; its query stays."""
    place, mark, query = uri.partition("?")
    scheme, _, path = place.rstrip("/").partition("://")
    return f"{scheme}://{'/'.join(path.split('/')[:-levels])}{mark}{query}"


def below(uri: str, *names: str) -> str:
    """The URI of a folder inside that of `uri`; its query stays."""
    place, mark, query = uri.partition("?")
    return f"{place.rstrip('/')}/{'/'.join(names)}{mark}{query}"


def cache_name(uri: str) -> str:
    """A name for the local folder of a URI: readable, different for different URIs, and without its user."""
    place = re.sub(r"[^A-Za-z0-9]+", "-", uri.partition("://")[2].rpartition("@")[2].partition("?")[0])
    return f"{place.strip('-')}-{hashlib.sha256(uri.encode()).hexdigest()[:8]}"

"""Text for messages: the nearest known name, the start of a long list, sizes in bytes; removes credentials."""

import difflib
import re
from collections.abc import Iterable, Sequence

MIB, GIB = 2**20, 2**30
HIDDEN = "***"
"""Stands for the user and the password of a URI."""


def did_you_mean(name: object, known: Iterable[str], otherwise: str = "", count: int = 1, cutoff: float = 0.6) -> str:
    """`did you mean A or B?` with up to `count` known names that are similar (`cutoff` to 1), else `otherwise`."""
    near = difflib.get_close_matches(str(name), list(known), n=count, cutoff=cutoff)
    return f"did you mean {' or '.join(near)}?" if near else otherwise


def first_of(names: Sequence[object], count: int = 10) -> str:
    """The first `count` names and the number of the others: `a, b and 3 more`."""
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(map(str, names[:count])) + more


def one_line(error: Exception) -> str:
    """The message of an error in one line, or its type if the message is empty."""
    return " ".join(str(error).split()) or type(error).__name__


def cause_line(error: BaseException) -> str:
    """The line of an error's message that names its cause, or its type if the message is empty.

    It is the line with the message of the exception that the others were raised from, and the first line otherwise; a
    cause that the message leaves out is added to its first line.
    """
    first = _first_line(str(error)) or type(error).__name__
    root = error
    while root.__cause__ is not None:
        root = root.__cause__
    why = _first_line(str(root))
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line for line in (first, *lines) if why in line), f"{first}: {why}")


def redacted(text: str) -> str:
    """Replace the user and password of every URI in `text`, before it is stored or shown."""
    return re.sub(r"://[^/\s]*@", f"://{HIDDEN}@", text)


def without_user(uri: str) -> str:
    """Remove the placeholder from a redacted URI, for use with credentials from the environment."""
    return uri.replace(f"://{HIDDEN}@", "://")


def disk_size(num_bytes: float) -> str:
    """Bytes on disk or on the wire, in powers of 1000: `20.3 GB`."""
    return _scaled(num_bytes, 1000, ("kB", "MB", "GB", "TB"))


def memory_size(num_bytes: float) -> str:
    """Bytes of memory, in powers of 1024: `1.5 GiB`."""
    return _scaled(num_bytes, 1024, ("KiB", "MiB", "GiB", "TiB"))


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def _scaled(num_bytes: float, base: int, units: Sequence[str]) -> str:
    if num_bytes < base:
        return f"{num_bytes:.0f} bytes"
    power = next((power for power in range(1, len(units)) if num_bytes < base ** (power + 1)), len(units))
    return f"{num_bytes / base**power:,.1f} {units[power - 1]}"

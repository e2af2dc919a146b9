"""Text for messages: the nearest known name, the start of a list, values told apart, sizes; removes credentials."""

import difflib
import html
import itertools
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeGuard

MIB, GIB = 2**20, 2**30
HIDDEN = "***"
"""Stands for the user and the password of a URI."""


def did_you_mean(name: object, known: Iterable[str], otherwise: str = "", count: int = 1, cutoff: float = 0.6) -> str:
    """`did you mean A or B?` with up to `count` known names that are similar (`cutoff` to 1), else `otherwise`.

    Of equally similar ones those that begin alike come first.
    """
    given, names = str(name), list(known)

    def nearness(other: str) -> tuple[float, int]:
        alike = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(other, given, strict=False))
        return difflib.SequenceMatcher(None, other, given).ratio(), len(list(alike))

    near = difflib.get_close_matches(given, names, n=max(1, len(names)), cutoff=cutoff)
    near = sorted(near, key=nearness, reverse=True)[:count]
    return f"did you mean {' or '.join(near)}?" if near else otherwise


def first_of(names: Sequence[object], count: int = 10) -> str:
    """The first `count` names and the number of the others: `a, b and 3 more`."""
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(map(str, names[:count])) + more


def distinct(values: Sequence[object]) -> list[str]:
    """Short texts of values: the same for equal values, different ones for others.

    Numbers have three significant digits, or as many as tell them apart; a number of up to six digits is not rounded.
    Mappings are shown by their `title`, `name`, `kind` or `level`, and by the keys in which they differ from others
    with the same one; lists of mappings, such as the parts of a union, by these.
    """
    numbers = {value for value in values if isinstance(value, float)}
    told_apart = (count for count in range(3, 17) if len({_rounded(one, count) for one in numbers}) == len(numbers))
    digits = next(told_apart, 17)
    texts = [_short(value, digits, values) for value in values]
    exact = [json.dumps(value, sort_keys=True, ensure_ascii=False, default=str) for value in values]
    meanings = Counter(text for text, _ in set(zip(texts, exact, strict=True)))
    return [full if meanings[text] > 1 else text for text, full in zip(texts, exact, strict=True)]


def _short(value: object, digits: int, others: Sequence[object]) -> str:
    if isinstance(value, Mapping):
        title = next((key for key in ("title", "name", "kind", "level") if value.get(key) is not None), None)
        if title is None:
            return json.dumps(value, default=str)
        alike = [one for one in others if isinstance(one, Mapping) and one.get(title) == value[title]]
        keys = [key for key in value if any(one.get(key) != value[key] for one in alike)]
        shown = (f"{key}={distinct([value[key], *(one.get(key) for one in alike)])[0]}" for key in keys)
        return ", ".join([str(value[title]), *shown])
    if _of_mappings(value):
        items = [item for other in others if _of_mappings(other) for item in other]
        return f"[{'; '.join(_short(item, digits, items) for item in value)}]"
    return _rounded(value, digits) if isinstance(value, float) else "null" if value is None else str(value)


def _of_mappings(value: object) -> TypeGuard[Sequence[Mapping[str, object]]]:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(item, Mapping) for item in value)


def _rounded(number: float, digits: int) -> str:
    """At least so many significant digits; six are not rounded, and a fraction does not become a whole number."""
    if float(f"{number:g}") == number:
        return f"{number:g}"
    texts = (f"{number:.{count}g}" for count in range(digits, 18))
    return next(text for text in texts if number.is_integer() or not float(text).is_integer())


def one_line(error: Exception) -> str:
    """The message of an error in one line, or its type if the message is empty."""
    return " ".join(str(error).split()) or type(error).__name__


def is_blank(name: str) -> bool:
    """Whether nothing is left of a class name once underscores are spaces and HTML entities are read, as CLIP does."""
    return not any(unicodedata.category(char)[0] not in "CZ" for char in html.unescape(name.replace("_", " ")))


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

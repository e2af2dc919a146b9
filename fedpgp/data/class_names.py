"""Class names: which given name belongs to which class found in the data."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from fedpgp.core.errors import DataError
from fedpgp.core.text import did_you_mean, first_of, is_blank

Given = Sequence[str] | Mapping[str, str] | None
"""`data.class_names`: a list of all names, or new names by the names found."""


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Sort found names by code points or, if all are whole numbers, as numbers: 2 before 10."""
    texts = sorted(names)
    return tuple(sorted(texts, key=int) if _are_numbers(texts) else texts)


def assign(found: Sequence[str], given: Given, numbered: bool) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the names in label order, and the new label of each label found.

    A list of the names found sets their order. Other lists give new names by position. If these are more than one, the
    position must be known to whoever wrote them: the data number their classes, or the names found are numbers.

    Args:
        found: in label order.
        numbered: the data have label ids; otherwise the order of `found` is only that of sorting.

    Raises:
        DataError: a name is empty or occurs twice, or the names given do not fit those found.
    """
    old = _labels(found)
    if given is None:
        _check(found)
        return tuple(found), np.arange(len(found))
    if isinstance(given, Mapping):
        given = _renamed(found, given)
        _check(given)
        return tuple(given), np.arange(len(found))
    new = _labels(given)
    _check(given)
    if len(given) != len(found):
        raise DataError(f"data.class_names: {len(given)} names for {len(found)} classes ({first_of(found)})")
    if (order := _by_name(old, new)) is not None:
        return tuple(given), order
    in_place = all(old.get(name, label) == label for name, label in new.items())
    if not in_place or (len(new.keys() - old.keys()) > 1 and not _order_is_known(found, numbered)):
        raise DataError(_ask_for_mapping(found, given))
    return tuple(given), np.arange(len(found))


def _labels(names: Sequence[str]) -> dict[str, int]:
    """Map each name, with underscores read as spaces, to its label; raise `DataError` if two are the same then."""
    words = [_words(name) for name in names]
    double = [name for name, count in Counter(words).items() if count > 1]
    if double:
        raise DataError(f"duplicate class names (underscores read as spaces): {', '.join(double)}; rename one of each")
    return {name: label for label, name in enumerate(words)}


def _check(names: Sequence[str]) -> None:
    """Raise `DataError` if names are empty, or the same to the tokenizer, which puts them in small letters."""
    blank = [f"{name!r} of label {label}" for label, name in enumerate(names) if is_blank(name)]
    if blank:
        raise DataError(
            f"empty class names (underscores read as spaces): {first_of(blank)}; rename these classes, "
            "or give them names in data.class_names"
        )
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(" ".join(_words(name).casefold().split()), []).append(name)
    if same := [" and ".join(own) for own in alike.values() if len(own) > 1]:
        raise DataError(
            f"duplicate class names (a prompt has small letters, and spaces for underscores): {first_of(same)}; "
            "rename one of each, or give new names in data.class_names"
        )


def _renamed(found: Sequence[str], names: Mapping[str, str]) -> tuple[str, ...]:
    """The names found, with those of the mapping replaced."""
    _labels(list(names))
    known = {_words(name) for name in found}
    if unknown := [name for name in names if _words(name) not in known]:
        hint = did_you_mean(unknown[0], found, f"found are {first_of(found)}")
        raise DataError(f"data.class_names: no class {first_of(unknown)} in the data; {hint}")
    new = {_words(old): name for old, name in names.items()}
    return tuple(new.get(_words(name), name) for name in found)


def _by_name(old: Iterable[str], new: Iterable[str]) -> np.ndarray | None:
    """The new label of each old name, if the names are equal, or differ in capitals only; else None."""
    for same in (str, str.casefold):
        olds, news = [same(name) for name in old], [same(name) for name in new]
        if sorted(olds) == sorted(news) and len(set(news)) == len(news):
            return np.array([news.index(name) for name in olds])
    return None


def _words(name: str) -> str:
    """The name as a prompt has it, in Unicode's composed form: names that look the same are equal then."""
    return unicodedata.normalize("NFC", name.replace("_", " "))


def _order_is_known(found: Sequence[str], numbered: bool) -> bool:
    """Whether a person who lists new names sees the position of each class."""
    if _are_numbers(found):
        numbers = [int(name) for name in found]
        return numbers == list(range(numbers[0], numbers[0] + len(found)))
    by_code_points = list(found) == sorted(found) != sorted(found, key=_as_read)  # Zebra before apple, b10 before b2
    return numbered and not by_code_points


def _as_read(name: str) -> list[tuple[int, str]]:
    """The key of a dictionary's order: capitals as small letters, and digits as numbers."""
    parts = re.findall(r"[0-9]+|[^0-9]+", _words(name).casefold())
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def _are_numbers(names: Sequence[str]) -> bool:
    return all(name.isascii() and name.isdecimal() for name in names)


def _ask_for_mapping(found: Sequence[str], given: Sequence[str]) -> str:
    pairs = [f"{old} -> {new}" for old, new in zip(found, given, strict=True)]
    example = ", ".join(f"{json.dumps(name, ensure_ascii=False)}: ..." for name in found[:2])
    return (
        f"data.class_names: new names in a list would be assigned by position: {first_of(pairs)}; to be sure which "
        f"class has which name, write data.class_names={{{example}{', ...' if len(found) > 2 else ''}}}"
    )

"""CoOp's splits: cuts images into train, val and test, and reads and writes split files."""

import json
import logging
import random
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fedpgp.core.errors import AccessError, DataError
from fedpgp.core.files import write_durably
from fedpgp.core.text import first_of
from fedpgp.data.sources.listing import composed

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
TRAIN, VAL = 0.5, 0.2
"""Shares of a class if the data set has no official split; the rest is for testing."""
VAL_OF_TRAIN = 0.2
"""Share of the official training images used for validation if there is no official validation split."""


class Item(NamedTuple):
    """One image, as in a line of a split file: relative to the image folder, with its label from 0."""

    image: str
    label: int
    class_name: str


Split = Mapping[str, Sequence[Item]]


def cut(classes: Iterable[tuple[int, str, list[str]]], generator: random.Random) -> Split:
    """Cut each class (label, name, images) like CoOp: half train, a fifth val; `DataError` if one is too small."""
    split: dict[str, list[Item]] = {name: [] for name in SPLITS}
    small = []
    for label, name, files in classes:
        generator.shuffle(files)
        train, val = round(len(files) * TRAIN), round(len(files) * VAL)
        if not (train and val and len(files) - train - val > 0):
            small.append(f"{name} ({len(files)})")
        parts = files[:train], files[train : train + val], files[train + val :]
        for part, chosen in zip(SPLITS, parts, strict=True):
            split[part] += [Item(file, label, name) for file in chosen]
    if small:
        raise DataError(f"too few images for a split into train, val and test: {first_of(small)}; fetch all images")
    return split


def hold_back(items: Sequence[Item], generator: random.Random) -> tuple[list[Item], list[Item]]:
    """Cut official training images like CoOp into training and, a fifth of each class, validation."""
    by_class: dict[int, list[Item]] = {}
    for item in items:
        by_class.setdefault(item.label, []).append(item)
    train, val = [], []
    for own in by_class.values():
        count = round(len(own) * VAL_OF_TRAIN)
        generator.shuffle(own)
        val += own[:count]
        train += own[count:]
    return train, val


def read_split(path: Path) -> Split:
    """Read a split file, {"train": [[image, label, class name], ...], ...}; raise `DataError` if it is not one."""
    tree = read_json(path)
    try:
        return {
            name: [Item(str(image), int(label), str(class_name)) for image, label, class_name in tree[name]]
            for name in SPLITS
        }
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path}: expected train, val and test as lists of [image, label, class name] "
            f"({type(error).__name__}: {error}); fetch it again"
        ) from None


def class_names(split: Split, source: str) -> tuple[str, ...]:
    """Return the names in label order; raise `DataError` if labels are not 0, 1, 2, ... with one name each."""
    names: dict[int, str] = {}
    for item in (item for name in SPLITS for item in split[name]):
        if composed(names.setdefault(item.label, item.class_name)) != composed(item.class_name):
            raise DataError(f"{source}: label {item.label} is {names[item.label]!r} and {item.class_name!r}; fix it")
    gaps = sorted(set(range(max(names, default=-1) + 1)) ^ names.keys())
    if gaps or not names:
        raise DataError(
            f"{source}: labels must be 0, 1, 2, ... without gaps; wrong or missing: {first_of(gaps)}; "
            "correct the list, or fetch all of it"
        )
    return tuple(names[label] for label in range(len(names)))


def save(path: Path, split: Split) -> None:
    """Save a split beside the images unless their folder is read-only, which would not stop root."""
    if not path.parent.stat().st_mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH):
        return
    try:
        write_durably(path, json.dumps({name: [list(item) for item in split[name]] for name in SPLITS}).encode())
    except (OSError, AccessError) as error:
        log.info("%s: the split was not saved (%s) and will be made again", path, error)


def read_json(path: Path) -> Any:
    """Read the mapping in a JSON file; raise `DataError` if the file is missing or contains no mapping."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; see `fedpgp data prepare`") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error}); fetch it again") from None
    if not isinstance(tree, dict):
        raise DataError(f"{path}: expected a mapping; fetch it again")
    return tree

"""What the papers print: numbers by cell, which of them are doubtful, and what had to be assumed to repeat them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import NamedTuple


class Key(NamedTuple):
    """A cell of a table."""

    block: str
    """a table may have several parts: data sets, methods; empty: it has one"""
    row: str
    column: str


class Printed(NamedTuple):
    """A number as the paper prints it."""

    value: float
    std: float | None = None


@dataclass(frozen=True)
class Paper:
    """One table of a paper."""

    source: str
    """whose it is"""
    values: Mapping[Key, Printed]
    """in the paper's order"""
    doubtful: Mapping[Key, str]
    """why a value is likely a misprint or the result of a defect"""
    assumed: tuple[str, ...]
    """what the paper does not say, or ours does otherwise, in whole sentences"""


def read(table: str) -> Paper:
    """What the package knows of a table by its name, for example `table1`."""
    tree = json.loads((files("fedpgp.analysis.reproduce") / "paper.json").read_text(encoding="utf-8"))[table]
    values = {
        Key(block, row, column): Printed(*value) if isinstance(value, list) else Printed(value)
        for block, rows in tree["values"].items()
        for row, columns in rows.items()
        for column, value in columns.items()
    }
    doubtful = {Key(*cell.split("/")): why for cell, why in tree["doubtful"].items()}
    return Paper(tree["paper"], values, doubtful, tuple(tree["assumed"]))

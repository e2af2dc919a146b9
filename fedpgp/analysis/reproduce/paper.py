"""The numbers that the papers print, which of them are doubtful, and the assumptions made to reproduce them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import NamedTuple


class Key(NamedTuple):
    """A cell of a table."""

    block: str
    """part of the table, such as a data set or a method; empty: the table has one part"""
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
    """citation"""
    values: Mapping[Key, Printed]
    """in the paper's order"""
    doubtful: Mapping[Key, str]
    """why a value is likely a misprint or the result of a defect"""
    assumed: tuple[str, ...]
    """what the paper does not say, or is done differently here, in whole sentences"""


def read(table: str) -> Paper:
    """Read the printed numbers of a table by its name, for example `table1`."""
    tree = json.loads((files("fedpgp.analysis.reproduce") / "paper.json").read_text(encoding="utf-8"))[table]
    values = {
        Key(block, row, column): Printed(*value) if isinstance(value, list) else Printed(value)
        for block, rows in tree["values"].items()
        for row, columns in rows.items()
        for column, value in columns.items()
    }
    doubtful = {Key(*cell.split("/")): why for cell, why in tree["doubtful"].items()}
    return Paper(tree["paper"], values, doubtful, tuple(tree["assumed"]))

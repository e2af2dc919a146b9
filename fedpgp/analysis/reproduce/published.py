"""The numbers that papers print: a JSON file for each paper, which names what is doubtful and what is assumed."""

from __future__ import annotations

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
class Published:
    """One table of a paper."""

    source: str
    """citation"""
    values: Mapping[Key, Printed]
    """in the paper's order"""
    doubtful: Mapping[Key, str]
    """why a value is likely a misprint or the result of a defect"""
    assumed: tuple[str, ...]
    """what the paper does not say, or is done differently here, in whole sentences"""

    @classmethod
    def read(cls, paper: str, table: str) -> Published:
        """Read the printed numbers of a table, for example `table1`, from `PAPER.json`."""
        tree = json.loads((files("fedpgp.analysis.reproduce") / f"{paper}.json").read_text(encoding="utf-8"))
        own = tree["tables"][table]
        values = {
            Key(block, row, column): Printed(*value) if isinstance(value, list) else Printed(value)
            for block, rows in own["values"].items()
            for row, columns in rows.items()
            for column, value in columns.items()
        }
        doubtful = {Key(*cell.split("/")): why for cell, why in own["doubtful"].items()}
        return cls(tree["paper"], values, doubtful, tuple(own["assumed"]))

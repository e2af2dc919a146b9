"""Predictions of a prompt as a table."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from pandas import DataFrame


def predictions(found: DataFrame) -> Table:
    """The rows of `fedpgp.predict`, grouped by image."""
    table = Table()
    for heading in ("image", "class"):
        table.add_column(heading, overflow="fold")
    table.add_column("probability", justify="right")
    for image, rows in groupby(found.to_dict("records"), key=lambda row: row["image"]):
        for row in rows:
            shown = escape(str(image)) if row["rank"] == 1 else ""
            table.add_row(shown, escape(row["class"]), f"{row['probability']:.4f}")
        table.add_section()
    return table

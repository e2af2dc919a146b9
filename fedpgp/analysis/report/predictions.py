"""What a prompt says of images, as a table."""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table


def predictions(images: Sequence[str], found: Sequence[Sequence[tuple[str, float]]]) -> Table:
    """The best classes of each image, with their probabilities."""
    table = Table()
    for heading in ("image", "class"):
        table.add_column(heading, overflow="fold")
    table.add_column("probability", justify="right")
    for image, row in zip(images, found, strict=True):
        for place, (name, value) in enumerate(row):
            table.add_row("" if place else escape(image), escape(name), f"{value:.4f}")
        table.add_section()
    return table

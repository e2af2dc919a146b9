"""What is known of a data set, as tables that a person can read."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
from rich.markup import escape
from rich.table import Table

MOST_ROWS = 60
SPLITS = ("train", "val", "test")


def split_counts(counts: pa.Table, by: str) -> Table:
    """Images by split and by `class` or `domain`, from `data.summary.manifest_table`."""
    grouped = counts.group_by(["split", by], use_threads=False).aggregate([("images", "sum")]).to_pylist()
    found = {(row[by], row["split"]): row["images_sum"] for row in grouped}
    names = list(dict.fromkeys(sorted({row[by] for row in grouped})))
    table = Table(title=f"Images by {by}")
    table.add_column(by, overflow="fold")
    for split in (*SPLITS, "all"):
        table.add_column(split, justify="right")
    for name in names[:MOST_ROWS]:
        own = [found.get((name, split), 0) for split in SPLITS]
        table.add_row(escape(name), *(str(count) for count in (*own, sum(own))))
    total = [sum(count for (_, split), count in found.items() if split == wanted) for wanted in SPLITS]
    table.add_section()
    table.add_row("all", *(str(count) for count in (*total, sum(total))))
    if len(names) > MOST_ROWS:
        table.caption = f"the first {MOST_ROWS} of {len(names)}"
    return table


def lines(title: str, items: Sequence[str], most: int = 1000) -> list[str]:
    """A heading with a count, then the items."""
    more = [f"  ... and {len(items) - most} more"] if len(items) > most else []
    return [f"{title}: {len(items) or 'none'}", *(f"  {item}" for item in items[:most]), *more]

"""Small data sets on disk."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

RED = (200, 0, 0)


def encoded(color: tuple[int, int, int] = RED, size: tuple[int, int] = (5, 4)) -> bytes:
    """A PNG of one colour."""
    data = io.BytesIO()
    Image.new("RGB", size, color).save(data, "PNG")
    return data.getvalue()


@pytest.fixture
def png() -> Callable[..., bytes]:
    return encoded


@pytest.fixture
def image_tree(tmp_path: Path) -> Callable[..., Path]:
    """Write images: `image_tree("cat/0.png", "dog/0.png")` gives the root."""

    def write(*files: str) -> Path:
        root = tmp_path / "images"
        for file in files:
            path = root / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded())
        return root

    return write


@pytest.fixture
def parquet_file(tmp_path: Path) -> Callable[..., Path]:
    """Write a Parquet file of given labels and columns; image i has red value i."""

    def write(
        file: str,
        labels: Sequence[Any],
        names: Sequence[str] | None = None,
        row_group_size: int = 3,
        **columns: Sequence[Any],
    ) -> Path:
        path = tmp_path / "parquet" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        images = [{"bytes": encoded((number, 0, 0)), "path": f"{number}.png"} for number in range(len(labels))]
        table = pa.table({"image": images, "label": labels, **columns})
        if names is not None:
            features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": list(names)}}
            table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        pq.write_table(table, path, row_group_size=row_group_size)
        return tmp_path / "parquet"

    return write

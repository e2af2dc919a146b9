"""Figures of data show the images that clients hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from fedpgp.analysis.report import data_figures
from fedpgp.analysis.report.style import save
from fedpgp.core.errors import RunError
from fedpgp.storage.run_folder import RunFolder

TABLE = pa.table(
    {
        "client": ["a", "a", "b", "b", "b"],
        "split": ["train", "train", "train", "test", "train"],
        "class": ["cat", "dog", "dog", "cat", "dog"],
        "domain": ["x", "x", "x", "x", "y"],
        "images": [3, 1, 2, 7, 5],
    }
)


def test_heat_map_counts_training_images_over_all_domains(tmp_path: Path) -> None:
    counts = data_figures._training_counts(TABLE, ("a", "b", "idle"), ("dog", "cat"))
    assert counts.tolist() == [[1, 3], [7, 0], [0, 0]]
    save(data_figures.partition_heat_map(TABLE, ("a", "b"), ("dog", "cat")), tmp_path / "new" / "map")
    with Image.open(tmp_path / "new" / "map.png") as image:
        assert image.format == "PNG"
        assert len(np.unique(np.asarray(image.convert("L")))) > 10


def test_heat_map_of_many_clients_stays_of_a_size(tmp_path: Path) -> None:
    clients = [f"client {number}" for number in range(5000)]
    table = pa.table(
        {
            "client": clients,
            "split": ["train"] * 5000,
            "class": ["cat"] * 5000,
            "domain": ["x"] * 5000,
            "images": [1] * 5000,
        }
    )
    save(data_figures.partition_heat_map(table, clients, ["cat"]), tmp_path / "map")
    with Image.open(tmp_path / "map.png") as image:
        assert max(image.size) < 3000


def test_contact_sheet_has_a_row_per_class_and_keeps_proportions(tmp_path: Path) -> None:
    wide, tall = Image.new("RGB", (200, 50), (255, 0, 0)), Image.new("RGB", (50, 200), (0, 0, 255))
    data_figures.contact_sheet([("cat", [wide, tall]), ("dög 猫", [tall])], tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB")).astype(int)
    red = (pixels[..., 0] > 200) & (pixels[..., 1] < 50)
    blue = (pixels[..., 2] > 200) & (pixels[..., 1] < 50)
    assert red.sum() == data_figures.SIDE * data_figures.SIDE // 4
    assert blue.sum() == 2 * data_figures.SIDE * data_figures.SIDE // 4
    assert pixels.shape[0] == 2 * (data_figures.SIDE + data_figures.MARGIN + data_figures.LABEL) + data_figures.MARGIN


def test_a_partition_with_unknown_clients_is_refused(made_run) -> None:
    run = made_run(test_hm=[50])
    RunFolder.open(run).save_partition(TABLE)  # of clients a and b; the run has anna and ben, cats and dogs
    with pytest.raises(RunError, match=r"partition\.csv has a, b, which identity\.json does not name"):
        data_figures.partition_of_run(run)

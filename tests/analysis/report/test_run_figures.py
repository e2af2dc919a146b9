"""Figures of data show the images that clients hold; curves and confusion matrices, with and without data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from fedpgp.analysis.report import run_figures
from fedpgp.analysis.report.style import save
from fedpgp.core.errors import RunError
from fedpgp.federation.metrics import CONFUSION_SCHEMA, RoundRow
from fedpgp.storage.run_folder import RunFolder

NAMES = ["cat", "dog", "owl", "a name that is much too long for the axis"]
TABLE = pa.table(
    {
        "client": ["a", "a", "b", "b", "b"],
        "split": ["train", "train", "train", "test", "train"],
        "class": ["cat", "dog", "dog", "cat", "dog"],
        "domain": ["x", "x", "x", "x", "y"],
        "images": [3, 1, 2, 7, 5],
    }
)


def rows(*cells):
    keys = ("split", "metric", "label", "answer", "count")
    return pa.Table.from_pylist([dict(zip(keys, cell, strict=True)) for cell in cells], CONFUSION_SCHEMA)


def test_nothing_is_drawn_without_data(tmp_path):
    run_figures.curves_of_run([RoundRow(1, {"train/loss": 1.0}, 1, 0, 0)], tmp_path / "a.png")
    run_figures.curves_of_several({"a": []}, "val/hm", tmp_path / "b.png")
    run_figures.confusion_matrices(rows(("val", "local", 0, 1, 2)), NAMES, tmp_path / "c.png")
    assert list(tmp_path.iterdir()) == []


def test_curves_are_drawn(tmp_path):
    rounds = [
        RoundRow(n, {"test/local": 50.0 + n, "val/local": 40.0 + n, "train/loss": 1 / n}, 1, 0, 0) for n in (1, 2)
    ]
    run_figures.curves_of_run(rounds, tmp_path / "figures" / "a.png")
    run_figures.curves_of_several({"one": rounds, "two": rounds}, "val/local", tmp_path / "b.png")
    assert (tmp_path / "figures" / "a.png").is_file()
    assert (tmp_path / "b.png").is_file()
    accuracies = {"test/local": ([1, 2], [51, 52]), "val/local": ([1, 2], [41, 42])}
    figure = run_figures._accuracy_and_loss(accuracies, {"train/loss": ([1], [1])})
    solid, dashed, _ = figure.axes[0].lines
    assert (list(solid.get_ydata()), solid.get_linestyle(), solid.get_label()) == ([51, 52], "-", "local")
    assert (list(dashed.get_ydata()), dashed.get_linestyle()) == ([41, 42], "--")


def test_names_with_dollar_signs_are_not_read_as_formulas(tmp_path):
    counts = rows(*(("test", "local", label, label, 1) for label in range(4)))
    run_figures.confusion_matrices(counts, ["$x_$", "$a$", "\\alpha", "{"], tmp_path / "a.png")
    heat_map = run_figures.partition_heat_map(TABLE.set_column(2, "class", [["$x_$"] * 5]), ["a", "b"], ["$x_$"])
    save(heat_map, tmp_path / "b")
    assert "$x_$" in [text.get_text() for text in heat_map.axes[0].get_xticklabels()]


def test_the_loss_is_drawn_with_its_parts_and_a_legend(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(run_figures, "_save", lambda figure, path: figures.append(figure))
    plain = [RoundRow(n, {"test/local": 50.0, "train/loss": 1 / n}, 1, 0, 0) for n in (1, 2)]
    parted = [RoundRow(n, {**plain[0].metrics, "train/con": 0.5, "train/ce": 1.5 * n}, 1, 0, 0) for n in (1, 2)]
    for rounds in (plain, parted):
        run_figures.curves_of_run(rounds, tmp_path / "a.png")
    assert len(figures) == 2
    axes = [figure.axes[1] for figure in figures]
    drawn = [{line.get_label(): list(line.get_ydata()) for line in one.lines} for one in axes]
    assert drawn == [{"loss": [1.0, 0.5]}, {"loss": [1.0, 1.0], "ce": [1.5, 3.0], "con": [0.5, 0.5]}]
    assert axes[0].get_legend() is None
    assert [text.get_text() for text in axes[1].get_legend().get_texts()] == ["loss", "ce", "con"]


def test_a_confusion_matrix_has_the_labels_that_occur(tmp_path):
    table = rows(("test", "base", 0, 0, 3), ("test", "base", 0, 2, 1), ("test", "base", 2, 2, 4))
    classes, counts_CC = run_figures._matrix(table)
    assert (classes.tolist(), counts_CC.tolist()) == ([0, 2], [[3, 1], [0, 4]])
    percent_CC = np.array([[75.0, 25.0], [0.0, 100.0]])
    assert run_figures._worst_pairs(["cat", "owl"], counts_CC, percent_CC) == ["cat as owl: 25 %"]
    run_figures.confusion_matrices(table, NAMES, tmp_path / "c.png")
    assert (tmp_path / "c.png").is_file()
    assert run_figures._named(np.array([3]), NAMES) == ["a name that is much too…"]


def test_heat_map_counts_training_images_over_all_domains(tmp_path: Path) -> None:
    counts = run_figures._training_counts(TABLE, ("a", "b", "idle"), ("dog", "cat"))
    assert counts.tolist() == [[1, 3], [7, 0], [0, 0]]
    save(run_figures.partition_heat_map(TABLE, ("a", "b"), ("dog", "cat")), tmp_path / "new" / "map")
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
    save(run_figures.partition_heat_map(table, clients, ["cat"]), tmp_path / "map")
    with Image.open(tmp_path / "map.png") as image:
        assert max(image.size) < 3000


def test_contact_sheet_has_a_row_per_class_and_keeps_proportions(tmp_path: Path) -> None:
    wide, tall = Image.new("RGB", (200, 50), (255, 0, 0)), Image.new("RGB", (50, 200), (0, 0, 255))
    run_figures.contact_sheet([("cat", [wide, tall]), ("dög 猫", [tall])], tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB")).astype(int)
    red = (pixels[..., 0] > 200) & (pixels[..., 1] < 50)
    blue = (pixels[..., 2] > 200) & (pixels[..., 1] < 50)
    assert red.sum() == run_figures.SIDE * run_figures.SIDE // 4
    assert blue.sum() == 2 * run_figures.SIDE * run_figures.SIDE // 4
    assert pixels.shape[0] == 2 * (run_figures.SIDE + run_figures.MARGIN + run_figures.LABEL) + run_figures.MARGIN


def test_a_partition_with_unknown_clients_is_refused(made_run) -> None:
    run = made_run(test_hm=[50])
    RunFolder.open(run).save_partition(TABLE)  # of clients a and b; the run has anna and ben, cats and dogs
    with pytest.raises(RunError, match=r"partition\.csv has a, b, which identity\.json does not name"):
        run_figures.partition_of_run(run)

"""Curves and confusion matrices, with and without data."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from fedpgp.analysis.report import confusion, convergence
from fedpgp.federation.metrics import CONFUSION_SCHEMA, RoundRow

NAMES = ["cat", "dog", "owl", "a name that is much too long for the axis"]


def rows(*cells):
    keys = ("split", "metric", "label", "answer", "count")
    return pa.Table.from_pylist([dict(zip(keys, cell, strict=True)) for cell in cells], CONFUSION_SCHEMA)


def test_nothing_is_drawn_without_data(tmp_path):
    assert not convergence.curves_of_run([RoundRow(1, {"train/loss": 1.0}, 1, 0, 0)], tmp_path / "a.png")
    assert not convergence.curves_of_several({"a": []}, "val/hm", tmp_path / "b.png")
    assert not confusion.confusion_matrices(rows(("val", "local", 0, 1, 2)), NAMES, tmp_path / "c.png")
    assert list(tmp_path.iterdir()) == []


def test_curves_are_drawn(tmp_path):
    rounds = [
        RoundRow(n, {"test/local": 50.0 + n, "val/local": 40.0 + n, "train/loss": 1 / n}, 1, 0, 0) for n in (1, 2)
    ]
    assert convergence.curves_of_run(rounds, tmp_path / "figures" / "a.png")
    assert convergence.curves_of_several({"one": rounds, "two": rounds}, "val/local", tmp_path / "b.png")
    accuracies = {"test/local": ([1, 2], [51, 52]), "val/local": ([1, 2], [41, 42])}
    figure = convergence._accuracy_and_loss(accuracies, {"train/loss": ([1], [1])})
    solid, dashed, _ = figure.axes[0].lines
    assert (list(solid.get_ydata()), solid.get_linestyle(), solid.get_label()) == ([51, 52], "-", "local")
    assert (list(dashed.get_ydata()), dashed.get_linestyle()) == ([41, 42], "--")


def test_the_loss_is_drawn_with_its_parts_and_a_legend(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(convergence, "_save", lambda figure, path: figures.append(figure))
    plain = [RoundRow(n, {"test/local": 50.0, "train/loss": 1 / n}, 1, 0, 0) for n in (1, 2)]
    parted = [RoundRow(n, {**plain[0].metrics, "train/con": 0.5, "train/ce": 1.5 * n}, 1, 0, 0) for n in (1, 2)]
    for rounds in (plain, parted):
        assert convergence.curves_of_run(rounds, tmp_path / "a.png")
    axes = [figure.axes[1] for figure in figures]
    drawn = [{line.get_label(): list(line.get_ydata()) for line in one.lines} for one in axes]
    assert drawn == [{"loss": [1.0, 0.5]}, {"loss": [1.0, 1.0], "ce": [1.5, 3.0], "con": [0.5, 0.5]}]
    assert axes[0].get_legend() is None
    assert [text.get_text() for text in axes[1].get_legend().get_texts()] == ["loss", "ce", "con"]


def test_a_confusion_matrix_has_the_labels_that_occur(tmp_path):
    table = rows(("test", "base", 0, 0, 3), ("test", "base", 0, 2, 1), ("test", "base", 2, 2, 4))
    classes, counts_CC = confusion._matrix(table)
    assert (classes.tolist(), counts_CC.tolist()) == ([0, 2], [[3, 1], [0, 4]])
    percent_CC = np.array([[75.0, 25.0], [0.0, 100.0]])
    assert confusion._worst_pairs(["cat", "owl"], counts_CC, percent_CC) == ["cat as owl: 25 %"]
    assert confusion.confusion_matrices(table, NAMES, tmp_path / "c.png")
    assert confusion._named(np.array([3]), NAMES) == ["a name that is much too…"]

"""Reliability diagrams show the counts of the last evaluated round, summed over the runs of a group."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from fedpgp.analysis.loading import Entry, compare
from fedpgp.analysis.report.figures import all_figures
from fedpgp.analysis.report.reliability import reliability_bins, reliability_diagrams
from fedpgp.federation.measures import POOLED_SCHEMA


def bins(*rows):
    """Rows from (round, split, domain, bin, images, correct, confidence), and one of a class, which is not drawn."""
    keys = ("round", "split", "domain", "bin", "images", "correct", "confidence")
    table = [{"metric": "local", **dict(zip(keys, row, strict=True))} for row in rows]
    return pa.Table.from_pylist([*table, {**table[0], "bin": None, "label": 0}], POOLED_SCHEMA)


@pytest.fixture
def group(made_run):
    pooled = [
        bins((1, "test", "a", 14, 4, 2, 3_900_000), (1, "test", "b", 14, 4, 3, 3_900_000)),
        bins((1, "test", "a", 7, 2, 1, 1_000_000), (1, "val", "a", 3, 9, 9, 1)),
    ]
    runs = [made_run(f"seed={seed}", test_local=[50], pooled=own) for seed, own in enumerate(pooled)]
    return compare([Entry(run) for run in runs]).groups[0]


def test_bins_are_summed_over_domains_and_runs(group):
    found = reliability_bins(group, ["local", "base"])
    assert {number: row.tolist() for number, row in enumerate(found.pop("local")) if row.any()} == {
        7: [2, 1, 1_000_000],
        14: [8, 5, 7_800_000],
    }
    assert found == {}


def _boxes(bars):
    """Left, right, lower and upper end of each bar."""
    corners = np.array([path.vertices for path in bars.get_paths()])
    return np.stack([edge(corners[..., axis], 1) for axis in (0, 1) for edge in (np.min, np.max)], 1)


def test_bars_are_accuracies_and_gaps(group):
    """Bin 7: 1 of 2 at 50, no gap; bin 14: 5 of 8 = 62.5 at 97.5, a gap of 35 for 8 of 10 images: ECE 28."""
    figure = reliability_diagrams({"one": reliability_bins(group, ["local"])})
    upper, lower = figure.axes
    sevenths, last = (100 * 7 / 15, 100 * 8 / 15), (100 * 14 / 15, 100)
    accuracies, gaps = (_boxes(bars) for bars in upper.collections)
    assert accuracies == pytest.approx(np.array([(*sevenths, 0, 50), (*last, 0, 62.5)]))
    assert gaps == pytest.approx(np.array([(*sevenths, 50, 50), (*last, 62.5, 97.5)]))
    assert _boxes(lower.collections[0]) == pytest.approx(np.array([(*sevenths, 0, 20), (*last, 0, 80)]))
    assert [text.get_text() for text in upper.texts] == ["ECE 28.0"]


def test_the_report_has_the_diagram_only_if_it_was_measured(group, made_run):
    from fedpgp.analysis.comparison import Comparison

    names = [one.name for one in all_figures(Comparison((group,)))[0]]
    assert "reliability" in names
    without = compare([Entry(made_run("method.name=coop", test_local=[50]))])
    assert "reliability" not in [one.name for one in all_figures(without)[0]]

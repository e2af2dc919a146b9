"""Clients that train and are tested among their own classes, and federations of several data sets."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch

from fedpgp.federation.metrics import CLIENT_SCHEMA, joined_parts, round_metrics
from fedpgp.methods.base import Batch, class_mean, cross_entropy


def batch(own):
    """Two clients with one image each, of class 0."""
    labels = torch.zeros(2, 1, dtype=torch.long)
    return Batch(torch.zeros(2, 1, 3), labels, torch.ones(2, 1, dtype=torch.bool), own)


def test_other_classes_do_not_compete():
    """Of logits 1, 2, 3 the first client sees all, the second the first two."""
    logits = torch.tensor([1.0, 2.0, 3.0]).expand(2, 1, 3)
    own = torch.tensor([[True, True, True], [True, True, False]])
    exp = np.exp([1.0, 2.0, 3.0])
    expected = [-np.log(exp[0] / exp.sum()), -np.log(exp[0] / exp[:2].sum())]
    assert cross_entropy(logits, batch(own)).tolist() == pytest.approx(expected, rel=1e-6)
    assert torch.equal(cross_entropy(logits, batch(own.fill_(True))), cross_entropy(logits, batch(None)))
    two_sets = torch.cat([logits, logits], -1)
    masked = torch.tensor([[True, False, False]] * 2)
    assert cross_entropy(two_sets, batch(masked)).tolist() == pytest.approx([np.log(2)] * 2)


def test_means_over_the_classes_of_a_client():
    values = torch.tensor([[1.0, 2.0, 6.0], [1.0, 2.0, 6.0]])
    own = torch.tensor([[True, True, True], [True, True, False]])
    assert class_mean(values, batch(own)).tolist() == [3.0, 1.5]
    assert class_mean(values, batch(None)).tolist() == [3.0, 3.0]


def rows(*entries):
    columns = zip(
        *((1, client, "test", metric, domain, *counts, None, None) for client, metric, domain, *counts in entries),
        strict=True,
    )
    return pa.table([pa.array(column, kind) for column, kind in zip(columns, CLIENT_SCHEMA.types, strict=True)],
                    schema=CLIENT_SCHEMA)  # fmt: skip


def test_accuracies_of_a_union_are_means_over_its_parts():
    """Part a has two clients with 1/2 and 2/2, part b one with 1/4: (75 + 25) / 2."""
    table = rows(
        (0, "local", None, 1, 2), (0, "local", "a", 1, 2), (1, "local", None, 2, 2), (1, "local", "a", 2, 2),
        (2, "local", None, 1, 4), (2, "local", "b", 1, 4),
    )  # fmt: skip
    found = round_metrics(table, part_of={"a": "a", "b": "b"})
    assert found["test/local"] == 50.0
    assert (found["test/local.a"], found["test/local.b"]) == (75.0, 25.0)
    assert round_metrics(table)["test/local"] == pytest.approx((50 + 100 + 25) / 3)


def test_counts_of_a_client_on_several_data_sets_are_one_row():
    """1 of 2 on a, 3 of 4 on b (in two domains): 4 of 6 in all; the mean of the parts is 62.5."""
    table = rows(
        *((0, "held_out", domain, *counts) for domain, counts in {None: (1, 2), "a": (1, 2), "b/x": (0, 0)}.items()),
        *((0, "held_out", domain, *counts) for domain, counts in {None: (3, 4), "a": (0, 0), "b/x": (1, 2)}.items()),
        (0, "held_out", "b/y", 2, 2),
    )  # fmt: skip
    joined = joined_parts(table)
    assert {(row["domain"], row["correct"], row["total"]) for row in joined.to_pylist()} == {
        (None, 4, 6), ("a", 1, 2), ("b/x", 1, 2), ("b/y", 2, 2)
    }  # fmt: skip
    found = round_metrics(joined, part_of={"a": "a", "b/x": "b", "b/y": "b"})
    assert found["test/held_out"] == 62.5
    assert (found["test/held_out.a"], found["test/held_out.b"]) == (50.0, 75.0)

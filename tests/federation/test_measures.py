"""Calibration error, F1 and balanced accuracy by hand and against their definitions; names of measures."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from fedpgp.data.protocol import EvaluationSet
from fedpgp.federation.measures import (
    POOLED_SCHEMA,
    of_clients,
    of_counts,
    pooled_table,
    smaller_is_better,
    split_name,
)
from fedpgp.federation.pooled_counts import MILLION, Answers, pool


def table(labels, classes, confidence, domains=None, names=("only",), num_classes=3, metric="base"):
    """The rows of one client whose model gave these answers."""
    count = len(labels)
    places = np.zeros(count, np.int32) if domains is None else np.array(domains, np.int32)
    own = EvaluationSet(
        split="test", class_set="base", rows=np.arange(count), labels=np.array(labels), domains=places
    )  # fmt: skip
    answers = Answers(np.array([classes]), np.round(np.array([confidence]) * MILLION).astype(int))
    global_labels = tuple(range(2, 2 + num_classes))
    pooled = pool(own, answers, None, 1, len(names), global_labels)
    data = SimpleNamespace(domains=names, class_names=tuple("abcdefgh"))
    return pooled_table(7, [SimpleNamespace(split="test", metric=metric, pooled=pooled)], data)


def test_measures_by_hand():
    """Four images of class 0 and one of class 1, none of class 2; the last answer is 2.

    ECE: bin 13, (13/15, 14/15], has 2 images at 0.9, one right: |1 - 1.8| = 0.8; bin 7 has 3 at 0.5, two right:
    |2 - 1.5| = 0.5; (0.8 + 0.5) / 5. F1: 2 * 3 / (4 + 4), 0 / (1 + 0), 0 / (0 + 1); recall: 3/4, 0.
    """
    found = of_counts(table([0, 0, 0, 0, 1], [0, 0, 0, 2, 0], [0.5, 0.9, 0.5, 0.9, 0.5]))
    assert found == {("test", "base"): pytest.approx({"ece": 26.0, "f1": 25.0, "balanced": 37.5})}


def test_rows_name_global_classes_and_domains():
    rows = table([0, 1], [0, 0], [0.9, 0.5], domains=[1, 0], names=("photo", "sketch")).to_pylist()
    assert [(row["domain"], row["bin"], row["images"], row["correct"], row["confidence"]) for row in rows[:2]] == [
        ("photo", 7, 1, 0, 500000),
        ("sketch", 13, 1, 1, 900000),
    ]
    assert [(row["domain"], row["label"], row["images"], row["predicted"], row["correct"]) for row in rows[2:]] == [
        ("photo", 2, 0, 1, 0),
        ("photo", 3, 1, 0, 0),
        ("sketch", 2, 1, 1, 1),
    ]
    assert all(row["round"] == 7 and row["split"] == "test" for row in rows)
    assert table([0], [0], [0.9])["domain"].to_pylist() == [None, None]


def test_random_answers_agree_with_the_definitions():
    """Straight from floating-point confidences: rounding them to millionths changes less than 0.0001 percent."""
    random, count, classes = np.random.default_rng(1), 500, 6
    labels, domains = random.integers(classes - 1, size=count), random.integers(2, size=count)
    answers, confidence = random.integers(classes, size=count), random.uniform(0.2, 1, size=count)
    rows = table(labels, answers, confidence, domains, ("photo", "sketch"), classes)

    def expected(chosen):
        label, answer, sure = labels[chosen], answers[chosen], confidence[chosen]
        number = np.ceil(sure * 15)
        ece = sum(
            own.mean() * abs((label == answer)[own].mean() - sure[own].mean())
            for own in (number == one for one in range(1, 16))
            if own.any()
        )
        true = [((label == one) & (answer == one)).sum() for one in range(classes)]
        both = [(label == one).sum() + (answer == one).sum() for one in range(classes)]
        f1 = np.mean([2 * a / b for a, b in zip(true, both, strict=True) if b])
        recalls = [(answer[label == one] == one).mean() for one in range(classes) if (label == one).any()]
        return pytest.approx({"ece": 100 * ece, "f1": 100 * f1, "balanced": 100 * np.mean(recalls)}, abs=1e-4)

    assert of_counts(rows) == {("test", "base"): expected(np.full(count, True))}
    assert of_counts(rows, ("metric", "domain")) == {
        ("base", name): expected(domains == number) for number, name in enumerate(("photo", "sketch"))
    }


def test_without_any_answer_there_is_no_calibration_and_nothing_is_correct():
    found = of_counts(table([0, 1], [-1, -1], [0.0, 0.0]))
    assert found == {("test", "base"): {"f1": 0.0, "balanced": 0.0}}
    assert of_counts(POOLED_SCHEMA.empty_table()) == {}


def test_worst_and_tenth_percentile_of_clients():
    """Between the lowest two of five, 20 and 40, at 0.4 of the way."""
    percent = [80.0, 20.0, 40.0, 60.0, 100.0]
    rows = pa.table({"split": ["val"] * 5, "metric": ["local"] * 5, "percent": percent})
    assert of_clients(rows) == {("val", "local"): pytest.approx({"worst": 20.0, "p10": 28.0})}


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("local", ("local", None, None)),
        ("local_global", ("local_global", None, None)),
        ("local_global_ece", ("local_global", "ece", None)),
        ("held_out.a_ece", ("held_out", None, "a_ece")),
        ("local.a.b", ("local", None, "a.b")),
    ],
)
def test_the_parts_of_a_name(name, parts):
    assert split_name(name) == parts


def test_errors_and_losses_are_better_when_smaller():
    assert [smaller_is_better(one) for one in ("val/base_ece", "train/loss", "val/base_f1", "val/local.x_ece")] == [
        True, True, False, False,
    ]  # fmt: skip

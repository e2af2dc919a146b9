"""Names and labels: exchanged ones are noticed, ignorance is not an accusation."""

from __future__ import annotations

import numpy as np

from fedpgp import config
from fedpgp.analysis.label_alignment import align, can_judge

NAMES = tuple(f"class {label}" for label in range(10))
LABELS = np.repeat(np.arange(10), 8)


def test_good_predictions_on_right_names() -> None:
    found = align(LABELS, LABELS, NAMES)
    assert (found.given, found.best, found.images, found.moved) == (100.0, 100.0, 40, ())
    assert (found.exchanged, found.suspicious) == (False, False)


def test_shifted_names_are_noticed_and_named() -> None:
    """A model that is right 6 times in 8, on labels that are one off: another naming fits 3 in 4."""
    noise = np.tile([0, 0, 0, 0, 0, 0, 3, 3], 10)
    found = align((LABELS + 1 + noise) % 10, LABELS, NAMES)
    assert (found.given, found.best) == (0.0, 75.0)
    assert found.exchanged
    assert found.moved[0] == ("class 0", "class 1")


def test_two_exchanged_names_are_listed_but_no_alarm() -> None:
    predicted = LABELS.copy()
    predicted[LABELS == 3], predicted[LABELS == 4] = 4, 3
    found = align(predicted, LABELS, NAMES)
    assert found.moved == (("class 3", "class 4"), ("class 4", "class 3"))
    assert (found.given, found.best, found.exchanged) == (80.0, 100.0, False)
    assert (found.gained, found.lost, found.suspicious) == (8, 0, True)


def test_a_model_that_knows_nothing_is_guessing() -> None:
    for seed in range(20):
        found = align(np.random.default_rng(seed).integers(0, 10, 80), LABELS, NAMES)
        assert (found.by_chance, found.exchanged, found.suspicious) == (True, False, False)
    found = align(np.zeros(80, np.int64), LABELS, NAMES)
    assert (found.by_chance, found.exchanged) == (True, False)
    assert not align(LABELS, LABELS, NAMES).by_chance


def test_who_cannot_know_the_images_does_not_judge() -> None:
    assert can_judge(config.parse({}))  # the icons, by the model that comes with them
    assert not can_judge(config.parse({"data": {"name": "dtd", "root": "/data"}}))
    assert can_judge(config.parse({"data": {"name": "dtd", "root": "/data"}, "backbone": {"name": "ViT-B-16"}}))
    assert not can_judge(config.parse({"backbone": {"name": "tiny", "weights": "random"}}))

"""The authors' partitions: equal to what their code gave, draw for draw."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedpgp.config import PartitionSettings
from fedpgp.core.errors import DataError
from fedpgp.data.partition import Labelled, assign, authors_labeldir

FOLDER = Path(os.environ.get("FEDPGP_GOLDEN", Path(__file__).parents[1] / "golden"))
GOLDEN = json.loads((FOLDER / "partition.json").read_text())
FEWSHOT = {name: case for name, case in GOLDEN["fewshot"].items() if not case["iid"]}
CIFAR = {name: case for name, case in GOLDEN["cifar"].items() if case["partition"] == "noniid-labeldir"}


def labelled(labels: Any) -> Labelled:
    return Labelled(labels=np.asarray(labels), domains=np.zeros(len(labels), np.int32))


def cifar_labels(case: dict[str, Any]) -> dict[str, np.ndarray]:
    """The case's recipe, for example np.random.RandomState(1001).permutation(np.repeat(np.arange(10), 500))."""
    numbers = {split: re.findall(r"\((\d+)\)|, (\d+)", recipe) for split, recipe in case["label_recipe"].items()}
    every = {split: [int(one or other) for one, other in found] for split, found in numbers.items()}
    return {
        split: np.random.RandomState(seed).permutation(np.repeat(np.arange(classes), count))
        for split, (seed, classes, count) in every.items()
    }


@pytest.mark.parametrize("case", FEWSHOT.values(), ids=FEWSHOT)
def test_authors_2023_gives_out_the_same_classes(case: dict[str, Any]) -> None:
    settings = PartitionSettings(scheme="authors_2023", clients=case["num_users"])
    splits = {"train": labelled(case["train_item_labels"]), "test": labelled(case["test_item_labels"])}
    for seed in (1, 2):
        positions = assign(settings, splits, case["num_users"], seed)
        owned = [np.unique(splits["train"].labels[own]).tolist() for own in positions["train"]]
        assert owned == case["client_train_classes"]
        assert [own.tolist() for own in positions["test"]] == [sorted(own) for own in case["client_test_item_ids"]]
        shots = zip(positions["train"], case["client_train_item_ids"], strict=True)
        assert all(set(theirs) <= set(own.tolist()) for own, theirs in shots)


@pytest.mark.parametrize(
    ("classes", "sizes"), [(19, [2] * 9 + [1]), (51, [5] * 9 + [6]), (24, [2] * 9 + [6]), (50, [5] * 10)]
)
def test_sizes_of_the_papers_data_sets(classes: int, sizes: list[int]) -> None:
    owned = assign(PartitionSettings(scheme="authors_2023"), {"train": labelled(np.arange(classes))}, 10, seed=1)
    assert [len(own) for own in owned["train"]] == sizes


def test_clients_without_classes_are_named() -> None:
    with pytest.raises(DataError, match=r"16 classes leaves client 8, 9 without any; give a smaller partition.clients"):
        assign(PartitionSettings(scheme="authors_2023"), {"train": labelled(np.arange(16))}, 10, seed=1)


@pytest.mark.parametrize("case", CIFAR.values(), ids=CIFAR)
def test_dirichlet_equals_the_authors_in_items_and_order(case: dict[str, Any]) -> None:
    labels = cifar_labels(case)
    parts = authors_labeldir(
        [labels["train"], labels["test"]], case["num_users"], case["beta"], 10, 100, case["seed_random_and_numpy"]
    )
    assert parts is not None
    for split, clients in zip(("train", "test"), parts, strict=True):
        assert [len(own) for own in clients] == case[f"{split}_sizes"]
        assert [own[:10].tolist() for own in clients] == case[f"{split}_first10"]
        shas = [hashlib.sha256(own.astype(np.int64).tobytes()).hexdigest()[:16] for own in clients]
        assert shas == case[f"{split}_sha"]


def test_the_setting_leads_there() -> None:
    case = next(iter(CIFAR.values()))
    settings = PartitionSettings(scheme="dirichlet", beta=case["beta"], min_per_client=10, authors=True)
    labels = cifar_labels(case)
    classes = len(np.unique(labels["train"]))
    splits = {"val": labelled(labels["train"][:1000]), **{name: labelled(own) for name, own in labels.items()}}
    positions = assign(settings, splits, case["num_users"], case["seed_random_and_numpy"])
    for split in ("train", "test"):
        counts = [np.bincount(labels[split][own], minlength=classes).tolist() for own in positions[split]]
        assert counts == case[f"{split}_class_counts"]
    train, val = (
        np.stack([np.bincount(splits[name].labels[own], minlength=classes) for own in positions[name]])
        for name in ("train", "val")
    )
    expected = train / train.sum(axis=0) * np.bincount(splits["val"].labels, minlength=classes)
    assert np.all(np.abs(val - expected) <= 1)


def test_it_gives_up() -> None:
    """Ten draws of a beta that leaves most clients without anything; every class to one client is no crash."""
    assert authors_labeldir([np.arange(4).repeat(5)] * 2, 10, 0.001, 1, 10, seed=1) is None
    settings = PartitionSettings(scheme="dirichlet", beta=0.001, authors=True)
    with pytest.raises(DataError, match=r"in 100 draws of Dirichlet\(0.001\).* give a larger partition.beta"):
        assign(settings, {name: labelled(np.arange(4).repeat(5)) for name in ("train", "test")}, 10, seed=1)

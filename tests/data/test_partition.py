"""Partitions: who holds what, in numbers worked out by hand."""

from __future__ import annotations

import time

import numpy as np
import pytest

from fedpgp.config import PartitionSettings
from fedpgp.core.errors import DataError
from fedpgp.data.partition import Labelled, assign

Positions = tuple[np.ndarray, ...]


def labelled(labels: np.ndarray, domains: np.ndarray | None = None) -> Labelled:
    return Labelled(labels=labels, domains=np.zeros(len(labels), np.int32) if domains is None else domains)


def balanced(classes: int, train: int, test: int) -> dict[str, Labelled]:
    """`train` and `test` images per class, classes interleaved."""
    return {
        "train": labelled(np.tile(np.arange(classes), train)),
        "val": labelled(np.empty(0, np.int64)),
        "test": labelled(np.tile(np.arange(classes), test)),
    }


def classes_of(images: Labelled, positions: Positions) -> list[set[int]]:
    return [set(images.labels[own].tolist()) for own in positions]


def class_counts(images: Labelled, positions: Positions, classes: int) -> np.ndarray:
    """Images per client and class. [K, C]"""
    return np.stack([np.bincount(images.labels[own], minlength=classes) for own in positions])


def disjoint_and_complete(positions: Positions, total: int) -> bool:
    return bool(np.array_equal(np.sort(np.concatenate(positions)), np.arange(total)))


@pytest.mark.parametrize(("classes", "sizes"), [(19, [2] * 9 + [1]), (24, [3] * 4 + [2] * 6), (50, [5] * 10)])
def test_pathological_spreads_the_remainder(classes: int, sizes: list[int]) -> None:
    splits = balanced(classes, 3, 2)
    positions = assign(PartitionSettings(), splits, 10, seed=1)
    owned = classes_of(splits["train"], positions["train"])
    assert [len(own) for own in owned] == sizes
    assert set().union(*owned) == set(range(classes))
    assert owned == classes_of(splits["test"], positions["test"])
    assert disjoint_and_complete(positions["train"], 3 * classes)
    assert [len(own) for own in positions["val"]] == [0] * 10


def test_pathological_shuffles_the_classes_by_seed() -> None:
    splits = balanced(50, 1, 1)
    owned = [classes_of(splits["train"], assign(PartitionSettings(), splits, 10, seed)["train"]) for seed in (1, 1, 2)]
    assert owned[0] == owned[1] != owned[2]
    assert owned[0][0] != set(range(5))


def test_pathological_counts_only_classes_with_training_images() -> None:
    splits = {"train": labelled(np.array([0, 2, 2])), "test": labelled(np.array([0, 1, 2]))}
    positions = assign(PartitionSettings(), splits, 2, seed=1)
    assert sorted(own.tolist() for own in positions["train"]) == [[0], [1, 2]]
    assert sorted(own.tolist() for own in positions["test"]) == [[0], [2]]
    with pytest.raises(DataError, match=r"3 clients .* only 2 classes to train on; give partition.clients=2 or fewer"):
        assign(PartitionSettings(), splits, 3, seed=1)


def test_iid_is_even_in_classes_and_sizes() -> None:
    splits = balanced(6, 7, 3)
    positions = assign(PartitionSettings(scheme="iid"), splits, 4, seed=1)
    for split, total in (("train", 42), ("test", 18)):
        counts = class_counts(splits[split], positions[split], 6)
        assert np.all(counts.max(axis=0) - counts.min(axis=0) <= 1)
        assert np.ptp(counts.sum(axis=1)) <= 1
        assert disjoint_and_complete(positions[split], total)


def test_iid_draws_which_images() -> None:
    splits = balanced(1, 100, 0)
    first, again, other = (assign(PartitionSettings(scheme="iid"), splits, 2, seed)["train"][0] for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert 10 < len(np.intersect1d(first, other)) < 40  # 25 expected of 50


def test_domain_gives_each_client_its_domain() -> None:
    splits = {
        "train": labelled(np.array([0, 1, 0, 1]), np.array([1, 0, 1, 0])),
        "test": labelled(np.array([0, 1]), np.array([2, 1])),
    }
    positions = assign(PartitionSettings(scheme="domain", clients=None), splits, 3, seed=1)
    assert [own.tolist() for own in positions["train"]] == [[1, 3], [0, 2], []]
    assert [own.tolist() for own in positions["test"]] == [[], [1], [0]]


def test_dirichlet_cuts_all_splits_by_the_same_shares() -> None:
    splits = balanced(5, 1000, 500)
    positions = assign(PartitionSettings(scheme="dirichlet", beta=0.5), splits, 4, seed=1)
    train, test = (class_counts(splits[split], positions[split], 5) for split in ("train", "test"))
    assert np.all(np.abs(train / 2 - test) <= 1)
    assert disjoint_and_complete(positions["train"], 5000)
    assert disjoint_and_complete(positions["test"], 2500)


@pytest.mark.parametrize("beta", [0.1, 1.0, 100.0])
def test_dirichlet_has_the_variance_of_its_beta(beta: float) -> None:
    clients, classes = 5, 400
    splits = balanced(classes, 100, 0)
    positions = assign(PartitionSettings(scheme="dirichlet", beta=beta), splits, clients, seed=1)
    shares = class_counts(splits["train"], positions["train"], classes) / 100
    expected = (1 / clients) * (1 - 1 / clients) / (clients * beta + 1)
    assert np.mean((shares - 1 / clients) ** 2) == pytest.approx(expected, rel=0.1, abs=5e-5)


def test_dirichlet_draws_again_until_nobody_has_too_little() -> None:
    splits = balanced(3, 20, 5)
    for seed in range(20):
        settings = PartitionSettings(scheme="dirichlet", beta=0.5, min_per_client=5)
        assert min(len(own) for own in assign(settings, splits, 4, seed)["train"]) >= 5


def test_dirichlet_gives_up_with_advice() -> None:
    settings = PartitionSettings(scheme="dirichlet", min_per_client=11)
    with pytest.raises(
        DataError, match=r"Dirichlet\(0.3\).* 4 clients .* 11 of the 40 .*; give a larger partition.beta"
    ):
        assign(settings, balanced(4, 10, 1), 4, seed=1)


@pytest.mark.parametrize("scheme", ["pathological", "iid", "domain", "dirichlet"])
def test_positions_ascend_and_follow_the_seed(scheme: str) -> None:
    splits = balanced(8, 20, 5)
    settings = PartitionSettings(scheme=scheme, clients=None if scheme == "domain" else 1)  # type: ignore[arg-type]
    clients = 1 if scheme == "domain" else 3
    first, again = (assign(settings, splits, clients, seed=3) for _ in range(2))
    for split in splits:
        assert all(np.array_equal(a, b) for a, b in zip(first[split], again[split], strict=True))
        assert all(np.all(np.diff(own) > 0) for own in first[split])


@pytest.mark.parametrize(("clients", "each"), [(4, 3), (7, 2), (50, 2), (3, 10), (5, 1)])
def test_pathological_with_classes_per_client(clients: int, each: int) -> None:
    splits = balanced(10, 40, 20)
    settings = PartitionSettings(classes_per_client=each)
    positions = assign(settings, splits, clients, seed=1)
    for split in ("train", "test"):
        counts = class_counts(splits[split], positions[split], 10)
        assert (counts > 0).sum(axis=1).tolist() == [each] * clients
        holders = (counts > 0).sum(axis=0)
        assert holders.max() - holders.min() <= 1
        for held in counts.T[holders > 0]:
            assert np.ptp(held[held > 0]) <= 1
            assert held.sum() == {"train": 40, "test": 20}[split]
        assert len(np.unique(np.concatenate(positions[split]))) == sum(len(own) for own in positions[split])
    assert classes_of(splits["train"], positions["train"]) == classes_of(splits["test"], positions["test"])


def test_pathological_with_more_classes_per_client_than_there_are() -> None:
    with pytest.raises(DataError, match=r"classes_per_client: 4, but only 3 classes are trained on"):
        assign(PartitionSettings(classes_per_client=4), balanced(3, 4, 1), 2, seed=1)


def two_domains() -> dict[str, Labelled]:
    """6 classes x 2 domains, 40 training and 20 test images of each."""
    return {
        split: labelled(np.tile(np.arange(6), 2 * count), np.repeat(np.arange(2), 6 * count))
        for split, count in (("train", 40), ("test", 20))
    }


@pytest.mark.parametrize("skew", [False, True])
def test_several_clients_of_a_domain_divide_it(skew: bool) -> None:
    splits = two_domains()
    settings = PartitionSettings(scheme="domain", clients=None, clients_per_domain=3, label_skew=skew, beta=0.5)
    positions = assign(settings, splits, 6, seed=1)
    for split in splits:
        for client, own in enumerate(positions[split]):
            assert set(splits[split].domains[own]) <= {client // 3}
        assert disjoint_and_complete(positions[split], len(splits[split].labels))
    train, test = (class_counts(splits[split], positions[split], 6) for split in ("train", "test"))
    if skew:
        assert np.ptp(train[:3], axis=0).max() > 10
        assert np.all(np.abs(train / 2 - test) <= 1)
        assert not np.array_equal(train[:3], train[3:])
    else:
        assert np.all(np.abs(train - 40 / 3) <= 1)


def test_label_skew_leaves_nobody_with_too_little() -> None:
    settings = PartitionSettings(
        scheme="domain", clients=None, clients_per_domain=3, label_skew=True, beta=0.2, min_per_client=20
    )
    for seed in range(10):
        assert min(len(own) for own in assign(settings, two_domains(), 6, seed)["train"]) >= 20


def test_settings_that_would_do_nothing_are_refused() -> None:
    for wrong, message in [
        (
            {"scheme": "iid", "classes_per_client": 2},
            "classes_per_client is for scheme pathological; it has no effect",
        ),
        ({"clients_per_domain": 2}, "clients_per_domain is for scheme domain"),
        ({"authors": True}, "authors is for scheme dirichlet"),
        ({"scheme": "domain", "label_skew": True}, "label_skew needs clients_per_domain=2 or more"),
    ]:
        with pytest.raises(ValueError, match=message):
            PartitionSettings(**wrong)  # type: ignore[arg-type]


def test_fifty_thousand_images_over_ten_thousand_clients() -> None:
    """Seconds at most; a loop over images would take longer."""
    splits = balanced(10, 5000, 1000)
    for settings in (PartitionSettings(scheme="iid"), PartitionSettings(classes_per_client=2)):
        start = time.perf_counter()
        positions = assign(settings, splits, 10_000, seed=1)
        assert time.perf_counter() - start < 5
        assert {len(own) for own in positions["train"]} <= {4, 5, 6}

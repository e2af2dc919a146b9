"""Protocols: class sets, shots, validation, pools and what identifies them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from fedpgp.config import PartitionSettings, ProtocolSettings, parse
from fedpgp.core.errors import ConfigError, DataError
from fedpgp.data import protocol
from fedpgp.data.federated import EvaluationSet, FederatedData
from fedpgp.data.manifest import Manifest
from fedpgp.data.sources.base import ROW_SCHEMA
from fedpgp.data.summary import manifest_table, partition_table

BASE_TO_NOVEL = ProtocolSettings()
ALL_CLASSES = ProtocolSettings(name="all_classes")


def made(classes: int, domains: int = 1, train: int = 6, val: int = 2, test: int = 3) -> Manifest:
    """So many images per class, domain and split; class after class."""
    splits = ["train"] * train + ["val"] * val + ["test"] * test
    labels, domain_ids, number = np.indices((classes, domains, len(splits))).reshape(3, -1)
    table = pa.table(
        [
            pa.array([f"{row:05d}" for row in range(len(labels))]),
            pa.nulls(len(labels), pa.int64()),
            pa.array(labels, pa.int32()),
            pa.array(domain_ids, pa.int32()),
            pa.array([splits[index] for index in number]),
            *[pa.nulls(len(labels), pa.int64())] * 3,
        ],
        schema=ROW_SCHEMA,
    )
    names = tuple(f"class {label}" for label in range(classes))
    return Manifest("made", names, tuple(f"domain {domain}" for domain in range(domains)), table)


def clients(count: int, scheme: str = "pathological") -> PartitionSettings:
    return PartitionSettings(scheme=scheme, clients=count)  # type: ignore[arg-type]


def pool_of(data: FederatedData, split: str, class_set: str) -> EvaluationSet:
    (pool,) = [pool for pool in data.evaluation_sets if (pool.split, pool.class_set) == (split, class_set)]
    return pool


def test_base_is_the_first_half_and_labels_are_renumbered() -> None:
    manifest = made(classes=5)
    data = protocol.build(manifest, clients(3), BASE_TO_NOVEL, seed=1)
    assert data.class_sets == {"base": (0, 1, 2), "novel": (3, 4)}
    assert data.train_set == "base"
    novel = pool_of(data, "test", "novel")
    assert manifest.labels[novel.rows].tolist() == [3] * 3 + [4] * 3
    assert novel.labels.tolist() == [0] * 3 + [1] * 3
    assert novel.members is None
    assert set(manifest.labels[data.training_rows]) == {0, 1, 2}
    assert set(manifest.splits[data.training_rows]) == {"train"}


def test_pools_in_order_with_local_members() -> None:
    manifest = made(classes=4)
    data = protocol.build(manifest, clients(2), BASE_TO_NOVEL, seed=1)
    assert [(pool.split, pool.class_set, len(pool.rows)) for pool in data.evaluation_sets] == [
        ("val", "base", 4),
        ("val", "novel", 4),
        ("test", "base", 6),
        ("test", "novel", 6),
    ]
    for split in ("val", "test"):
        pool = pool_of(data, split, "base")
        assert set(manifest.splits[pool.rows]) == {split}
        assert pool.members is not None
        for own, train_labels in zip(pool.members, data.train_labels, strict=True):
            assert set(pool.labels[own]) == set(train_labels)


def test_all_classes_has_one_class_set() -> None:
    data = protocol.build(made(classes=5), clients(5), ALL_CLASSES, seed=1)
    assert (data.train_set, data.class_sets) == ("all", {"all": (0, 1, 2, 3, 4)})
    assert [(pool.split, pool.class_set) for pool in data.evaluation_sets] == [("val", "all"), ("test", "all")]
    assert all(pool.members is not None for pool in data.evaluation_sets)


def test_labels_and_rows_belong_together() -> None:
    manifest = made(classes=7, domains=2)
    data = protocol.build(manifest, clients(2, "iid"), BASE_TO_NOVEL, seed=1)
    for rows, labels in zip(data.train_rows, data.train_labels, strict=True):
        assert np.array_equal(manifest.labels[rows], labels)
    for pool in data.evaluation_sets:
        assert np.array_equal(manifest.labels[pool.rows], np.array(data.class_sets[pool.class_set])[pool.labels])
        assert np.array_equal(manifest.domain_ids[pool.rows], pool.domains)


def test_shots_are_per_client_and_class_and_nested() -> None:
    manifest = made(classes=6, train=20)
    chosen = {}
    for shots in (1, 2, 8, None):
        data = protocol.build(manifest, clients(2, "iid"), ProtocolSettings(shots=shots), seed=1)
        expected = shots or 10
        assert all(np.bincount(labels).tolist() == [expected] * 3 for labels in data.train_labels)
        chosen[expected] = [set(rows.tolist()) for rows in data.train_rows]
    for fewer, more in ((1, 2), (2, 8), (8, 10)):
        assert all(small < large for small, large in zip(chosen[fewer], chosen[more], strict=True))


def test_shots_follow_the_seed() -> None:
    manifest = made(classes=2, train=100)
    settings = ProtocolSettings(name="all_classes", shots=50)
    first, again, other = (protocol.build(manifest, clients(1), settings, seed).training_rows for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert 30 < len(np.intersect1d(first, other)) < 70  # 50 expected of 100


def test_validation_is_taken_from_train_where_the_data_have_none() -> None:
    manifest = made(classes=4, domains=2, train=6, val=0)
    data = protocol.build(manifest, clients(2), ProtocolSettings(val_shots=4, shots=None), seed=1)
    for name in ("base", "novel"):
        pool = pool_of(data, "val", name)
        assert set(manifest.splits[pool.rows]) == {"train"}
        assert np.bincount(pool.labels * 2 + pool.domains).tolist() == [4] * 4
    assert np.bincount(np.concatenate(data.train_labels)).tolist() == [4, 4]
    assert len(np.intersect1d(data.training_rows, data.evaluation_rows)) == 0


def test_validation_leaves_an_image_to_train_on() -> None:
    data = protocol.build(made(classes=2, train=3, val=0), clients(2), ProtocolSettings(name="all_classes"), seed=1)
    assert [len(rows) for rows in data.train_rows] == [1, 1]
    assert len(pool_of(data, "val", "all").rows) == 4
    data = protocol.build(made(classes=2, train=1, val=0), clients(2), ProtocolSettings(name="all_classes"), seed=1)
    assert [(pool.split, pool.class_set) for pool in data.evaluation_sets] == [("test", "all")]


def test_domain_clients_are_named_after_their_domains() -> None:
    manifest = made(classes=4, domains=3)
    data = protocol.build(manifest, PartitionSettings(scheme="domain", clients=None), BASE_TO_NOVEL, seed=1)
    assert data.client_names == ("domain 0", "domain 1", "domain 2")
    for client, rows in enumerate(data.train_rows):
        assert set(manifest.domain_ids[rows]) == {client}
    assert protocol.build(manifest, clients(2), BASE_TO_NOVEL, seed=1).client_names == ("client 0", "client 1")


def test_rows_are_what_is_needed_and_no_more() -> None:
    manifest = made(classes=4, train=20)
    data = protocol.build(manifest, clients(2), ProtocolSettings(shots=2), seed=1)
    assert data.num_clients == 2
    assert len(data.training_rows) == 4
    assert len(data.evaluation_rows) == np.sum(manifest.splits != "train")
    assert np.array_equal(data.rows, np.sort(np.concatenate([data.training_rows, data.evaluation_rows])))


def test_refusals() -> None:
    with pytest.raises(DataError, match=r"base_to_novel needs at least 2 classes"):
        protocol.build(made(classes=1), clients(1), BASE_TO_NOVEL, seed=1)
    with pytest.raises(DataError, match=r"one domain only"):
        protocol.build(made(classes=4), PartitionSettings(scheme="domain", clients=None), BASE_TO_NOVEL, seed=1)
    with pytest.raises(DataError, match=r"partition.clients: give the number of clients"):
        protocol.build(made(classes=4), PartitionSettings(clients=None), BASE_TO_NOVEL, seed=1)
    with pytest.raises(DataError, match=r"no training image for client 2, client 3 .2 images in base classes."):
        protocol.build(made(classes=4, train=1), clients(4, "iid"), BASE_TO_NOVEL, seed=1)


def test_a_domain_without_base_images_is_named() -> None:
    manifest = made(classes=4, domains=2)
    kept = (manifest.labels > 1) | (manifest.domain_ids == 0)
    partial = Manifest("made", manifest.class_names, manifest.domains, manifest.table.filter(kept))
    with pytest.raises(DataError, match=r"no training image for domain 1 "):
        protocol.build(partial, PartitionSettings(scheme="domain", clients=None), BASE_TO_NOVEL, seed=1)


def test_digest_changes_with_what_it_covers() -> None:
    manifest = made(classes=4, train=20)
    variants = [
        (manifest, clients(2), BASE_TO_NOVEL, 1),
        (manifest, clients(2), BASE_TO_NOVEL, 2),
        (manifest, clients(2, "iid"), BASE_TO_NOVEL, 1),
        (manifest, clients(2), ALL_CLASSES, 1),
        (manifest, clients(2), ProtocolSettings(shots=2), 1),
        (made(classes=4, train=21), clients(2), BASE_TO_NOVEL, 1),
    ]
    digests = [protocol.build(*variant).digest for variant in variants]
    assert len(set(digests)) == len(digests)
    assert protocol.build(*variants[0]).digest == digests[0]


def test_digest_covers_the_members_of_a_pool() -> None:
    data = protocol.build(made(classes=4), clients(2), BASE_TO_NOVEL, seed=1)
    swapped = [replace(pool, members=pool.members and pool.members[::-1]) for pool in data.evaluation_sets]
    assert replace(data, evaluation_sets=tuple(swapped)).digest != data.digest == replace(data).digest


DOMAINS = PartitionSettings(scheme="domain", clients=None)


def left_out(domain: str, **settings: object) -> ProtocolSettings:
    return ProtocolSettings(name="leave_one_domain_out", held_out=domain, **settings)  # type: ignore[arg-type]


def test_nobody_sees_the_held_out_domain() -> None:
    manifest = made(classes=4, domains=3, val=0)
    data = protocol.build(manifest, DOMAINS, left_out("domain 1", val_shots=2, shots=None), seed=1)
    assert data.client_names == ("domain 0", "domain 2")
    assert data.domains == manifest.domains
    assert [set(manifest.domain_ids[rows]) for rows in data.train_rows] == [{0}, {2}]
    assert [(pool.split, pool.metric, len(pool.rows)) for pool in data.evaluation_sets] == [
        ("val", "all", 4 * 2 * 2),
        ("test", "all", 4 * 2 * 3),
        ("test", "held_out", 4 * 9),
    ]
    for pool in data.evaluation_sets[:2]:
        assert set(pool.domains) == {0, 2}
        assert pool.members is not None
        assert [set(pool.domains[own]) for own in pool.members] == [{0}, {2}]
    held = data.evaluation_sets[2]
    assert held.members is None
    assert np.array_equal(held.rows, np.flatnonzero(manifest.domain_ids == 1))
    assert np.array_equal(held.labels, manifest.labels[held.rows])
    assert len(np.intersect1d(data.training_rows, data.evaluation_rows)) == 0


def test_several_clients_per_remaining_domain() -> None:
    partition = PartitionSettings(scheme="domain", clients=None, clients_per_domain=2)
    data = protocol.build(made(classes=3, domains=3), partition, left_out("domain 0"), seed=1)
    assert data.client_names == ("domain 1 0", "domain 1 1", "domain 2 0", "domain 2 1")
    assert [len(rows) for rows in data.train_rows] == [9] * 4


def test_images_and_labels_stay_together_under_label_skew() -> None:
    manifest = made(classes=5, domains=3, train=40)
    partition = PartitionSettings(scheme="domain", clients=None, clients_per_domain=3, label_skew=True)
    data = protocol.build(manifest, partition, left_out("domain 2", shots=None), seed=1)
    for client, (rows, labels) in enumerate(zip(data.train_rows, data.train_labels, strict=True)):
        assert np.array_equal(manifest.labels[rows], labels)
        assert set(manifest.domain_ids[rows]) == {client // 3}


def test_held_out_domains_that_cannot_be() -> None:
    manifest = made(classes=3, domains=3)
    with pytest.raises(
        DataError, match=r"no domain 'domian 1' in the data; did you mean domain 1\? \(known: domain 0,"
    ):
        protocol.build(manifest, DOMAINS, left_out("domian 1"), seed=1)
    with pytest.raises(DataError, match=r"held_out: all means 3 experiments.* one of domain 0, domain 1, domain 2"):
        protocol.build(manifest, DOMAINS, left_out("all"), seed=1)
    with pytest.raises(DataError, match=r"needs data with 2 domains or more"):
        protocol.build(made(classes=3), DOMAINS, left_out("default"), seed=1)
    for settings in ({"name": "leave_one_domain_out"}, {"held_out": "domain 0"}):
        with pytest.raises(ValueError, match="held_out must be a domain or all with name=leave_one_domain_out"):
            ProtocolSettings(**settings)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"leave_one_domain_out needs partition.scheme=domain partition.clients=null"):
        parse({"protocol": {"name": "leave_one_domain_out", "held_out": "x"}})


def test_all_domains_are_folds() -> None:
    folds = protocol.folds(left_out("all", shots=2), ("a", "b"))
    assert folds == (left_out("a", shots=2), left_out("b", shots=2))
    assert protocol.folds(left_out("a"), ("a", "b")) == (left_out("a"),)
    assert protocol.folds(BASE_TO_NOVEL, ("a", "b")) == (BASE_TO_NOVEL,)


def test_partition_table_counts_every_image_once() -> None:
    manifest = made(classes=4, domains=2, train=6, val=2, test=3)
    data = protocol.build(manifest, clients(2), ProtocolSettings(shots=4), seed=1)
    rows = partition_table(manifest, data).to_pylist()
    assert sum(row["images"] for row in rows if row["split"] == "train") == len(data.training_rows) == 2 * 4
    assert sum(row["images"] for row in rows if row["split"] == "test") == 2 * 2 * 3
    owners = {row["class"]: row["client"] for row in rows}
    assert len(owners) == 2
    assert all(owners[row["class"]] == row["client"] for row in rows)
    counts = manifest_table(manifest).to_pylist()
    assert len(counts) == 4 * 2 * 3
    assert {(row["split"], row["images"]) for row in counts} == {("train", 6), ("val", 2), ("test", 3)}

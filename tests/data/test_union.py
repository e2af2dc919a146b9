"""Several data sets in one federation: classes, clients and tests of each part, and reading their images."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from test_protocol import clients, made

from fedpgp.config import DataSettings, PartitionSettings, ProtocolSettings, parse
from fedpgp.core.errors import ConfigError, DataError
from fedpgp.data import content, manifest, protocol, sources
from fedpgp.data.manifest import _union
from fedpgp.data.sources.union import Union

TWO = {"name": "union", "parts": [{"name": "shapes"}, {"name": "shapes", "title": "again"}]}


def two(first=4, second=6, domains=1):
    """Parts `small` and `big` with classes of the same names, `class 0`, `class 1`, ..."""
    return _union([replace(made(first), name="small"), replace(made(second, domains), name="big")])


def test_classes_and_domains_of_parts_follow_each_other(caplog):
    with caplog.at_level(logging.WARNING):
        union = two(2, 3, domains=2)
    assert union.class_names == ("class 0 (small)", "class 1 (small)", "class 0 (big)", "class 1 (big)", "class 2")
    assert union.texts == ("class 0", "class 1", "class 0", "class 1", "class 2")
    assert union.domains == ("small", "big/domain 0", "big/domain 1")
    assert "class 0, class 1: a class of several parts of the union; they are kept apart" in caplog.text
    files = union.table["file"].to_pylist()
    assert files == sorted(files)
    of_big = np.char.startswith(np.array(files), "big/")
    assert set(union.labels[of_big]) == {2, 3, 4}
    assert set(union.labels[~of_big]) == {0, 1}
    assert set(union.domain_ids[of_big]) == {1, 2}


def test_each_part_has_clients_classes_and_tests_of_its_own():
    union = two()
    partition = PartitionSettings(clients={"small": 1, "big": 3})
    data = protocol.build(union, partition, ProtocolSettings(), seed=1)
    assert data.client_names == ("small 0", "big 0", "big 1", "big 2")
    assert data.class_sets == {
        "base/small": (0, 1),
        "novel/small": (2, 3),
        "base/big": (4, 5, 6),
        "novel/big": (7, 8, 9),
    }
    assert [data.train_set_of(client) for client in range(4)] == ["base/small", "base/big", "base/big", "base/big"]
    assert set(data.global_labels(0)) == {0, 1}
    assert set(np.concatenate([data.global_labels(client) for client in (1, 2, 3)])) == {4, 5, 6}
    assert data.training_classes(2).tolist() == [4, 5, 6]
    tests = {one.class_set: one for one in data.evaluation_sets if one.split == "test"}
    assert tests.keys() == data.class_sets.keys()
    assert tests["base/small"].tested(np.arange(4)).tolist() == [True, False, False, False]
    assert tests["novel/big"].tested(np.array([0, 3])).tolist() == [False, True]
    assert tests["novel/big"].metric == "novel"
    assert [len(own) for own in tests["base/big"].members] == [0, 3, 3, 3]
    assert data.part_of == {"small": "small", "big": "big"}


def test_a_client_that_trains_among_its_own_classes():
    own = ProtocolSettings(train_classes="own")
    data = protocol.build(two(), PartitionSettings(clients={"small": 1, "big": 3}), own, seed=1)
    assert data.training_classes(0).tolist() == [0, 1]
    assert sorted(data.training_classes(client).item() for client in (1, 2, 3)) == [4, 5, 6]
    plain = protocol.build(made(4), clients(2), ProtocolSettings(), seed=1)
    with_own = protocol.build(made(4), clients(2), own, seed=1)
    assert plain.digest != with_own.digest
    assert plain.training_classes(0).tolist() == [0, 1]
    assert len(with_own.training_classes(0)) == 1


def test_a_union_of_one_data_set_divides_it_like_the_data_set_alone():
    """Each part draws from a seed of its own, so here only what does not depend on draws is compared."""
    data = protocol.build(two(4, 6), clients(2), ProtocolSettings(), seed=1)
    alone = protocol.build(made(6), clients(2), ProtocolSettings(), seed=1)
    assert [len(rows) for rows in data.train_rows[2:]] == [len(rows) for rows in alone.train_rows]


@pytest.mark.parametrize(("given", "trained"), [({"source": "small"}, ["small"]), ({"held_out": "small"}, ["big"])])
def test_cross_data_trains_on_some_parts_and_tests_the_others(given, trained):
    union = two()
    data = protocol.build(union, clients(2), ProtocolSettings(name="cross_data", **given), seed=1)
    assert {name.split()[0] for name in data.client_names} == set(trained)
    (held,) = [one for one in data.evaluation_sets if one.held_out]
    other = "big" if trained == ["small"] else "small"
    assert (held.metric, held.class_set, held.split) == ("held_out", f"all/{other}", "test")
    assert held.tested(np.arange(2)).all()
    assert set(union.splits[held.rows]) == {"test"}
    assert not np.isin(held.rows, data.training_rows).any()
    assert protocol.held_out_names(union) == ("small", "big")


def test_what_does_not_fit():
    everything = ProtocolSettings(name="cross_data", held_out="all")
    with pytest.raises(DataError, match=r"all means 2 experiments.*one of small, big"):
        protocol.build(two(), clients(2), everything, seed=1)
    with pytest.raises(DataError, match="no data set 'bigg' in the union; did you mean big"):
        protocol.build(two(), clients(2), ProtocolSettings(name="cross_data", source="bigg"), seed=1)
    with pytest.raises(DataError, match="small: protocol: base_to_novel needs at least 2 classes, the data have 1"):
        protocol.build(two(first=1), clients(1), ProtocolSettings(), seed=1)
    with pytest.raises(DataError, match=r"partition.clients.big: give the number of clients"):
        protocol.build(two(), PartitionSettings(clients={"small": 2}), ProtocolSettings(), seed=1)
    held_out = ProtocolSettings(name="leave_one_domain_out", held_out="small")
    with pytest.raises(DataError, match="leave_one_domain_out is for one data set"):
        protocol.build(two(), clients(1), held_out, seed=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"name": "union"}}, "parts are for name=union, which needs them"),
        ({"data": {"name": "icons", "parts": TWO["parts"]}}, "parts are for name=union"),
        ({"data": {"name": "union", "parts": [{"name": "icons"}]}}, "union needs two parts or more"),
        ({"data": {"name": "union", "parts": [{"name": "icons"}] * 2}}, "two parts have the title icons"),
        ({"data": {**TWO, "root": "x"}}, "root belongs to a part of the union"),
        ({"data": {"name": "union", "parts": [TWO, TWO]}}, "a part of a union is one data set"),
        ({"data": {"name": "union", "parts": [{"name": "shapes", "views": 2}, {"name": "icons"}]}}, "views belongs to"),
        ({"data": TWO, "partition": {"clients": {"agian": 3}}}, "partition.clients: no part agian"),
        ({"partition": {"clients": {"a": 3}}}, "no part a .parts: none, because data.name is not union"),
        ({"protocol": {"name": "cross_data", "source": "icons"}}, "cross_data needs several data sets"),
        ({"data": TWO, "protocol": {"name": "cross_data"}}, "needs held_out=PART or all, or source=PART"),
        ({"protocol": {"source": "icons"}}, "source is for name=cross_data"),
        ({"data": {"name": "union", "parts": [{"nme": "icons"}, {}]}}, r"parts.0.nme: unknown key; did you mean name"),
        ({"data": TWO, "partition": {"clients": {"again": 0}}}, "partition.clients.again: Input should be greater"),
        ({"partition": {"clients": 0}}, "partition.clients: Input should be greater"),
    ],
)
def test_settings_that_do_not_fit(changes, message):
    with pytest.raises(ConfigError, match=message):
        parse(changes)


def test_errors_name_the_part():
    with pytest.raises(DataError, match=r"^big: partition: 9 clients with disjoint classes, but only 3 classes"):
        protocol.build(two(), PartitionSettings(clients={"small": 1, "big": 9}), ProtocolSettings(), seed=1)
    parts = [{"name": "shapes"}, {"name": "folder", "title": "photos"}]
    without = DataSettings.model_validate({"name": "union", "parts": parts})
    for use in (manifest.build, sources.open_source):
        with pytest.raises(ConfigError, match=r"^data.parts: photos: data: root is required for data 'folder'"):
            use(without)
    missing = without.model_copy(
        update={"parts": (without.parts[0], without.parts[1].model_copy(update={"root": "/x:"}))}
    )
    for use in (manifest.build, sources.open_source):
        with pytest.raises(DataError, match=r"^data.parts: photos: data.root"):
            use(missing)


def test_images_are_read_from_their_parts():
    """In the order of the rows, each as its own source reads it; a digest that stands for both."""
    settings = DataSettings.model_validate(TWO)
    union, alone = manifest.build(settings), manifest.build(DataSettings(name="shapes"))
    assert len(union) == 2 * len(alone)
    half = len(alone)
    picked = union.table.take(pa.array([0, 1, half - 1, half, half + 1]))
    images = [np.asarray(image) for image in sources.open_source(settings).read(picked)]
    expected = [np.asarray(image) for image in sources.open_source(DataSettings(name="shapes")).read(
        alone.table.take(pa.array([0, 1, half - 1, 0, 1])))]  # fmt: skip
    assert all((one == other).all() for one, other in zip(images, expected, strict=True))
    assert list(sources.open_source(settings).read(union.table.slice(0, 0))) == []
    assert isinstance(sources.open_source(settings), Union)


def test_the_content_of_a_union_is_that_of_its_parts(tmp_path):
    from PIL import Image

    for part in ("a", "b"):
        for name in ("cat", "dog"):
            for number in range(4):
                path = tmp_path / part / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (4, 4), (number, len(name), ord(part))).save(path)
    parts = [{"name": "folder", "root": str(tmp_path / part), "title": part} for part in ("a", "b")]
    settings = DataSettings.model_validate({"name": "union", "parts": parts})
    before = content.digest(manifest.build(settings), tmp_path / "store")
    hashes = content.of(manifest.build(settings), tmp_path / "other")
    assert hashes.digest is None
    hashes.fill(9)  # eight images of a, one of b
    assert hashes.digest is None
    hashes.fill()
    assert hashes.digest == before
    Image.new("RGB", (4, 4), "white").save(tmp_path / "b" / "dog" / "3.png")
    assert content.digest(manifest.build(settings), tmp_path / "store") != before


def test_parts_without_files_do_not_hide_replaced_images(tmp_path):
    """Such a union had no digest, so that a run was resumed with other images."""
    from PIL import Image

    for name in ("cat", "dog"):
        (tmp_path / "a" / name).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (4, 4), (number, len(name), 0)).save(tmp_path / "a" / name / f"{number}.png")
    parts = [{"name": "folder", "root": str(tmp_path / "a")}, {"name": "shapes"}]
    settings = DataSettings.model_validate({"name": "union", "parts": parts})
    before = content.digest(manifest.build(settings), tmp_path / "store")
    assert before is not None
    Image.new("RGB", (4, 4), "white").save(tmp_path / "a" / "dog" / "3.png")
    assert content.digest(manifest.build(settings), tmp_path / "store") != before
    assert content.digest(manifest.build(DataSettings.model_validate(TWO)), tmp_path / "store") is None

"""The data set in the package: what it holds, that drawings never cross splits, and that its notice is complete."""

from __future__ import annotations

import re
from collections import defaultdict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fedpgp.config import DataSettings, PartitionSettings, ProtocolSettings
from fedpgp.data import manifest, protocol
from fedpgp.data.manifest import Manifest
from fedpgp.data.sources import open_source
from fedpgp.data.sources.icons import ICONS, divide

FAMILIES = (
    "font_awesome",
    "tabler",
    "lucide",
    "bootstrap",
    "ionicons",
    "fluent_contrast",
    "fluent_flat",
    "noto",
    "hugeicons",
    "boxicons",
    "icon_park",
    "unicons",
    "carbon",
    "fluent_system",
    "game_icons",
    "fxemoji",
)
PRETRAINED = ("material", "phosphor", "remix", "mingcute", "solar", "iconoir", "twemoji", "emojione")


@pytest.fixture(scope="module")
def icons() -> Manifest:
    return manifest.build(DataSettings(name="icons"))


@pytest.fixture(scope="module")
def drawings(icons: Manifest) -> np.ndarray:
    """The drawing behind each row of the manifest."""
    columns = {path.name: pq.read_table(path, columns=["drawing"])["drawing"].to_pylist() for path in files()}
    pairs = zip(icons.table["file"].to_pylist(), icons.table["row"].to_pylist(), strict=True)
    return np.array([columns[file][row] for file, row in pairs])


def files() -> list:
    return sorted(ICONS.glob("*.parquet"))


def test_eighty_classes_in_sixteen_families(icons: Manifest) -> None:
    assert len(icons.class_names) == 80
    assert list(icons.class_names) == sorted(icons.class_names)
    assert icons.domains == FAMILIES
    counts = np.zeros((80, 16), int)
    np.add.at(counts, (icons.labels, icons.domain_ids), 1)
    assert set(counts.flatten()) == {0, 6}  # six pictures, or the family lacks the class
    assert (counts > 0).sum(1).min() >= 9
    assert (counts > 0).sum(0).min() >= 60


def test_the_manifest_is_pinned(icons: Manifest) -> None:
    assert len(icons) == int(re.search(r"pictures \| ([\d,]+)", card())[1].replace(",", ""))
    assert f"`{icons.digest}`" in card()


@pytest.fixture(params=[1, 2, 3, 4])
def division(request: pytest.FixtureRequest) -> Manifest:
    return manifest.build(DataSettings(name="icons", split_seed=request.param))


def test_no_drawing_and_no_family_of_a_class_is_in_two_splits(division: Manifest, drawings: np.ndarray) -> None:
    by_drawing, by_family = defaultdict(set), defaultdict(set)
    rows = zip(drawings, division.labels, division.domain_ids, division.splits, strict=True)
    for drawing, label, domain, split in rows:
        by_drawing[drawing].add((split, label))
        by_family[label, domain].add(split)
        assert drawing.startswith(f"{division.domains[domain]}:")
    assert {len(places) for places in by_drawing.values()} == {1}
    assert {len(splits) for splits in by_family.values()} == {1}


def test_every_class_is_in_every_split_and_every_family_serves_all(division: Manifest) -> None:
    for split in ("train", "val", "test"):
        own = division.splits == split
        assert set(division.labels[own]) == set(range(80))
        for half in (division.labels < 40, division.labels >= 40):
            assert set(division.domain_ids[own & half]) == set(range(16))


def test_base_to_novel_has_sixteen_shots_of_each_class(division: Manifest) -> None:
    data = protocol.build(division, PartitionSettings(clients=10), ProtocolSettings(shots=16), seed=1)
    for labels in data.train_labels:
        assert list(np.unique(labels, return_counts=True)[1]) == [16] * 4
    assert {(pool.split, pool.class_set) for pool in data.evaluation_sets} == {
        (split, name) for split in ("val", "test") for name in ("base", "novel")
    }


def test_another_split_seed_moves_families_and_no_picture(icons: Manifest) -> None:
    other = manifest.build(DataSettings(name="icons", split_seed=2))
    assert other.digest != icons.digest
    assert other.files_digest == icons.files_digest  # so that the features are the same
    assert other.table.drop_columns("split").equals(icons.table.drop_columns("split"))
    test, again = icons.splits == "test", other.splits == "test"
    assert 0.42 < (test & again).sum() / test.sum() < 0.58  # half of all pictures, by chance


def test_a_division_has_five_sixteenths_train_three_val_and_half_test() -> None:
    present = np.ones((2, 16), bool)
    present[1, :7] = False
    splits = divide(present, seed=5)
    assert [list(splits[0]).count(name) for name in ("train", "val", "test", "")] == [5, 3, 8, 0]
    assert [list(splits[1]).count(name) for name in ("train", "val", "test", "")] == [3, 2, 4, 7]
    assert not splits[1, :7].any()
    assert np.array_equal(splits, divide(present, seed=5))
    assert not np.array_equal(splits, divide(present, seed=6))


@pytest.mark.parametrize("held_out", range(16))
def test_any_family_can_be_held_out(icons: Manifest, held_out: int) -> None:
    others = (icons.domain_ids != held_out) & (icons.splits == "train")
    assert set(icons.labels[others]) == set(range(80))
    assert len(set(icons.labels[icons.domain_ids == held_out])) >= 60


def test_pictures_are_small_and_not_empty(icons: Manifest) -> None:
    rows = icons.table.take(pa.array(np.arange(0, len(icons), 97)))
    pictures = list(open_source(DataSettings(name="icons")).read(rows))
    assert {(picture.size, picture.mode) for picture in pictures} == {((48, 48), "RGB")}
    assert min(np.asarray(picture).std() for picture in pictures) > 3


def test_the_notice_names_every_family_with_a_licence() -> None:
    lines = (ICONS.parent / "NOTICE.md").read_text(encoding="utf-8").splitlines()
    for family in (*FAMILIES, *PRETRAINED):
        (line,) = [line for line in lines if line.startswith(f"| `{family}`")]
        assert re.search(r"@iconify-json/\S+ \d+\.\d+\.\d+", line)
        assert re.search(r"\| (MIT|ISC|Apache-2\.0|CC-BY-4\.0|CC-BY-3\.0) \| Copyright", line)


def test_pretraining_families_are_no_domains(icons: Manifest) -> None:
    assert not set(PRETRAINED) & set(icons.domains)


def test_the_assets_stay_small() -> None:
    assert sum(path.stat().st_size for path in ICONS.parent.rglob("*") if path.is_file()) < 14e6


def card() -> str:
    return (ICONS.parent / "MODEL_CARD.md").read_text(encoding="utf-8")

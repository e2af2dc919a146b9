"""Planning of a table: its sweeps and data folders, invalid input, and differences from the paper."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from fedpgp.analysis.reproduce.planning import CLIP, plan
from fedpgp.analysis.reproduce.tables import TABLES
from fedpgp.core.errors import ConfigError
from fedpgp.data import manifest
from fedpgp.data.protocol import build

TRIALS = {"table1": 40, "table2": 12, "table4": 2, "table5": 10, "table6": 15, "table7": 10, "table11": 80,
          "pfedpt": 2, "lora": 3}  # fmt: skip
TRIALS_OF_ONE_DATA_SET = {**TRIALS, "table1": 8, "table2": 6, "table5": 5, "table6": 3, "table7": 2, "table11": 20}


@pytest.fixture
def root(tmp_path):
    """Empty folders for all data sets, two of them under the names of their downloads."""
    for name in ("oxford_pets", "oxford_flowers", "dtd", "caltech-101", "food101", "cifar10", "cifar100",
                 "office_caltech10", "domainnet10"):  # fmt: skip
        (tmp_path / name).mkdir()
    return tmp_path


@pytest.mark.parametrize("name", TABLES)
def test_every_table_is_planned_as_shipped(name, root):
    found = plan(name, root=root)
    trials = [trial for part in found.parts for trial in part.drawn.trials]
    assert len(trials) == TRIALS[name]
    assert {one for part in found.parts for told in part.changed.values() for one in told} == set()
    assert {trial.experiment.data.name for trial in trials} == set(found.asked) == set(found.table.data)
    assert all(part.sweep.folds.seeds == (1, 2, 3) for part in found.parts)


@pytest.mark.parametrize("name", TABLES)
def test_every_table_has_a_smoke_on_the_package(name):
    found = plan(name, smoke=True)
    for part in found.parts:
        assert len(part.drawn.trials) == TRIALS_OF_ONE_DATA_SET[name]  # shots, where they vary, still do
        for trial in part.drawn.trials:
            one = trial.experiment
            assert (one.data.name, one.federation.rounds) == ("icons", 2)
            build(manifest.build(one.data), one.partition, _held_out(one), one.seed)  # enough images for every client
            assert part.stands_for(trial.experiment) == part.asked
            said = " ".join(part.changed[trial.id])
            assert "data.name is icons" in said
            assert ("backbone.name is icon-clip" in said) == (name != "pfedpt")


def _held_out(experiment):
    held_out = "noto" if experiment.protocol.held_out else None
    return experiment.protocol.model_copy(update={"held_out": held_out})


def test_data_sets_lie_in_folders_of_their_own_or_of_their_download(root):
    found = plan("table1", data=["flowers102", "dtd"], root=root)
    roots = {trial.experiment.data.name: trial.experiment.data.root for trial in found.parts[0].drawn.trials}
    assert roots == {"flowers102": root, "dtd": root / "dtd"}
    assert found.asked == ("flowers102", "dtd")
    assert len(found.parts[0].drawn.trials) == 16


def test_one_of_two_sweeps(root):
    assert [part.sweep.name for part in plan("table2", data=["domainnet10"], root=root).parts] == ["domainnet_lodo"]


def test_a_file_is_weights_of_the_papers_model(root):
    found = plan("table4", root=root, backbone="/weights/mine.pt").parts[0]
    chosen = found.drawn.trials[0].experiment.backbone
    assert (chosen.name, chosen.weights, chosen.activation) == (CLIP, "/weights/mine.pt", "quick_gelu")
    assert found.changed[found.drawn.trials[0].id] == (
        "backbone.weights is /weights/mine.pt, not openai", "backbone.activation is quick_gelu, not left unset"
    )  # fmt: skip


def test_openais_own_file_is_the_papers_model(root):
    with zipfile.ZipFile(root / "ViT-B-16.pt", "w") as archive:  # as its list of contents tells
        archive.writestr("ViT-B-16/code/model.py", "")
    part = plan("table4", root=root, backbone=str(root / "ViT-B-16.pt")).parts[0]
    assert set(part.changed.values()) == {()}


def test_changed_settings_are_listed_by_variant(root):
    found = plan("table1", data=["dtd"], root=root, overrides=["method.mu=1", "federation.rounds=5"]).parts[0]
    told = {trial.variant: found.changed[trial.id] for trial in found.drawn.trials}
    assert told["FedPGP"] == ("method.mu is 1.0, not 0.5", "federation.rounds is 5, not 25")
    assert told["CoOp"] == ("federation.rounds is 5, not 25",)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "tabel4"}, ["no such table", "did you mean table4", "pfedpt"]),
        ({"name": "table1", "data": ["dtd", "cifar10"]}, ["--data cifar10", "oxford_pets, flowers102"]),
        ({"name": "table5", "root": Path("/nowhere")}, ["/nowhere/cifar10: no such folder", "/nowhere/cifar100"]),
        ({"name": "pfedpt", "smoke": True, "backbone": "RN50"}, ["--backbone RN50", "pfedpt does not use CLIP"]),
        ({"name": "table4", "smoke": True, "overrides": ["federation.round=1"]}, ["did you mean rounds"]),
    ],
)
def test_bad_input_is_named(arguments, words):
    with pytest.raises(ConfigError) as refused:
        plan(**arguments)
    for word in words:
        assert word in str(refused.value)

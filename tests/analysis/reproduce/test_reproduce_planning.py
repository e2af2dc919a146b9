"""Planning of a table: its sweeps and data folders, invalid input, and differences from the paper."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from fedpgp.analysis.reproduce.planning import CLIP, plan
from fedpgp.analysis.reproduce.tables import TABLES
from fedpgp.core.errors import ConfigError
from fedpgp.data import manifest, sources
from fedpgp.data.protocol import build
from fedpgp.data.sources.base import Scan, image_rows

TRIALS = {"table1": 40, "table2": 12, "table4": 2, "table5": 10, "table6": 15, "table7": 10, "table11": 80,
          "pfedpt": 2, "lora": 3, "fedtpg": 2, "fedmgp": 54, "dp_fpl": 28}  # fmt: skip
TRIALS_OF_ONE_DATA_SET = {
    **TRIALS,
    "table1": 8,
    "table2": 6,
    "table5": 5,
    "table6": 3,
    "table7": 2,
    "table11": 20,
    "fedtpg": 1,
    "fedmgp": 6,
    "dp_fpl": 7,
}


@pytest.fixture
def root(tmp_path):
    """Empty folders for all data sets, two of them under the names of their downloads."""
    for name in ("oxford_pets", "oxford_flowers", "dtd", "caltech-101", "food101", "fgvc_aircraft", "ucf101",
                 "stanford_cars", "sun397", "eurosat", "imagenet", "cifar10", "cifar100", "office_caltech10",
                 "domainnet10"):  # fmt: skip
        (tmp_path / name).mkdir()
    return tmp_path


@pytest.mark.parametrize("name", TABLES)
def test_every_table_is_planned_as_shipped(name, root):
    found = plan(name, root=root)
    trials = [trial for part in found.parts for trial in part.drawn.trials]
    assert len(trials) == TRIALS[name]
    assert {one for part in found.parts for told in part.changed.values() for one in told} == set()
    assert {one for part in found.parts for one in part.asked} == set(found.asked) == set(found.table.data)
    for part in found.parts:
        represented = {one for trial in part.drawn.trials for one in part.stands_for(trial.experiment)}
        assert represented == set(part.asked)
        assert part.sweep.folds.seeds == ((1, 2, 3, 4, 5) if name == "dp_fpl" else (1, 2, 3))


@pytest.mark.parametrize("name", TABLES)
def test_every_table_has_a_smoke_on_the_package(name):
    found = plan(name, smoke=True)
    for part in found.parts:
        assert len(part.drawn.trials) == TRIALS_OF_ONE_DATA_SET[name]  # shots, where they vary, still do
        for trial in part.drawn.trials:
            one = trial.experiment
            assert {data.name for data in one.data.members} == {"icons"}
            assert one.federation.rounds == 2
            build(manifest.build(one.data), one.partition, _held_out(one), one.seed)  # enough images for every client
            assert part.stands_for(trial.experiment) == part.asked
            said = " ".join(part.changed[trial.id])
            assert "data.name is icons" in said or "data.parts is icons as" in said
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


CLASSES = {"caltech101": 100, "flowers102": 102, "fgvc_aircraft": 100, "ucf101": 101, "oxford_pets": 37,
           "food101": 101, "dtd": 47, "stanford_cars": 196, "sun397": 397, "eurosat": 10, "imagenet": 1000}  # fmt: skip
"""Numbers of classes of the data sets."""
IMAGES = {"train": 10, "val": 1, "test": 2}
"""Per class, of data sets that have no files here."""


@pytest.fixture
def listed(monkeypatch):
    """Data sets that list as many classes as the real ones, and no files."""

    def scan(data):
        classes = CLASSES[data.name]
        count = classes * sum(IMAGES.values())
        splits = [split for split, number in IMAGES.items() for _ in range(number)]
        labels = np.arange(count, dtype=np.int32) // len(splits)
        files = [f"{number:06d}.jpg" for number in range(count)]
        rows = image_rows(count, file=files, label=labels, domain=0, split=splits * classes)
        return Scan(tuple(f"{data.name} {number}" for number in range(classes)), ("default",), rows)

    monkeypatch.setattr(sources, "scan", scan)


def divided(trial):
    """Its data, and the sorted numbers of training classes of the clients of each data set."""
    one = trial.experiment
    data = build(manifest.build(one.data), one.partition, one.protocol, one.seed)
    classes = {}
    for client, name in enumerate(data.client_names):
        classes.setdefault(name.rpartition(" ")[0], []).append(len(set(data.train_labels[client])))
    return data, {name: sorted(own) for name, own in classes.items()}


def test_the_federation_of_fedtpg_has_thirty_clients_of_nine_data_sets(root, listed):
    cross_class, _ = plan("fedtpg", root=root).parts
    (trial,) = cross_class.drawn.trials
    data, classes = divided(trial)
    assert data.num_clients == 30
    assert classes == {
        "caltech101": [25, 25], "flowers102": [17, 17, 17], "fgvc_aircraft": [25, 25], "ucf101": [17, 17, 17],
        "oxford_pets": [19], "food101": [17, 17, 17], "dtd": [24], "stanford_cars": [19, 19, 20, 20, 20],
        "sun397": [19, 20, 20, 20, 20, 20, 20, 20, 20, 20],
    }  # fmt: skip
    assert max(map(len, data.train_rows)) == 25 * 8  # a pass is one batch of 200
    assert data.own_classes
    one = trial.experiment.federation
    assert (one.rounds, one.local_epochs, one.batch_size, one.participation) == (500, 1, 200, 1.0)
    assert (one.lr, one.lr_schedule, one.momentum, one.keep_momentum) == (0.003, "cosine", 0.9, True)
    assert (one.weight_decay, one.server.name) == (1e-5, "mean")
    assert trial.experiment.method.settings["n_ctx"] == 4


def test_the_clients_of_imagenet_are_tested_on_ten_other_data_sets(root, listed):
    (cross_data,) = plan("fedtpg", data=["imagenet"], root=root).parts
    (trial,) = cross_data.drawn.trials
    data, classes = divided(trial)
    assert classes == {"imagenet": [5] * 200}
    assert trial.experiment.federation.participation == 0.1
    held_out = {images.class_set for images in data.evaluation_sets if images.held_out}
    assert held_out == {f"all/{name}" for name in CLASSES if name != "imagenet"}
    assert cross_data.stands_for(trial.experiment) == ("imagenet",)


def test_fewer_data_sets_make_another_federation(root):
    (part,) = plan("fedtpg", data=["dtd", "sun397"], root=root).parts
    (trial,) = part.drawn.trials
    assert [one.root for one in trial.experiment.data.parts] == [root / "dtd", root / "sun397"]
    assert trial.experiment.partition.clients == {"dtd": 1, "sun397": 10}
    assert part.changed[trial.id] == ("data.parts is dtd, sun397 only",)


def test_one_data_set_of_a_union_is_plain_data(root, listed):
    (part,) = plan("fedtpg", data=["stanford_cars"], root=root).parts
    (trial,) = part.drawn.trials
    assert (trial.experiment.data.name, trial.experiment.data.root) == ("stanford_cars", root / "stanford_cars")
    assert divided(trial)[1] == {"client": [19, 19, 20, 20, 20]}
    assert part.changed[trial.id] == ("data.parts is stanford_cars only",)


def test_fedmgp_compares_six_methods_on_disjoint_base_classes(root, listed):
    (part,) = plan("fedmgp", data=["dtd"], root=root).parts
    methods = [trial.experiment.method.name for trial in part.drawn.trials]
    assert methods == ["promptfl", "fedotp", "fedtpg", "fedpgp", "promptfolio", "fedmgp"]
    for trial in part.drawn.trials:
        one = trial.experiment.federation
        assert (one.rounds, one.local_epochs, one.batch_size, one.lr) == (10, 2, 8, 0.001)
        assert divided(trial)[1] == {"client": [2] * 6 + [3] * 4}  # 24 base classes
        assert trial.experiment.protocol.shots == 16


def test_the_noise_of_dp_fpl_is_that_of_its_rounds_and_batches(root, listed):
    (part,) = plan("dp_fpl", data=["oxford_pets"], root=root).parts
    assert [trial.experiment.method.name for trial in part.drawn.trials[:3]] == ["promptfl", "fedotp", "fedpgp"]
    own = [trial.experiment.method.settings for trial in part.drawn.trials[3:]]
    assert [one["epsilon"] for one in own] == [None, 0.4, 0.1, 0.01]
    assert {(one["n_ctx"], one["rank"], one["clip_norm"], one["delta"]) for one in own} == {(16, 8, 10.0, 1e-5)}
    for trial in part.drawn.trials:
        one = trial.experiment.federation
        assert (one.rounds, one.local_steps, one.batch_size, one.lr) == (100, 1, 32, 0.0001)
        assert divided(trial)[1] == {"client": [3] * 3 + [4] * 7}
    assert {(one["noise_rounds"], one["noise_batch"]) for one in own} == {(one.rounds, one.batch_size)}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "tabel4"}, ["no such table", "did you mean table4", "pfedpt"]),
        ({"name": "fedtgp"}, ["no such table", "did you mean fedtpg"]),
        ({"name": "fedtpg", "root": Path("/nowhere")}, ["/nowhere/sun397: no such", "/nowhere/imagenet: no such"]),
        ({"name": "fedtpg", "data": ["eurosat"]}, ["--data eurosat: not in fedtpg"]),
        ({"name": "table1", "data": ["dtd", "cifar10"]}, ["--data cifar10", "oxford_pets, flowers102"]),
        ({"name": "table5", "root": Path("/nowhere")}, ["/nowhere/cifar10: no such folder", "/nowhere/cifar100"]),
        ({"name": "pfedpt", "smoke": True, "backbone": "RN50"}, ["--backbone RN50", "pfedpt does not use CLIP"]),
        ({"name": "table4", "smoke": True, "overrides": ["federation.round=1"]}, ["did you mean rounds"]),
    ],
)
def test_bad_input_is_named(arguments, words):
    with pytest.raises(ConfigError) as refused:
        plan(**arguments)
    assert all(": " in line for line in str(refused.value).splitlines())
    for word in words:
        assert word in str(refused.value)

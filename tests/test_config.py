"""Settings: what is refused and how it is told, overrides, the digest, and examples that cannot go stale."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from fedpgp import config, methods
from fedpgp.config import Experiment
from fedpgp.core.errors import ConfigError
from fedpgp.data import sources
from fedpgp.experiments import planning

EXPERIMENTS = sorted((Path(__file__).parents[1] / "tune_configs" / "experiments").glob("*.yaml"))


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"federation": {"round": 5}}, "federation.round: unknown key; did you mean rounds"),
        ({"fedration": {}}, "fedration: unknown key; did you mean federation"),
        ({"federation": {"rounds": 0}}, r"federation.rounds: .*greater than or equal to 1 \(given: 0\)"),
        ({"federation": {"lr": "fast"}}, r"federation.lr: .*valid number.*\(given: 'fast'\)"),
        ({"federation": {"lr": float("nan")}}, "federation.lr: "),
        ({"data": {"template": "a photo"}}, "exactly one {}"),
        ({"data": {"train_fraction": 0.9, "val_fraction": 0.2}}, "must stay below 1"),
        ({"resources": {"gpus_per_actor": 1.5}}, "must be a whole number"),
        ({"partition": {"clients": None}}, "partition.clients is the number of clients"),
        ({"federation": {"lr_step_rounds": 3}}, "federation: lr_step_rounds has no effect; it needs lr_schedule=step"),
        ({"federation": {"lr_step_factor": 0.5, "lr_schedule": "cosine"}}, "lr_step_factor has no effect; it needs"),
        ({"federation": {"lr_schedule_per": "step"}}, "lr_schedule_per has no effect; it needs lr_schedule=cosine"),
        ({"federation": {"rounds": 3, "lr_warmup_rounds": 4}}, "lr_warmup_rounds=4 is above rounds=3"),
        ({"federation": {"local_epochs": 1, "straggler": 0.5}}, "straggler has no effect; it needs local_epochs=2"),
        ({"federation": {"dropout_keeps_personal": False}}, "dropout_keeps_personal has no effect; it needs dropout"),
        (
            {"federation": {"new_client_epochs": 2}},
            "new_client_epochs has no effect; it needs partition",
        ),
        ({"federation": {"attack": {"kind": "label_flip", "fraction": 0.2, "scale": 2}}}, "scale has no effect with"),
        ({"federation": {"attack": {"kind": "noise", "fraction": 0.2}}}, "federation.attack.kind: "),
        ({"federation": {"attack": {"kind": "gaussian"}}}, "federation.attack.fraction: "),
        (
            {"federation": {"rounds": 3, "attack": {"kind": "gaussian", "fraction": 0.2, "start_round": 4}}},
            "attack.start_round=4 is above rounds=3",
        ),
        ({"name": "a/b"}, "name: "),
        ({"seed": -1}, "seed: "),
    ],
)
def test_what_cannot_be_used_is_named(tree, message):
    with pytest.raises(ConfigError, match=message):
        config.parse(tree)


def test_all_faults_are_told_at_once():
    with pytest.raises(ConfigError) as caught:
        config.parse({"seed": -1, "federation": {"rounds": 0, "x": 1}}, source="my.yaml")
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert all(line.startswith("my.yaml: ") for line in lines)


def write(folder, text):
    path = folder / "experiment.yaml"
    path.write_text(text)
    return str(path)


def test_overrides_have_the_types_of_yaml(tmp_path):
    file = write(tmp_path, "federation: {rounds: 3}\n")
    given = ["federation.lr=0.5", "method.name=coop", "method.n_ctx=4", "data.class_names=[a, b]", "tracking.uri="]
    loaded = config.load(file, given)
    assert (loaded.federation.rounds, loaded.federation.lr) == (3, 0.5)
    assert (loaded.method.name, loaded.method.settings) == ("coop", {"n_ctx": 4})
    assert loaded.data.class_names == ("a", "b")
    assert loaded.tracking.uri is None


@pytest.mark.parametrize("override", ["federation.rounds", "=3", "a..b=3", "federation.rounds=[", "federation=3"])
def test_overrides_that_cannot_be_used(tmp_path, override):
    with pytest.raises(ConfigError):
        config.load(write(tmp_path, "seed: 1\n"), [override])


@pytest.mark.parametrize("text", ["- a\n", "a: [\n", "!!python/object/apply:os.system [echo]\n", ""])
def test_files_that_are_not_an_experiment(tmp_path, text):
    with pytest.raises(ConfigError, match=r"experiment\.yaml"):
        config.load(write(tmp_path, text))


def test_a_key_that_stands_twice_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="duplicate key seed near line 1"):
        config.load(write(tmp_path, "seed: 1\nname: a\nseed: 2\n"))


def test_a_file_that_is_not_utf_8(tmp_path):
    (tmp_path / "experiment.yaml").write_bytes("name: caf\xe9\n".encode("latin-1"))
    with pytest.raises(ConfigError, match="cannot be read as UTF-8"):
        config.load(str(tmp_path / "experiment.yaml"))


def test_another_method_keeps_the_settings_that_it_has_too(tmp_path):
    file = write(tmp_path, "method: {name: fedpgp, rank: 4, n_ctx: 2, position: front, ctx_init: a photo of a}\n")
    kept = {"n_ctx": 2, "position": "front", "ctx_init": "a photo of a"}
    loaded = config.load(file, ["method.name=coop"], methods.carry)
    assert (loaded.method.name, loaded.method.settings) == ("coop", kept)
    loaded = config.load(file, ["method.n_ctx=3", "method.name=coop"], methods.carry)
    assert loaded.method.settings == {**kept, "n_ctx": 3}
    assert config.load(file, ["method.name=fedpgp"], methods.carry).method.settings == {**kept, "rank": 4}


def test_the_value_of_a_section_is_merged_into_it(tmp_path):
    file = write(tmp_path, "method: {name: fedpgp, rank: 4, n_ctx: 2}\nfederation: {rounds: 7, lr: 0.1}\n")
    loaded = config.load(file, ["method={name: promptfl, position: front}", "federation={lr: 0.2}"], methods.carry)
    assert (loaded.method.name, loaded.method.settings) == ("promptfl", {"n_ctx": 2, "position": "front"})
    assert (loaded.federation.rounds, loaded.federation.lr) == (7, 0.2)


def test_settings_dropped_by_a_new_name_are_reported_unless_they_are_defaults(tmp_path, caplog):
    text = (
        "data: {name: folder, root: /x, template: null, views: 2}\n"
        "backbone: {name: tiny, weights: random, weights_key: ema}\n"
        "method: {name: prompt_prox, n_ctx: 4, position: end, class_specific: true, prox: 0.1}\n"
    )
    file, names = write(tmp_path, text), ["data.name=cifar10", "backbone.name=ViT-B-16", "method.name=fedcocoop"]
    config.load(file, [*names, "data.root=/y"], methods.carry)
    assert caplog.messages == [
        f"method.name=fedcocoop: dropped class_specific=True, prox=0.1 (which it does not take) of {file!r}",
        f"backbone.name=ViT-B-16: dropped weights=random, weights_key=ema of {file!r}",
    ]
    caplog.clear()
    config.load(file, ["data.name=cifar10", "backbone.name=tiny", "federation.rounds=2"])
    assert caplog.messages == [f"data.name=cifar10: dropped root=/x of {file!r}"]


def test_a_dropped_root_is_reported_without_its_password(caplog):
    config.override({"data": {"name": "parquet", "root": "s3://me:S3CRET@bucket/x"}}, ["data.name=shapes"])
    assert caplog.messages == ["data.name=shapes: dropped root=s3://***@bucket/x of 'settings'"]


def test_a_missing_file_names_the_shipped_ones():
    with pytest.raises(ConfigError, match=r"nothing\.yaml: no such file, and no shipped experiment.*shapes"):
        config.load("nothing.yaml")


def test_dump_reads_back_to_the_same():
    tree = {"data": {"name": "folder", "root": "/photos", "class_names": ["é", "b"]}, "method": {"name": "fedpgp"}}
    written = config.parse(tree)
    assert config.parse(yaml.safe_load(config.dump(written))) == written


def test_paths_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.pt").touch()
    tree = {"data": {"name": "folder", "root": "photos"}, "backbone": {"name": "tiny", "weights": "model.pt"}}
    moved = config.absolute(config.parse({**tree, "storage": {"root": "store"}}))
    assert moved.data.root == tmp_path / "photos"
    assert moved.backbone.weights == str(tmp_path / "model.pt")
    assert moved.storage.root == tmp_path / "store"
    assert config.absolute(config.parse({"backbone": {"weights": "random"}})).backbone.weights == "random"


def test_a_uri_as_storage_root_has_a_folder_of_its_own():
    storage = config.parse({"storage": {"root": "s3://me:secret@bucket/runs?region=x"}}).storage
    assert storage.uri == "s3://me:secret@bucket/runs?region=x"
    assert storage.root.parent == Path.home() / ".cache" / "fedpgp"
    assert storage.root.name.startswith("bucket-runs-")
    written = yaml.safe_load(config.dump(config.parse({"storage": {"root": storage.uri}})))
    assert config.parse(written).storage == storage
    with pytest.raises(ConfigError, match="root and uri are different URIs"):
        config.parse({"storage": {"root": "s3://a", "uri": "s3://b"}})
    with pytest.raises(ConfigError, match="uri must look like"):
        config.parse({"storage": {"uri": "/a/folder"}})


def test_the_defaults_are_the_world_in_the_package():
    experiment = config.parse({})
    assert (experiment.data.name, sources.complete(experiment).data.prompt) == ("icons", "an icon of a {}.")
    assert (experiment.backbone.name, experiment.backbone.weights) == ("icon-clip", None)


def test_the_digest_covers_what_can_change_a_number():
    base = config.digest(Experiment())
    same = [
        {"name": "other"},
        {"resources": {"actors": 7}},
        {"storage": {"root": "/elsewhere"}},
        {"tracking": {"mlflow": False}},
        {"backbone": {"class_chunk": 5}},
        {"federation": {"eval_clients": None}},
    ]
    different = [
        {"seed": 2},
        {"federation": {"lr": 0.5}},
        {"method": {"name": "fedpgp", "rank": 2}},
        {"data": {"template": "{}"}},
        {"federation": {"attack": {"kind": "gaussian", "fraction": 0.2}}},
        {"federation": {"dropout": 0.2}},
        {"federation": {"eval_clients": 5}},
        {"partition": {"unseen_clients": 0.2}},
    ]
    assert {config.digest(config.parse(tree)) for tree in same} == {base}
    assert len({config.digest(config.parse(tree)) for tree in different} | {base}) == 1 + len(different)
    assert config.digest(Experiment(), manifest="a") != config.digest(Experiment(), manifest="b")


def test_paths_do_not_count_but_what_they_lead_to():
    here, there = (config.parse({"data": {"name": "folder", "root": root}}) for root in ("/a", "/b"))
    assert config.digest(here, manifest="m") == config.digest(there, manifest="m")


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_shipped_experiments_show_every_key_with_its_comment(path):
    complete, _ = planning.settle(config.load(path.stem))
    text = "".join(path.read_text().partition("name: ")[1:])
    assert text == config.annotated(complete, planning.settings_types(complete))

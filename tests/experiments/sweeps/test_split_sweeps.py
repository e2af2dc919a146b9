"""Small sweeps on Ray Tune with terms of variants, random search, hyperband and several splits."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from mlflow.tracking import MlflowClient
from PIL import Image
from tiny_sweep import BASE, tiny_base

from fedpgp import config, tracking
from fedpgp.analysis import loading
from fedpgp.analysis.report import comparison_tables, terminal
from fedpgp.core.callbacks import EventStream
from fedpgp.core.errors import ConfigError
from fedpgp.experiments import estimation
from fedpgp.experiments.sweeps import sampling, sweep_runner, sweep_settings, tune_runner
from fedpgp.storage.run_folder import RunFolder
from fedpgp.storage.sweep_folder import Fold
from fedpgp.tracking import MLflowTracker

VARIANTS = {
    "PromptFL": {"method.name": "promptfl"},
    "FedPGP": {"method.name": "fedpgp", "method.rank": 1, "method.mu": {"grid_search": [0.0, 1.0]}},
}


def sweep(root, rounds=2, mlflow=False, **tree):
    tiny = tiny_base(rounds, storage={"root": str(root)}, tracking={"mlflow": mlflow})
    return sweep_settings.load({"base": tiny, **tree})[0]


def run(settings, rerun=None):
    events = []
    return sweep_runner.run(settings, rerun, EventStream(events.append), MLflowTracker()), events


@pytest.fixture(scope="module")
def done(ray_cluster, tmp_path_factory):
    """Two methods, of which one has two values of a key of its own, on two splits."""
    root = tmp_path_factory.mktemp("store")
    settings = sweep(root, mlflow=True, variants=VARIANTS, folds={"splits": [1, 2]}, tune={"metric": "val/local"})
    return root, settings, run(settings)[0]


@pytest.mark.slow
def test_every_trial_runs_on_every_split(done):
    _, _, folder = done
    labels = ["PromptFL", "FedPGP, mu=0", "FedPGP, mu=1"]
    assert [trial.label for trial in folder.trials] == labels
    assert [trial.folds for trial in folder.trials] == [(Fold(1, None, 1), Fold(1, None, 2))] * 3
    results = folder.results().values()
    assert [result.state for result in results] == ["finished"] * 3
    for result in results:
        found = [config.load(str(store.config_path)).data.split_seed for store in folder.runs(result)]
        assert found == [fold.split for fold in result.folds] == [1, 2]
        last = [store.rounds()[-1].metrics["val/local"] for store in folder.runs(result)]
        assert result.value == sum(last) / 2
    identities = [store.identity for result in results for store in folder.runs(result)]
    assert (
        len({one["manifest_digest"] for one in identities}) == len({one["partition_digest"] for one in identities}) == 2
    )


@pytest.mark.slow
def test_images_are_encoded_once_for_all_splits(done):
    root, _, _ = done
    assert len(list((root / "features").glob("*.arrow"))) == 1


@pytest.mark.slow
def test_a_sweep_on_one_of_the_splits_takes_its_runs(done, monkeypatch):
    root, settings, folder = done
    monkeypatch.setattr(tune_runner, "run", None)
    again, _ = run(settings)
    assert again.path == folder.path
    plain = sweep(root, variants=VARIANTS, tune={"metric": "val/local"})  # the base has split 1
    other, _ = run(plain)
    assert other.path != folder.path
    assert [trial.id for trial in other.trials] == [trial.id for trial in folder.trials]
    assert [trial.folds for trial in other.trials] == [(Fold(1),)] * 3
    assert [one.folds[0].run for one in other.results().values()] == [
        one.folds[0].run for one in folder.results().values()
    ]


@pytest.mark.slow
def test_the_dry_run_shows_the_splits(done):
    _, settings, _ = done
    drawn = sampling.draw(settings)
    found = estimation.of_sweep(settings, drawn)
    assert [len(own) for own in found.folds] == [2, 2, 2]
    table = terminal.dry_run(settings, drawn, found).renderables[0]
    assert {row[2].text for row in table.rows} == {"seed 1 x splits 1, 2"}


@pytest.mark.slow
def test_reports_pair_by_split(done):
    _, _, folder = done
    found = loading.find([folder.path]).compare()
    assert found.missing() == []
    assert [group.label for group in found.groups] == ["PromptFL", "FedPGP, mu=0", "FedPGP, mu=1"]
    first, second, _ = found.groups
    assert first.seeds == [(1, 1), (1, 2)]
    difference = found.difference(second, "PromptFL", "local").by_seed
    assert difference == {
        key: second.statistic("local").by_seed[key] - first.statistic("local").by_seed[key] for key in first.seeds
    }
    assert comparison_tables.accuracies(found, "").rows[0][1].text == "2 splits"
    lines = comparison_tables.as_csv(found, "PromptFL").splitlines()
    assert any(",1/1 1/2," in line for line in lines)


@pytest.mark.slow
def test_mlflow_names_folds_by_their_split(done):
    root, _, folder = done
    client = MlflowClient(tracking.default_uri(root))
    experiment = client.get_experiment_by_name("fedpgp").experiment_id
    entries = list(client.search_runs([experiment]))
    names = Counter(entry.info.run_name for entry in entries)
    assert names == {folder.path.name: 1, "PromptFL": 1, "FedPGP, mu=0": 1, "FedPGP, mu=1": 1} | {
        f"seed 1, split {split}": 3 for split in (1, 2)
    }
    params = {entry.info.run_name: entry.data.params.get("data.split_seed") for entry in entries}
    assert params["PromptFL"] is None  # its folds differ in it
    assert {params["seed 1, split 1"], params["seed 1, split 2"]} == {"1", "2"}
    (top,) = (entry for entry in entries if entry.info.run_name == folder.path.name)
    assert "each over the splits 1, 2" in top.data.tags["mlflow.note.content"]


def test_data_with_a_split_of_their_own_are_refused_before_work(tmp_path):
    for place in (f"{split}/{name}" for split in ("train", "test") for name in ("cat", "dog", "emu", "fox")):
        (tmp_path / "photos" / place).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (8, 8), (40 * number, 0, 0)).save(tmp_path / "photos" / place / f"{number}.png")
    data = {"name": "folder", "root": str(tmp_path / "photos")}
    base = {**BASE, "data": data, "storage": {"root": str(tmp_path)}}
    settings = sweep_settings.load({"base": base, "folds": {"splits": [1, 2]}})[0]
    message = (
        "^folds.splits: 1 and 2 are the same split of data folder, which have a split of their own; leave out folds"
    )
    with pytest.raises(ConfigError, match=message):
        run(settings)
    with pytest.raises(ConfigError, match=message):
        estimation.of_sweep(settings, sampling.draw(settings))
    assert not (tmp_path / "runs").exists()


def test_a_metric_without_images_is_refused_before_work(tmp_path):
    base = {**BASE, "storage": {"root": str(tmp_path)}}
    protocol = {"name": "leave_one_domain_out", "held_out": "all"}
    base |= {"protocol": protocol, "partition": {"scheme": "domain", "clients": None}}
    base["data"] = {"name": "shapes", "train_fraction": 0.01, "val_fraction": 0.0}
    with pytest.raises(ConfigError, match=r"^tune.metric: val/local is not measured: no validation image of"):
        run(sweep_settings.load({"base": base})[0])


def states(folder):
    return [folder.result(trial.id).state for trial in folder.trials]


def stopped_at(folder):
    """After how many rounds each trial ended."""
    return [len(folder.runs(folder.result(trial.id))[0].rounds()) for trial in folder.trials]


@pytest.mark.slow
@pytest.mark.parametrize("search", ["grid", "random"])
@pytest.mark.parametrize("scheduler", ["asha", "hyperband", "median"])
def test_every_scheduler_with_every_search(ray_cluster, tmp_path, scheduler, search):
    """Two trials at a time, one of which has a method that never reports the metric: all end, and the best is known."""
    variants = {"zero-shot": {"method.name": "zero_shot"}, "PromptFL": {"federation.lr": {"grid_search": [0.1, 0.001]}}}
    variants["FedPGP"] = {"method.name": "fedpgp", "method.rank": 1, "federation.lr": {"uniform": [0.01, 0.1]}}
    tune = {"metric": "train/loss", "mode": "min", "scheduler": scheduler, "grace_rounds": 1, "max_concurrent": 2}
    tune |= {"search": search, "num_samples": 3}
    folder, _ = run(sweep(tmp_path, rounds=4, variants=variants, tune=tune))
    assert set(states(folder)) <= {"finished", "stopped"}
    assert "finished" in states(folder)
    assert folder.status["state"] == "finished"
    for trial, rounds in zip(folder.trials, stopped_at(folder), strict=True):
        if trial.settings.get("method.name") != "zero_shot":
            assert rounds == (4 if folder.result(trial.id).state == "finished" else rounds) >= 1
    again, _ = run(sweep(tmp_path, rounds=4, variants=variants, tune=tune))
    assert json.dumps(states(again)) == json.dumps(states(folder))


@pytest.mark.slow
def test_hyperband_spares_every_other_trial(ray_cluster, tmp_path):
    """Four rounds with decisions after two make two brackets: trials 1, 3, 5 can be stopped, 2, 4, 6 cannot. In both
    each trial is worse than the one before."""
    rates = [0.01, 0.011, 0.001, 0.0011, 0.0001, 0.00011]
    tune = {"metric": "train/loss", "mode": "min", "scheduler": "hyperband", "grace_rounds": 2}
    folder, _ = run(sweep(tmp_path, rounds=4, space={"federation.lr": {"grid_search": rates}}, tune=tune))
    assert states(folder) == ["finished", "finished", "stopped", "finished", "stopped", "finished"]
    assert stopped_at(folder) == [4, 4, 2, 4, 2, 4]
    assert folder.result(folder.trials[2].id).reason == "stopped at round 2 by hyperband"


@pytest.mark.slow
def test_a_killed_sweep_on_splits_continues_where_it_was(ray_cluster, tmp_path, monkeypatch):
    settings = sweep(tmp_path, folds={"splits": [1, 2]}, space={"federation.lr": {"grid_search": [0.1, 0.05]}})
    whole, _ = run(settings)
    before = whole.results()
    last = whole.trials[1]
    for store in whole.runs(before[last.id])[1:]:
        (store.path / "summary.json").unlink()
        status = json.loads((store.path / "status.json").read_text())
        (store.path / "status.json").write_text(json.dumps({**status, "state": "stopped"}))
    whole.forget(last.id)
    count = len(list((tmp_path / "runs").iterdir()))
    again, _ = run(settings, "missing")
    assert again.results() == before
    assert len(list((tmp_path / "runs").iterdir())) == count
    assert {store.state for store in map(RunFolder.open, (tmp_path / "runs").iterdir())} == {"finished"}

"""Adaptive searches and trade-offs on Ray Tune, end to end: resumed, repeated, stopped by a scheduler, mirrored."""

from __future__ import annotations

import pytest
from mlflow.artifacts import list_artifacts
from mlflow.tracking import MlflowClient
from tiny_sweep import tiny_base

from fedpgp import tracking
from fedpgp.core.callbacks import EventStream
from fedpgp.core.errors import RunError
from fedpgp.experiments.sweeps import sweep_runner, sweep_settings
from fedpgp.storage.run_folder import RunFolder
from fedpgp.tracking import MLflowTracker, views

RATES = {"federation.lr": {"loguniform": [0.001, 0.5]}}
BOTH = ["val/local", "val/novel"]


def sweep(root, mlflow=False, space=RATES, rounds=2, **tune):
    tree = tiny_base(rounds, storage={"root": str(root)}, tracking={"mlflow": mlflow})
    return sweep_settings.Sweep.model_validate({"base": tree, "space": space, "tune": {"search": "optuna", **tune}})


def run(settings, rerun=None):
    """The folder, and the messages on the way."""
    events = []
    folder = sweep_runner.run(settings, rerun, EventStream(events.append), MLflowTracker())
    return folder, [event.arguments[0] for event in events if event.method == "on_message"]


def stored(root):
    return sorted(path.name for path in (root / "runs").glob("[!.]*"))


@pytest.fixture(scope="module")
def done(ray_cluster, tmp_path_factory):
    root = tmp_path_factory.mktemp("store")
    settings = sweep(root, mlflow=True, num_samples=4, metric=BOTH, points_to_try=[{"federation.lr": 0.25}])
    return root, settings, run(settings)[0]


def test_a_search_runs_as_many_trials_as_asked_for(done):
    root, _, folder = done
    results = folder.results()
    assert [result.state for result in results.values()] == ["finished"] * 4
    assert folder.trials[0].settings == {"federation.lr": 0.25}
    assert (folder.state, folder.planned, len(stored(root))) == ("finished", 4, 4)
    for result in results.values():
        (store,) = folder.runs(result)
        last = store.rounds()[-1].metrics
        assert result.values == (last["val/local"], last["val/novel"])
        assert result.value == pytest.approx(2 / (1 / last["val/local"] + 1 / last["val/novel"]))


def test_a_search_that_has_ended_is_ranked_again_without_work(done):
    _, settings, folder = done
    before = folder.suggestions
    again, (message, *_) = run(settings)
    assert (again.path, again.suggestions) == (folder.path, before)
    assert message == "4 of 4 trials finished before"


@pytest.mark.slow
def test_a_longer_search_suggests_the_same_first_and_runs_only_what_is_new(done):
    """Another sweep of the same storage root: its first trials are answered from the rows of the finished ones."""
    root, settings, folder = done
    earlier = stored(root)
    longer = settings.model_copy(update={"tune": settings.tune.model_copy(update={"num_samples": 6})})
    other, _ = run(longer)
    assert other.path != folder.path
    assert other.suggestions[:4] == folder.suggestions
    assert {name: other.results()[name] for name in folder.results()} == folder.results()
    assert (len(other.trials), len(set(stored(root)) - set(earlier))) == (6, 2)


def test_an_unfinished_search_continues_on_request(done):
    """As if it had been killed in its fourth trial: refused without a request, then that trial runs again."""
    _, settings, folder = done
    last = folder.trials[-1]
    (store,) = folder.runs(folder.result(last.id))
    folder.forget(last.id)
    for file in (store.path / "summary.json", store.path / "status.json"):
        file.unlink(missing_ok=True)
    store.stop("by hand")
    with pytest.raises(RunError, match=r"\(finished, 3 of 4 trials ended\); continue with --resume, or start over"):
        run(settings)
    again, (message, *_) = run(settings, "missing")
    assert message == "3 of 4 trials finished before"
    assert [result.state for result in again.results().values()] == ["finished"] * 4
    assert len(again.suggestions) == 4


def test_mlflow_has_the_front_and_both_metrics_as_columns(done):
    root, _, folder = done
    uri = tracking.default_uri(root)
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("fedpgp").experiment_id
    found = client.search_runs([experiment], f"attributes.run_name = '{folder.path.name}'")
    (entry,) = found
    assert entry.data.params["tune.metric"] == "val/local, val/novel"
    assert "Pareto front" in entry.data.tags["mlflow.note.content"]
    files = {item.path for item in list_artifacts(run_id=entry.info.run_id, tracking_uri=uri)}
    figures = {item.path for item in client.list_artifacts(entry.info.run_id, "figures")}
    assert "pareto.md" in files
    assert "figures/pareto.png" in figures
    assert views.objectives(entry) == ["val/local", "val/novel"]
    assert "federation.lr" in views.searched(entry)


@pytest.mark.slow
def test_starting_over_runs_every_trial_again(done):
    root, settings, folder = done
    before, suggested = stored(root), folder.suggestions
    again, _ = run(settings, "all")
    assert again.suggestions == suggested
    assert len(stored(root)) == len(before) + 4


@pytest.mark.slow
def test_a_space_whose_trials_repeat_ends_the_search(ray_cluster, tmp_path):
    settings = sweep(tmp_path, space={"federation.lr": {"choice": [0.1, 0.2]}}, num_samples=5, metric="val/hm")
    folder, messages = run(settings)
    assert "the search ends after 2 of 5 trials: the last 50 suggestions had all been made before" in messages
    assert (folder.state, folder.planned, len(folder.results()), len(stored(tmp_path))) == ("finished", 2, 2, 2)
    _, (message, *_) = run(settings)
    assert message == "2 of 2 trials finished before"


@pytest.mark.slow
def test_settings_that_change_the_features_are_searched(ray_cluster, tmp_path):
    """The views of images have features of their own, which are extracted before the trials that need them."""
    space = {"data.views": {"randint": [1, 5]}, **RATES}
    points = [{"data.views": views} for views in (1, 3)]  # only the bounds are extracted before the search
    folder, _ = run(sweep(tmp_path, space=space, num_samples=2, metric="val/hm", points_to_try=points))
    assert [result.state for result in folder.results().values()] == ["finished"] * 2
    assert [trial.settings["data.views"] for trial in folder.trials] == [1, 3]


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", ["asha", "median"])
def test_schedulers_stop_suggested_trials(ray_cluster, tmp_path, scheduler):
    """Five known points, each worse than the one before, as in the test of grids with schedulers."""
    points = [{"federation.lr": rate} for rate in (0.01, 0.001, 0.0012, 0.1, 0.49)]
    judged = {"metric": "train/loss", "mode": "min", "scheduler": scheduler, "grace_rounds": 2}
    folder, _ = run(sweep(tmp_path, rounds=6, num_samples=5, points_to_try=points, **judged))
    results = folder.results().values()
    assert [trial.settings for trial in folder.trials] == points
    assert {result.state for result in results} == {"finished", "stopped"}
    for result in results:
        (store,) = folder.runs(result)
        assert RunFolder.open(store.path).state == result.state
        if result.state == "stopped":
            assert result.value == store.rounds()[1].metrics["train/loss"]

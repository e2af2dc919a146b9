"""A sweep, its trials and their folds are in MLflow once, whatever was deleted there."""

from __future__ import annotations

import pytest

from fedpgp import config, tracking
from fedpgp.experiments.sweeps.sweep_settings import Sweep
from fedpgp.storage.objectives import Objectives
from fedpgp.storage.sweep_folder import Fold, FoldRun, Result, SweepFolder, TrialSpec

PARENT = "mlflow.parentRunId"
ALL = [("mine-0", "rank=1"), ("mine-0", "rank=2"), ("rank=1", "seed 1"), ("rank=2", "seed 2"), (None, "mine-0")]


@pytest.fixture
def made_sweep(tmp_path, made_run, request):
    """Write a sweep to disk as if it had run: two trials of one fold each, which all sweeps of a test share."""
    experiment = f"tracking.experiment='{request.node.name}'"
    series = {seed: {"val/hm": [40, 50 + seed], "val/local.sketch": [30, 35]} for seed in (1, 2)}
    runs = {seed: made_run(f"seed={seed}", experiment, root=tmp_path, **series[seed]) for seed in series}

    def make(name="mine"):
        spec = Sweep(name=name, base={"tracking": {"experiment": request.node.name}})
        trials = [TrialSpec(f"t{seed}", f"rank={seed}", {"method.rank": seed}, (Fold(seed),)) for seed in runs]
        folder = SweepFolder.create(tmp_path, name, "0", config.dump(spec), Objectives(("val/hm",)), trials)
        for seed, run in runs.items():
            folder.record(Result(f"t{seed}", "finished", 50.0 + seed, (FoldRun(seed, None, run.name),)))
        folder.set_status("finished")
        return folder

    return make


@pytest.fixture
def mlflow_runs(tmp_path, shared_uri, shared_client, request):
    """Sync the storage root, and list the MLflow runs of the experiment that are not deleted."""

    def sync():
        list(tracking.sync_all(tmp_path, shared_uri))
        experiment = shared_client.get_experiment_by_name(request.node.name).experiment_id
        return list(shared_client.search_runs([experiment]))

    return sync


def below(runs):
    """(name of the parent, name) of each MLflow run."""
    names = {run.info.run_id: run.info.run_name for run in runs}
    pairs = [(names.get(run.data.tags.get(PARENT), run.data.tags.get(PARENT)), run.info.run_name) for run in runs]
    return sorted(pairs, key=lambda pair: (pair[0] is None, pair))


@pytest.mark.parametrize(
    "deleted",
    [["mine-0"], ["rank=1"], ["mine-0", "rank=2"], ["mine-0", "rank=1", "rank=2"], ["rank=1", "seed 1"]],
    ids=" ".join,
)
@pytest.mark.parametrize("for_good", [False, True], ids=["deleted", "removed"])
def test_what_is_below_a_deleted_entry_is_moved_below_the_new_one(
    made_sweep, mlflow_runs, shared_client, deleted, for_good
):
    made_sweep()
    before = mlflow_runs()
    assert below(before) == ALL
    for run in before:
        if run.info.run_name in deleted:
            shared_client.delete_run(run.info.run_id)
            if for_good:
                shared_client._tracking_client.store._hard_delete_run(run.info.run_id)
    for _ in range(2):
        assert below(after := mlflow_runs()) == ALL
    kept = {run.info.run_id for run in before if run.info.run_name not in deleted}
    assert kept <= {run.info.run_id for run in after}


def test_two_sweeps_that_share_trials_keep_their_own_entries(made_sweep, mlflow_runs, shared_client):
    made_sweep(), made_sweep("other")
    before = {run.info.run_id: run.data.tags.get(PARENT) for run in mlflow_runs()}
    assert len(before) == 2 * len(ALL)
    (sweep,) = [run for run in mlflow_runs() if run.info.run_name == "mine-0"]
    trial = next(run for run in mlflow_runs() if run.data.tags.get(PARENT) == sweep.info.run_id)
    gone = {sweep.info.run_id, trial.info.run_id}
    for run_id in gone:
        shared_client.delete_run(run_id)
    after = {run.info.run_id: run.data.tags.get(PARENT) for run in mlflow_runs()}
    assert len(after) == 2 * len(ALL)
    others = [run_id for run_id, parent in before.items() if run_id not in gone and parent not in gone]
    assert {run_id: after[run_id] for run_id in others} == {run_id: before[run_id] for run_id in others}


def test_a_deleted_entry_that_is_restored_later_makes_nothing_twice(made_sweep, mlflow_runs, shared_client):
    made_sweep()
    first = {run.info.run_name: run.info.run_id for run in mlflow_runs()}
    for name in ("mine-0", "rank=1"):
        shared_client.delete_run(first[name])
    mlflow_runs()
    for name in ("mine-0", "rank=1"):
        shared_client.restore_run(first[name])
    names = [run.info.run_name for run in mlflow_runs()]
    assert sorted(set(names)) == sorted(name for _, name in ALL)
    assert [names.count(name) for name in ("rank=2", "seed 1", "seed 2")] == [1, 1, 1]


def test_trials_have_single_domains_of_the_last_evaluated_round_only(made_sweep, mlflow_runs, shared_client):
    """Their folds have them for every round."""
    made_sweep()
    ids = {run.info.run_name: run.info.run_id for run in mlflow_runs()}
    steps = {
        (name, metric): [point.step for point in shared_client.get_metric_history(ids[name], metric)]
        for name in ("rank=1", "seed 1")
        for metric in ("val/hm", "val/local.sketch")
    }
    assert steps == {
        ("rank=1", "val/hm"): [1, 2],
        ("rank=1", "val/local.sketch"): [2],
        ("seed 1", "val/hm"): [1, 2],
        ("seed 1", "val/local.sketch"): [1, 2],
    }

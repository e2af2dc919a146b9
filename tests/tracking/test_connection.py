"""An experiment that was deleted in MLflow comes back, with what was in it, and this is said once."""

from __future__ import annotations

import pytest

from fedpgp import tracking
from fedpgp.core.errors import FedPGPError


def test_a_deleted_experiment_is_restored_with_its_runs(tmp_path, shared_uri, shared_client, made_run, caplog):
    runs = [made_run(f"seed={seed}", "tracking.experiment=deleted", root=tmp_path) for seed in (1, 2)]
    first = tracking.sync_run(runs[0], shared_uri)
    experiment = shared_client.get_experiment_by_name("deleted").experiment_id
    shared_client.delete_experiment(experiment)
    for _ in range(2):
        second = tracking.sync_run(runs[1], shared_uri)
    assert {run.info.run_id for run in shared_client.search_runs([experiment])} == {first, second}
    said = [record.getMessage() for record in caplog.records if record.name == "fedpgp.tracking"]
    assert said == [f"MLflow at {shared_uri}: experiment 'deleted' was deleted; it is restored"]


def test_one_that_was_removed_for_good_is_made_anew(tmp_path, shared_uri, shared_client, caplog):
    first = tracking.prepare(tmp_path, shared_uri, "removed")
    shared_client.delete_experiment(first)
    shared_client._tracking_client.store._hard_delete_experiment(first)
    made = tracking.prepare(tmp_path, shared_uri, "removed")
    assert shared_client.get_experiment(made).lifecycle_stage == "active"
    assert [record for record in caplog.records if record.name == "fedpgp.tracking"] == []


def test_the_experiment_is_deleted_while_a_run_is_mirrored(tmp_path, shared_uri, shared_client, made_run):
    run = made_run("tracking.experiment=meanwhile", root=tmp_path, state="running", test_local=[50])
    writer = tracking.mirror.run_writer(run, shared_uri, None)
    writer.push()
    experiment = shared_client.get_experiment_by_name("meanwhile").experiment_id
    shared_client.delete_experiment(experiment)
    writer._sent[writer.run_id] = -1  # as if there were a new round
    with pytest.raises(FedPGPError, match="active"):
        writer.push()
    assert tracking.sync_run(run, shared_uri) == writer.run_id
    assert [one.info.run_id for one in shared_client.search_runs([experiment])] == [writer.run_id]

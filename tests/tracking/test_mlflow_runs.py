"""A parent says of itself what is true of all its folds, and nothing else."""

import pytest
from mlflow.tracking import MlflowClient

from fedpgp import tracking
from fedpgp.tracking import mlflow_runs

ONE = {
    "id": "a", "name": "x", "created_ms": 1, "config_digest": "c1", "method": "fedpgp", "data": "icons", "seed": 1,
    "manifest_digest": "m1", "partition_digest": "p1", "git_commit": "abc", "versions": {"torch": "2.0"},
    "class_names": ["cat"], "backbone": None,
}  # fmt: skip
OTHER = {**ONE, "id": "b", "seed": 2, "partition_digest": "p2", "config_digest": "c2"}


@pytest.fixture(scope="module")
def entry(tmp_path_factory):
    """A client, and how to make an entry."""
    root = tmp_path_factory.mktemp("store")
    experiment = tracking.prepare(root, tracking.default_uri(root), "mine")
    client = MlflowClient(tracking.default_uri(root))
    return client, lambda: client.create_run(experiment, tags={"fedpgp.config_digest": "own"}).info.run_id


def told(client, run_id):
    return {key: value for key, value in client.get_run(run_id).data.tags.items() if key != "mlflow.runName"}


def inputs(client, run_id):
    return [(one.dataset.name, one.dataset.digest) for one in client.get_run(run_id).inputs.dataset_inputs]


def test_what_the_accountant_assumed_is_in_tags():
    private = {"noise_multiplier": 1.5, "delta": 0.01, "participants": 4.0, "neighbours": "one client replaced"}
    assert mlflow_runs.tags_of({"privacy": private}) == {
        "fedpgp.privacy.noise_multiplier": "1.5", "fedpgp.privacy.delta": "0.01", "fedpgp.privacy.participants": "4.0",
        "fedpgp.privacy.neighbours": "one client replaced",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("test/local_ece", "test/local_ece"),
        ("test/local.Real World", "test/local.Real World"),
        ("test/local.R&B/a", "test/local.R_26B_2fa"),
    ],
)
def test_a_metric_of_any_domain_has_a_name_that_mlflow_accepts(entry, name, key):
    client, make = entry
    run_id = make()
    mlflow_runs.log_metrics(client, run_id, mlflow_runs.metrics({name: 1.5}, 1, 1))
    assert client.get_run(run_id).data.metrics == {key: 1.5}


def test_a_run_has_its_identity_and_its_commit_where_mlflow_shows_it():
    assert mlflow_runs.tags_of(ONE) == {
        "fedpgp.id": "a", "fedpgp.name": "x", "fedpgp.created_ms": "1", "fedpgp.config_digest": "c1",
        "fedpgp.method": "fedpgp", "fedpgp.data": "icons", "fedpgp.seed": "1", "fedpgp.manifest_digest": "m1",
        "fedpgp.partition_digest": "p1", "fedpgp.git_commit": "abc", "mlflow.source.git.commit": "abc",
        "fedpgp.versions.torch": "2.0",
    }  # fmt: skip


def test_a_parent_has_what_its_folds_agree_on(entry):
    client, new = entry
    run_id = new()
    mlflow_runs.share(client, run_id, [ONE, OTHER])
    assert told(client, run_id) == {
        "fedpgp.config_digest": "own", "fedpgp.method": "fedpgp", "fedpgp.data": "icons",
        "fedpgp.manifest_digest": "m1", "fedpgp.git_commit": "abc", "mlflow.source.git.commit": "abc",
        "fedpgp.versions.torch": "2.0",
    }  # fmt: skip


def test_what_they_no_longer_agree_on_goes(entry):
    client, new = entry
    run_id = new()
    mlflow_runs.share(client, run_id, [ONE])
    assert told(client, run_id)["mlflow.source.git.commit"] == "abc"
    without = {key: value for key, value in OTHER.items() if key != "git_commit"}
    mlflow_runs.share(client, run_id, [ONE, {**without, "method": "promptfl"}])
    assert told(client, run_id) == {
        "fedpgp.config_digest": "own", "fedpgp.data": "icons", "fedpgp.manifest_digest": "m1",
        "fedpgp.versions.torch": "2.0",
    }  # fmt: skip


def test_every_data_set_is_an_input_once(entry):
    client, new = entry
    run_id = new()
    for identities in ([ONE], [ONE, OTHER], [ONE, {**OTHER, "data": "shapes", "manifest_digest": "m2"}], []):
        mlflow_runs.share(client, run_id, identities)
    assert sorted(inputs(client, run_id)) == [("icons", "m1"), ("shapes", "m2")]
    (context,) = {tag.value for one in client.get_run(run_id).inputs.dataset_inputs for tag in one.tags}
    assert context == "training"

"""An exported prompt is in the registry of its run's store, with its card, and classifies as the prompt does."""

from __future__ import annotations

import io
import shutil

import mlflow
import pandas as pd
import pytest
from mlflow.tracking import MlflowClient
from PIL import Image

import fedpgp as api
from fedpgp.core.errors import ConfigError, RunError
from fedpgp.tracking.registry import MAX_DESCRIPTION, Registration, described

SMALL = (
    "protocol.shots=1", "partition.clients=2", "method.n_ctx=1", "method.rank=1", "federation.rounds=1",
    "federation.local_epochs=1", "resources.backend=serial",
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory, shared_uri):
    """A small finished run that is mirrored to the shared store."""
    root = tmp_path_factory.mktemp("store")
    mirrored = (f"storage.root={root}", f"tracking.uri={shared_uri}", "tracking.experiment=registered")
    return api.run("shapes", *SMALL, *mirrored).path


@pytest.fixture
def clean_registry(shared_client):
    """Remove the models that a test has registered."""
    yield shared_client
    for model in shared_client.search_registered_models():
        shared_client.delete_registered_model(model.name)


def test_the_latest_registered_model_is_the_best_one_and_predicts(
    fedpgp, run, shared_uri, clean_registry, tmp_path, monkeypatch
):
    for version, client in (("1", "client 0"), ("2", "client 1")):
        code, out, err = fedpgp("export", run, "--client", client, "--out", tmp_path / "out", "--register", "a prompt")
        assert (code, err) == (0, "")
        assert out.splitlines()[-1] == f"registered: models:/a prompt@best (version {version}) in {shared_uri}"
    client = clean_registry
    model = client.get_registered_model("a prompt")
    assert {alias: str(number) for alias, number in model.aliases.items()} == {"best": "2"}
    assert model.description.startswith("**fedpgp prompt for ")
    versions = {str(one.version): one for one in client.search_model_versions("name = 'a prompt'")}
    assert "client 0" in versions["1"].description
    assert "client 1" in versions["2"].description
    assert model.description == versions["2"].description
    assert {client.get_run(one.run_id).info.run_name for one in versions.values()} == {run.name}
    outputs = client.get_run(versions["1"].run_id).outputs.model_outputs
    assert [one.step for one in outputs] == [1, 1]
    shutil.rmtree(tmp_path / "out")
    pixels = io.BytesIO()
    Image.new("RGB", (32, 32), (200, 20, 20)).save(pixels, "PNG")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", shared_uri)
    for name, who in (("models:/a prompt@best", "client 1"), ("models:/a prompt/1", "client 0")):
        answer = mlflow.pyfunc.load_model(name).predict(pd.DataFrame({"image": [pixels.getvalue()]}))
        expected = api.Run(run).prompt(who).predict([Image.open(pixels)], top=1)
        assert answer["class"].tolist() == expected["class"].tolist()
        assert answer["probability"].tolist() == expected["probability"].tolist()


@pytest.mark.parametrize("name", ["", " ", "a/b", "models:/a"])
def test_a_name_that_mlflow_rejects_is_rejected_before_anything_is_written(fedpgp, run, tmp_path, name):
    code, out, err = fedpgp("export", run, "--client", "0", "--out", tmp_path / "out", "--register", name)
    assert (code, out) == (2, "")
    assert err.strip().endswith(f"--register: {name!r}: a model's name has at least one letter, and no / and no :")
    assert not (tmp_path / "out").exists()


def test_a_run_that_mlflow_does_not_have_because_it_is_off_is_rejected(made_run, tmp_path):
    from fedpgp import tracking

    run = made_run("tracking.mlflow=false", root=tmp_path, test_hm=[50])
    with pytest.raises(RunError, match=rf"tracking.mlflow is false .* first run `fedpgp track sync {run}`$"):
        Registration.prepare(run, "mine")
    assert not (tmp_path / "mlflow.db").exists()
    list(tracking.sync_all(run))
    assert Registration.prepare(run, "mine").name == "mine"


def test_a_store_without_a_registry_is_rejected(run, monkeypatch):
    from mlflow.tracking.registry import UnsupportedModelRegistryStoreURIException

    def refuse(self, name):
        raise UnsupportedModelRegistryStoreURIException("x", [])

    monkeypatch.setattr(MlflowClient, "get_registered_model", refuse)
    with pytest.raises(ConfigError, match=r"^--register: MLflow at sqlite:.* has no model registry$"):
        Registration.prepare(run, "mine")


def test_a_card_of_many_classes_stays_within_the_length_of_a_description(run):
    card = dict(api.Run(run).prompt("client 0").card)
    assert "| classes | " in described(card)
    card["class_names"] = [f"class {number}" for number in range(1000)]
    text = described(card)
    assert "class 19 and 980 more" in text
    assert len(text) < MAX_DESCRIPTION
    assert f"{dict(card['metrics'])['test/local']:.2f}" in text

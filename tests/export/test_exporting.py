"""A prompt out of its run: it classifies as it did in the federation, says what it is, and is refused where it must."""

from __future__ import annotations

import base64
import io
import json
import shutil
import subprocess
import sys
import threading

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch

from fedpgp import config
from fedpgp.core.callbacks import RunCallback
from fedpgp.core.errors import BackboneError, ConfigError, DataError, RunError
from fedpgp.data import manifest, protocol
from fedpgp.data.sources import open_source
from fedpgp.experiments import runner
from fedpgp.export import mlflow_model
from fedpgp.export.exporting import FILE, learned_prompt
from fedpgp.export.prompt_file import Predictor, Prompt, best
from fedpgp.storage.run_folder import RunFolder

WORLD = {
    "data": {"name": "shapes"},
    "backbone": {"name": "tiny", "weights": "random"},
    "partition": {"clients": 3},
    "protocol": {"shots": 2},
}
SMALL = {
    "coop": {"n_ctx": 2},
    "promptfl": {"n_ctx": 2, "ctx_init": "a photo of a"},
    "fedcocoop": {"n_ctx": 2},
    "fedmaple": {"n_ctx": 2, "depth": 2},
    "fedotp": {"n_ctx": 2},
    "fedpgp": {"n_ctx": 2, "rank": 2},
    "fedlora": {"rank": 2},
    "fedtpg": {"n_ctx": 2},
}
UNFIT = {"pfedpt": {"model": "test_resnet", "prompt_epochs": 1}}


def export(run, client, folder, which="last"):
    """The file of the prompt that a client or the server has learned, in a new folder."""
    prompt = learned_prompt(run, client, which)
    folder.mkdir(parents=True, exist_ok=True)
    return prompt.save(folder / FILE)


@pytest.fixture(scope="module")
def run_of(tmp_path_factory):
    """Run two rounds of a method on the drawn shapes, once; its folder."""
    root, done = tmp_path_factory.mktemp("store"), {}

    def run(name, unseen=0.0, **settings):
        key = (name, unseen, *sorted(settings.items()))
        if key not in done:
            tree = {
                **WORLD,
                "partition": {"clients": 3, "unseen_clients": unseen},
                "name": name,
                "method": {"name": name, **SMALL.get(name, {}), **settings},
                "federation": {"rounds": 2, "lr": 0.1, "local_epochs": 1},
                "resources": {"backend": "serial"},
                "storage": {"root": str(root)},
            }
            done[key] = runner.run(config.parse(tree), False, RunCallback(), threading.Event())
        return done[key]

    return run


@pytest.fixture(scope="module")
def base_images():
    """The test images of the base classes and their labels."""
    settings = config.parse(WORLD)
    built = manifest.build(settings.data)
    data = protocol.build(built, settings.partition, settings.protocol, settings.seed)
    (pool,) = [pool for pool in data.evaluation_sets if (pool.split, pool.class_set) == ("test", "base")]
    return list(open_source(settings.data).read(built.table.take(pool.rows))), pool.labels


@pytest.mark.parametrize("name", SMALL)
def test_it_is_right_as_often_as_in_the_federation(name, run_of, base_images, tmp_path):
    run = run_of(name)
    prompt = Prompt.load(export(run, "1", tmp_path))
    images, labels = base_images
    given = Predictor(prompt).probabilities(images).argmax(1).numpy()
    rows = RunFolder.open(run).clients().to_pandas()
    counted = rows[
        (rows["round"] == 2)
        & (rows.client == 1)
        & (rows.split == "test")
        & (rows.metric == "base")
        & rows.domain.isna()
    ]
    assert int((given == labels).sum()) == counted.correct.item()
    assert prompt.card["metrics"]["test/base"] == pytest.approx(100 * np.mean(given == labels))


def test_a_client_has_its_own_part_and_the_server_none(run_of, tmp_path):
    state = RunFolder.open(run_of("fedpgp")).state_at(2)
    own = Prompt.load(export(run_of("fedpgp"), "client 2", tmp_path / "own")).params
    assert all(torch.equal(own[key], state.personal[key][2]) for key in ("U", "V"))
    assert torch.equal(own["ctx"], state.shared["ctx"])
    server = Prompt.load(export(run_of("fedpgp"), "global", tmp_path / "server")).params
    assert torch.equal(server["ctx"], state.shared["ctx"])
    assert not server["U"].any()
    assert not server["V"].any()


@pytest.mark.parametrize("name", ["promptfl", "fedpgp"])
def test_clients_that_never_train_have_no_part_in_a_prompt(name, run_of, tmp_path):
    run = run_of(name, unseen=0.34)
    store = RunFolder.open(run)
    (unseen,) = store.identity["unseen_clients"]
    cards = [Prompt.load(export(run, str(one), tmp_path / f"{one}")).card for one in {0, 1, 2} - {unseen}]
    card = Prompt.load(export(run, "global", tmp_path / "global")).card
    assert card["trained_on"]["clients"] == 2
    assert card["trained_on"]["images"] == sum(one["trained_on"]["images"] for one in cards)
    assert set(card["trained_on"]["own_classes"]) == {
        name for one in cards for name in one["trained_on"]["own_classes"]
    }
    metrics = store.rounds()[-1].metrics
    assert any(key.endswith("_adapted") for key in metrics)
    assert not any(key.endswith("_adapted") for one in (card, *cards) for key in one["metrics"])
    assert card["metrics"]["test/local_global"] == metrics["test/local_global"]
    assert any(key.startswith("new_client/") for key in card["metrics"]) == (name == "promptfl")
    for client in (str(unseen), f"client {unseen}"):
        with pytest.raises(RunError, match=f"client {unseen} never trained; give --client global$"):
            export(run, client, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_best_round_is_the_one_that_validation_chose(run_of, tmp_path):
    prompt = Prompt.load(export(run_of("promptfl"), "global", tmp_path, which="best"))
    store = RunFolder.open(run_of("promptfl"))
    assert prompt.card["round"] == {"number": store.best, "chosen": "best", "of": 2}
    assert torch.equal(prompt.params["ctx"], store.state_at(store.best).shared["ctx"])


def test_the_card_stands_in_the_file_and_beside_it(run_of, tmp_path):
    path = export(run_of("fedpgp"), "0", tmp_path)
    card = json.loads((tmp_path / "prompt.json").read_text())
    assert Prompt.load(path).card == card
    assert card["backbone"]["licence"] == "none: random weights"
    assert card["takes_other_names"] is True
    assert card["trained_on"]["images"] == 2 * len(card["trained_on"]["own_classes"])  # 2 shots
    assert set(card["trained_on"]["own_classes"]) < set(card["class_names"])
    assert not set(card["class_names"]) & set(card["unseen_class_names"])
    assert set(safetensors.torch.load_file(path)) == {"ctx", "U", "V"}


def test_other_names_at_prediction_time(run_of, base_images, tmp_path):
    images = base_images[0][:2]
    predictor = Predictor(Prompt.load(export(run_of("fedpgp"), "0", tmp_path)))
    assert predictor.probabilities(images, ["owl", "oak tree"]).sum(1).tolist() == pytest.approx([1, 1])
    known = predictor.probabilities(images)
    backwards = predictor.probabilities(images, predictor.class_names[::-1])
    assert torch.allclose(known, backwards.flip(1), atol=1e-6)
    with pytest.raises(DataError, match="each once"):
        predictor.probabilities(images, ["owl", "owl"])
    for blank in ("", " ", "__"):
        with pytest.raises(DataError, match="none empty"):
            predictor.probabilities(images, ["owl", blank])


def test_contexts_of_classes_know_no_others(run_of, base_images, tmp_path):
    predictor = Predictor(Prompt.load(export(run_of("coop", class_specific=True), "0", tmp_path)))
    assert predictor.probabilities(base_images[0][:1]).shape == (1, len(predictor.class_names))
    with pytest.raises(ConfigError, match="coop has a context of its own for each"):
        predictor.probabilities(base_images[0][:1], ["owl", "oak tree"])


def test_the_best_come_first():
    assert best(torch.tensor([[0.2, 0.5, 0.3]]), ["a", "b", "c"], top=2) == [
        [("b", pytest.approx(0.5)), ("c", pytest.approx(0.3))]
    ]
    assert len(best(torch.tensor([[0.4, 0.6]]), ["a", "b"], top=5)[0]) == 2


@pytest.mark.parametrize(
    ("name", "client", "said"),
    [
        ("zero_shot", "0", "zero_shot learns no prompt"),
        ("zero_shot", "global", "zero_shot learns no prompt"),
        ("pfedpt", "0", "pfedpt learns no prompt"),  # a frame of pixels before a network of its own
        ("pfedpt", "global", "pfedpt learns no prompt"),
        ("coop", "global", "coop has no global model: all of it stays with the clients"),
        ("fedotp", "global", "fedotp has no global model: its shared part is no model by itself"),
        ("fedpgp", "3", "has no client '3'; give one of client 0, client 1, client 2, a number from 0, or global"),
    ],
)
def test_what_cannot_be_exported(name, client, said, run_of, tmp_path):
    with pytest.raises(RunError, match=said):
        export(run_of(name, **UNFIT.get(name, {})), client, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_network_of_its_own_is_no_prompt(tmp_path):
    from fedpgp.export.exporting import prompts_text
    from fedpgp.methods import METHODS

    able = {name for name, kind in METHODS.items() if prompts_text(kind(kind.settings_type()))}
    assert able == set(SMALL) | {"prompt_prox"}


@pytest.fixture
def copied(run_of, tmp_path):
    """A run of PromptFL that a test may spoil."""
    run = tmp_path / run_of("promptfl").name
    shutil.copytree(run_of("promptfl"), run)
    return run


def test_a_run_that_goes_on_is_refused_whoever_writes_it(copied, tmp_path):
    with RunFolder.open(copied).lock(), pytest.raises(RunError, match=r"the run is running, only .* wait for it"):
        export(copied, "global", tmp_path / "out")
    with pytest.raises(RunError, match=r"the run is interrupted, only .* finish it with `fedpgp run .* --resume`"):
        export(copied, "global", tmp_path / "out")  # the writer was killed
    assert not (tmp_path / "out").exists()


def test_only_a_finished_run_of_this_version(copied, tmp_path):
    run, store = copied, RunFolder.open(copied)
    store.fail("no reason")
    with pytest.raises(RunError, match="the run is failed, only a finished one is exported"):
        export(run, "global", tmp_path / "out")
    store.finish({})
    identity = json.loads((run / "identity.json").read_text())
    identity["versions"]["fedpgp"] = "0.0.1"
    (run / "identity.json").write_text(json.dumps(identity))
    with pytest.raises(RunError, match=r"made by fedpgp 0\.0\.1"):
        export(run, "global", tmp_path / "out")


def test_another_backbone_is_refused(run_of, tmp_path):
    prompt = Prompt.load(export(run_of("promptfl"), "global", tmp_path))
    card = {**prompt.card, "backbone": {**prompt.card["backbone"], "fingerprint": "0" * 16}}
    with pytest.raises(BackboneError, match=r"tiny with weights random has fingerprint .* trained with 0000"):
        Predictor(Prompt(prompt.params, card))


def test_other_files_are_no_prompts(tmp_path):
    path = tmp_path / "some.safetensors"
    safetensors.torch.save_file({"ctx": torch.zeros(1)}, path)
    with pytest.raises(RunError, match="not a prompt that `fedpgp export` wrote"):
        Prompt.load(path)
    path.write_bytes(b"\x80\x04N.")  # a pickle
    with pytest.raises(RunError, match="cannot be read as a prompt"):
        Prompt.load(path)
    with pytest.raises(RunError, match="cannot be read as a prompt"):
        Prompt.load(tmp_path / "nowhere")


def test_the_mlflow_model_says_the_same(run_of, base_images, tmp_path):
    import mlflow.pyfunc

    path = export(run_of("fedpgp"), "1", tmp_path)
    folder = mlflow_model.save(path, mlflow_model.save(path, tmp_path / "model"))  # in place of the earlier one
    content = io.BytesIO()
    base_images[0][0].save(content, "PNG")
    table = pd.DataFrame({"image": [content.getvalue()]})
    loaded = mlflow.pyfunc.load_model(str(folder))
    predictor = Predictor(Prompt.load(path))
    expected = best(predictor.probabilities(base_images[0][:1]), predictor.class_names, 3)[0]
    row = loaded.predict(table, params={"top": 3}).iloc[0]
    assert list(zip(row.classes, row.probabilities, strict=True)) == expected
    assert (row["class"], row.probability) == expected[0]
    other = loaded.predict(table, params={"classes": "owl, oak tree"}).iloc[0]
    assert set(other.classes) == {"owl", "oak tree"}
    assert not [file for file in folder.rglob("*") if file.suffix in (".pkl", ".pt", ".bin")]


@pytest.mark.parametrize(
    ("image", "params", "said"),
    [
        (b"no image", {}, "image 0: not an image"),
        ("abc", {}, "image 0: text that is not base64"),
        (None, {"top": 0}, "top: at least 1"),
        (None, {"classes": "owl, owl"}, "class names: each once"),
    ],
)
def test_a_server_is_told_what_cannot_be_used(image, params, said, run_of, tmp_path):
    import mlflow.pyfunc
    from mlflow.exceptions import MlflowException

    folder = mlflow_model.save(export(run_of("fedpgp"), "1", tmp_path), tmp_path / "model")
    loaded = mlflow.pyfunc.load_model(str(folder))
    table = loaded.input_example if image is None else pd.DataFrame({"image": [image]})
    with pytest.raises(MlflowException, match=said) as raised:
        loaded.predict(table, params=params)
    assert raised.value.get_http_status_code() == 400
    with pytest.raises(MlflowException, match="no image"):
        loaded.predict(pd.DataFrame({"image": pd.Series([], dtype=object)}))


@pytest.mark.slow
def test_mlflow_predicts_with_names_that_are_given_with_the_images(run_of, base_images, tmp_path):
    folder = mlflow_model.save(export(run_of("fedpgp"), "1", tmp_path), tmp_path / "model")
    request = json.loads((folder / "serving_input_example.json").read_text())
    content = io.BytesIO()
    base_images[0][0].save(content, "PNG")
    request["dataframe_split"]["data"] = [[base64.b64encode(content.getvalue()).decode()]]
    request["params"] |= {"classes": "owl, oak tree, rocket", "top": 2}
    (tmp_path / "request.json").write_text(json.dumps(request))
    command = ["-m", "mlflow", "models", "predict", "-m", str(folder), "-i", "request.json", "--env-manager", "local"]
    done = subprocess.run([sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["predictions"]
    predictor = Predictor(Prompt.load(tmp_path / "prompt.safetensors"))
    names = ["owl", "oak tree", "rocket"]
    expected = best(predictor.probabilities(base_images[0][:1], names), names, 2)[0]
    assert row["classes"] == [name for name, _ in expected]
    assert row["probabilities"] == pytest.approx([value for _, value in expected], abs=1e-5)


def test_what_is_no_mlflow_model_is_left_alone(run_of, tmp_path):
    path = export(run_of("fedpgp"), "1", tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="is there already and no MLflow model"):
        mlflow_model.save(path, tmp_path / "model")
    assert (tmp_path / "model" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("params", "card", "said"),
    [
        ({"ctx": torch.full((2, 64), float("nan"))}, {}, "ctx holds values that are not finite"),
        ({"ctx": torch.zeros(2, 64, dtype=torch.long)}, {}, "ctx holds values that are not finite"),
        ({}, {"template": "{x} {}{}"}, "its card is not as `fedpgp export` wrote it: template"),
        ({}, {"class_names": "cat"}, "class_names"),
        ({}, {"class_names": [""]}, "class_names"),
        ({}, {"method": "promptfl"}, "method"),
        ({}, {"backbone": {"name": "tiny"}}, "backbone"),
        ({}, {"version": 2}, "a prompt of format 2"),
    ],
)
def test_a_prompt_from_elsewhere_is_checked(params, card, said, run_of, tmp_path):
    prompt = Prompt.load(export(run_of("promptfl"), "global", tmp_path))
    tensors = {**prompt.params, **params}
    safetensors.torch.save_file(tensors, tmp_path / "bad.safetensors", {"card": json.dumps({**prompt.card, **card})})
    with pytest.raises(RunError, match=said):
        Prompt.load(tmp_path / "bad.safetensors")


@pytest.mark.parametrize("params", [{"ctx": torch.zeros(3, 63)}, {}, {"ctx": torch.zeros(2, 64), "U": torch.zeros(1)}])
def test_parameters_of_another_shape_are_refused(params, run_of, base_images, tmp_path):
    prompt = Prompt.load(export(run_of("fedpgp"), "global", tmp_path))
    with pytest.raises(RunError, match="those of its method are"):
        Predictor(Prompt(params, prompt.card)).probabilities(base_images[0][:1])


def test_braces_in_a_template_are_text(run_of, base_images, tmp_path):
    prompt = Prompt.load(export(run_of("promptfl"), "global", tmp_path))
    card = {**prompt.card, "template": "{0.__class__} of {}"}
    assert Predictor(Prompt(prompt.params, card)).probabilities(base_images[0][:1]).isfinite().all()

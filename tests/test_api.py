"""The public Python API: what the README shows, against the rows on disk and the command line."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import threading

import numpy as np
import pytest
import yaml

import fedpgp
from fedpgp.core.callbacks import Event, EventStream
from fedpgp.core.errors import ConfigError, Interrupted, RunError
from fedpgp.storage.run_folder import RunFolder

SMALL = [
    "protocol.shots=1", "partition.clients=3", "method.n_ctx=2", "method.rank=1", "federation.rounds=2",
    "federation.local_epochs=1", "federation.batch_size=4", "resources.backend=serial", "tracking.mlflow=false",
]  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def done(root):
    return fedpgp.run("shapes", *SMALL, f"storage.root={root}", progress=False)


def test_rounds_are_the_rows_on_disk(done):
    rows = [json.loads(line) for line in (done.path / "rounds.jsonl").read_text().splitlines()]
    assert done.state == "finished"
    assert list(done.rounds["round"]) == [1, 2]
    for name in ("test/hm", "val/local", "train/loss"):
        assert list(done.rounds[name]) == [row["metrics"][name] for row in rows]
    assert list(done.rounds["bytes_up"]) == [row["bytes_up"] for row in rows]
    assert done.metrics == rows[-1]["metrics"]


def test_clients_have_names_and_accuracies(done):
    frame = done.clients
    tested = frame[(frame["round"] == 2) & (frame["split"] == "test") & (frame["metric"] == "local")]
    overall = tested[tested["domain"].isna()]
    assert list(overall["name"]) == done.identity["client_names"]
    assert overall["accuracy"].mean() == pytest.approx(done.metrics["test/local"])


def test_measures_follow_from_the_counts_of_calibration_and_classes(done):
    keys = ["round", "split", "metric"]
    bins, classes, measures = done.calibration, done.classes, done.measures
    bins["gap"] = bins["correct"] - bins["images"] * bins["confidence"] / 100
    sums = (
        bins.groupby([*keys, "bin"])[["gap", "images"]]
        .sum()
        .groupby(keys)
        .agg({"gap": lambda own: own.abs().sum(), "images": "sum"})
    )
    counts = classes.groupby([*keys, "class"])[["images", "predicted", "correct"]].sum()
    f1 = (200 * counts["correct"] / (counts["images"] + counts["predicted"])).groupby(keys).mean()
    whole = measures[measures["domain"].isna()].set_index(keys)
    np.testing.assert_allclose(whole["ece"], (100 * sums["gap"] / sums["images"])[whole.index])
    np.testing.assert_allclose(whole["f1"], f1[whole.index])
    assert set(whole.reset_index()["round"]) == {1, 2}
    assert whole.loc[2, "test", "base"]["balanced"] == pytest.approx(done.metrics["test/base_balanced"])
    assert set(classes["class"]) <= set(done.identity["class_names"])
    assert ((bins["low"] < bins["confidence"]) & (bins["confidence"] <= bins["high"])).all()


def test_confusion_and_partition_name_the_classes(done):
    confusion = done.confusion
    assert set(confusion["label"]) | set(confusion["answer"]) <= set(done.identity["class_names"])
    local = confusion[(confusion["split"] == "test") & (confusion["metric"] == "local")]
    frame = done.clients
    counted = frame[(frame["round"] == 2) & (frame["split"] == "test") & (frame["metric"] == "local")]
    counted = counted[counted["domain"].isna()]
    assert local["count"].sum() == counted["total"].sum()
    assert local[local["label"] == local["answer"]]["count"].sum() == counted["correct"].sum()
    partition = done.partition
    trained = partition[partition["split"] == "train"].groupby("client")["images"].sum()
    assert list(trained[done.identity["client_names"]]) == done.identity["num_examples"]


def test_a_prompt_is_arrays_that_predict(done, tmp_path):
    prompt = done.prompt(client=1)
    state = RunFolder.open(done.path).state_at(2)
    np.testing.assert_array_equal(prompt.arrays["ctx"], state.shared["ctx"].numpy())
    np.testing.assert_array_equal(prompt.arrays["U"], state.personal["U"][1].numpy())
    from PIL import Image

    file = tmp_path / "red.png"
    Image.new("RGB", (20, 20), "red").save(file)
    found = prompt.predict([file, Image.open(file)], top=3)
    assert list(found["rank"]) == [1, 2, 3] * 2
    assert list(found["probability"][:3]) == list(found["probability"][3:])
    names = ["red circle", "blue square"]
    assert math.isclose(prompt.predict([file], names)["probability"].sum(), 1, rel_tol=1e-5)
    saved = prompt.save(tmp_path / "prompt.safetensors")
    assert fedpgp.predict(saved, [file], names).equals(prompt.predict([file], names))
    assert set(done.prompt().arrays) >= {"ctx"}
    with pytest.raises(RunError, match="has no client '7'"):
        done.prompt(client=7)


def test_a_uri_loads_the_same_rows_and_prompts(done, root):
    (loaded,) = fedpgp.load(root.as_uri())
    for run in (loaded, fedpgp.Run(f"{root.as_uri()}/runs/{done.path.name}")):
        assert run.rounds.equals(done.rounds)
        np.testing.assert_array_equal(run.prompt(client=1).arrays["ctx"], done.prompt(client=1).arrays["ctx"])
    assert fedpgp.compare(root.as_uri()).equals(fedpgp.compare(done))
    with pytest.raises(RunError, match="no such folder, or an empty one"):
        fedpgp.load(f"{root.as_uri()}/nowhere")


def test_the_same_settings_as_mapping_and_object_are_the_same_run(done, root):
    tree = yaml.safe_load((done.path / "config.yaml").read_text())
    for given in (tree, fedpgp.Experiment.model_validate(tree)):
        assert fedpgp.run(given, resume=True, progress=False).path == done.path
    other = fedpgp.run(tree, "seed=2", progress=False)
    assert other.identity["seed"] == 2
    assert other.path != done.path


def test_invalid_settings_are_refused_before_work(tmp_path):
    with pytest.raises(ConfigError, match="did you mean rank"):
        fedpgp.run("shapes", "method.rnk=4", f"storage.root={tmp_path / 'store'}", progress=False)
    assert not (tmp_path / "store").exists()
    with pytest.raises(RunError):
        fedpgp.load(tmp_path)


def test_a_callback_receives_progress_and_can_interrupt(tmp_path):
    seen = []

    class Watch(fedpgp.RunCallback):
        def on_round(self, folder, done, total, metrics):
            seen.append((done, total, metrics["test/hm"]))
            if len(seen) == 1:
                raise KeyboardInterrupt

    where = f"storage.root={tmp_path}"
    with pytest.raises(Interrupted, match="--resume"):
        fedpgp.run("shapes", *SMALL, where, progress=Watch())
    (stopped,) = fedpgp.load(tmp_path)
    assert (stopped.state, len(stopped.rounds)) == ("stopped", 1)
    finished = fedpgp.run("shapes", *SMALL, where, resume=True, progress=Watch())
    assert finished.path == stopped.path
    assert [done for done, _, _ in seen] == [1, 2]
    assert list(finished.rounds["test/hm"]) == [value for _, _, value in seen]


def test_comparison_is_paired_by_seed(root, done):
    """Two methods, two seeds: the difference is the mean of the differences by seed."""
    runs = [
        fedpgp.run("shapes", *own, f"storage.root={root}", f"seed={seed}", "name=pair", progress=False)
        for seed in (1, 2)
        for own in (SMALL, [*[one for one in SMALL if "rank" not in one], "method={name: promptfl, n_ctx: 2}"])
    ]
    frame = fedpgp.compare(runs, baseline="promptfl")
    row = frame[(frame["group"] == "fedpgp") & (frame["metric"] == "hm")].iloc[0]
    values = [run.metrics["test/hm"] for run in runs]
    differences = [values[0] - values[1], values[2] - values[3]]
    assert row["mean"] == pytest.approx((values[0] + values[2]) / 2)
    assert row["difference"] == pytest.approx(np.mean(differences))
    assert row["std"] == pytest.approx(np.std([values[0], values[2]], ddof=1))
    half = 12.706204736 * np.std(differences, ddof=1) / math.sqrt(2)  # Student's t, 1 degree of freedom
    assert (row["low"], row["high"]) == pytest.approx((row["difference"] - half, row["difference"] + half))
    assert frame[frame["group"] == "promptfl"]["difference"].isna().all()


def test_report_and_figures(done, tmp_path):
    file = fedpgp.report(done, out=tmp_path / "report")
    assert file.read_text().startswith("<!doctype html>")
    assert list((tmp_path / "report").glob("*.png"))
    assert "HM" in fedpgp.report([done.path], format="md")
    figures = done.figures()
    assert "tradeoff" in figures
    assert figures["tradeoff"].axes


@pytest.mark.slow
def test_a_sweep_has_trials_a_best_one_and_runs(tmp_path):
    tree = {"base": "shapes", "space": {"method.mu": {"grid_search": [0.0, 0.5]}}, "folds": {"seeds": [1, 2]}}
    given = [*SMALL, f"storage.root={tmp_path}"]
    events: list[Event] = []
    sweep = fedpgp.sweep(tree, *given, progress=EventStream(events.append))
    assert events[-1].arguments[:2] == (2, 2)
    trials = sweep.trials
    assert list(trials["method.mu"]) == [0.0, 0.5]
    assert list(trials["state"]) == ["finished"] * 2
    best = sweep.best
    assert best[sweep.metric] == trials[sweep.metric].max()
    own = sweep.runs(best["id"])
    assert [run.identity["seed"] for run in own] == [1, 2]
    assert np.mean([run.metrics["val/hm"] for run in own]) == pytest.approx(best["val/hm"])
    assert len(fedpgp.load(sweep.path)) == len(fedpgp.load(tmp_path)) == 4
    again = fedpgp.sweep(tree, *given, resume=True, progress=False)
    assert again.path == sweep.path
    assert len(fedpgp.load(tmp_path)) == 4
    assert list(trials["trial"]) == ["mu=0", "mu=0.5"]


@pytest.mark.slow
def test_lodo_holds_every_domain_out(tmp_path):
    small = [one for one in SMALL if not one.startswith("partition")]
    sweep = fedpgp.lodo("shapes", *small, f"storage.root={tmp_path}", progress=False)
    held = {run.settings["protocol"]["held_out"] for run in sweep.runs()}
    assert held == {"filled", "outline", "dotted"}


def test_two_runs_leave_no_state_behind(tmp_path):
    """No thread, no Ray, no changed environment."""
    import os

    import ray

    before, threads, connected = dict(os.environ), threading.active_count(), ray.is_initialized()
    for seed in (1, 2):
        fedpgp.run("shapes", *SMALL, f"storage.root={tmp_path}", f"seed={seed}", progress=False)
    assert dict(os.environ) == before
    assert threading.active_count() <= threads
    assert ray.is_initialized() == connected


def test_renamed_commands_and_options_keep_working(fedpgp, done):
    code, _, err = fedpgp("anatomy", done.path)
    assert (code, "use inspect" in err) == (0, True)
    code, _, err = fedpgp("compare", done.path, done.path, "--anyway")
    assert (code, "use --allow-mismatch" in err) == (0, True)
    assert "deprecated" not in fedpgp("compare", done.path, done.path, "--allow-mismatch")[2]


def test_the_token_is_sent_before_ray_is_imported(tmp_path):
    code = """
import sys, fedpgp
from fedpgp.federation import backends
backends.use_token = lambda: sys.exit(f"ray imported: {'ray' in sys.modules}")
getattr(fedpgp, sys.argv[1])("shapes", "resources.address=127.0.0.1:9", "storage.root=store", progress=False)
"""
    for name in ("run", "sweep"):
        done = subprocess.run(
            [sys.executable, "-c", code, name], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.stderr.splitlines(True)[-1] == "ray imported: False\n"

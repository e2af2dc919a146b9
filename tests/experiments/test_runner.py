"""One experiment end to end: its files, and the same bits on every backend and after a kill."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import yaml
from PIL import Image
from rich.console import Console
from safetensors.numpy import load_file

from fedpgp import config
from fedpgp.analysis.report.terminal import show
from fedpgp.clip.feature_cache import FeatureCache
from fedpgp.config import MethodSettings
from fedpgp.core.callbacks import EventStream, RunCallback
from fedpgp.core.errors import ConfigError, FedPGPError, Interrupted, UserError
from fedpgp.experiments import launch, planning, runner
from fedpgp.experiments.features import extract_all, required_features
from fedpgp.experiments.tracker import Tracker
from fedpgp.federation.measures import split_name
from fedpgp.storage.run_folder import RunFolder

BASE = {
    "name": "small",
    "data": {"name": "shapes"},
    "backbone": {"name": "tiny", "weights": "random"},
    "protocol": {"shots": 2},
    "partition": {"clients": 5},
    "method": {"name": "fedpgp", "n_ctx": 2, "rank": 2},
    "federation": {"rounds": 3, "lr": 0.1, "batch_size": 4, "block_size": 2, "local_epochs": 1, "participation": 0.8},
    "resources": {"backend": "serial"},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A storage root whose feature cache is filled once."""
    return tmp_path_factory.mktemp("store")


def settings(root, **changes):
    tree = {**BASE, "storage": {"root": str(root)}}
    for path, value in changes.items():
        section, key = path.split("__")
        tree[section] = {**tree.get(section, {}), key: value}
    return config.parse(tree)


def run(wanted, resume=False, callback=None, stop=None):
    return runner.run(wanted, resume, callback or RunCallback(), stop or threading.Event())


def numbers(path):
    """All that a run says, but for times."""
    store = RunFolder.open(path)
    rounds = [(row.round, dict(row.metrics), row.participants, row.bytes_up, row.bytes_down) for row in store.rounds()]
    last = max((path / "checkpoints").iterdir())
    tables = [table.to_pydict() for table in (store.clients(), store.confusion, store.pooled())]
    return rounds, tables, {key: value.tobytes() for key, value in load_file(last).items()}


@pytest.fixture(scope="module")
def reference(root):
    return run(settings(root))


def test_files_of_a_run(reference):
    store = RunFolder.open(reference)
    rows = [json.loads(line) for line in (reference / "rounds.jsonl").read_text().splitlines()]
    assert [row["round"] for row in rows] == [1, 2, 3]
    assert {"val/local", "val/hm", "test/local", "test/base", "test/novel", "test/hm"} <= rows[0]["metrics"].keys()
    assert {"train/loss", "train/ce", "train/con"} <= rows[2]["metrics"].keys()
    loss, ce, con = (rows[2]["metrics"][f"train/{name}"] for name in ("loss", "ce", "con"))
    assert loss == pytest.approx(ce + 0.5 * con)
    assert rows[0]["participants"] == 4
    assert rows[0]["bytes_up"] == 4 * 2 * 64 * 4  # participants x n_ctx x width x float32
    assert {"train", "aggregate", "evaluate"} <= rows[0]["seconds"].keys()
    clients = pa.ipc.open_file(reference / "clients.arrow").read_all()
    assert clients.num_rows == store.clients().num_rows > 0
    assert config.parse(yaml.safe_load((reference / "config.yaml").read_text())).method.settings["tau"] == 0.5
    summary = json.loads((reference / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert summary["metrics"]["test/hm"].keys() == {"last", "mean_last_5", "max"}
    assert store.status["state"] == "finished"


def test_counts_equal_an_independent_count(root, reference):
    """Every test image of the manifest, scored with each client's own prompt and counted with plain numpy.

    Where the best two cosines differ by rounding only, either class may win.
    """
    store, plan = RunFolder.open(reference), planning.plan(settings(root))
    state, manifest, base = store.state_at(3), plan.manifest, range(15)  # of 30 classes
    (cache,) = required_features([plan])
    features = FeatureCache.open(cache.path, cache.key)
    holders = csv.DictReader((reference / "partition.csv").read_text().splitlines())
    own = {(int(row["client"].split()[1]), row["class"]) for row in holders if row["split"] == "train"}
    expected, ties = {}, {}
    for client in range(5):
        prompt = state.shared["ctx"] + state.personal["U"][client] @ state.personal["V"][client]
        for metric, classes in (("base", base), ("novel", range(15, 30))):
            text = plan.text.on(classes).encode(prompt)[0].numpy().astype(np.float64)
            rows = np.flatnonzero((manifest.splits == "test") & np.isin(manifest.labels, classes))
            images = features.gather(rows).astype(np.float64)
            cosines = images @ text.T / np.linalg.norm(images, axis=1)[:, None] / np.linalg.norm(text, axis=1)
            right = np.array(classes)[cosines.argmax(1)] == manifest.labels[rows]
            second, best = np.sort(cosines, axis=1)[:, -2:].T
            tied = best - second < 3e-7
            expected[metric, client], ties[metric, client] = (right.sum(), len(rows)), tied.sum()
            if metric == "base":
                mine = np.array([(client, manifest.class_names[label]) in own for label in manifest.labels[rows]])
                expected["local", client], ties["local", client] = (right[mine].sum(), mine.sum()), tied[mine].sum()
    rows = [row for row in store.clients().to_pylist() if (row["round"], row["split"]) == (3, "test")]
    found = {(row["metric"], row["client"]): (row["correct"], row["total"]) for row in rows if row["domain"] is None}
    assert {key: total for key, (_, total) in found.items()} == {key: total for key, (_, total) in expected.items()}
    assert all(abs(found[key][0] - correct) <= ties[key] for key, (correct, _) in expected.items())
    assert sum(ties.values()) < 0.01 * sum(total for _, total in found.values())
    by_domain = dict.fromkeys(found, (0, 0))
    for row in (row for row in rows if row["domain"] is not None):
        correct, total = by_domain[row["metric"], row["client"]]
        by_domain[row["metric"], row["client"]] = (correct + row["correct"], total + row["total"])
    assert by_domain == found
    assert sum(correct for correct, _ in expected.values()) > 0


def test_pooled_counts_are_those_of_the_clients_and_of_the_confusion_matrix(reference):
    """By split, metric and domain, in every round; the icons' logits are finite, so every image is in a bin."""
    store = RunFolder.open(reference)
    keys = ["round", "split", "metric", "domain"]
    clients = store.clients().filter((pc.field("split") != "train") & pc.field("domain").is_valid())
    expected = clients.group_by(keys).aggregate([("total", "sum"), ("correct", "sum")]).to_pylist()
    counts = {tuple(row[key] for key in keys): (row["total_sum"], row["correct_sum"]) for row in expected}
    for slot in ("bin", "label"):
        own = store.pooled().filter(pc.field(slot).is_valid())
        sums = own.group_by(keys).aggregate([("images", "sum"), ("correct", "sum")]).to_pylist()
        found = {tuple(row[key] for key in keys): (row["images_sum"], row["correct_sum"]) for row in sums}
        assert found == {key: both for key, both in counts.items() if both[0]}
    last = store.pooled(after=2).filter(pc.field("label").is_valid())
    for matrix, counted in (("label", "images"), ("answer", "predicted")):
        sides = [
            table.group_by(["split", "metric", key]).aggregate([(value, "sum")]).to_pydict().values()
            for table, key, value in ((store.confusion, matrix, "count"), (last, "label", counted))
        ]
        pairs = [{row[:-1]: row[-1] for row in zip(*side, strict=True) if row[-1]} for side in sides]
        assert pairs[0] == pairs[1]


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    "actors", [pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow), 3]
)
def test_actors_give_the_bits_of_the_serial_backend(root, reference, actors):
    wanted = settings(root, resources__backend="ray", resources__actors=actors)
    assert numbers(launch.run(wanted, False, RunCallback(), Tracker())) == numbers(reference)


ABSENT = {
    "federation__lr_schedule": "cosine", "federation__lr_schedule_per": "step", "federation__lr_warmup_rounds": 1,
    "federation__local_epochs": 3, "federation__straggler": 0.5, "federation__dropout": 0.3,
    "federation__attack": {"kind": "gaussian", "fraction": 0.3}, "federation__new_client_epochs": 1,
    "partition__unseen_clients": 0.2,
}  # fmt: skip
"""Schedules, attackers, lost and slow clients, and clients that never train, all at once."""


@pytest.fixture(scope="module")
def absent(root):
    return run(settings(root, **ABSENT))


def test_what_happened_to_clients_is_in_the_files(absent):
    store = RunFolder.open(absent)
    identity = json.loads((absent / "identity.json").read_text())
    (unseen,), (attacker,) = identity["unseen_clients"], identity["attack"]["clients"]
    assert identity["attack"]["kind"] == "gaussian"
    by_split = {
        split: set(store.clients().filter(pc.field("split") == split)["client"].to_pylist())
        for split in ("train", "test", "val", "new_client")
    }
    assert by_split["new_client"] == {unseen}
    assert unseen not in by_split["train"]
    assert by_split["test"] == by_split["val"] == set(range(5)) - {unseen, attacker}
    train = store.clients().filter(pc.field("split") == "train").to_pylist()
    events = {row["client"]: row["event"] for row in train if row["metric"] == "train" and row["round"] == 1}
    assert attacker not in events or events[attacker].startswith("attack: gaussian")
    out = io.StringIO()
    Console(file=out, width=300).print(show(absent))
    assert f"client {attacker}: attack with gaussian\n" in (text := re.sub(" +\n", "\n", out.getvalue()))
    assert f"client {unseen}: never train, and are the new clients\n" in text
    means = "Local, Base, Novel, HM, Local, global model, Base, global model (test)"
    assert f"{means}: mean over 3 of 5 clients (1 attack, 1 never train)" in text
    assert text.count(f" client {unseen}  new_client, adapted ") == 1
    metrics = store.rounds()[-1].metrics
    gap = metrics["test/local_global"] - metrics["new_client/local"]
    assert f"participation gap: {gap:.2f} points in the last round" in text
    assert {f"new_client/{name}{end}" for name in ("local", "base", "novel", "hm") for end in ("", "_adapted")} == {
        name for name in metrics if name.startswith("new_client/") and split_name(name)[1:] == (None, None)
    }


def test_with_absent_clients_a_stopped_run_resumes_to_the_same_bits(root, absent):
    stop = threading.Event()

    def after_first(event):
        if event.method == "on_round" and event.arguments[1] == 1:
            stop.set()

    wanted = settings(root, **ABSENT)
    with pytest.raises(Interrupted):
        run(wanted, callback=EventStream(after_first), stop=stop)
    assert numbers(run(wanted, resume=True)) == numbers(absent)


@pytest.mark.parametrize("changes", [{"block_size": 1}, {"chunk_size": 1}])
def test_absent_clients_do_not_depend_on_blocks_and_chunks(root, absent, changes):
    again = run(settings(root, **ABSENT, **{f"federation__{key}": value for key, value in changes.items()}))
    (rows, tables, _), (other_rows, other_tables, _) = numbers(again), numbers(absent)
    events, other = ([row["event"] for row in table] for table in map(train_rows, (again, absent)))
    assert events == other
    assert [row[0] for row in rows] == [row[0] for row in other_rows]
    assert [row[2:] for row in rows] == [row[2:] for row in other_rows]
    assert len(tables[0]["round"]) == len(other_tables[0]["round"])


def train_rows(path):
    rows = RunFolder.open(path).clients().filter(pc.field("split") == "train")
    return rows.filter(pc.field("metric") == "train").to_pylist()


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_with_absent_clients_actors_give_the_bits_of_the_serial_backend(root, absent):
    wanted = settings(root, resources__backend="ray", resources__actors=2, **ABSENT)
    assert numbers(launch.run(wanted, False, RunCallback(), Tracker())) == numbers(absent)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"method": {"name": "fedotp"}, "partition__unseen_clients": 0.2},
            "partition.unseen_clients=0.2: method fedotp has no model for a client that never trains, because local",
        ),
        (
            {"partition__clients": 1, "partition__unseen_clients": 0.2},
            "unseen_clients: the only client has to",
        ),
        (
            {"partition__clients": 1, "federation__attack": {"kind": "gaussian", "fraction": 0.5}},
            "federation.attack: one client trains; give more clients",
        ),
    ],
)
def test_clients_that_cannot_be_absent_are_refused_before_work(root, changes, message):
    method = changes.pop("method", BASE["method"])
    with pytest.raises(UserError, match=message):
        run(settings(root, **changes).model_copy(update={"method": MethodSettings.model_validate(method)}))


@pytest.mark.parametrize("name", ["zero_shot", "promptfl"])
def test_without_personal_parameters_every_method_has_a_model_for_new_clients(root, name):
    tree = {**BASE, "method": {"name": name}, "partition": {"clients": 5, "unseen_clients": 0.4}}
    path = run(config.parse({**tree, "storage": {"root": str(root)}}))
    metrics = RunFolder.open(path).rounds()[-1].metrics
    assert "new_client/hm" in metrics
    assert ("new_client/hm_adapted" in metrics) == (name != "zero_shot")


def test_a_second_run_opens_the_cache(root, reference, monkeypatch):
    monkeypatch.setattr("fedpgp.federation.extraction.ExtractionWorker.encode_chunk", None)
    again = run(settings(root))
    assert again != reference
    assert again.name.startswith(reference.name)
    assert numbers(again) == numbers(reference)


def test_a_stopped_run_resumes_to_the_same_bits(root, reference):
    """Asked to stop after its first round, it abandons the second."""
    stop = threading.Event()

    def after_first(event):
        if event.method == "on_round" and event.arguments[1] == 1:
            stop.set()

    wanted = settings(root)
    with pytest.raises(Interrupted, match=r"stopped; run folder: .*; continue with --resume") as interrupted:
        run(wanted, callback=EventStream(after_first), stop=stop)
    (stopped,) = (store for store in RunFolder.find(root) if store.state == "stopped")
    assert str(stopped.path) in str(interrupted.value)
    assert len(stopped.rounds()) == 1
    resumed = run(wanted, resume=True)
    assert resumed == stopped.path
    assert numbers(resumed) == numbers(reference)


def test_resuming_a_finished_run_changes_nothing(root, reference):
    newest = run(settings(root), resume=True)
    before = {path.name: path.stat().st_mtime_ns for path in newest.iterdir()}
    assert run(settings(root), resume=True) == newest
    assert {path.name: path.stat().st_mtime_ns for path in newest.iterdir()} == before


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_bits(root, reference, tmp_path):
    """SIGKILL in the middle, twice, then resume: every round once, and the uninterrupted run's bits."""
    file = tmp_path / "killed.yaml"
    file.write_text(yaml.safe_dump({**BASE, "name": "killed", "storage": {"root": str(root)}}))
    command = [sys.executable, "-m", "fedpgp", "run", str(file), "tracking.mlflow=false", "--resume"]
    for rounds in (1, 2):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while len(list(root.glob(f"runs/killed-*/rounds/*{rounds}.arrow"))) < 1 and time.monotonic() < deadline:
            if process.poll() is not None:
                break
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command, check=True, capture_output=True)
    (path,) = root.glob("runs/killed-*")
    assert numbers(path) == numbers(reference)


def test_a_failed_run_records_the_reason(root, monkeypatch):
    wanted = settings(root, federation__lr=1e30)
    with pytest.raises(Exception, match=r"client \d, round [12], local training: loss is nan"):
        run(wanted)
    (path,) = (p for p in root.glob("runs/small-*") if RunFolder.open(p).status["state"] == "failed")
    assert "loss is nan" in RunFolder.open(path).status["reason"]


def test_a_full_disk_ends_a_run_with_one_line_and_it_resumes(reference, root, monkeypatch):
    """Nothing can be written any more, the status neither: killed, as far as others see, and it goes on from there."""
    wanted, commit = settings(root, federation__lr=0.3), RunFolder.commit

    def full(*anything):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def filling(store, row, *rest):
        if row.round == 2:
            monkeypatch.setattr(RunFolder, "_put", full)
        commit(store, row, *rest)

    with monkeypatch.context() as filled:
        filled.setattr(RunFolder, "commit", filling)
        put = RunFolder._put
        with pytest.raises(
            FedPGPError, match=r"small-\S+: disk full \(No space left on device\); free disk space, then rerun"
        ):
            run(wanted)
        monkeypatch.setattr(RunFolder, "_put", put)
    (path,) = (p for p in root.glob("runs/small-*") if RunFolder.open(p).state == "interrupted")
    assert [row.round for row in RunFolder.open(path).rounds()] == [1]
    assert run(wanted, resume=True) == path
    assert [row.round for row in RunFolder.open(path).rounds()] == [1, 2, 3]


def test_zero_shot_has_one_round_and_sends_nothing(root):
    wanted = config.parse({**BASE, "method": {"name": "zero_shot"}, "storage": {"root": str(root)}})
    (row,) = RunFolder.open(run(wanted)).rounds()
    assert (row.round, row.bytes_up, row.participants) == (0, 0, 0)
    assert row.metrics["test/base"] >= 0


@pytest.mark.slow
def test_a_killed_run_resumes_on_another_machine_with_only_the_uri(reference, tmp_path):
    """SIGKILL after a round is there; another machine, which has nothing, ends with the uninterrupted run's bits."""
    uri = (tmp_path / "kept").as_uri()
    tree = {**BASE, "name": "kept", "tracking": {"mlflow": False}}
    file = tmp_path / "kept.yaml"
    file.write_text(yaml.safe_dump({**tree, "storage": {"root": str(tmp_path / "here"), "uri": uri}}))
    process = subprocess.Popen(
        [sys.executable, "-m", "fedpgp", "run", str(file)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not list((tmp_path / "kept").glob("runs/kept-*/rounds/000001.arrow")) and process.poll() is None:
        time.sleep(0.002)
    process.kill()
    process.wait()
    events = []
    storage = {"root": str(tmp_path / "there"), "uri": uri}
    path = run(config.parse({**tree, "storage": storage}), resume=True, callback=EventStream(events.append))
    assert next(event.arguments[1] for event in events if event.method == "on_begin") >= 1
    assert numbers(path) == numbers(reference)
    kept = RunFolder.open(tmp_path / "kept" / "runs" / path.name)
    assert (kept.state, numbers(kept.path)) == ("finished", numbers(reference))


@pytest.mark.parametrize("name", ["coop", "promptfl"])
def test_every_method_runs(root, name):
    tree = {**BASE, "method": {"name": name, "n_ctx": 2}, "storage": {"root": str(root)}}
    rows = RunFolder.open(run(config.parse(tree))).rounds()
    assert (rows[-1].bytes_up > 0) == (name == "promptfl")


def test_class_specific_contexts_have_no_novel(root):
    tree = {**BASE, "method": {"name": "coop", "n_ctx": 2, "class_specific": True}, "storage": {"root": str(root)}}
    metrics = RunFolder.open(run(config.parse(tree))).rounds()[-1].metrics
    assert "test/local" in metrics
    assert "test/novel" not in metrics
    assert "test/hm" not in metrics


def test_training_views_have_their_cache(root):
    tree = {**BASE, "data": {"name": "shapes", "views": 2}, "storage": {"root": str(root)}}
    before = set((root / "features").glob("*.arrow"))
    run(config.parse(tree))
    assert len(set((root / "features").glob("*.arrow")) - before) == 1


def test_photos_that_are_stored_lying_are_counted_when_they_are_encoded(tmp_path):
    for name in ("ant", "bee", "cat", "dog"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(8):
            exif = Image.Exif()
            exif[0x112] = 6 if number == 0 else 1
            Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / "data" / name / f"{number}.jpg", exif=exif)

    class Messages(RunCallback):
        def on_message(self, text, warning=False):
            said.append((text, warning))

    wanted = settings(tmp_path, data__name="folder", data__root=str(tmp_path / "data"), partition__clients=2)
    wanted = wanted.model_copy(update={"protocol": wanted.protocol.model_copy(update={"shots": None})})
    said = []
    for _ in range(2):  # the second time nothing is encoded
        with closing(runner.make_backend(wanted.resources, threading.Event())) as backend:
            extract_all([planning.plan(wanted)], backend, Messages())
    (message,) = said
    assert message[1]
    assert "images with an EXIF orientation, used as stored (not rotated): " in message[0]
    rows = planning.plan(wanted).data.rows
    stored_lying = sum(row % 8 == 0 for row in rows)  # row 0 of the eight images of each class
    assert message[0].endswith(f": {stored_lying} of {len(rows)}; `fedpgp data check` lists them")


def test_settings_of_a_method_are_checked_and_filled_in():
    complete, _ = planning.settle(config.parse({"method": {"name": "fedpgp", "rank": 3}}))
    assert complete.method.settings["rank"] == 3
    assert complete.method.settings["mu"] == 0.5
    with pytest.raises(ConfigError, match="method fedpgp: rnk: unknown key; did you mean rank"):
        planning.settle(config.parse({"method": {"name": "fedpgp", "rnk": 3}}))


def test_a_cache_deleted_during_a_run_changes_nothing_and_is_extracted_again(tmp_path, reference):
    """It is mapped: whoever has it open keeps it."""

    def after_first(event):
        if event.method == "on_round" and event.arguments[1] == 1:
            for path in (tmp_path / "features").glob("*.arrow"):
                path.unlink()

    assert numbers(run(settings(tmp_path), callback=EventStream(after_first))) == numbers(reference)
    assert not list((tmp_path / "features").glob("*.arrow"))
    assert numbers(run(settings(tmp_path))) == numbers(reference)

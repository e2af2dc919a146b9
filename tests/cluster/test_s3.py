"""A real S3 API: runs, sweeps and images there; it goes down, throttles and refuses, and no round is lost or doubled."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from io import BytesIO

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from proxy import SLOW_DOWN, in_front_of
from services import FULL_ACCESS, NEEDS_S3, NO_WRITES, Key, serving_s3

from fedpgp import config
from fedpgp.core.callbacks import RunCallback
from fedpgp.core.errors import FedPGPError
from fedpgp.experiments import launch
from fedpgp.experiments.tracker import Tracker
from fedpgp.storage import claims, copies
from fedpgp.storage.run_folder import RunFolder
from fedpgp.storage.sweep_folder import SweepFolder

pytestmark = [pytest.mark.slow, NEEDS_S3]

ROUNDS = 30
SETTINGS = [
    "name=small", "protocol.shots=1", "partition.clients=2", "method.name=promptfl", "method.n_ctx=1",
    f"federation.rounds={ROUNDS}", "federation.local_epochs=1", "resources.backend=serial", "tracking.mlflow=false",
]  # fmt: skip
OUTAGE_SECONDS = 20
PATIENCE = 180


@pytest.fixture(scope="module")
def s3():
    with serving_s3() as service:
        yield service


@pytest.fixture(scope="module")
def writer(s3):
    """A key that may read and write."""
    return s3.user("writer", FULL_ACCESS)


@pytest.fixture(autouse=True)
def _as_writer(writer, use):
    use(writer)


@pytest.fixture
def use(monkeypatch):
    """Work with a key from here on."""

    def apply(key):
        for name, value in key.environment.items():
            monkeypatch.setenv(name, value)

    return apply


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Continue on another machine: nothing of the home folder before is there."""

    def move(name):
        (tmp_path / name).mkdir()
        monkeypatch.setenv("HOME", str(tmp_path / name))

    move("first-home")
    return move


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The rows of the run on a local disk."""
    return rows(run(tmp_path_factory.mktemp("undisturbed")))


class At(RunCallback):
    """Does something once a round is committed, and keeps the warnings."""

    def __init__(self, round, action):
        self._round, self._action, self.warnings = round, action, []

    def on_round(self, folder, done, total, metrics):
        if done == self._round:
            self._action()

    def on_message(self, text, warning=False):
        self.warnings += [text] if warning else []


def run(root, *changes, resume=False, callback=None):
    settings = config.load("shapes", [*SETTINGS, f"storage.root={root}", *changes])
    return RunFolder.open(launch.run(settings, resume, callback or RunCallback(), Tracker()))


def rows(store):
    """The metrics by round, and the exact counts of every client; each row is there once."""
    found = [(row.round, row.metrics) for row in store.rounds()]
    assert [number for number, _ in found] == list(range(1, len(found) + 1))
    counts = store.clients()
    keys = list(zip(*(counts[name].to_pylist() for name in ("round", "client", "split", "metric", "domain")), strict=True))
    assert len(set(keys)) == len(keys)
    return found, counts.to_pylist()


def stored(uri):
    """The only run in the bucket at a URI of a storage root."""
    (store,) = RunFolder.find(copies.local(uri))
    return store


@contextmanager
def command(*arguments):
    """`fedpgp` in a process group of its own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "fedpgp", *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def until(reached, process):
    deadline = time.monotonic() + PATIENCE
    while not reached():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_killed_run_continues_on_another_machine_with_nothing_but_its_uri(s3, undisturbed, elsewhere, monkeypatch):
    uri = s3.uri("killed")
    with command("run", "shapes", *SETTINGS, f"storage.root={uri}") as process:
        until(lambda: sum("/rounds/" in key for key in s3.keys("killed")) >= 3, process)
        os.killpg(process.pid, signal.SIGKILL)
    assert 3 <= len(stored(uri).rounds()) < ROUNDS
    monkeypatch.setattr(claims, "STALE_SECONDS", 3)
    elsewhere("second-home")
    run(uri, resume=True)
    assert rows(stored(uri)) == undisturbed
    assert not [key for key in s3.keys("killed") if claims.FOLDER in key]


def test_a_stopped_sweep_continues_on_another_machine_with_nothing_but_its_uri(s3, elsewhere, tmp_path):
    base = {**yaml.safe_load(config.dump(config.load("shapes", SETTINGS))), "storage": {"root": s3.uri("sweep")}}
    space = {"federation.lr": {"grid_search": [0.1, 0.01]}}
    spec = {"base": base, "space": space, "folds": {"seeds": [1, 2]}, "tune": {"max_concurrent": 1}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(spec))
    with command("sweep", tmp_path / "mine.yaml") as process:
        until(lambda: any("/trials/" in key for key in s3.keys("sweep")), process)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=PATIENCE)[0]
    (sweep,) = SweepFolder.find(copies.local(s3.uri("sweep")))
    assert sweep.state == "stopped", said
    finished = {key: s3.read(key) for key in s3.keys("sweep") if key.endswith("/summary.json")}
    assert 2 <= len(finished) < 4
    elsewhere("second-home")
    with command("sweep", s3.uri(f"sweep/sweeps/{sweep.path.name}"), "--resume") as process:
        said = process.communicate(timeout=PATIENCE)[0]
        assert process.returncode == 0, said
    (sweep,) = SweepFolder.find(copies.local(s3.uri("sweep")))
    assert [result.state for result in sweep.results().values()] == ["finished"] * 2
    assert finished.items() <= {key: s3.read(key) for key in s3.keys("sweep")}.items()
    made = {store.path.name: store for store in RunFolder.find(copies.local(s3.uri("sweep")))}
    assert len(made) == 4
    for trial in sweep.trials:
        for fold in sweep.result(trial.id).folds:
            changes = [f"federation.lr={trial.settings['federation.lr']}", f"seed={fold.seed}"]
            assert rows(made[fold.run]) == rows(run(tmp_path / "alone", *changes))


def test_images_are_read_from_parquet_there(s3, tmp_path, elsewhere):
    names = ["red", "green", "blue", "black"]
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
    for split, count in (("train", 8), ("validation", 3), ("test", 3)):
        images, labels = [], []
        for label, name in enumerate(names):
            for number in range(count):
                content = BytesIO()
                Image.new("RGB", (20 + number, 20), name).save(content, "PNG")
                images.append({"bytes": content.getvalue(), "path": None})
                labels.append(label)
        metadata = {"huggingface": json.dumps({"info": {"features": features}})}
        table = pa.table({"image": images, "label": labels}).replace_schema_metadata(metadata)
        pq.write_table(table, tmp_path / f"{split}-0.parquet", row_group_size=10)
        s3.put(f"images/{split}-0.parquet", (tmp_path / f"{split}-0.parquet").read_bytes())
    data = ["data.name=parquet", "federation.rounds=2"]
    here = run(tmp_path / "here", *data, f"data.root={tmp_path}")
    there = run(s3.uri("trained"), *data, f"data.root={s3.uri('images')}")
    assert rows(stored(s3.uri("trained"))) == rows(here) == rows(there)
    assert there.identity["content_digest"] == here.identity["content_digest"]


def test_it_is_down_for_20_seconds_in_the_middle_of_a_run(s3, undisturbed, elsewhere):
    with in_front_of(s3.port) as proxy:

        def fail():
            proxy.down()
            threading.Timer(OUTAGE_SECONDS, proxy.up).start()

        callback, began = At(2, fail), time.monotonic()
        run(s3.uri("down", proxy.port), callback=callback)
    assert time.monotonic() - began > OUTAGE_SECONDS
    assert rows(stored(s3.uri("down"))) == undisturbed
    assert [text.endswith("; trying again for 63 seconds") for text in callback.warnings] == [True], callback.warnings


def test_it_throttles(s3, undisturbed, elsewhere):
    with in_front_of(s3.port) as proxy:
        callback = At(2, lambda: proxy.answer(SLOW_DOWN, 12))
        run(s3.uri("throttled", proxy.port), callback=callback)
        assert proxy.refused == 12
    assert rows(stored(s3.uri("throttled"))) == undisturbed


def test_it_no_longer_accepts_writes(s3, undisturbed, elsewhere, use):
    key = s3.user("limited", FULL_ACCESS)
    use(key)
    with pytest.raises(FedPGPError, match=r"^s3://bucket/refused/\S+: access denied: .*; set AWS_ACCESS_KEY_ID") as failed:
        run(s3.uri("refused"), callback=At(2, lambda: s3.permit(key, FULL_ACCESS, NO_WRITES)))
    assert "\n" not in str(failed.value)
    assert len(stored(s3.uri("refused")).rounds()) == 2
    s3.permit(key, FULL_ACCESS)
    elsewhere("second-home")
    run(s3.uri("refused"), resume=True)
    assert rows(stored(s3.uri("refused"))) == undisturbed

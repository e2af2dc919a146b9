"""A real S3 API: runs, sweeps and images there; it is down, throttles or refuses, and no round is lost or doubled."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from io import BytesIO
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from proxy import SLOW_DOWN, in_front_of
from services import FULL_ACCESS, NEEDS_S3, NO_WRITES, Key, serving_s3

from fedpgp import config
from fedpgp.config import DataSettings
from fedpgp.core.callbacks import RunCallback
from fedpgp.core.errors import FedPGPError, StorageError, UserError
from fedpgp.data import manifest
from fedpgp.data.sources import open_source
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
WRONG = "planted-WR0NG"


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
    keys = list(
        zip(*(counts[name].to_pylist() for name in ("round", "client", "split", "metric", "domain")), strict=True)
    )
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
    assert not [key for key in s3.keys("killed") if claims.FOLDER in key and key.endswith(".json")]


def test_a_stopped_sweep_continues_on_another_machine_with_nothing_but_its_uri(s3, elsewhere, tmp_path):
    base = {**yaml.safe_load(config.dump(config.load("shapes", SETTINGS))), "storage": {"root": s3.uri("sweep")}}
    space = {"federation.lr": {"grid_search": [0.1, 0.01, 0.001]}}
    spec = {"base": base, "space": space, "tune": {"max_concurrent": 1}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(spec))
    with command("sweep", tmp_path / "mine.yaml") as process:
        until(lambda: any("/trials/" in key for key in s3.keys("sweep")), process)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=PATIENCE)[0]
    (sweep,) = SweepFolder.find(copies.local(s3.uri("sweep")))
    assert sweep.state == "stopped", said
    finished = {key: s3.read(key) for key in s3.keys("sweep") if key.endswith("/summary.json")}
    assert 1 <= len(finished) < 3
    elsewhere("second-home")
    with command("sweep", s3.uri(f"sweep/sweeps/{sweep.path.name}"), "--resume") as process:
        said = process.communicate(timeout=PATIENCE)[0]
        assert process.returncode == 0, said
    (sweep,) = SweepFolder.find(copies.local(s3.uri("sweep")))
    assert [result.state for result in sweep.results().values()] == ["finished"] * 3
    assert finished.items() <= {key: s3.read(key) for key in s3.keys("sweep")}.items()
    made = {store.path.name: store for store in RunFolder.find(copies.local(s3.uri("sweep")))}
    assert len(made) == 3
    for trial in sweep.trials:
        (fold,) = sweep.result(trial.id).folds
        alone = run(tmp_path / "alone", f"federation.lr={trial.settings['federation.lr']}", f"seed={fold.seed}")
        assert rows(made[fold.run]) == rows(alone)


@pytest.fixture(scope="module")
def images(s3, tmp_path_factory):
    """A small data set in Parquet files, in a folder and in the bucket: the folder, and the URI of the other."""
    folder, names = tmp_path_factory.mktemp("images"), ["red", "green", "blue", "black"]
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    for split, count in (("train", 8), ("validation", 3), ("test", 3)):
        found, labels = [], []
        for label, name in enumerate(names):
            for number in range(count):
                content = BytesIO()
                Image.new("RGB", (20 + number, 20), name).save(content, "PNG")
                found.append({"bytes": content.getvalue(), "path": None})
                labels.append(label)
        table = pa.table({"image": found, "label": labels}).replace_schema_metadata(metadata)
        pq.write_table(table, folder / f"{split}-0.parquet", row_group_size=10)
        s3.put(f"images/{split}-0.parquet", (folder / f"{split}-0.parquet").read_bytes())
    return folder, s3.uri("images")


PARQUET = ["data.name=parquet", "federation.rounds=2"]


def test_images_are_read_from_parquet_there(s3, images, tmp_path, elsewhere):
    here = run(tmp_path / "here", *PARQUET, f"data.root={images[0]}")
    run(s3.uri("trained"), *PARQUET, f"data.root={images[1]}")
    assert rows(stored(s3.uri("trained"))) == rows(here)


def test_images_that_are_replaced_there_are_noticed(s3, images, tmp_path, elsewhere):
    changes = [*PARQUET, f"data.root={images[1]}"]

    def break_off():
        raise ConnectionAbortedError("broken off")

    with pytest.raises(ConnectionAbortedError, match="broken off"):
        run(s3.uri("replaced"), *changes, callback=At(1, break_off))
    time.sleep(1)  # the times of S3 are seconds
    s3.put("images/train-0.parquet", s3.read("images/train-0.parquet"))
    with pytest.raises(UserError, match="images"):
        run(s3.uri("replaced"), *changes, resume=True)


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (lambda proxy: proxy.down(), "check the network, and the endpoint in the URI"),
        (lambda proxy: proxy.answer(SLOW_DOWN, 1000), "HTTP status 503|SLOW_DOWN"),
    ],
)
def test_images_that_cannot_be_read_now(s3, images, elsewhere, fault, told):
    with in_front_of(s3.port) as proxy:
        settings = DataSettings(name="parquet", root=s3.uri("images", proxy.port))
        built, source = manifest.build(settings), open_source(settings)
        fault(proxy)
        with pytest.raises(StorageError, match=told) as failed:
            list(source.read(built.table))
        assert str(failed.value).startswith("s3://")
        assert "\n" not in str(failed.value)


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
    with pytest.raises(
        FedPGPError, match=r"^s3://bucket/refused/\S+: access denied: .*; set AWS_ACCESS_KEY_ID"
    ) as failed:
        run(s3.uri("refused"), callback=At(2, lambda: s3.permit(key, FULL_ACCESS, NO_WRITES)))
    assert "\n" not in str(failed.value)
    assert len(stored(s3.uri("refused")).rounds()) == 2
    s3.permit(key, FULL_ACCESS)
    elsewhere("second-home")
    run(s3.uri("refused"), resume=True)
    assert rows(stored(s3.uri("refused"))) == undisturbed


@pytest.mark.parametrize("key", [Key("nobody", "AKIA0000000000000000", WRONG), None])
def test_a_wrong_key_is_one_line_before_work_starts(s3, writer, images, use, elsewhere, tmp_path, fedpgp, key):
    use(key or Key(writer.user, writer.id, WRONG))
    uri = s3.uri("denied")
    (tmp_path / "mine.yaml").write_text(
        yaml.safe_dump({"base": {"storage": {"root": uri}}, "space": {"federation.lr": {"grid_search": [0.1, 0.2]}}})
    )
    told = (
        "credentials are (missing or wrong, or do not permit it|wrong or have expired); set AWS_ACCESS_KEY_ID and AWS"
    )
    for arguments in (
        ["run", "shapes", *SETTINGS, f"storage.root={uri}"],
        ["run", "shapes", *SETTINGS, *PARQUET, f"storage.root={tmp_path}", f"data.root={images[1]}"],
        ["sweep", tmp_path / "mine.yaml"],
        ["report", s3.uri("killed")],
        ["track", "sync", s3.uri("killed")],
    ):
        code, _, said = fedpgp(*arguments)
        errors = [line for line in said.splitlines() if line.startswith("error: ")]
        assert (code, len(errors)) == (2, 1), said
        assert re.search(told, errors[0]), said
        assert WRONG not in said
        assert "Traceback" not in said
    assert not s3.keys("denied")


def test_the_secret_in_a_uri_is_written_nowhere(s3, writer, images, tmp_path, elsewhere, fedpgp):
    """Neither into the bucket, nor below the home folder or a local root, nor on the screen."""
    secret = quote(writer.secret, safe="")
    given = f"s3://{writer.id}:{secret}@"
    data = images[1].replace("s3://", given)
    code, out, said = fedpgp("run", "shapes", *SETTINGS, *PARQUET, f"data.root={data}",
                             f"storage.root={s3.uri('secret').replace('s3://', given)}")  # fmt: skip
    assert code == 0, said
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    objects = {key: s3.read(key) for key in s3.keys("secret")}
    assert len(files) > 5
    assert len(objects) > 5
    for name, content in {**files, **objects, "screen": (out + said).encode()}.items():
        assert not any(one.encode() in content for one in (secret, writer.secret, writer.id)), name

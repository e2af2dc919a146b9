"""The mirror shows what the rows say, once, whatever happened in between."""

import json
import logging
import os
import threading
from pathlib import Path

import pyarrow as pa
import pytest
import torch
import yaml
from mlflow.tracking import MlflowClient
from safetensors.torch import load_file

from fedpgp import config, tracking
from fedpgp.core.errors import AccessError, FedPGPError, RunError
from fedpgp.core.text import redacted
from fedpgp.federation.metrics import CLIENT_SCHEMA, CONFUSION_SCHEMA, RoundRow
from fedpgp.federation.state import State
from fedpgp.storage import checkpoint
from fedpgp.storage.run_folder import RunFolder
from fedpgp.tracking import connection
from fedpgp.tracking.writers import RunWriter

DIGEST = "0123456789ab"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("a store")  # a path with a space


@pytest.fixture(scope="module")
def uri(root):
    """One SQLite store for the module: to create one takes seconds."""
    tracking.prepare(root, tracking.default_uri(root), "fedpgp")
    return tracking.default_uri(root)


@pytest.fixture(scope="module")
def client(uri):
    return MlflowClient(uri)


@pytest.fixture
def store(root, request):
    text = config.dump(config.parse({"name": "demo"}))
    identity = {
        "method": "fedpgp", "client_names": ["a", "b"], "class_names": ["x", "y"], "versions": {"torch": "2.0"},
        "data": "shapes", "manifest_digest": "m1",
    }  # fmt: skip
    return RunFolder.create(root, request.node.name, DIGEST, text, identity)


def commit(store, number, **metrics):
    clients = [
        {
            "round": number,
            "client": client,
            "split": "test",
            "metric": "local",
            "correct": number,
            "total": 10 * (client + 1),
        }
        for client in (0, 1)
    ]
    row = RoundRow(number, metrics or {"test/local": 7.5 * number}, 2, 100, 200, {"train": 0.5}, 1_000_000 + number)
    state = State(number, {"ctx": torch.full((2,), float(number))}, {"U": torch.zeros(2, 3)})
    reference = checkpoint.save(store.checkpoints, state, DIGEST)
    store.commit(row, pa.Table.from_pylist(clients, CLIENT_SCHEMA), reference)


def history(client, run_id, name="test/local"):
    return [(item.step, item.value, item.timestamp) for item in client.get_metric_history(run_id, name)]


def test_the_default_store_is_absolute_with_absolute_artifacts(root, uri, client):
    assert uri == f"sqlite:///{root}/mlflow.db"
    assert (root / "mlflow.db").is_file()
    assert client.get_experiment_by_name("fedpgp").artifact_location == (root / "mlartifacts").as_uri()
    assert tracking.prepare(root, uri, "fedpgp") == client.get_experiment_by_name("fedpgp").experiment_id


def test_a_run_in_the_mirror_has_its_settings_identity_and_rounds(store, uri, client):
    commit(store, 1)
    commit(store, 2)
    run = client.get_run(tracking.sync_run(store.path, uri))
    assert run.info.run_name == store.path.name
    assert run.info.status == "RUNNING"
    assert run.info.start_time == store.identity["created_ms"]
    assert run.data.params["federation.rounds"] == "10"
    assert run.data.params["method.name"] == "fedpgp"
    assert run.data.params["data.root"] == "null"
    assert run.data.tags["fedpgp.method"] == "fedpgp"
    assert run.data.tags["fedpgp.config_digest"] == DIGEST
    assert run.data.tags["fedpgp.versions.torch"] == "2.0"
    assert run.data.tags["mlflow.source.name"] == "fedpgp"
    assert run.data.metrics == {
        "test/local": 15.0,
        "participants": 2.0,
        "bytes/up": 100.0,
        "bytes/down": 200.0,
        "seconds/train": 0.5,
        "round": 2.0,
    }
    assert history(client, run.info.run_id) == [(1, 7.5, 1_000_001), (2, 15.0, 1_000_002)]


def test_syncing_again_adds_nothing_but_what_is_new(store, uri, client):
    commit(store, 1)
    run_id = tracking.sync_run(store.path, uri)
    assert tracking.sync_run(store.path, uri) == run_id
    commit(store, 2)
    assert tracking.sync_run(store.path, uri) == run_id
    assert [step for step, _, _ in history(client, run_id)] == [1, 2]
    used = [(one.dataset.name, one.dataset.digest) for one in client.get_run(run_id).inputs.dataset_inputs]
    assert used == [("shapes", "m1")]


def test_a_round_sent_twice_stays_one(store, uri, client):
    commit(store, 1)
    run_id = tracking.sync_run(store.path, uri)
    writer = RunWriter(store, uri)
    writer._sent[writer.run_id] = -1  # as a second writer sees it that started before the first had sent
    commit(store, 2)
    writer.push()
    assert [step for step, _, _ in history(client, run_id)] == [1, 2]
    assert [step for step, _, _ in history(client, run_id, "round")] == [1, 2]


def test_many_rounds_are_caught_up_in_few_batches(store, uri, client, monkeypatch):
    numbers = range(1, 61)
    for number in numbers:
        commit(store, number)
    batches = []
    original = MlflowClient.log_batch
    monkeypatch.setattr(
        MlflowClient, "log_batch", lambda self, *args, **kw: batches.append(kw) or original(self, *args, **kw)
    )
    run_id = tracking.sync_run(store.path, uri)
    assert [step for step, _, _ in history(client, run_id)] == list(numbers)
    sizes = [len(batch["metrics"]) for batch in batches if "metrics" in batch]
    assert sizes == [60 * 6]  # below MLflow's limit of 1000


def test_a_finished_run_has_its_artifacts_and_end(store, uri, client, tmp_path):
    commit(store, 1, **{"test/local": 1.0, "val/local": 70.0})
    commit(store, 2, **{"test/local": 2.0, "val/local": 60.0})
    confused = [{"split": "test", "metric": "local", "label": 0, "answer": 1, "count": 3}]
    store.save_confusion(pa.Table.from_pylist(confused, CONFUSION_SCHEMA))
    store.finish({"bytes_up": 100})
    run_id = tracking.sync_run(store.path, uri)
    assert tracking.sync_run(store.path, uri) == run_id
    run = client.get_run(run_id)
    assert (run.info.status, run.info.end_time) == ("FINISHED", store.status["timestamp_ms"])
    folder = tmp_path / "artifacts"
    folder.mkdir()
    client.download_artifacts(run_id, "", str(folder))
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*")) == [
        "checkpoint.safetensors", "clients.csv", "config.yaml", "figures/confusion.png", "figures/curves.png",
        "prompt.safetensors", "summary.json",
    ]  # fmt: skip
    assert (folder / "config.yaml").read_text() == store.config_yaml
    assert json.loads((folder / "summary.json").read_text()) == store.summary
    assert (folder / "clients.csv").read_text() == (
        '"client","name","split","local"\n0,"a","test",20\n1,"b","test",10\n'
    )
    # Validation likes round 1 best, so that is the prompt; the checkpoint is the end.
    assert {name: run.data.metrics[f"best/{name}"] for name in ("test/local", "val/local")} == {
        "test/local": 1, "val/local": 70,
    }  # fmt: skip
    learned = [load_file(folder / f"{file}.safetensors")["shared/ctx"].tolist() for file in ("prompt", "checkpoint")]
    assert learned == [[1, 1], [2, 2]]
    note = run.data.tags["mlflow.note.content"]
    assert "| test/local | 2.00 | 1.50 | 1.00 |" in note
    assert "| client | split | local |\n|---|---|---:|\n| a | test | 20.00 |\n| b | test | 10.00 |\n" in note
    page = f"#/experiments/{run.info.experiment_id}/runs/{run_id}/artifacts"
    assert (
        f"Artifacts: [accuracies of each client]({page}/clients.csv?workflowType=machine_learning), [confusion matrix]("
        in note
    )


def test_a_failed_run_says_why_and_runs_again_after_a_resume(store, uri, client):
    store.fail("client 3, round 2, train: loss is nan")
    run_id = tracking.sync_run(store.path, uri)
    run = client.get_run(run_id)
    assert (run.info.status, run.data.tags["fedpgp.reason"]) == ("FAILED", "client 3, round 2, train: loss is nan")
    with store.lock():
        assert tracking.sync_run(store.path, uri) == run_id
        assert client.get_run(run_id).info.status == "RUNNING"
        store.stop("SIGTERM")
    tracking.sync_run(store.path, uri)
    assert client.get_run(run_id).info.status == "KILLED"


def test_what_a_round_used_of_the_machine_is_on_mlflows_tab_of_system_metrics(store, uri, client):
    used = {"driver_memory_usage_megabytes": 120.0, "workers_cpu_utilization_percentage": 95.0}
    for number, system in ((1, used), (2, {})):
        row = RoundRow(number, {"test/local": 1.0}, 2, 100, 200, {}, 1_000_000 + number, system)
        reference = checkpoint.save(store.checkpoints, State(number, {}, {}), DIGEST)
        store.commit(row, CLIENT_SCHEMA.empty_table(), reference)
    run_id = tracking.sync_run(store.path, uri)  # as after a kill: from the rows
    assert history(client, run_id, "system/driver_memory_usage_megabytes") == [(1, 120.0, 1_000_001)]
    assert history(client, run_id, "system/workers_cpu_utilization_percentage") == [(1, 95.0, 1_000_001)]


def test_equal_names_in_two_stores_are_two_runs(root, uri, tmp_path):
    text = config.dump(config.parse({}))
    stores = [RunFolder.create(folder, "twin", DIGEST, text, {}) for folder in (root, tmp_path)]
    assert len({tracking.sync_run(store.path, uri) for store in stores}) == 2


def test_the_mirror_follows_a_run_and_ends_with_it(store, uri, client):
    mirror = tracking.Mirror(store.path, uri)
    for number in (1, 2, 3):
        commit(store, number)
        mirror.notify()
    store.finish({})
    mirror.close()
    run = client.get_run(tracking.sync_run(store.path, uri))
    assert [step for step, _, _ in history(client, run.info.run_id)] == [1, 2, 3]
    assert run.info.status == "FINISHED"


def test_one_that_watched_from_before_the_first_round_knows_the_best_and_the_last(store, uri, client):
    writer = RunWriter(RunFolder.open(store.path), uri)
    writer.push()
    for number in (1, 2, 3):
        commit(store, number, **{"val/local": 60.0 - number})
        writer.push()
    store.finish({})
    writer.push()
    assert client.get_run(writer.run_id).data.metrics["best/val/local"] == 59
    files = {file.path for file in client.list_artifacts(writer.run_id)}
    assert {"prompt.safetensors", "checkpoint.safetensors"} <= files


def test_a_mirror_that_fails_is_told_once_and_catches_up(store, uri, client, caplog, monkeypatch):
    failed = threading.Semaphore(0)

    def refuse(uri):
        failed.release()
        raise OSError("cannot reach http://me:secret@host:5000/api\nmore")

    with monkeypatch.context() as patch:
        patch.setattr(connection, "connect", refuse)
        mirror = tracking.Mirror(store.path, uri)
        for number in (1, 2):
            commit(store, number)
            mirror.notify()
            assert failed.acquire(timeout=10)
    mirror.close()
    assert [step for step, _, _ in history(client, tracking.sync_run(store.path, uri))] == [1, 2]
    assert [record.levelno for record in caplog.records if record.name == "fedpgp.tracking"] == [logging.WARNING]
    assert "cannot reach http://***@host:5000/api; the run goes on" in caplog.text
    assert f"`fedpgp track sync '{store.path}'` catches up" in caplog.text
    assert "secret" not in caplog.text


def test_close_does_not_wait_for_ever(store, uri, caplog, monkeypatch):
    answer = threading.Event()
    monkeypatch.setattr(connection, "connect", lambda uri: answer.wait(60))
    mirror = tracking.Mirror(store.path, "http://me:secret@host")
    mirror.close(timeout=0.1)
    answer.set()
    assert "MLflow at http://***@host: no answer for 0.1 seconds" in caplog.text
    mirror._thread.join(10)


def test_no_password_reaches_the_mirror(root, uri, client, tmp_path):
    settings = config.parse({"tracking": {"uri": "postgresql://me:secret@host/db"}})
    store = RunFolder.create(root, "password", DIGEST, config.dump(settings), {})
    store.fail("could not open postgresql://me:secret@host/db")
    run = client.get_run(tracking.sync_run(store.path, uri))
    assert run.data.params["tracking.uri"] == "postgresql://***@host/db"
    assert "secret" not in run.data.tags["fedpgp.reason"]
    path = Path(client.download_artifacts(run.info.run_id, "config.yaml", str(tmp_path)))
    assert yaml.safe_load(path.read_text())["tracking"]["uri"] == "postgresql://***@host/db"


def test_errors_are_one_line_without_secrets(store, tmp_path):
    with pytest.raises(FedPGPError, match=r"^MLflow at nosuch://\*\*\*@host: [^\n]*$") as caught:
        tracking.sync_run(store.path, "nosuch://me:secret@host")
    assert "secret" not in str(caught.value)
    with pytest.raises(RunError, match="not a run folder"):
        tracking.sync_run(tmp_path, "nosuch://")


def test_redaction_leaves_everything_else_alone():
    assert redacted("a://u:p@h/x b://h/y@z c@d") == "a://***@h/x b://h/y@z c@d"
    assert redacted("sqlite:////home/a@b/mlflow.db") == "sqlite:////home/a@b/mlflow.db"


def test_rounds_made_with_other_versions_are_a_tag(store, uri, client):
    commit(store, 1)
    store.stop("SIGTERM")
    run_id = tracking.sync_run(store.path, uri)
    assert "fedpgp.stretches" not in client.get_run(run_id).data.tags
    store.continue_with(2, {"versions": {"torch": "2.5"}})
    commit(store, 2)
    store.finish({})
    tracking.sync_run(store.path, uri)
    assert client.get_run(run_id).data.tags["fedpgp.stretches"] == "rounds 1-1: torch 2.0; rounds 2-2: torch 2.5"


def test_a_new_store_is_shared_with_the_group_if_the_root_is(tmp_path, monkeypatch):
    """The umask is that of most systems, with which only the user who creates a file may write to it."""

    class Client:
        def get_experiment_by_name(self, name):
            (tmp_path / "mlflow.db").touch()

        def create_experiment(self, name, **settings):
            return "1"

    monkeypatch.setattr(connection, "connect", lambda uri: Client())
    before = os.umask(0o022)
    try:
        for mode, file, folder in ((0o755, 0o644, 0o755), (0o775, 0o664, 0o775)):
            tmp_path.chmod(mode)
            connection.prepare(tmp_path, connection.default_uri(tmp_path), "fedpgp")
            modes = [(tmp_path / name).stat().st_mode & 0o777 for name in ("mlflow.db", ".mlflow.lock", "mlartifacts")]
            assert modes == [file, file, folder]
    finally:
        os.umask(before)


def test_a_store_that_may_not_be_written_is_said_at_once(shared_root, as_user):
    uri = connection.default_uri(shared_root)
    (shared_root / "mlflow.db").touch()
    with (
        as_user(1502),
        pytest.raises(AccessError, match=r"mlflow.db may not be written by you \(uid 1502\); its owner"),
    ):
        connection.prepare(shared_root, uri, "fedpgp")
    (shared_root / "mlflow.db").chmod(0o600)
    with as_user(1502), pytest.raises(AccessError, match=r"mlflow\.db may not be read"):
        connection.connect(uri)


def test_the_cause_of_a_failed_write_is_named(tmp_path):
    """SQLAlchemy puts advice on its own session before the database's message."""
    import sqlalchemy

    database = tmp_path / "store.db"
    engine = sqlalchemy.create_engine(f"sqlite:///{database}")
    with engine.begin() as session:
        session.execute(sqlalchemy.text("create table runs (id integer)"))
    engine = sqlalchemy.create_engine(f"sqlite:///file:{database}?mode=ro&uri=true")

    def write():
        with connection.mlflow_errors("sqlite:///store.db"), engine.begin() as session:
            try:
                session.execute(sqlalchemy.text("insert into runs values (1)"))
            except sqlalchemy.exc.OperationalError as error:
                error.add_detail("raised as a result of Query-invoked autoflush")
                raise

    with pytest.raises(FedPGPError) as caught:
        write()
    assert str(caught.value) == (
        "MLflow at sqlite:///store.db: (sqlite3.OperationalError) attempt to write a readonly database"
    )

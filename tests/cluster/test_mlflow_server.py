"""MLflow's server on PostgreSQL, with passwords and its artifacts in S3: every row is there once."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

import pytest
import yaml
from mlflow.entities import ViewType
from mlflow.tracking import MlflowClient
from proxy import Proxy, in_front_of
from services import NEEDS_POSTGRESQL, NEEDS_S3, S3, PostgreSQL, serving_mlflow, serving_postgresql, serving_s3

from fedpgp import config
from fedpgp.core.callbacks import RunCallback
from fedpgp.experiments import launch
from fedpgp.storage.run_folder import RunFolder
from fedpgp.storage.sweep_folder import SweepFolder
from fedpgp.tracking import MLflowTracker, prepare, views
from fedpgp.tracking.names import PARENT_TAG, RUN_TAG, SWEEP_TAG, metric_key

pytestmark = [pytest.mark.slow, NEEDS_S3, NEEDS_POSTGRESQL]

ROUNDS = 12
SETTINGS = [
    "name=small", "protocol.shots=1", "partition.clients=2", "method.name=promptfl", "method.n_ctx=1",
    f"federation.rounds={ROUNDS}", "federation.local_epochs=1", "resources.backend=serial",
]  # fmt: skip
USER, PASSWORD, DATABASE_PASSWORD = "researcher", "planted-MLFL0W-password", "planted-P0STGRES-password"
OTHER, ARTIFACTS = "somebody-else", "mlflow"
PATIENCE = 300


@dataclass(frozen=True)
class Services:
    """All of them; MLflow is reached through the proxy at `uri`."""

    s3: S3
    database: PostgreSQL
    proxy: Proxy

    @property
    def uri(self):
        return f"http://127.0.0.1:{self.proxy.port}"

    @property
    def client(self):
        return MlflowClient(self.uri)

    def recorded(self, run_id):
        """The metrics of an MLflow run in the database: a value for each name and step, none of them twice."""
        rows = self.database.query("SELECT key, step, value FROM metrics WHERE run_uuid = %s", run_id)
        found = {(key, step): value for key, step, value in rows}
        assert len(found) == len(rows)
        return found

    def entries(self, experiment, tag):
        """The MLflow runs of an experiment with a tag, by its value: one for each."""
        number = self.client.get_experiment_by_name(experiment).experiment_id
        runs = self.client.search_runs([number], f"tags.`{tag}` LIKE '%'")
        found = {run.data.tags[tag]: run for run in runs}
        assert len(found) == len(runs)
        return found

    def assert_mirrored(self, store, experiment):
        """The MLflow run of a run has its status, its rows, and its artifacts."""
        entry = self.entries(experiment, RUN_TAG)[store.identity["id"]]
        assert entry.info.status == "FINISHED"
        recorded, rows = self.recorded(entry.info.run_id), store.rounds()
        expected = {(metric_key(key), row.round): value for row in rows for key, value in row.metrics.items()}
        assert {place: recorded[place] for place in expected} == expected
        assert sorted(step for key, step in recorded if key == "round") == list(range(1, ROUNDS + 1))
        folder = f"{ARTIFACTS}/{entry.info.experiment_id}/{entry.info.run_id}/artifacts"
        assert json.loads(self.s3.read(f"{folder}/summary.json")) == store.summary
        return entry


@pytest.fixture(scope="module")
def services(tmp_path_factory):
    with ExitStack() as stack:
        s3, database = stack.enter_context(serving_s3()), stack.enter_context(serving_postgresql(DATABASE_PASSWORD))
        server = stack.enter_context(serving_mlflow(database, s3, ARTIFACTS, PASSWORD))
        for name in (USER, OTHER):
            server.add_user(name, PASSWORD)
        yield Services(s3, database, stack.enter_context(in_front_of(server.port)))


@pytest.fixture(autouse=True)
def _as_user(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", USER)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)


class At(RunCallback):
    """Does something once a round is committed, and keeps the warnings."""

    def __init__(self, actions):
        self._actions, self.warnings = actions, []

    def on_round(self, folder, done, total, metrics):
        self._actions.get(done, lambda: None)()

    def on_message(self, text, warning=False):
        self.warnings += [text] if warning else []


def run(root, uri, experiment, actions=None):
    """Run with the mirror on; give the run and the warnings."""
    tracking = [f"storage.root={root}", f"tracking.uri={uri}", f"tracking.experiment={experiment}"]
    callback = At(actions or {})
    path = launch.run(config.load("shapes", [*SETTINGS, *tracking]), False, callback, MLflowTracker())
    return RunFolder.open(path), callback.warnings


@pytest.fixture(scope="module")
def first(services, tmp_path_factory):
    """A run that is mirrored, in an experiment of the user."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_USERNAME", USER)
        patch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
        store, warnings = run(tmp_path_factory.mktemp("first"), services.uri, "first")
    assert warnings == []
    return store


def error_of(code, said, expected=1):
    """The only line of an error, without a password."""
    assert code == expected, said
    (line,) = [line for line in said.splitlines() if line]
    assert line.startswith("error: ")
    assert PASSWORD not in line
    assert DATABASE_PASSWORD not in line
    return line


def test_a_run_is_there_with_its_artifacts_and_views(services, first):
    entry = services.assert_mirrored(first, "first")
    pages = views.save(services.uri)
    tags = services.client.get_experiment(entry.info.experiment_id).tags
    saved = {key.removeprefix(views.TAG_PREFIX) for key in tags if key.startswith(views.TAG_PREFIX)}
    assert {page.rpartition("viewStateShareKey=")[2] for page in pages.values()} == saved == {"fedpgp-runs"}


def test_an_exported_prompt_is_registered(services, first, fedpgp, tmp_path):
    out = tmp_path / "out"
    code, said, errors = fedpgp("export", first.path, "--client", "global", "--out", out, "--register", "prompt")
    assert (code, errors) == (0, "")
    assert said.splitlines()[-1] == f"registered: models:/prompt@best (version 1) in {services.uri}"
    source = services.client.get_model_version_by_alias("prompt", "best").source
    folder = source.replace("mlflow-artifacts:", ARTIFACTS)
    for path in (path for path in (out / "mlflow-model").rglob("*") if path.is_file()):
        content = services.s3.read(f"{folder}/{path.relative_to(out / 'mlflow-model').as_posix()}")
        if path.name == "MLmodel":  # MLflow adds where it is
            assert yaml.safe_load(path.read_text()).items() <= yaml.safe_load(content).items()
        else:
            assert content == path.read_bytes(), path


def test_a_server_that_is_down_for_a_while_gets_the_rest_by_itself(services, tmp_path):
    store, warnings = run(tmp_path, services.uri, "back", {2: services.proxy.down, ROUNDS - 1: services.proxy.up})
    assert len(warnings) <= 1
    services.assert_mirrored(store, "back")


def test_an_answer_that_is_lost_doubles_no_entry(services, tmp_path):
    """MLflow's client then asks again for a new run."""
    services.proxy.lose_answer(to=b"/mlflow/runs/create")
    store, warnings = run(tmp_path, services.uri, "lost")
    assert warnings == []
    services.assert_mirrored(store, "lost")
    number = services.client.get_experiment_by_name("lost").experiment_id
    deleted = services.client.search_runs([number], run_view_type=ViewType.DELETED_ONLY)
    assert [one.data.tags[RUN_TAG] for one in deleted] == [store.identity["id"]]


def test_a_server_that_stays_down_gets_the_rest_on_request(services, tmp_path, fedpgp):
    store, (warning,) = run(tmp_path, services.uri, "outage", {2: services.proxy.down})
    assert f"the run goes on; once this is solved, `fedpgp track sync {store.path}` catches up" in warning
    line = error_of(*fedpgp("track", "sync", store.path)[::2])
    assert services.uri in line
    services.proxy.up()
    for _ in range(2):
        assert fedpgp("track", "sync", store.path)[0] == 0
        services.assert_mirrored(store, "outage")


def test_an_experiment_that_is_deleted_meanwhile_is_restored_by_a_sync(services, tmp_path, fedpgp):
    def delete():
        services.client.delete_experiment(services.client.get_experiment_by_name("deleted").experiment_id)

    services.client.create_experiment("deleted")
    store, _ = run(tmp_path, services.uri, "deleted", {ROUNDS // 2: delete})
    code, _, said = fedpgp("track", "sync", store.path)
    assert code == 0, said
    services.assert_mirrored(store, "deleted")


def test_processes_that_create_one_experiment_at_once_get_the_same(services, tmp_path):
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: prepare(tmp_path, services.uri, "raced"), range(4)))
    assert found == [services.client.get_experiment_by_name("raced").experiment_id] * 4


def test_two_sweeps_at_once(services, tmp_path, fedpgp):
    tracking = {"uri": services.uri, "experiment": "sweeps"}
    base = yaml.safe_load(config.dump(config.load("shapes", SETTINGS)))
    base |= {"storage": {"root": str(tmp_path / "store")}, "tracking": tracking}
    processes = []
    for name, rates in (("one", [0.1, 0.01]), ("two", [0.2, 0.02])):
        spec = {"base": base, "space": {"federation.lr": {"grid_search": rates}}, "tune": {"max_concurrent": 1}}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(spec))
        processes.append(
            subprocess.Popen(
                [sys.executable, "-m", "fedpgp", "sweep", str(tmp_path / f"{name}.yaml")], stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, text=True,
            )
        )  # fmt: skip
    said = [process.communicate(timeout=PATIENCE)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert not any(PASSWORD in text for text in said)
    if any("MLflow at" in text for text in said):  # on a busy machine a mirror may give up after a minute, and says so
        assert fedpgp("track", "sync", tmp_path / "store")[0] == 0
    found = services.entries("sweeps", SWEEP_TAG)
    assert sorted(run.info.run_name.rpartition("-")[0] for run in found.values()) == ["one", "two"]
    runs = RunFolder.find(tmp_path / "store")
    assert len(runs) == 4
    trials = {services.assert_mirrored(store, "sweeps").data.tags[PARENT_TAG] for store in runs}
    above = [services.client.get_run(trial).data.tags[PARENT_TAG] for trial in trials]
    assert sorted(above) == sorted(2 * [run.info.run_id for run in found.values()])
    assert len(SweepFolder.find(tmp_path / "store")) == 2
    assert next(iter(views.save(services.uri))).startswith(("Trials of one-", "Trials of two-"))


@pytest.mark.parametrize(
    ("user", "password"), [(USER, "wrong"), ("nobody", PASSWORD), (None, None)], ids=["password", "user", "none"]
)
def test_wrong_credentials_are_one_line(services, first, tmp_path, monkeypatch, fedpgp, user, password):
    for name, value in (("USERNAME", user), ("PASSWORD", password)):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}")
        if value is not None:
            monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", value)
    told = f"MLflow at {services.uri}: API request to "
    advice = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
    export = ["export", first.path, "--client", "global", "--out", tmp_path / "x", "--register", "x"]
    for arguments in (["track", "sync", first.path], export):
        line = error_of(*fedpgp(*arguments)[::2])
        assert line.startswith(f"error: {told}")
        assert advice in line
    assert not (tmp_path / "x").exists()


def test_an_experiment_of_somebody_else_is_one_line(services, first, made_run, monkeypatch, fedpgp):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", OTHER)
    store = made_run("tracking.experiment=first", f"tracking.uri={services.uri}", test_local=[50])
    line = error_of(*fedpgp("track", "sync", store)[::2])
    assert "error code 403" in line
    assert "ermission denied" in line


def test_a_database_that_is_down_ends_no_run_and_is_one_line(services, tmp_path, fedpgp):
    try:
        store, (warning,) = run(tmp_path, services.uri, "database", {2: services.database.stop})
        assert "fedpgp track sync" in warning
        assert "\n" not in warning
        error_of(*fedpgp("track", "sync", store.path)[::2])
        line = error_of(*fedpgp("track", "sync", store.path, "--uri", services.database.uri)[::2])
        assert f"MLflow at postgresql+psycopg2://***@127.0.0.1:{services.database.port}/postgres: " in line
    finally:
        services.database.start()
    assert fedpgp("track", "sync", store.path)[0] == 0
    services.assert_mirrored(store, "database")


def test_passwords_are_written_nowhere(services, tmp_path, fedpgp, monkeypatch):
    """Not into the storage root, on the screen, into the bucket, nor into MLflow's tables."""
    for name in ("USERNAME", "PASSWORD"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}")
    for number, uri in enumerate((services.uri.replace("://", f"://{USER}:{PASSWORD}@"), services.database.uri)):
        tracking = [f"storage.root={tmp_path}", f"tracking.uri={uri}", f"tracking.experiment=secret-{number}"]
        code, *said = fedpgp("run", "shapes", *SETTINGS, f"name=secret-{number}", *tracking)
        assert code == 0, said
        assert not any(text in "".join(said) for text in (PASSWORD, DATABASE_PASSWORD, " INFO ", "WARNING"))
    written = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    written |= {key: services.s3.read(key) for key in services.s3.keys(ARTIFACTS)}
    written["tables"] = services.database.text().encode()
    assert b"secret-0" in written["tables"]
    assert b"secret-1" in written["tables"]
    for secret in (PASSWORD, DATABASE_PASSWORD):
        assert not [name for name, content in written.items() if secret.encode() in content]

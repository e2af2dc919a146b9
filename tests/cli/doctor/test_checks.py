"""The machine and the storage root, looked at without changing them; what an experiment needs, and whether it fits."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from mlflow.tracking import MlflowClient
from PIL import Image
from small_experiment import SMALL, found_in, small

from fedpgp import config, tracking
from fedpgp.cli.doctor import checks
from fedpgp.cli.doctor.findings import State, ok
from fedpgp.clip.feature_cache import FeatureKey, cache_path, write_shard
from fedpgp.config import ResourceSettings
from fedpgp.core.callbacks import EventStream, RunCallback
from fedpgp.core.text import disk_size, memory_size
from fedpgp.data import content
from fedpgp.experiments import estimation, launch
from fedpgp.experiments.planning import plan
from fedpgp.experiments.tracker import Tracker


def of(experiment, *nodes):
    return {one.name: one for one in checks.experiment_needs(experiment, nodes)}


NODE = {"CPU": 2.0, "GPU": 0.0, "memory": 8e9}


def test_an_experiment_that_fits(tmp_path):
    experiment = small(tmp_path, "partition.clients=3")
    found = of(experiment, NODE)
    assert {name: one.state for name, one in found.items()} == dict.fromkeys(
        ("data", "resources", "plan", "features", "memory"), State.ok
    )
    assert found["plan"].what.startswith("fedpgp on tiny: 3 clients, 15 classes to train on (")
    images = len(plan(experiment).data.rows)
    assert found["features"].what.startswith(f"{images:,} images to encode into {tmp_path}/features, ")
    assert list(tmp_path.iterdir()) == []
    launch.extract(experiment, RunCallback())
    assert of(experiment, NODE)["features"] == ok("features", "all there")


def test_images_are_not_read_to_look_whether_their_features_exist(tmp_path, monkeypatch):
    root = tmp_path / "images"
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for number in range(20):
            Image.new("RGB", (8, 8)).save(root / name / f"{number}.png")
    experiment = small(tmp_path / "store", "data.name=folder", f"data.root={root}", "partition.scheme=iid")
    hashed, fill, messages = [], content.Hashes.fill, []
    monkeypatch.setattr(content, "RECENT_NS", 0)
    monkeypatch.setattr(content.Hashes, "fill", lambda self: hashed.append(self) or fill(self))
    forecast = partial(launch.forecast, experiment, EventStream(lambda event: messages.append(str(event.arguments))))
    assert of(experiment, NODE)["features"].what.endswith(
        "if they are copies of known images: the first run hashes them"
    )
    (before,) = forecast()
    assert (before.images > 0, "the images are not hashed here yet" in messages[-1]) == (True, True)
    assert (hashed, list(tmp_path.glob("store/*"))) == ([], [])
    launch.extract(experiment, RunCallback())
    del messages[:], hashed[:]
    assert of(experiment, NODE)["features"] == ok("features", "all there")
    (after,) = forecast()
    assert (after.images, hashed, "hashed" in "".join(messages)) == (0, [], False)


def test_the_memory_forecast_equals_what_the_run_reports(tmp_path):
    experiment, said = small(tmp_path), []
    told = estimation.of_memory(plan(experiment))
    launch.run(experiment, False, EventStream(said.append), Tracker())
    assert any(f"about {memory_size(told)} of memory each" in str(event.arguments) for event in said)


@pytest.mark.parametrize(
    ("name", "overrides"),
    [("pooled, views", ["data.views=3"]), ("patches", ["method.name=fedotp"]), ("pixels", ["method.name=pfedpt"])],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_memory_is_measured_whatever_the_features_are(tmp_path, name, overrides):
    experiment = config.absolute(config.load("shapes", [*SMALL[:2], *overrides, f"storage.root={tmp_path}"]))
    assert estimation.of_memory(plan(experiment)) > 2**29
    assert list(tmp_path.iterdir()) == []


def test_nothing_to_train_needs_no_memory(tmp_path):
    experiment = config.load("shapes", [*SMALL[:2], "method.name=zero_shot", f"storage.root={tmp_path}"])
    assert of(experiment, NODE)["memory"] == ok("memory", "zero_shot trains nothing")


def test_an_impossible_request_is_a_problem_and_cores_that_take_turns_a_warning(tmp_path):
    wanted = small(tmp_path, "resources.backend=ray", "resources.actors=3", "resources.gpus_per_actor=0.5").resources
    short = checks.resources(wanted, [NODE])
    assert (short.name, short.state) == ("resources", State.problem)
    assert "3 actors x (1 CPU, 0.5 GPU) need 3 CPU and 1.5 GPU; the cluster has 2 CPU and 0 GPU" in short.what
    many = small(tmp_path, "resources.backend=ray", "resources.actors=500").resources
    assert checks.resources(many, [{"CPU": 500.0}]).state is State.warning


def test_too_little_memory_is_a_problem(tmp_path):
    found = of(small(tmp_path), {**NODE, "memory": 2**20})["memory"]
    assert found.state is State.problem
    assert "1 x about" in found.what
    assert "but 1.0 MiB are free" in found.what


def test_memory_of_gpus_is_not_judged(tmp_path):
    wanted = of(small(tmp_path, "resources.gpus_per_actor=1"), {**NODE, "memory": 1e6})["memory"]
    assert (wanted.state, wanted.what.partition(" on ")[2]) == (
        State.ok, "shares of GPUs, with whose memory it was not compared"
    )  # fmt: skip


def test_too_little_disk_for_the_features_is_a_problem(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda place: type("Usage", (), {"total": 1e9, "free": 10}))
    found = of(small(tmp_path), NODE)["features"]
    assert found.state is State.problem
    assert found.what.endswith("but 10 bytes are free")


def test_a_torn_cache_of_the_plan_is_its_features_problem(tmp_path):
    experiment = small(tmp_path)
    (path,) = launch.extract(experiment, RunCallback())
    path.write_bytes(path.read_bytes()[:-10])
    found = of(experiment, NODE)["features"]
    assert (found.state, str(path) in found.what) == (State.problem, True)


def test_every_domain_in_turn_is_looked_at_with_the_first_held_out(tmp_path):
    held_out = ["protocol.name=leave_one_domain_out", "protocol.held_out=all", "partition.scheme=domain"]
    found = of(small(tmp_path, *held_out, "partition.clients=null"), NODE)
    assert found["plan"].what.startswith("fedpgp on tiny: 2 clients")


def test_gpus_that_torch_does_not_see_are_told():
    assert checks.gpus([], []).what == "none: everything runs on the CPU"
    assert checks.gpus(["A100"], ["A100"]) == ok("gpu", "A100")
    hidden = checks.gpus(["A100"], ["A100", "H100"])
    assert (hidden.state, hidden.what) == (State.warning, "torch sees 1 of 2 (A100, H100)")


def test_a_folder_that_cannot_be_written_to_is_a_problem_and_looking_leaves_nothing(tmp_path):
    found = checks.disk("disk", "runs", Path("/proc/self/fdinfo/new"))  # read-only for everyone, root too
    assert found.state is State.problem
    assert found.what.startswith("runs: nothing can be written to /proc/self/fdinfo")
    assert "storage.root" in found.advice
    assert checks.disk("disk", "runs", tmp_path / "not" / "yet").state is State.ok
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("free", "busy", "state"),
    [(0.5e9, False, State.warning), (2e9, False, State.ok), (2e9, True, State.warning), (6e9, True, State.ok)],
)
def test_a_disk_that_is_nearly_full_is_a_warning(monkeypatch, tmp_path, free, busy, state):
    monkeypatch.setattr("shutil.disk_usage", lambda place: type("Usage", (), {"total": 1e11, "free": free}))
    assert checks.disk("disk", "runs", tmp_path, busy).state is state


@pytest.fixture
def no_ray(monkeypatch):
    """As if no test had started one; whoever starts one now fails."""
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", lambda **settings: pytest.fail("ray is started"))


@pytest.mark.usefixtures("no_ray")
def test_without_a_cluster_ray_is_not_started(tmp_path):
    found, (node,) = checks.ray(small(tmp_path, "resources.backend=ray", "resources.actors=64").resources)
    assert (found.state, node["CPU"]) == (State.ok, 64)


@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1"])
def test_a_cluster_that_does_not_answer_is_a_problem_at_once(address):
    found, nodes = checks.ray(ResourceSettings(address=address))
    assert (found.name, found.state, nodes) == ("ray", State.problem, [])
    assert f"Ray at {address}: Connection refused; check the address, and that the head runs" in found.what


@pytest.mark.usefixtures("ray_cluster")
def test_a_cluster_is_counted(tmp_path):
    found, nodes = checks.ray(small(tmp_path, "resources.backend=ray").resources)
    assert found.what.startswith("a cluster of 1 node(s) with 4 CPU, 2 GPU, ")
    assert len(nodes) == 1


KEY = FeatureKey(manifest="m", weights="w", transform="t")


def shelve(root, rows=6):
    path = cache_path(root / "features", KEY)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_shard(path, KEY, np.arange(rows), np.ones((rows, 1, 8), np.float32))
    return path


def test_whole_caches_are_counted(tmp_path):
    assert found_in(tmp_path, "caches") == [ok("caches", "none yet")]
    path = shelve(tmp_path)
    assert found_in(tmp_path, "caches") == [ok("caches", f"1 whole, 6 images, {disk_size(path.stat().st_size)}")]


def test_a_cut_cache_and_a_misnamed_one_are_problems_that_name_the_file(tmp_path):
    path = shelve(tmp_path)
    whole = path.read_bytes()
    other = path.with_name("0123456789abcdef.arrow")
    other.write_bytes(whole)
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        cut, misnamed = sorted(found_in(tmp_path, "caches"), key=lambda one: "not of its name" in one.what)
        assert (cut.state, misnamed.state) == (State.problem, State.problem)
        assert cut.what.startswith(f"{path}: damaged or incomplete feature cache; delete it")
        assert misnamed.what.startswith(f"{other}: contains the features of {KEY.digest}")


def test_runs_are_counted_and_the_killed_are_named(tmp_path, made_run):
    assert found_in(tmp_path, "runs") == [ok("runs", "none yet")]
    made_run("seed=1", root=tmp_path, test_local=[50])
    made_run("seed=2", root=tmp_path, state="failed")
    assert found_in(tmp_path, "runs") == [ok("runs", "1 failed, 1 finished")]
    killed = made_run("seed=3", root=tmp_path, state="running")
    (killed / ".lock").touch()
    (found,) = found_in(tmp_path, "runs")
    assert (found.state, found.what) == (
        State.warning,
        f"1 failed, 1 finished, 1 interrupted: killed was {killed.name}",
    )
    assert "--resume" in found.advice


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda run: (run / "identity.json").unlink(), "no identity.json"),
        (
            lambda run: (run / "identity.json").write_text("{"),
            "identity.json: damaged or not written by fedpgp: Inv",
        ),
        (
            lambda run: (run / "identity.json").write_text("[]"),
            "identity.json: damaged or not written by fedpgp",
        ),
        (lambda run: (run / "status.json").unlink(), "status.json: cannot be read"),
        (
            lambda run: (run / "status.json").write_text("{}"),
            "status.json: damaged or not written by fedpgp: state: ",
        ),
        (lambda run: (run / "summary.json").unlink(), "has no summary.json"),
        (lambda run: (run / "rounds/000001.arrow").write_bytes(b"torn"), "000001.arrow: round cannot be read"),
        (
            lambda run: (run / "rounds/000001.arrow").write_bytes(shelve(run).read_bytes()),
            "000001.arrow: is not a round",
        ),
    ],
)
def test_a_damaged_run_is_a_problem_by_name_and_hides_no_other(tmp_path, made_run, damage, told):
    made_run("seed=1", root=tmp_path, test_local=[50])
    run = made_run("seed=2", root=tmp_path, test_local=[50])
    damage(run)
    found = list(checks._folders("run", tmp_path / "runs", checks._run, set()))
    assert [(one.state, str(run) in one.what, told in one.what) for one in found[:1]] == [(State.problem, True, True)]
    assert found[1:] == [ok("runs", "1 finished")]


def test_a_damaged_sweep_is_a_problem(tmp_path):
    folder = tmp_path / "sweeps" / "mine-0123"
    folder.mkdir(parents=True)
    (folder / "trials.json").write_text("{}", encoding="utf-8")
    (found,) = found_in(tmp_path, "sweeps")
    assert (found.state, str(folder) in found.what) == (State.problem, True)


def test_what_mlflow_shows_as_running_after_a_kill_is_named_until_it_is_synced(tmp_path, made_run):
    on = "tracking.mlflow=true"
    for where in ([], [f"tracking.uri=sqlite:///{tmp_path}/other.db"]):
        assert found_in(tmp_path, "tracking", on, *where)[0].what.endswith(".db yet; the first run makes one")
    assert list(tmp_path.iterdir()) == []
    run = made_run(root=tmp_path, state="running", test_local=[50])
    uri = tracking.default_uri(tmp_path)
    tracking.sync_run(run, uri)
    assert found_in(tmp_path, "tracking", on)[0].state is State.ok
    (run / ".lock").touch()  # now nobody holds it: its process was killed
    (found,) = found_in(tmp_path, "tracking", on)
    assert (found.state, found.advice) == (State.warning, f"fedpgp track sync {tmp_path}")
    assert found.what.endswith(f"RUNNING there, but ended: {run.name}")
    tracking.sync_run(run, uri)
    assert found_in(tmp_path, "tracking", on)[0].state is State.ok


def test_a_deleted_experiment_is_named(tmp_path):
    uri = tracking.default_uri(tmp_path)
    client = MlflowClient(uri)
    client.delete_experiment(tracking.prepare(tmp_path, uri, "mine"))
    (found,) = found_in(tmp_path, "tracking", "tracking.mlflow=true", "tracking.experiment=mine")
    assert (found.state, found.what) == (State.warning, f"{uri}: experiment 'mine' is deleted there")
    assert found.advice.endswith(f"fedpgp track sync {tmp_path}")
    assert found_in(tmp_path, "tracking", "tracking.mlflow=true")[0].state is State.ok


def test_the_variables_that_name_the_store_and_the_experiment_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mine.db")
    (found,) = found_in(tmp_path, "tracking", "tracking.mlflow=true", "tracking.experiment=other")
    where = f"no MLflow store at sqlite:///{tmp_path}/mine.db"
    assert found.what == f"{where} (MLFLOW_TRACKING_URI: experiment 'other') yet; the first run makes one"
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    (found,) = found_in(tmp_path, "tracking", "tracking.mlflow=true")
    assert f"{where} (MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME: experiment 'mine') yet" in found.what
    (found,) = found_in(tmp_path, "tracking", "tracking.mlflow=true", f"tracking.uri=sqlite:///{tmp_path}/own.db")
    assert f"{tmp_path}/own.db (MLFLOW_EXPERIMENT_NAME: experiment 'mine') yet" in found.what
    assert found_in(tmp_path, "tracking") == []


def test_a_store_that_can_never_open_is_a_problem(tmp_path, monkeypatch):
    (found,) = found_in(tmp_path, "tracking", "tracking.mlflow=true", "tracking.uri=nonsense://x")
    assert (found.state, found.what.startswith("tracking.uri: nonsense://x: ")) == (State.problem, True)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "./mlruns")
    (found,) = found_in(tmp_path, "tracking", "tracking.mlflow=true")
    assert (found.state, found.what.startswith("MLFLOW_TRACKING_URI: ")) == (State.problem, True)


def test_an_mlflow_store_that_does_not_open_is_a_warning(tmp_path):
    (tmp_path / "mlflow.db").write_bytes(b"this is no database" * 100)
    (found,) = found_in(tmp_path, "tracking", "tracking.mlflow=true")
    assert found.state is State.warning
    assert found.what.startswith("MLflow at sqlite:///")


def test_what_another_user_does_not_share_is_found_before(shared_root, as_user):
    for name, mode in (("runs", 0o2755), ("features", 0o2700), ("locks", 0o2755)):
        (shared_root / name).mkdir()
        (shared_root / name).chmod(mode)
    (shared_root / "mlflow.db").touch(mode=0o600)
    experiment = small(shared_root, "tracking.mlflow=true")
    with as_user(1502):
        found = [
            (one.name, one.state.name, one.what.replace(f"{shared_root}/", "")) for one in checks.storage(experiment)
        ]
    told = "{} may not be {} by you (uid 1502); its owner (uid 0) can allow it: chmod g+{} {}"
    mlflow = told.format("mlflow.db", "read", "r", "mlflow.db")
    assert found == [
        ("access", "problem", told.format("runs", "written", "w", "runs")),
        ("access", "warning", "features that are missing cannot be extracted: "
         + told.format("features", "read or written", "rwx", "features")),
        ("access", "warning", "no sweep can be run: " + told.format("locks", "written", "w", "locks")),
        ("access", "warning", "runs are not mirrored to MLflow: "
         + told.format("mlflow.db", "read or written", "rw", "mlflow.db")),
        ("caches", "problem", told.format("features", "read", "rx", "features")),
        ("runs", "ok", "none yet"),
        ("sweeps", "ok", "none yet"),
        ("tracking", "warning", "MLflow at sqlite:///mlflow.db: " + mlflow),
    ]  # fmt: skip
    shared_root.chmod(0o700)
    with as_user(1502):
        (only,) = checks.storage(experiment)
    assert only.what.startswith(f"{shared_root} may not be read by you")


@pytest.mark.usefixtures("no_ray")
def test_a_local_ray_that_cannot_start_is_a_problem(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / ("x" * 90)))
    found, nodes = checks.ray(small(tmp_path, "resources.backend=ray").resources)
    assert (found.state, nodes) == (State.problem, [])
    assert found.what.startswith("RAY_TMPDIR: Ray cannot start in ")
    assert found.what.endswith("set RAY_TMPDIR to a shorter one")

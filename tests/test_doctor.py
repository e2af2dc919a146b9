"""`fedpgp doctor`: what is planted is found, by name, and nothing is changed by looking."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from fedpgp import config, launch, needs, tracking
from fedpgp.clip.features import FeatureKey, cache_path, write_shard
from fedpgp.config import ResourceSettings
from fedpgp.doctor import examination, installation, machine, planned, stored
from fedpgp.doctor.findings import Finding, State, ok, problem, size, verdict, warning, worst
from fedpgp.planning import Library, plan

KEY = FeatureKey(manifest="m", weights="w", transform="t")
SMALL = [
    "protocol.shots=1", "partition.clients=2", "method.n_ctx=1", "method.rank=1", "federation.rounds=1",
    "federation.local_epochs=1", "resources.backend=serial", "tracking.mlflow=false",
]  # fmt: skip


def small(root, *overrides):
    return config.absolute(config.load("shapes", [*SMALL, f"storage.root={root}", *overrides]))


def found_in(root, name, *overrides):
    """The findings of that name about what lies under a storage root."""
    return [one for one in stored.examine(small(root, *overrides)) if one.name == name]


def files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_the_verdict_names_what_is_wrong_once():
    fine, slow, torn = ok("a", "fine"), warning("b", "slow", "hurry"), problem("c", "torn", "mend")
    assert (worst([fine]), verdict([fine, fine])) == (State.ok, "ready: all 2 checks passed")
    assert (worst([fine, slow]), verdict([fine, slow])) == (State.warning, "usable: 1 warning (b)")
    assert worst([torn, slow]) is State.problem
    assert verdict([slow, torn, torn, problem("d", "gone", "find")]) == "not ready: 2 problems (c, d), 1 warning (b)"


def test_what_is_shown_has_no_credentials_and_no_home():
    shown = problem("tracking", f"http://me:S3CRET@host/x in {Path.home()}/store", f"cd {Path.home()}").shown()
    assert shown == Finding("tracking", State.problem, "http://***@host/x in ~/store", "cd ~")


def test_sizes():
    assert [size(585_400_000), size(20_300_000_000)] == ["585.4 MB", "20.3 GB"]


# The installation

UNTESTED = "run `make test` with it"


def test_this_installation_fits_and_its_versions_are_those_that_were_tested_or_said_not_to_be():
    found = {one.name: one for one in installation.examine()}
    assert worst([*found.values()]) < State.problem
    assert re.search(r"\d+ of \d+ as fedpgp \S+ wants them", found["packages"].what)


def test_tested_versions_are_of_packages_that_are_required_and_in_their_ranges():
    required = {one.name: one for one in map(Requirement, importlib.metadata.requires("fedpgp") or [])}
    tested = {name: version for name, version in installation.TESTED.items() if name != "python"}
    assert tested.keys() <= required.keys()
    assert [name for name, version in tested.items() if not required[name].specifier.contains(Version(version))] == []


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("2.14.9+cpu", None),
        ("2.15.0", warning("package torch", "2.15.0 is untested, 2.14 is what the tests have seen", UNTESTED)),
        ("2.3.1", problem("package torch", "2.3.1, but fedpgp needs >=2.4", 'pip install "torch>=2.4"')),
        ("main", problem("package torch", "has the version 'main', which is none", 'pip install "torch>=2.4"')),
        (None, problem("package torch", "is not installed", 'pip install "torch>=2.4"')),
    ],
)  # fmt: skip
def test_a_package_out_of_range_is_a_problem_and_an_untested_one_a_warning(monkeypatch, version, expected):
    known = importlib.metadata.version

    def pretend(name):
        if name == "torch" and version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version if name == "torch" else known(name)

    monkeypatch.setattr(importlib.metadata, "version", pretend)
    found = [one for one in installation.examine() if one.name == "package torch"]
    assert found == ([] if expected is None else [expected])


@pytest.mark.parametrize(
    ("version", "state"), [("3.10.2", State.problem), ("3.11.9", State.ok), ("3.19.0", State.warning)]
)
def test_python_is_held_against_what_the_package_asks_for(monkeypatch, version, state):
    monkeypatch.setattr("platform.python_version", lambda: version)
    (found,) = [one for one in installation.examine() if one.name == "python"]
    assert found.state is state
    assert version in found.what


def test_an_installation_without_its_packages_is_told_and_ends_there(monkeypatch):
    def broken(given, overrides):
        raise ImportError("no module named torch")
        yield

    monkeypatch.setattr(examination, "_beyond_the_packages", broken)
    last = examination.examine()[-1]
    assert (last.name, last.state) == ("packages", State.problem)
    assert "no module named torch" in last.what


# The machine


def test_gpus_that_torch_does_not_see_are_told():
    assert machine.gpus([], []).what == "none: everything runs on the CPU"
    assert machine.gpus(["A100"], ["A100"]) == ok("gpu", "A100")
    hidden = machine.gpus(["A100"], ["A100", "H100"])
    assert (hidden.state, hidden.what) == (State.warning, "torch sees 1 of 2 (A100, H100)")


def test_a_folder_that_cannot_be_written_to_is_a_problem_and_looking_leaves_nothing(tmp_path):
    found = machine.disk("disk", "runs", Path("/proc/self/fdinfo/new"))  # read-only for everyone, root too
    assert found.state is State.problem
    assert found.what.startswith("runs: nothing can be written to /proc/self/fdinfo")
    assert "storage.root" in found.advice
    assert machine.disk("disk", "runs", tmp_path / "not" / "yet").state is State.ok
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("free", "busy", "state"),
    [(0.5e9, False, State.warning), (2e9, False, State.ok), (2e9, True, State.warning), (6e9, True, State.ok)],
)
def test_a_disk_that_is_nearly_full_is_a_warning(monkeypatch, tmp_path, free, busy, state):
    monkeypatch.setattr("shutil.disk_usage", lambda place: type("Usage", (), {"total": 1e11, "free": free}))
    assert machine.disk("disk", "runs", tmp_path, busy).state is state


def test_free_memory_is_at_most_that_of_the_machine():
    assert 0 < machine.free_memory() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_a_container_has_no_more_than_its_limit(monkeypatch):
    monkeypatch.setattr(
        "fedpgp.provenance.lines", lambda path: ["MemAvailable: 2000 kB"] if "proc" in path else ["1000"]
    )
    assert machine.free_memory() == 1000


@pytest.fixture
def no_ray(monkeypatch):
    """As if no test had started one; whoever starts one now fails."""
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", lambda **settings: pytest.fail("ray is started"))


@pytest.mark.usefixtures("no_ray")
def test_without_a_cluster_ray_is_not_started(tmp_path):
    found, (node,) = machine.ray(small(tmp_path, "resources.backend=ray", "resources.actors=64").resources)
    assert (found.state, node["CPU"]) == (State.ok, 64)


@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1"])
def test_a_cluster_that_does_not_answer_is_a_problem_at_once(address):
    found, nodes = machine.ray(ResourceSettings(address=address))
    assert (found.name, found.state, nodes) == ("ray", State.problem, [])
    assert f"Ray at {address}: [Errno 111] Connection refused; check that the head runs" in found.what


@pytest.mark.usefixtures("ray_cluster")
def test_a_cluster_is_counted(tmp_path):
    found, nodes = machine.ray(small(tmp_path, "resources.backend=ray").resources)
    assert found.what.startswith("a cluster of 1 node(s) with 4 CPU, 2 GPU, ")
    assert len(nodes) == 1


# What lies under the storage root


def shelve(root, rows=6):
    path = cache_path(root / "features", KEY)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_shard(path, KEY, np.arange(rows), np.ones((rows, 1, 8), np.float32))
    return path


def test_whole_caches_are_counted(tmp_path):
    assert found_in(tmp_path, "caches") == [ok("caches", "none yet")]
    path = shelve(tmp_path)
    assert found_in(tmp_path, "caches") == [ok("caches", f"1 whole, 6 images, {size(path.stat().st_size)}")]


def test_a_cut_cache_and_a_misnamed_one_are_problems_that_name_the_file(tmp_path):
    path = shelve(tmp_path)
    whole = path.read_bytes()
    other = path.with_name("0123456789abcdef.arrow")
    other.write_bytes(whole)
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        cut, misnamed = sorted(found_in(tmp_path, "caches"), key=lambda one: "named after" in one.what)
        assert (cut.state, misnamed.state) == (State.problem, State.problem)
        assert cut.what.startswith(f"{path}: not a whole feature cache; delete it")
        assert misnamed.what.startswith(f"{other}: holds the features of {KEY.digest}")


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
        (lambda run: (run / "identity.json").write_text("{"), "identity.json: cannot be read"),
        (
            lambda run: (run / "identity.json").write_text("[]"),
            "identity.json: not as fedpgp wrote it",
        ),
        (lambda run: (run / "status.json").unlink(), "status.json: cannot be read"),
        (
            lambda run: (run / "status.json").write_text("{}"),
            "status.json: not as fedpgp wrote it: state: ",
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
    found = list(stored._Folders.of(tmp_path / "runs", stored._run).findings("runs", ""))
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
    tracking.sync(run, uri)
    assert found_in(tmp_path, "tracking", on)[0].state is State.ok
    (run / ".lock").touch()  # now nobody holds it: its process was killed
    (found,) = found_in(tmp_path, "tracking", on)
    assert (found.state, found.advice) == (State.warning, f"fedpgp track sync {tmp_path}")
    assert found.what.endswith(f"RUNNING there, but ended: {run.name}")
    tracking.sync(run, uri)
    assert found_in(tmp_path, "tracking", on)[0].state is State.ok


def test_an_mlflow_store_that_does_not_open_is_a_warning(tmp_path):
    (tmp_path / "mlflow.db").write_bytes(b"this is no database" * 100)
    (found,) = found_in(tmp_path, "tracking", "tracking.mlflow=true")
    assert found.state is State.warning
    assert found.what.startswith("MLflow at sqlite:///")


# What an experiment would need


def of(experiment, *nodes):
    return {one.name: one for one in planned.examine(experiment, Library(), nodes)}


NODE = {"CPU": 2.0, "GPU": 0.0, "memory": 8e9}


def test_an_experiment_that_fits(tmp_path):
    experiment = small(tmp_path, "partition.clients=3")
    found = of(experiment, NODE)
    assert {name: one.state for name, one in found.items()} == dict.fromkeys(
        ("resources", "plan", "features", "memory"), State.ok
    )
    assert found["plan"].what.startswith("fedpgp on tiny: 3 clients, 15 classes to train on (")
    images = len(plan(experiment).data.rows)
    assert found["features"].what.startswith(f"{images:,} images to encode into {tmp_path}/features, ")
    assert list(tmp_path.iterdir()) == []
    launch.extract(experiment, lambda event: None)
    assert of(experiment, NODE)["features"] == ok("features", "all there")


def test_the_memory_told_is_what_the_run_itself_tells(tmp_path):
    experiment, said = small(tmp_path), []
    told = needs.memory(plan(experiment))
    launch.run(experiment, False, lambda event: said.append(event.note))
    assert any(f"about {told / 2**30:.1f} GB of memory each" in line for line in said)


@pytest.mark.parametrize(
    ("name", "overrides"),
    [("pooled, views", ["data.views=3"]), ("patches", ["method.name=fedotp"]), ("pixels", ["method.name=pfedpt"])],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_memory_is_measured_whatever_the_features_are(tmp_path, name, overrides):
    experiment = config.absolute(config.load("shapes", [*SMALL[:2], *overrides, f"storage.root={tmp_path}"]))
    assert needs.memory(plan(experiment)) > 2**29
    assert list(tmp_path.iterdir()) == []


def test_nothing_to_train_needs_no_memory(tmp_path):
    experiment = config.load("shapes", [*SMALL[:2], "method.name=zero_shot", f"storage.root={tmp_path}"])
    assert of(experiment, NODE)["memory"] == ok("memory", "zero_shot trains nothing")


def test_an_impossible_request_is_a_problem_and_cores_that_take_turns_a_warning(tmp_path):
    wanted = small(tmp_path, "resources.backend=ray", "resources.actors=3", "resources.gpus_per_actor=0.5").resources
    short = planned.resources(wanted, [NODE])
    assert (short.name, short.state) == ("resources", State.problem)
    assert "3 actors x (1 CPU, 0.5 GPU) need 3 CPU and 1.5 GPU; the cluster has 2 CPU and 0 GPU" in short.what
    many = small(tmp_path, "resources.backend=ray", "resources.actors=500").resources
    assert planned.resources(many, [{"CPU": 500.0}]).state is State.warning


def test_too_little_memory_is_a_problem(tmp_path):
    found = of(small(tmp_path), {**NODE, "memory": 1e6})["memory"]
    assert found.state is State.problem
    assert "1 x about" in found.what
    assert "but 1.0 MB are free" in found.what


def test_memory_of_gpus_is_not_judged(tmp_path):
    wanted = of(small(tmp_path, "resources.gpus_per_actor=1"), {**NODE, "memory": 1e6})["memory"]
    assert (wanted.state, wanted.what.partition(" on ")[2]) == (
        State.ok, "shares of GPUs, with whose memory it was not compared"
    )  # fmt: skip


def test_too_little_disk_for_the_features_is_a_problem(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda place: type("Usage", (), {"total": 1e9, "free": 10}))
    found = of(small(tmp_path), NODE)["features"]
    assert found.state is State.problem
    assert found.what.endswith("but 0.0 MB are free")


def test_a_torn_cache_of_the_plan_is_its_features_problem(tmp_path):
    experiment = small(tmp_path)
    (path,) = launch.extract(experiment, lambda event: None)
    path.write_bytes(path.read_bytes()[:-10])
    found = of(experiment, NODE)["features"]
    assert (found.state, str(path) in found.what) == (State.problem, True)


def test_every_domain_in_turn_is_looked_at_with_the_first_held_out(tmp_path):
    held_out = ["protocol.name=leave_one_domain_out", "protocol.held_out=all", "partition.scheme=domain"]
    found = of(small(tmp_path, *held_out, "partition.clients=null"), NODE)
    assert found["plan"].what.startswith("fedpgp on tiny: 2 clients")


# The command

NINE_GPUS = [
    "resources.backend=ray",
    "resources.actors=9",
    "resources.cpus_per_actor=0.1",
    "resources.gpus_per_actor=1",
]


def test_the_command_ends_with_a_verdict_and_changes_nothing(fedpgp, tmp_path, made_run):
    root = tmp_path / "store"
    made_run(root=root, test_local=[50])
    before = files(root)
    code, out, _ = fedpgp("doctor", "shapes", *SMALL, f"storage.root={root}")
    assert code == 0
    assert re.match(r"(ready: all \d+ checks passed|usable: )", out.splitlines()[-1])
    assert files(root) == before


def test_without_an_experiment_the_embedded_data_are_looked_at(fedpgp, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = fedpgp("doctor", "--json")
    told = json.loads(out)
    names = [one["name"] for one in told["findings"]]
    assert code == 0
    assert {"python", "packages", "machine", "gpu", "ray", "disk", "caches", "runs", "sweeps", "tracking"} <= {*names}
    assert names[-1] == "data"
    assert told["findings"][-1]["what"].startswith("icons: 3,678 images")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("overrides", "name", "told"),
    [
        (["data.name=folder", "data.root=/not/there"], "data", "data.root: /not/there: no such folder"),
        (["federation.rounds=0", "federation.round=1"], "settings", "unknown key; did you mean rounds?"),
        (["method.name=fedpg"], "plan", "unknown method 'fedpg'; did you mean fedpgp?"),
        (["partition.clients=16"], "plan", "16 clients"),
        (NINE_GPUS, "resources", "short of GPU"),
        (["storage.root=/proc/self/fdinfo"], "disk", "nothing can be written to /proc/self/fdinfo"),
    ],
)  # fmt: skip
def test_a_problem_is_named_and_exits_with_1(fedpgp, tmp_path, overrides, name, told):
    code, out, _ = fedpgp("doctor", "shapes", *SMALL, f"storage.root={tmp_path}", *overrides, "--json")
    found = json.loads(out)
    assert (code, found["state"]) == (1, "problem")
    assert name in found["verdict"]
    assert any(told in one["what"] for one in found["findings"] if one["name"] == name and one["state"] == "problem")


def test_planted_secrets_are_not_shown(fedpgp, tmp_path, monkeypatch):
    secret = "planted-S3CRET"
    for variable in ("RAY_AUTH_TOKEN", "MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(variable, secret)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    given = [f"storage.root={tmp_path}", "tracking.mlflow=true", f"tracking.uri=http://me:{secret}@127.0.0.1:9"]
    code, out, err = fedpgp("doctor", "shapes", *SMALL, *given, "--json")
    assert code == 0
    assert secret not in out + err
    assert os.environ["HOME"] not in out
    (mirror,) = [one for one in json.loads(out)["findings"] if one["name"] == "tracking"]
    assert (mirror["state"], "http://***@127.0.0.1:9" in mirror["what"]) == ("warning", True)

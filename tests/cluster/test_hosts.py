"""A Ray cluster of hosts, one with a wrong clock: runs, sweeps, drivers, jobs, folders not shared, other versions."""

from __future__ import annotations

import platform
import shutil
import signal
import subprocess
import sysconfig
import time

import pytest
import yaml
from host_runs import SETTINGS, arguments, at_round, metrics, only_run
from hosts import NEEDS_ROOT, PYTHON, ROOT, network
from mlflow.tracking import MlflowClient

from fedpgp.storage.run_folder import RunFolder
from fedpgp.tracking import default_uri

pytestmark = [pytest.mark.slow, NEEDS_ROOT]

HOUR = 3600
OTHER_PYTHON = "/usr/bin/python3"


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    """Three hosts with a Ray node each, the clock of the second an hour slow, and a fourth host without a node."""
    with network(4, tmp_path_factory.mktemp("hosts")) as made:
        made.hosts[1].shift_clock(-HOUR)
        for host in made.hosts[:3]:
            made.ray(host)
        made.wait(3)
        yield made


def test_features_of_one_host_are_used_by_another(hosts, serial):
    """They are extracted beside the run by other processes, on whichever host, and never twice."""
    root = hosts.shared / "features"
    extracted = hosts.hosts[2].fedpgp("features", *arguments(hosts, "features"))
    assert extracted.returncode == 0, extracted.stderr
    (cache,) = root.glob("features/*.arrow")
    before = cache.stat().st_ino
    done = hosts.hosts[1].fedpgp("run", *arguments(hosts, "features"))
    assert done.returncode == 0, done.stderr
    assert (cache.stat().st_ino, "frozen features" in done.stderr) == (before, False)
    assert metrics(only_run(root)) == serial[1]


@pytest.mark.parametrize("cached", [False, True])
def test_a_root_that_the_hosts_do_not_share_is_refused(hosts, serial, cached):
    """Also after a run on one host alone, with an object store, which holds no features."""
    where = [f"resources.address={hosts.address}", "storage.root=/tmp/store"]
    head = hosts.hosts[0]
    if cached:
        where.append(f"storage.uri=file://{hosts.shared}/objects")
        store = head.home.parent / "tmp" / "store"
        shutil.rmtree(store, ignore_errors=True)
        shutil.copytree(serial[0] / "features", store / "features")
        for other in hosts.hosts[1:3]:
            (other.home.parent / "tmp" / "store" / "features").mkdir(parents=True, exist_ok=True)
    done = head.fedpgp("run", "shapes", *SETTINGS, *where)
    assert done.returncode == 2
    last = done.stderr.rstrip().splitlines()[-1]
    assert last.startswith("error: /tmp/store/features/")
    assert "is missing on the node at 10.77.0." in last
    assert "storage.root (also with storage.uri) and data.root must be folders that all nodes share" in last
    assert "Traceback" not in done.stderr


def test_a_machine_that_is_no_node_submits_a_job(hosts, serial, roots):
    root = roots("job")
    entrypoint = [str(PYTHON), str(ROOT / "pipelines" / "run.py"), *arguments(hosts, "job")]
    ray = [str(PYTHON.parent / "ray"), "job", "submit", f"--address=http://{hosts.hosts[0].address}:8265"]
    done = hosts.hosts[3].run(*ray, "--", *entrypoint)
    assert done.returncode == 0, done.stdout + done.stderr
    assert metrics(only_run(root)) == serial[1]


def test_a_sweep_on_hosts_equals_single_runs_in_one_process(hosts, serial, roots):
    root = roots("sweep")
    base = dict(pair.split("=") for pair in SETTINGS) | {"resources.actors": "1"}
    text = yaml.safe_dump({"base": "shapes", "folds": {"seeds": [1, 2]}})
    (hosts.shared / "two.yaml").write_text(text)
    settings = [f"{key}={value}" for key, value in base.items()]
    where = [f"resources.address={hosts.address}", f"storage.root={root}"]
    done = hosts.hosts[1].fedpgp("sweep", str(hosts.shared / "two.yaml"), *settings, *where)
    assert done.returncode == 0, done.stderr
    found = {one.identity["seed"]: metrics(one.path) for one in RunFolder.find(root)}
    assert found[1] == serial[1]
    assert found.keys() == {1, 2}
    assert found[2] != found[1]


def test_a_driver_is_followed_stopped_and_continued_from_other_hosts(hosts, serial, roots):
    """It begins by the right clock and ends by one that is an hour slow: MLflow has each round once, in order."""
    root, address = roots("driver"), ("--address", hosts.address)
    first, slow, third = hosts.hosts[:3]
    mirrored = [one for one in arguments(hosts, "driver") if not one.startswith("tracking.mlflow")]
    started = third.fedpgp("run", *mirrored, "--detach")
    assert started.returncode == 0, started.stderr
    driver = started.stdout.split()[1]
    attached = first.start(str(PYTHON), "-m", "fedpgp", "attach", driver, *address, log="attached.txt")
    at_round(root, 3, lambda: None).join(120)
    listed = slow.fedpgp("runs", str(root), *address)
    assert driver in listed.stdout
    stopped = slow.fedpgp("stop", driver, *address)
    assert stopped.returncode == 0, stopped.stderr
    assert attached.wait(60) == 130
    assert "continue with --resume" in (first.home / "attached.txt").read_text()
    store = RunFolder.open(only_run(root))
    assert store.state == "stopped"
    assert 3 <= len(store.rounds()) < len(serial[1])
    done = slow.fedpgp("run", *mirrored, "--resume")
    assert done.returncode == 0, done.stderr
    assert metrics(store.path) == serial[1]
    assert store.status["timestamp_ms"] < store.identity["created_ms"] - HOUR * 1000 / 2
    client = MlflowClient(default_uri(root))
    (run,) = client.search_runs([one.experiment_id for one in client.search_experiments()])
    assert (run.info.status, run.info.end_time) == ("FINISHED", run.info.start_time)
    history = client.get_metric_history(run.info.run_id, "val/local")
    assert sorted(one.step for one in history) == [row.round for row in store.rounds() if "val/local" in row.metrics]


def test_a_claim_of_a_host_with_another_clock_counts_as_long_as_it_is_renewed(hosts):
    """Each host has a storage root of its own; they share the store, whose clock is the only one that counts."""
    uri = f"file://{hosts.shared}/claimed"
    first, slow = hosts.hosts[:2]
    here = ["shapes", *SETTINGS, "resources.backend=serial", "storage.root=/tmp/own", f"storage.uri={uri}"]
    long = [*here, "federation.rounds=100000"]
    running = slow.start(str(PYTHON), "-m", "fedpgp", "run", *long)
    at_round(hosts.shared / "claimed", 1, lambda: None).join(120)
    refused = first.fedpgp("run", *long, "--resume")
    assert refused.returncode == 2
    assert f"on {slow.name}; wait for it, or stop it there" in refused.stderr
    listed = first.fedpgp("runs", uri)
    assert "running" in listed.stdout, listed.stdout + listed.stderr
    running.send_signal(signal.SIGTERM)
    slow.run("pkill", "-TERM", "-f", "federation.rounds=100000")
    running.wait(60)


def test_a_host_with_other_versions_is_refused_by_name(hosts, roots):
    """The fourth host has an edited fedpgp and an older torch."""
    root, other = roots("versions"), hosts.hosts[3]
    shutil.copytree(ROOT / "fedpgp", other.home / "edited" / "fedpgp", ignore=shutil.ignore_patterns("__pycache__"))
    with (other.home / "edited" / "fedpgp" / "core" / "seeding.py").open("a") as file:
        file.write("# edited\n")
    older = other.home / "edited" / "torch-2.4.0.dist-info"
    older.mkdir()
    (older / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.4.0\n")
    hosts.ray(other, PYTHONPATH=str(other.home / "edited"))
    hosts.wait(4)
    begin = time.monotonic()
    done = hosts.hosts[0].fedpgp("run", *arguments(hosts, "versions"))
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: host4 (10.77.0.4) has fedpgp 0.1.0 (code ")
    assert " and torch 2.4.0, the driver 0.1.0 (code " in line
    assert line.endswith(": install the same version on every node")
    assert not (root / "runs").exists()
    assert time.monotonic() - begin < 60
    doctor = hosts.hosts[0].fedpgp("doctor", "shapes", f"resources.address={hosts.address}", "--json")
    assert "host4 (10.77.0.4) has fedpgp" in doctor.stdout
    other.run("pkill", "-9", "-f", "ray")
    hosts.wait(3)


def test_a_host_with_another_python_is_refused_by_name(hosts, roots):
    """Ray lets it join only if it is told that the last number of the version does not matter."""
    asked = "import platform; print(platform.python_version())"
    found = subprocess.run([OTHER_PYTHON, "-c", asked], capture_output=True, text=True).stdout.strip()
    if found == platform.python_version() or found.split(".")[:2] != platform.python_version().split(".")[:2]:
        pytest.skip(f"needs another Python {'.'.join(platform.python_version_tuple()[:2])}; {OTHER_PYTHON} is {found}")
    root, other = roots("python"), hosts.hosts[3]
    libraries = {"PYTHONPATH": f"{ROOT}:{sysconfig.get_path('purelib')}"}
    start = [OTHER_PYTHON, "-c", "from ray.scripts.scripts import main; main()", "start", f"--address={hosts.address}"]
    start += [f"--node-ip-address={other.address}", "--num-cpus=1", "--disable-usage-stats"]
    refused = other.run(*start, **libraries)
    assert refused.returncode == 1
    assert "RuntimeError: Version mismatch: " in refused.stderr
    joined = other.run(*start, **libraries, RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL="minor")
    assert joined.returncode == 0, joined.stderr
    hosts.wait(4)
    done = hosts.hosts[0].fedpgp("run", *arguments(hosts, "python"))
    doctor = hosts.hosts[0].fedpgp("doctor", "shapes", f"resources.address={hosts.address}", "--json")
    other.run("pkill", "-9", "-f", "ray")
    about = f"host4 ({other.address}) has python {found}, the driver {platform.python_version()}: "
    assert done.returncode == 2
    assert done.stderr.splitlines() == [f"error: {about}install the same version on every node"]
    assert not (root / "runs").exists()
    assert about in doctor.stdout
    hosts.wait(3)


@pytest.mark.parametrize("command", ["runs", "run"])
@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"RAY_AUTH_TOKEN": ""}, "this machine has no token of the cluster"),
        ({"RAY_AUTH_MODE": "disabled"}, "this machine has no token of the cluster"),
        ({"RAY_AUTH_TOKEN": "0123456789abcdef" * 2}, "the token of this machine is not the cluster's"),
    ],
)
def test_without_the_token_of_the_cluster_there_is_advice(hosts, command, changed, what):
    """Ray itself asks twenty times, and prints a line for each."""
    about = ["--address", hosts.address] if command == "runs" else arguments(hosts, "token")
    begin = time.monotonic()
    refused = hosts.hosts[3].fedpgp(command, *about, **changed)
    assert time.monotonic() - begin < 60
    assert refused.returncode == 2
    advice = "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or ~/.ray/auth_token) as on the head"
    (line,) = refused.stderr.splitlines()
    assert line.startswith(f"error: Ray at {hosts.address}: {what}; ")
    assert line.endswith(advice)


def test_a_machine_that_is_no_node_is_told_so(hosts):
    refused = hosts.hosts[3].fedpgp("runs", "--address", hosts.address)
    assert refused.returncode == 2
    (line,) = refused.stderr.splitlines()
    assert line.startswith(f"error: Ray at {hosts.address}: this machine is no node of the cluster; run `ray start ")

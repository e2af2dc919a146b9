"""A Ray cluster of hosts with addresses of their own: slow and broken networks, lost hosts, folders not shared."""

from __future__ import annotations

import threading
import time

import pytest
from hosts import NEEDS_ROOT, PYTHON, ROOT, network

from fedpgp import config
from fedpgp.core.callbacks import RunCallback
from fedpgp.experiments import launch
from fedpgp.storage.run_folder import RunFolder
from fedpgp.tracking import MLflowTracker

pytestmark = [pytest.mark.slow, NEEDS_ROOT]

SETTINGS = [
    "partition.clients=6", "protocol.shots=2", "method.n_ctx=4", "method.rank=2", "federation.block_size=2",
    "resources.actors=3", "tracking.mlflow=false",
]  # fmt: skip
ROUNDS = 40


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    """Three hosts with a Ray node each, and a fourth without one."""
    with network(4, tmp_path_factory.mktemp("hosts")) as made:
        for host in made.hosts[:3]:
            made.ray(host)
        made.wait(3)
        yield made


@pytest.fixture(scope="module")
def serial(tmp_path_factory):
    """The metrics of every round in one process."""
    where = ["resources.backend=serial", f"storage.root={tmp_path_factory.mktemp('serial')}"]
    wanted = config.load("shapes", [*SETTINGS, f"federation.rounds={ROUNDS}", *where])
    return metrics(launch.run(wanted, False, RunCallback(), MLflowTracker()))


def metrics(path):
    return [row.metrics for row in RunFolder.open(path).rounds()]


def arguments(hosts, name, *more):
    where = [f"resources.address={hosts.address}", f"storage.root={hosts.shared / name}"]
    return ["shapes", *SETTINGS, f"federation.rounds={ROUNDS}", *where, *more]


def only_run(root):
    (path,) = (root / "runs").iterdir()
    return path


def at_round(root, number, action):
    """A thread that acts once a round is stored."""

    def wait():
        while not any(root.glob(f"runs/*/rounds/{number:06d}.arrow")):
            time.sleep(0.1)
        action()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def test_a_slow_network_that_loses_packets_changes_no_bit(hosts, serial):
    if not all(host.slow(delay_ms=50, loss_percent=1) for host in hosts.hosts[:3]):
        pytest.skip("needs netem in the kernel")
    done = hosts.hosts[0].fedpgp("run", *arguments(hosts, "slow"))
    for host in hosts.hosts[:3]:
        host.slow(delay_ms=0, loss_percent=0)
    assert done.returncode == 0, done.stderr
    assert metrics(only_run(hosts.shared / "slow")) == serial


def test_a_root_that_the_hosts_do_not_share_is_refused(hosts):
    where = [f"resources.address={hosts.address}", "storage.root=/tmp/store"]
    done = hosts.hosts[0].fedpgp("run", "shapes", *SETTINGS, *where)
    assert done.returncode == 2
    assert done.stderr.rstrip().splitlines()[-1].startswith("error: /tmp/store/features")
    assert "must be folders that all nodes share" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_machine_that_is_no_node_submits_a_job(hosts, serial):
    entrypoint = [str(PYTHON), str(ROOT / "pipelines" / "run.py"), *arguments(hosts, "job")]
    ray = [str(PYTHON.parent / "ray"), "job", "submit", f"--address=http://{hosts.hosts[0].address}:8265"]
    done = hosts.hosts[3].run(*ray, "--", *entrypoint)
    assert done.returncode == 0, done.stdout + done.stderr
    assert metrics(only_run(hosts.shared / "job")) == serial


def test_a_host_that_is_cut_off_costs_its_blocks_and_no_bit(hosts, serial):
    root = hosts.shared / "cut"
    waiting = at_round(root, 5, lambda: hosts.hosts[2].link("down"))
    done = hosts.hosts[0].fedpgp("run", *arguments(hosts, "cut"))
    waiting.join(5)
    hosts.hosts[2].link("up")
    hosts.ray(hosts.hosts[2])  # Ray gave the host up: it joins as a new node
    hosts.wait(3)
    assert done.returncode == 0, done.stderr
    assert f"at {hosts.hosts[2].address}" in done.stderr
    assert "repeating it on another actor" in done.stderr
    assert metrics(only_run(root)) == serial


def test_a_lost_head_ends_the_run_and_a_new_one_continues_it(hosts, serial):
    """Last: the cluster is another one afterwards."""
    root = hosts.shared / "head"
    head = hosts.hosts[0]
    waiting = at_round(root, 5, lambda: head.run("pkill", "-9", "gcs_server"))
    done = head.fedpgp("run", *arguments(hosts, "head"))
    waiting.join(5)
    assert done.returncode == 1
    assert f"Ray's head at {hosts.address} has not answered for" in done.stderr
    assert "continue with --resume" in done.stderr
    stored = metrics(only_run(root))
    assert stored == serial[: len(stored)]
    for host in hosts.hosts[:3]:
        host.run("pkill", "-9", "-f", "ray")
    for host in hosts.hosts[:3]:
        hosts.ray(host)
    hosts.wait(3)
    again = head.fedpgp("run", *arguments(hosts, "head"), "--resume")
    assert again.returncode == 0, again.stderr
    assert metrics(only_run(root)) == serial

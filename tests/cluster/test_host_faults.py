"""A Ray cluster of hosts whose network is slow, breaks for a while or for good, and whose head is lost."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack

import pytest
from host_runs import arguments, at_round, metrics, only_run
from hosts import NEEDS_ROOT, network

pytestmark = [pytest.mark.slow, NEEDS_ROOT]

PARTITION_SECONDS = 30
HEAD_SECONDS = 35
"""Time without a head after which Ray ends a command; 60 unless it is set."""


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    """Three hosts with a Ray node each."""
    with network(3, tmp_path_factory.mktemp("hosts")) as made:
        for host in made.hosts:
            made.ray(host)
        made.wait(3)
        yield made


def test_a_slow_network_that_loses_packets_changes_no_bit(hosts, serial, roots):
    root = roots("slow")
    with ExitStack() as stack:
        for host in hosts.hosts:
            stack.enter_context(host.slow(delay_ms=50, loss_percent=1))
        done = hosts.hosts[0].fedpgp("run", *arguments(hosts, "slow"))
    assert done.returncode == 0, done.stderr
    assert metrics(only_run(root)) == serial[1]


def test_hosts_cut_off_for_a_while_and_for_good_cost_their_blocks_and_no_bit(hosts, serial, roots):
    """Ray gives up both after a minute; the one that is back by then is told so in mid-run, and disturbs nothing."""
    root, healed = roots("cut"), threading.Event()
    _, for_a_while, for_good = hosts.hosts

    def cut():
        for host in (for_a_while, for_good):
            host.link("down")
        time.sleep(PARTITION_SECONDS)
        for_a_while.link("up")
        healed.set()

    waiting = at_round(root, 5, cut)
    done = hosts.hosts[0].fedpgp("run", *arguments(hosts, "cut"))
    assert done.returncode == 0, done.stderr
    assert healed.is_set()
    waiting.join(5)
    for_good.link("up")
    for host in (for_a_while, for_good):
        assert f" at {host.address}: " in done.stderr
        host.run("pkill", "-9", "-f", "ray")
        hosts.ray(host)  # as a new node
    assert "repeating it on another actor" in done.stderr
    assert metrics(only_run(root)) == serial[1]
    hosts.wait(3)


def test_a_lost_head_ends_the_run_and_a_new_one_continues_it(hosts, serial, roots):
    """Last: the cluster is another one afterwards."""
    root, head = roots("head"), hosts.hosts[0]
    waiting = at_round(root, 5, lambda: head.run("pkill", "-9", "gcs_server"))
    sooner = {"RAY_gcs_rpc_server_reconnect_timeout_s": str(HEAD_SECONDS)}
    done = head.fedpgp("run", *arguments(hosts, "head"), **sooner)
    waiting.join(5)
    assert done.returncode == 1
    assert f"Ray's head at {hosts.address} has not answered for" in done.stderr
    assert "continue with --resume" in done.stderr
    stored = metrics(only_run(root))
    assert stored == serial[1][: len(stored)]
    for host in hosts.hosts:
        host.run("pkill", "-9", "-f", "ray")
    for host in hosts.hosts:
        hosts.ray(host)
    hosts.wait(3)
    again = head.fedpgp("run", *arguments(hosts, "head"), "--resume")
    assert again.returncode == 0, again.stderr
    assert metrics(only_run(root)) == serial[1]

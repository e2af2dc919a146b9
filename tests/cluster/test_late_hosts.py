"""A host with other code than the run's joins a Ray cluster while the run goes on, and a block would move there."""

from __future__ import annotations

import shutil

import pytest
from host_runs import arguments, at_round, metrics, only_run
from hosts import NEEDS_ROOT, ROOT, network

from fedpgp.storage.run_folder import RunFolder

pytestmark = [pytest.mark.slow, NEEDS_ROOT]


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    """A head without a core, the host of the only actor, and one without a node, whose fedpgp a test edits."""
    with network(3, tmp_path_factory.mktemp("hosts")) as made:
        made.ray(made.hosts[0], cpus=0)
        made.ray(made.hosts[1])
        made.wait(2)
        yield made


def edit_comment(package):
    with (package / "core" / "seeding.py").open("a") as file:
        file.write("# edited\n")


def break_the_worker(package):
    """The job cannot be opened there."""
    (package / "federation" / "worker.py").write_text("raise ImportError('not of this age')\n")


@pytest.mark.parametrize("edit", [edit_comment, break_the_worker])
def test_a_host_with_other_code_that_joins_a_run_ends_it_by_name(hosts, serial, roots, edit):
    """The host of the only actor is lost before the other one joins: the run waits, and can go on only there."""
    name = edit.__name__
    root, (head, lost, other) = roots(name), hosts.hosts
    package = other.home / name / "fedpgp"
    shutil.copytree(ROOT / "fedpgp", package, ignore=shutil.ignore_patterns("__pycache__"))
    edit(package)
    run = ["run", *arguments(hosts, name), "resources.actors=1"]

    def replace():
        lost.run("pkill", "-9", "-f", "ray")
        hosts.ray(other, PYTHONPATH=str(package.parent))

    waiting = at_round(root, 3, replace)
    done = head.fedpgp(*run)
    waiting.join(60)
    other.run("pkill", "-9", "-f", "ray")
    hosts.ray(lost)
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: host3 (10.77.0.3) ")
    assert line.endswith(": install the same version on every node")
    assert "repeating it on another actor" in done.stderr
    assert "Traceback" not in done.stderr
    store = RunFolder.open(only_run(root))
    assert store.state == "failed"
    stored = metrics(store.path)
    assert 3 <= len(stored) < len(serial[1])
    assert stored == serial[1][: len(stored)]
    hosts.wait(2)
    again = head.fedpgp(*run, "--resume")
    assert again.returncode == 0, again.stderr
    assert metrics(store.path) == serial[1]

"""SLURM with two nodes on this machine: a job spans both; stopped and requeued it continues; cancelled it ends."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from ports import free_ports

from fedpgp import config
from fedpgp.core.callbacks import RunCallback
from fedpgp.experiments import launch
from fedpgp.storage.run_folder import RunFolder
from fedpgp.tracking import MLflowTracker

SCRIPT = Path(__file__).parents[2] / "pipelines" / "slurm.sh"
BIN = str(Path(sys.executable).parent)
DAEMONS = ("munged", "slurmctld", "slurmd")
MISSING = [one for one in DAEMONS if shutil.which(one, path=f"{os.environ['PATH']}:/usr/sbin") is None]
NODES = 2
NEEDS_SLURM = pytest.mark.skipif(
    bool(MISSING) or os.geteuid() != 0, reason="needs root and Debian's slurm-wlm and munge"
)
SETTINGS = [
    "federation.rounds=60", "partition.clients=4", "protocol.shots=2", "method.n_ctx=4", "method.rank=2",
    "federation.block_size=2", "resources.actors=2", "tracking.mlflow=false",
]  # fmt: skip
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 RealMemory=1000 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 RealMemory=1000 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES State=UP MaxTime=60
"""


@dataclass(frozen=True)
class Slurm:
    """A controller and two nodes."""

    env: dict[str, str]

    def command(self, *arguments):
        """Run one of SLURM's programs and return what it prints."""
        done = subprocess.run(arguments, env=self.env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def submit(self, output, *arguments):
        """Submit the script for all nodes; return the job's number."""
        sizes = [f"--nodes={NODES}", "--cpus-per-task=2", f"--output={output}"]
        return self.command("sbatch", "--parsable", *sizes, str(SCRIPT), *arguments)

    def state(self, job):
        """The state of a job, such as `RUNNING`."""
        return self.command("scontrol", "show", "job", job, "--oneliner").partition("JobState=")[2].split()[0]

    def wait(self, condition, seconds, output):
        """Wait until a condition holds; what the job printed is the message if it never does."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, output.read_text() if output.exists() else "the job printed nothing"
            time.sleep(0.3)


@contextmanager
def running(command, **options):
    """A daemon in the foreground, ended with its children."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options)
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slurm")
    for name in ("munge", "state", "n1", "n2"):
        (folder / name).mkdir(mode=0o711)
    key = folder / "munge" / "key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    host = socket.gethostname().partition(".")[0]
    settings = folder / "slurm.conf"
    settings.write_text(CONFIGURATION.format(host=host, ports=free_ports(3), folder=folder))
    env = {
        **os.environ,
        "SLURM_CONF": str(settings),
        "PATH": f"{BIN}:{os.environ['PATH']}:/usr/sbin",
        "HOME": str(folder),
    }
    for key in [key for key in env if key.startswith("RAY_")]:
        del env[key]
    cluster = Slurm(env)
    munge = [
        f"--{name.replace('_', '-')}={folder}/munge/{name}" for name in ("socket", "pid_file", "log_file", "seed_file")
    ]
    with ExitStack() as stack:
        stack.enter_context(
            running(["munged", "--foreground", "--force", f"--key-file={folder}/munge/key", *munge], env=env)
        )
        stack.enter_context(running(["slurmctld", "-D"], env=env))
        for node in ("n1", "n2"):
            stack.enter_context(running(["slurmd", "-D", "-N", node], env=env))
        cluster.wait(
            lambda: subprocess.run(["srun", f"-N{NODES}", "true"], env=env, capture_output=True).returncode == 0,
            60,
            settings,
        )
        yield cluster


@pytest.mark.slow
@NEEDS_SLURM
def test_a_job_on_two_nodes_is_stopped_requeued_and_ends_as_if_it_had_not_been(slurm, tmp_path):
    output, root = tmp_path / "output.txt", tmp_path / "store"
    job = slurm.submit(output, "run", "shapes", *SETTINGS, f"storage.root={root}")
    slurm.wait(lambda: any(root.glob("runs/*/rounds/000005.arrow")), 120, output)
    slurm.command("scancel", "--signal=USR1", "--batch", job)  # as SLURM does before the time limit
    slurm.wait(lambda: slurm.state(job) == "PENDING", 60, output)
    (store,) = RunFolder.find(root)
    before = len(store.rounds())
    assert 5 <= before < 60
    assert store.state == "stopped"
    slurm.command("scontrol", "update", f"JobId={job}", "StartTime=now")
    slurm.wait(lambda: slurm.state(job) not in ("PENDING", "RUNNING", "COMPLETING"), 120, output)
    assert slurm.state(job) == "COMPLETED"
    assert f"rounds {before}/60" in output.read_text()
    (store,) = RunFolder.find(root)
    whole = config.load("shapes", [*SETTINGS, "resources.backend=serial", f"storage.root={tmp_path / 'serial'}"])
    serial = RunFolder.open(launch.run(whole, False, RunCallback(), MLflowTracker()))
    assert [row.metrics for row in store.rounds()] == [row.metrics for row in serial.rounds()]


@pytest.mark.slow
@NEEDS_SLURM
def test_a_cancelled_job_ends_for_good_and_leaves_no_ray(slurm, tmp_path):
    output, root = tmp_path / "output.txt", tmp_path / "store"
    job = slurm.submit(output, "run", "shapes", *SETTINGS, "federation.rounds=5000", f"storage.root={root}")
    slurm.wait(lambda: any(root.glob("runs/*/rounds/000002.arrow")), 120, output)
    slurm.command("scancel", job)
    slurm.wait(lambda: slurm.state(job) == "CANCELLED", 60, output)
    assert not slurm.command("squeue", "--noheader")
    (store,) = RunFolder.find(root)
    assert store.state in ("stopped", "interrupted")  # SLURM's patience ends before or after fedpgp has


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({}, "SLURM_JOB_ID and SLURM_JOB_NODELIST are not set: submit this script with sbatch"),
        ({"SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "n1"}, "no fedpgp on this node: activate its environment"),
    ],
)
def test_where_it_cannot_run_the_script_says_so_in_one_line(env, message):
    done = subprocess.run(
        ["bash", str(SCRIPT), "run", "shapes"], env={"PATH": "/usr/bin:/bin", **env}, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {message}")
    assert done.stderr.count("\n") == 1

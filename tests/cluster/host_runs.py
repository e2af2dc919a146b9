"""The run that tests repeat on hosts, its numbers in one process, and something that happens at one of its rounds."""

from __future__ import annotations

import threading
import time

from fedpgp import config
from fedpgp.core.callbacks import RunCallback
from fedpgp.experiments import launch
from fedpgp.storage.run_folder import RunFolder
from fedpgp.tracking import MLflowTracker

ROUNDS = 30
SETTINGS = [
    "partition.clients=6", "protocol.shots=2", "method.n_ctx=4", "method.rank=2", "federation.block_size=2",
    "resources.actors=3", f"federation.rounds={ROUNDS}", "tracking.mlflow=false",
]  # fmt: skip


def serial_metrics(root):
    """The metrics of every round in one process."""
    wanted = config.load("shapes", [*SETTINGS, "resources.backend=serial", f"storage.root={root}"])
    return metrics(launch.run(wanted, False, RunCallback(), MLflowTracker()))


def metrics(path):
    """The metrics of every round of a run."""
    return [row.metrics for row in RunFolder.open(path).rounds()]


def arguments(hosts, name, *more):
    """The run on the cluster, with a storage root of this name that all hosts share."""
    where = [f"resources.address={hosts.address}", f"storage.root={hosts.shared / name}"]
    return ["shapes", *SETTINGS, *where, *more]


def only_run(root):
    """The folder of the run of a storage root."""
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

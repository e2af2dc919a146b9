"""An experiment that takes a moment, and what is found about it."""

from __future__ import annotations

from fedpgp import config
from fedpgp.cli.doctor import checks

SMALL = [
    "protocol.shots=1", "partition.clients=2", "method.n_ctx=1", "method.rank=1", "federation.rounds=1",
    "federation.local_epochs=1", "resources.backend=serial", "tracking.mlflow=false",
]  # fmt: skip


def small(root, *overrides):
    return config.absolute(config.load("shapes", [*SMALL, f"storage.root={root}", *overrides]))


def found_in(root, name, *overrides):
    """The findings of that name about what lies under a storage root."""
    return [one for one in checks.storage(small(root, *overrides)) if one.name == name]


def files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}

"""The base of sweeps in tests: trials of a fraction of a second, each in its own process."""

from __future__ import annotations

BASE = {
    "name": "tiny", "data": {"name": "shapes"}, "backbone": {"name": "tiny", "weights": "random"},
    "protocol": {"shots": 1}, "partition": {"clients": 2}, "method": {"name": "promptfl", "n_ctx": 1},
    "federation": {"rounds": 2, "lr": 0.1, "local_epochs": 1, "batch_size": 4},
    "resources": {"backend": "serial", "cpus_per_actor": 0.5},
}  # fmt: skip


def tiny_base(rounds=2, **more):
    """The base with so many rounds, and with other sections."""
    return {**BASE, "federation": {**BASE["federation"], "rounds": rounds}, **more}

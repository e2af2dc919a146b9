"""Mirror runs and sweeps on disk to MLflow. Nothing is read back from it, and no run waits for it or fails with it."""

from fedpgp.tracking.connection import default_uri, prepare
from fedpgp.tracking.mirror import Mirror, sync_run, sync_sweep
from fedpgp.tracking.tracker import MLflowTracker

__all__ = ["MLflowTracker", "Mirror", "default_uri", "prepare", "sync_run", "sync_sweep"]

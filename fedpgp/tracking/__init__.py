"""Mirror runs and sweeps on disk to MLflow. Nothing is read back from it, and no run waits for it or fails with it."""

from fedpgp.tracking.connection import default_uri, prepare
from fedpgp.tracking.mirror import Mirror, MLflowTracker, sync_all, sync_run

__all__ = ["MLflowTracker", "Mirror", "default_uri", "prepare", "sync_all", "sync_run"]

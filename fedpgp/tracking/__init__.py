"""Mirror runs and sweeps on disk to MLflow. Nothing is read back from it, and no run waits for it or fails with it."""

from typing import TYPE_CHECKING

from fedpgp.tracking.connection import default_uri, prepare

if TYPE_CHECKING:
    from fedpgp.tracking.mirror import Mirror, MLflowTracker, sync_all, sync_run

__all__ = ["MLflowTracker", "Mirror", "default_uri", "prepare", "sync_all", "sync_run"]


def __getattr__(name: str) -> object:
    """What mirrors, imported when it is first used: the user interface needs none of it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import fedpgp.tracking.mirror as mirroring

    return getattr(mirroring, name)

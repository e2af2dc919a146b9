"""Chooses the backend of `resources.backend=auto`. Imports no Ray."""

import os
import sys
from typing import NamedTuple

from fedpgp.config import ResourceSettings


class Choice(NamedTuple):
    """A backend, and why."""

    resources: ResourceSettings
    """with `backend` ray or serial"""
    reason: str
    """empty: the settings name the backend"""

    @property
    def line(self) -> str:
        """The choice in one line; empty: there was none."""
        return f"resources.backend=auto: {self.resources.backend} ({self.reason})" if self.reason else ""


def choose(resources: ResourceSettings, parallel: int, in_trial: bool = False) -> Choice:
    """Choose between Ray actors and this process if the backend is `auto`. Results are equal either way.

    In this order:

    * Ray on a cluster (`resources.address`, RAY_ADDRESS as in a submitted job, or a Ray that this process is connected
      to): its nodes are there to be used. Not for a trial of a sweep, which has a process on the cluster already.
    * Ray with GPUs: it assigns devices to actors, and a fraction limits an actor's memory.
    * This process if there is one actor, or one core that several would share.
    * This process if there is one call at a time (`parallel`): the other actors would wait for the first.
    * Else Ray. More calls never change this from Ray to this process.

    Args:
        parallel: how many calls can run at the same time: blocks of clients, or chunks of images.
        in_trial: whether it is for a trial of a sweep.
    """
    if resources.backend != "auto":
        return Choice(resources, "")
    if not in_trial and on_cluster(resources):
        backend, reason = "ray", "a cluster is given"
    elif resources.gpus_per_actor:
        backend, reason = "ray", "it assigns the GPUs"
    elif resources.actors == 1:
        backend, reason = "serial", "one actor would do the same work"
    elif (os.cpu_count() or 1) == 1 and not in_trial:
        backend, reason = "serial", "this machine has one core"
    elif parallel <= 1:
        backend, reason = "serial", "a second actor would wait for the first"
    else:
        backend, reason = "ray", f"{min(parallel, resources.actors)} actors can work at a time"
    return Choice(resources.model_copy(update={"backend": backend}), reason)


def cluster_address(resources: ResourceSettings) -> str | None:
    """The address of the cluster to use; None: a local one will be started."""
    return resources.address or os.environ.get("RAY_ADDRESS") or None


def on_cluster(resources: ResourceSettings) -> bool:
    """Whether a Ray is there already: an address is given, or this process is connected."""
    ray = sys.modules.get("ray")
    return cluster_address(resources) is not None or (ray is not None and ray.is_initialized())

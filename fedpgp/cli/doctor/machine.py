"""Check the machine and the cluster, if one is given: cores, memory, GPUs, and free disk space."""

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

from fedpgp.cli.doctor.findings import Finding, ok, problem, warning
from fedpgp.config import Experiment, ResourceSettings
from fedpgp.core import provenance
from fedpgp.core.errors import ResourceError
from fedpgp.core.text import disk_size, memory_size
from fedpgp.federation.backends import driver

Node = Mapping[str, float]
"""What a node has, as Ray counts it: `CPU`, `GPU`, `memory` in bytes."""
LITTLE = 10**9
"""Free bytes on a disk below which there is a warning."""
RAY_STOPS_AT = 0.95
"""Used share of a disk from which Ray stores no more objects on it."""


def examine(experiment: Experiment) -> Iterator[Finding]:
    """Check this machine."""
    here = provenance.hardware()
    free = free_memory()
    memory = f"{here['memory_gib']} GiB of memory" + ("" if free is None else f", {memory_size(free)} of it free")
    yield ok("machine", f"{here['cores']} cores ({here['processor']}), {memory}")
    yield gpus([torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())], here["gpus"])
    yield disk("disk", "runs, features and MLflow", experiment.storage.root.expanduser().absolute())
    if experiment.resources.backend == "ray":
        yield disk("ray disk", "Ray's sessions", Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()), busy=True)


def gpus(seen: Sequence[str], there: Sequence[str]) -> Finding:
    """Compare the GPUs that torch can use with those of the machine.

    Args:
        seen: by torch.
        there: by the driver of the operating system.
    """
    if len(seen) < len(there):
        return warning(
            "gpu",
            f"torch sees {len(seen)} of {len(there)} ({', '.join(there)})",
            "look at CUDA_VISIBLE_DEVICES, and install a torch that is built for the driver's CUDA",
        )
    return ok("gpu", ", ".join(seen) or "none: everything runs on the CPU")


def ray(resources: ResourceSettings) -> tuple[Finding, list[Node]]:
    """Check the cluster, if one is given; also returns the nodes for actors, none if the cluster is unreachable."""
    try:
        found = None if resources.backend == "serial" else driver.cluster(resources)
    except ResourceError as error:
        return problem("ray", str(error)), []
    if found is not None:
        total = {kind: sum(node.get(kind, 0.0) for node in found) for kind in ("CPU", "GPU", "memory")}
        has = f"{total['CPU']:g} CPU, {total['GPU']:g} GPU, {memory_size(total['memory'])} of memory"
        return ok("ray", f"a cluster of {len(found)} node(s) with {has}"), found
    free = free_memory()
    here = {"CPU": float(driver.own_cpus(resources)), "GPU": float(torch.cuda.device_count()), "memory": free or 0.0}
    if resources.backend == "serial":
        return ok("ray", "not used: resources.backend is serial"), [here]
    return ok("ray", "no cluster is named (resources.address, RAY_ADDRESS): a run starts its own Ray here"), [here]


def disk(name: str, use: str, folder: Path, busy: bool = False) -> Finding:
    """Check that a folder is writable and has free space.

    Args:
        use: what is written there.
        busy: Ray writes there too, and stops when the disk is nearly full.
    """
    place, advice = nearest(folder), f"make room, or give another folder: {'RAY_TMPDIR' if busy else 'storage.root'}"
    try:
        with tempfile.TemporaryFile(dir=place) as probe:
            probe.write(b"x")
    except OSError as error:
        return problem(name, f"{use}: nothing can be written to {place} ({error.strerror})", advice)
    usage = shutil.disk_usage(place)
    text = f"{use}: {disk_size(usage.free)} of {disk_size(usage.total)} free at {place}"
    if busy and usage.free < (1 - RAY_STOPS_AT) * usage.total:
        return warning(name, f"{text}; Ray puts no objects there once {RAY_STOPS_AT:.0%} are in use", advice)
    if usage.free < LITTLE:
        return warning(name, text, advice)
    return ok(name, text)


def nearest(folder: Path) -> Path:
    """The folder, or its nearest parent that exists."""
    return next(one for one in (folder, *folder.parents) if one.exists())


def free_memory() -> int | None:
    """Bytes available to new processes, within the limit of a container; None: unknown on this system."""
    available = provenance.named("/proc/meminfo", "MemAvailable")
    if available is None:
        return None
    limits = [int(line) for line in provenance.lines("/sys/fs/cgroup/memory.max") if line.isdigit()]
    return min([int(available.removesuffix(" kB")) * 1024, *limits])

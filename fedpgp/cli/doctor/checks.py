"""Check the machine, the cluster and the storage root, without changing them, and what an experiment needs."""

import os
import shlex
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from functools import partial
from math import ceil
from pathlib import Path

import torch

from fedpgp import tracking
from fedpgp.cli.doctor.findings import Finding, ok, problem, warning
from fedpgp.clip import feature_cache
from fedpgp.config import Experiment, ResourceSettings, TrackingSettings, tracking_uri
from fedpgp.core import provenance
from fedpgp.core.callbacks import RunCallback
from fedpgp.core.errors import AccessError, ConfigError, FedPGPError, ResourceError, RunError
from fedpgp.core.files import denied
from fedpgp.core.memory import free as free_memory
from fedpgp.core.text import disk_size, memory_size
from fedpgp.data.protocol import EVERY_DOMAIN, SPLITS, held_out_names
from fedpgp.experiments import estimation, placement, privacy_planning
from fedpgp.experiments.planning import Library, Plan, describe_resources, plan
from fedpgp.federation.backends import ray_cluster
from fedpgp.federation.backends.choice import cluster_address, on_cluster
from fedpgp.federation.cohorts import rounding
from fedpgp.federation.resources import shortfall
from fedpgp.storage.run_folder import RunFolder
from fedpgp.storage.status_folder import StatusFolder
from fedpgp.storage.sweep_folder import SweepFolder
from fedpgp.tracking import connection, uri_check
from fedpgp.tracking.mirror import RUN_VARIABLE, experiment_deleted, stale_runs
from fedpgp.tracking.writers import sweep_tag

Node = Mapping[str, float]
"""What a node has, as Ray counts it: `CPU`, `GPU`, `memory` in bytes."""
LITTLE = 10**9
"""Free bytes on a disk below which there is a warning."""
RAY_STOPS_AT = 0.95
"""Used share of a disk from which Ray stores no more objects on it."""
SHARED = {
    "content": "the images are hashed at each start",
    "features": "features that are missing cannot be extracted",
    "sweeps": "no sweep can be run",
    "locks": "no sweep can be run",
    "mlflow.db": "runs are not mirrored to MLflow",
    "mlartifacts": "runs are not mirrored to MLflow",
}
"""What another user of a storage root may have created, and what cannot be done if this one may not write to it."""


def machine(experiment: Experiment) -> Iterator[Finding]:
    """Check cores, memory and GPUs of this machine, and the disks that the experiment writes to."""
    here = provenance.hardware()
    free = free_memory()
    memory = f"{here['memory_gib']} GiB of memory" + ("" if free is None else f", {memory_size(free)} of it free")
    yield ok("machine", f"{here['cores']} cores ({here['processor']}), {memory}")
    yield gpus([torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())], here["gpus"])
    yield disk("disk", "runs, features and MLflow", experiment.storage.root.expanduser().absolute())
    if experiment.resources.backend != "serial":
        yield disk("ray disk", "Ray's sessions", ray_cluster.temporary_folder()[1], busy=True)


def gpus(seen: Sequence[str], there: Sequence[str]) -> Finding:
    """Compare the GPUs that torch sees with those that the operating system's driver reports."""
    if len(seen) < len(there):
        advice = "look at CUDA_VISIBLE_DEVICES, and install a torch that is built for the driver's CUDA"
        return warning("gpu", f"torch sees {len(seen)} of {len(there)} ({', '.join(there)})", advice)
    return ok("gpu", ", ".join(seen) or "none: everything runs on the CPU")


def disk(name: str, use: str, folder: Path, busy: bool = False) -> Finding:
    """Check that a folder is writable and has free space.

    Args:
        use: what is written there.
        busy: Ray writes there too, and stops when the disk is nearly full.
    """
    if (what := denied(folder, writing=True)) is not None:
        return problem(name, f"{use}: {what}")
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
    return warning(name, text, advice) if usage.free < LITTLE else ok(name, text)


def nearest(folder: Path) -> Path:
    """The folder, or its nearest parent that exists."""
    return next(one for one in (folder, *folder.parents) if one.exists())


def ray(resources: ResourceSettings) -> tuple[Finding, list[Node]]:
    """Check the cluster, or whether a local Ray can start; also returns the nodes for actors, none after a problem."""
    memory = free_memory() or 0.0
    here = {"CPU": float(ray_cluster.own_cpus(resources)), "GPU": float(torch.cuda.device_count()), "memory": memory}
    if resources.backend == "serial":
        return ok("ray", "not used: resources.backend is serial"), [here]
    try:
        ray_cluster.check_start(resources)
        found = ray_cluster.cluster(resources)
    except ResourceError as error:
        if resources.backend == "auto" and not on_cluster(resources):
            return warning("ray", str(error), "only runs with work for several actors need it"), [here]
        return problem("ray", str(error)), []
    if found is None:
        return ok("ray", "no cluster is named (resources.address, RAY_ADDRESS): a run starts its own Ray here"), [here]
    total = {kind: sum(node.get(kind, 0.0) for node in found) for kind in ("CPU", "GPU", "memory")}
    has = f"{total['CPU']:g} CPU, {total['GPU']:g} GPU, {memory_size(total['memory'])} of memory"
    return ok("ray", f"a cluster of {len(found)} node(s) with {has}"), found


def storage(experiment: Experiment) -> Iterator[Finding]:
    """Check everything below `storage.root`: feature caches, runs, sweeps, and their mirror in MLflow."""
    root = experiment.storage.root.expanduser().absolute()
    if (what := denied(root)) is not None:
        yield problem("access", what)
        return
    yield from access(root)
    try:
        whole, errors = feature_cache.scan(root / "features")
    except AccessError as error:
        whole, errors = [], [error]
    yield from (problem("caches", str(error)) for error in errors)
    if whole or not errors:
        images, num_bytes = sum(images for images, _ in whole), sum(num_bytes for _, num_bytes in whole)
        yield ok("caches", f"{len(whole)} whole, {images:,} images, {disk_size(num_bytes)}" if whole else "none yet")
    ended: set[str] = set()
    yield from _folders("run", root / "runs", _run, ended)
    yield from _folders("sweep", root / "sweeps", _sweep, ended)
    if experiment.tracking.mlflow:
        yield _mirror(root, experiment.tracking, ended)


def access(root: Path) -> Iterator[Finding]:
    """Check that this user may write what a run writes to a storage root, which another user may have created."""
    if (what := denied(root / "runs", writing=True)) is not None:
        yield problem("access", what)
    for name, then in SHARED.items():
        if (what := denied(root / name, writing=(root / name).exists())) is not None:
            yield warning("access", f"{then}: {what}")


def _folders(
    kind: str, folder: Path, read: Callable[[Path], tuple[StatusFolder, str]], ended: set[str]
) -> Iterator[Finding]:
    """One problem for each damaged run or sweep, and one line for all others.

    Args:
        read: opens a folder and reads all that a report needs; returns it and the value of its tag in MLflow.
        ended: the tags of those that have ended are added to it.
    """
    if (what := denied(folder)) is not None:
        yield problem(f"{kind}s", what)
        return
    states: Counter[str] = Counter()
    interrupted, damaged = [], False
    for path in sorted(path for path in folder.glob("[!.]*") if path.is_dir()):
        try:
            found, tag = read(path)
            state = found.state
        except AccessError as error:
            yield problem(f"{kind}s", str(error))
            damaged = True
            continue
        except (RunError, OSError) as error:
            what = f"{path}: cannot be read ({error.strerror})" if isinstance(error, OSError) else str(error)
            yield problem(f"{kind}s", what, "resume it if it is to go on, else move the folder away")
            damaged = True
            continue
        states[state] += 1
        if state == "interrupted":
            interrupted.append(path.name)
        if state != "running":
            ended.add(tag)
    counts = ", ".join(f"{number} {state}" for state, number in sorted(states.items()))
    if interrupted:
        killed = f"{counts}: killed was {', '.join(interrupted)}"
        yield warning(f"{kind}s", killed, f"fedpgp {kind} CONFIG --resume goes on with it")
    elif counts or not damaged:
        yield ok(f"{kind}s", counts or "none yet")


def _run(path: Path) -> tuple[StatusFolder, str]:
    store = RunFolder.open(path)
    store.rounds()
    if store.state == "finished" and store.summary is None:
        raise RunError(f"{path}: says that it is finished, but has no summary.json")
    return store, str(store.identity["id"])


def _sweep(path: Path) -> tuple[StatusFolder, str]:
    folder = SweepFolder.open(path)
    folder.results()
    return folder, sweep_tag(folder.head)


def _mirror(root: Path, settings: TrackingSettings, ended: set[str]) -> Finding:
    uri = settings.uri or tracking.default_uri(root)
    sync = f"fedpgp track sync {shlex.quote(str(root))}"
    if uri != tracking.default_uri(root):
        sync += f" --uri {shlex.quote(uri)}"
    source = ""
    try:
        uri_check.check_settings(settings)
        experiment = connection.experiment_name(uri, settings.experiment)
        source = _from_environment(uri, settings, experiment)
        path = tracking_uri.local_path(uri)
        if path is not None and denied(path) is None and not path.exists():  # opening it would create it
            return ok("tracking", f"no MLflow store at {uri}{source} yet; the first run makes one")
        deleted, stale = experiment_deleted(uri, experiment), stale_runs(uri, ended)
    except ConfigError as error:
        return problem("tracking", str(error))
    except FedPGPError as error:
        return warning("tracking", f"{error}{source}", f"runs go on without it; once it is back: {sync}")
    if deleted:
        return warning(
            "tracking",
            f"{uri}{source}: experiment {experiment!r} is deleted there",
            f"the next run restores it, or: {sync}",
        )
    if stale:
        return warning("tracking", f"{uri}{source}: RUNNING there, but ended: {', '.join(stale)}", sync)
    return ok("tracking", f"{uri}{source} opens, and what is RUNNING there is running")


def _from_environment(uri: str, settings: TrackingSettings, experiment: str) -> str:
    """Which variables of MLflow say where the runs go, and which one is not used; empty: none."""
    given = {
        tracking_uri.URI_VARIABLE: uri_check.from_environment(uri),
        tracking_uri.EXPERIMENT_VARIABLE: experiment == os.environ.get(tracking_uri.EXPERIMENT_VARIABLE),
        tracking_uri.ID_VARIABLE: tracking_uri.experiment_id(settings.experiment) is not None,
    }
    names = " and ".join(name for name, used in given.items() if used)
    notes = [f"{names}: experiment {experiment!r}"] if names else []
    if os.environ.get(RUN_VARIABLE):
        notes.append(f"{RUN_VARIABLE} is not used")
    return f" ({'; '.join(notes)})" if notes else ""


def experiment_needs(experiment: Experiment, nodes: Sequence[Node], planned: bool = True) -> Iterator[Finding]:
    """Check that the images exist, and then the actors, the plan, the features to encode and the memory.

    The images are listed, not read. Without a plan there are no features and no memory to check.

    Args:
        nodes: the available nodes; empty: unknown.
        planned: false: only the data are checked.
    """
    library = Library(hashing=False)
    try:
        manifest = library.manifest(experiment.data)
    except FedPGPError as error:
        yield problem("data", str(error))
        return
    splits = ", ".join(f"{(manifest.splits == split).sum():,} {split}" for split in SPLITS)
    domains = f", {len(manifest.domains)} domains" if len(manifest.domains) > 1 else ""
    classes = f"{len(manifest.class_names)} classes{domains}"
    yield ok("data", f"{manifest.name}: {len(manifest):,} images ({splits}), {classes}")
    if not planned:
        return
    if nodes:
        yield resources(experiment.resources, nodes)
    protocol = experiment.protocol
    if protocol.held_out == EVERY_DOMAIN:  # one domain in turn: the first run
        protocol = protocol.model_copy(update={"held_out": held_out_names(manifest)[0]})
    try:
        ready = plan(experiment.model_copy(update={"protocol": protocol}), library)
    except FedPGPError as error:
        yield problem("plan", str(error))
        return
    data, backbone = ready.data, ready.backbone.name if ready.backbone else "a network of its own"
    labels = {label for client in range(data.num_clients) for label in data.class_sets[data.train_set_of(client)]}
    trained = f"{data.num_clients} clients, {len(labels)} classes to train on"
    yield ok("plan", f"{ready.method.name} on {backbone}: {trained} ({ready.digest})")
    if rounded := rounding(len(data.training_clients), experiment.federation):
        yield ok("participation", rounded)
    if ready.privacy is not None:
        yield ok("privacy", privacy_planning.describe(ready.privacy, experiment.federation))
    free = sum(node.get("memory", 0.0) for node in nodes)
    for name, look in (("features", features), ("memory", partial(memory, free=free))):
        try:
            yield look(ready)
        except FedPGPError as error:
            yield problem(name, str(error))


def resources(wanted: ResourceSettings, nodes: Sequence[Node]) -> Finding:
    """Check that the actors fit the nodes and have a core each."""
    if wanted.backend == "serial":
        return ok("resources", f"this process alone, {wanted.threads} thread(s)")
    short = shortfall(wanted.actors, wanted.cpus_per_actor, wanted.gpus_per_actor, nodes)
    if short:
        return problem("resources", short)
    text = describe_resources(wanted)
    cores = os.cpu_count() or 1
    if cluster_address(wanted) is None and wanted.actors * wanted.cpus_per_actor > cores:
        return warning("resources", f"{text} take turns on {cores} cores", "give fewer resources.actors")
    return ok("resources", f"{text} fit {len(nodes)} node(s)")


def features(ready: Plan) -> Finding:
    """Check that the disk has space for the features that must be encoded before the first round."""
    found = estimation.of_extraction(ready)
    images, num_bytes = sum(one.images for one in found), sum(one.num_bytes for one in found)
    if not images:
        return ok("features", "all there")
    seconds = sum(one.images * one.seconds_per_image for one in found) / ready.experiment.resources.workers
    folder, duration = found[0].path.parent, timedelta(seconds=ceil(seconds))
    if (what := denied(folder, writing=True)) is not None:
        return problem("features", f"{images:,} images to encode, but {what}")
    text = f"{images:,} images to encode into {folder}, {disk_size(num_bytes)}, about {duration}"
    free = shutil.disk_usage(nearest(folder)).free
    if num_bytes > free:
        return problem("features", f"{text}, but {disk_size(free)} are free", "make room, or give another storage.root")
    known = ", fewer if they are copies of known images: the first run hashes them" if ready.unhashed else ""
    return ok("features", f"{text}{known}")


def memory(ready: Plan, free: float) -> Finding:
    """Compare the memory that all actors need with what is available.

    Args:
        free: bytes; 0: unknown.
    """
    each, settings = estimation.of_memory(ready), placement.of_run(ready, RunCallback()).experiment.resources
    if each is None:
        return ok("memory", f"{ready.method.name} trains nothing")
    text = f"{settings.workers} x about {memory_size(each)}"
    if settings.gpus_per_actor:
        return ok("memory", f"{text} on shares of GPUs, with whose memory it was not compared")
    if free and settings.workers * each > free:
        advice = "give fewer resources.actors, or a smaller federation.chunk_size or backbone.class_chunk"
        return problem("memory", f"{text}, but {memory_size(free)} are free", advice)
    return ok("memory", f"{text}, and {memory_size(free)} are free" if free else text)

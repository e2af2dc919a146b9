"""Check what an experiment needs: data, plan, features to encode, actors, memory."""

import os
import shutil
from collections.abc import Iterator, Sequence
from datetime import timedelta
from functools import partial
from math import ceil

from fedpgp.cli.doctor import machine
from fedpgp.cli.doctor.findings import Finding, ok, problem, warning
from fedpgp.cli.doctor.machine import Node
from fedpgp.config import DataSettings, Experiment, ResourceSettings
from fedpgp.core.errors import FedPGPError
from fedpgp.core.text import disk_size, memory_size
from fedpgp.data.manifest import Manifest
from fedpgp.data.protocol import EVERY_DOMAIN, SPLITS
from fedpgp.experiments import estimation
from fedpgp.experiments.planning import Library, Plan, describe_resources, plan
from fedpgp.federation.backends import driver
from fedpgp.federation.resources import shortfall


def data(settings: DataSettings, library: Library) -> Finding:
    """Check that the images exist; they are listed, not opened."""
    try:
        return ok("data", _counted(library.manifest(settings)))
    except FedPGPError as error:
        return problem("data", str(error))


def examine(experiment: Experiment, library: Library, nodes: Sequence[Node]) -> Iterator[Finding]:
    """Check the actors, the plan and, if it is valid, the features to encode and the memory.

    Args:
        nodes: the available nodes; empty: unknown.
    """
    if nodes:
        yield resources(experiment.resources, nodes)
    try:
        ready = plan(_one_domain_out(experiment, library), library)
    except FedPGPError as error:
        yield problem("plan", str(error))
        return
    yield ok("plan", _described(ready))
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
    if driver.cluster_address(wanted) is None and wanted.actors * wanted.cpus_per_actor > cores:
        return warning("resources", f"{text} take turns on {cores} cores", "give fewer resources.actors")
    return ok("resources", f"{text} fit {len(nodes)} node(s)")


def features(ready: Plan) -> Finding:
    """Check that the disk has space for the features that must be encoded before the first round."""
    found = estimation.of_extraction(ready)
    settings = ready.experiment.resources
    images, num_bytes = sum(one.images for one in found), sum(one.num_bytes for one in found)
    if not images:
        return ok("features", "all there")
    seconds = sum(one.images * one.seconds_per_image for one in found) / settings.workers
    folder = found[0].path.parent
    duration = timedelta(seconds=ceil(seconds))
    text = f"{images:,} images to encode into {folder}, {disk_size(num_bytes)}, about {duration}"
    free = shutil.disk_usage(machine.nearest(folder)).free
    if num_bytes > free:
        return problem("features", f"{text}, but {disk_size(free)} are free", "make room, or give another storage.root")
    return ok("features", text)


def memory(ready: Plan, free: float) -> Finding:
    """Compare the memory that all actors need with what is available.

    Args:
        free: bytes; 0: unknown.
    """
    each, settings = estimation.of_memory(ready), ready.experiment.resources
    if each is None:
        return ok("memory", f"{ready.method.name} trains nothing")
    text = f"{settings.workers} x about {memory_size(each)}"
    if settings.gpus_per_actor:
        return ok("memory", f"{text} on shares of GPUs, with whose memory it was not compared")
    if not free:
        return ok("memory", text)
    if settings.workers * each > free:
        advice = "give fewer resources.actors, or a smaller federation.chunk_size or backbone.class_chunk"
        return problem("memory", f"{text}, but {memory_size(free)} are free", advice)
    return ok("memory", f"{text}, and {memory_size(free)} are free")


def _one_domain_out(experiment: Experiment, library: Library) -> Experiment:
    """The experiment, or, if it holds out every domain in turn, its first run."""
    if experiment.protocol.held_out != EVERY_DOMAIN:
        return experiment
    first = library.manifest(experiment.data).domains[0]
    return experiment.model_copy(update={"protocol": experiment.protocol.model_copy(update={"held_out": first})})


def _counted(manifest: Manifest) -> str:
    splits = ", ".join(f"{(manifest.splits == split).sum():,} {split}" for split in SPLITS)
    domains = f", {len(manifest.domains)} domains" if len(manifest.domains) > 1 else ""
    return f"{manifest.name}: {len(manifest):,} images ({splits}), {len(manifest.class_names)} classes{domains}"


def _described(ready: Plan) -> str:
    data, name = ready.data, ready.backbone.name if ready.backbone else "a network of its own"
    classes = len(data.class_sets[data.train_set])
    return f"{ready.method.name} on {name}: {data.num_clients} clients, {classes} classes to train on ({ready.digest})"

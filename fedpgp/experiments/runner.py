"""One experiment from settings to rows on disk: the only place that wires the stages together."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fedpgp import config
from fedpgp.clip import feature_cache
from fedpgp.clip.feature_cache import Chunk, FeatureKey, cache_path
from fedpgp.config import Experiment, ResourceSettings
from fedpgp.core import provenance
from fedpgp.core.callbacks import RunCallback
from fedpgp.core.errors import FedPGPError, Interrupted
from fedpgp.core.files import is_full
from fedpgp.core.redaction import redacted
from fedpgp.core.text import memory_size
from fedpgp.data.summary import partition_table
from fedpgp.experiments.planning import Plan, plan
from fedpgp.experiments.resume import refuse_edited
from fedpgp.federation.backends.base import Backend
from fedpgp.federation.backends.serial import SerialBackend
from fedpgp.federation.extraction import ExtractionJob
from fedpgp.federation.messages import Features
from fedpgp.federation.metrics import summarize
from fedpgp.federation.records import RoundRow
from fedpgp.federation.server import Server
from fedpgp.federation.state import State
from fedpgp.federation.worker import FederationJob
from fedpgp.storage import checkpoint
from fedpgp.storage.run_folder import RunFolder


def extract(plan: Plan, backend: Backend, callback: RunCallback) -> tuple[Features, Features]:
    """Frozen features of all images that the plan uses: those for training and those for testing.

    With one view both are the same cache. What is there already is not extracted again.
    """
    extract_all([plan], backend, callback)
    return _cache(plan, plan.experiment.data.views), _cache(plan, views=1)


def extract_all(plans: Iterable[Plan], backend: Backend, callback: RunCallback) -> list[Path]:
    """Frozen features for several plans, each image once; the files."""
    wanted = wanted_features(plans)
    for cache, (one, rows) in wanted.items():
        _fill(one, cache, rows, backend, callback)
    return sorted(cache.path for cache in wanted)


def all_extracted(plans: Iterable[Plan]) -> bool:
    """Whether there is nothing left for `extract_all`."""
    return not any(
        feature_cache.missing(cache.path, cache.key, rows).size for cache, (_, rows) in wanted_features(plans).items()
    )


def wanted_features(plans: Iterable[Plan]) -> dict[Features, tuple[Plan, np.ndarray]]:
    """The caches, each with the rows that it must hold and a plan that knows how they are made."""
    wanted: dict[Features, tuple[Plan, np.ndarray]] = {}
    for one in plans:
        views = one.experiment.data.views
        for cache, rows in (
            [(_cache(one, 1), one.data.rows)]
            if views == 1
            else [(_cache(one, views), one.data.training_rows), (_cache(one, 1), one.data.evaluation_rows)]
        ):
            first, known = wanted.get(cache, (one, rows))
            wanted[cache] = (first, np.union1d(known, rows))
    return wanted


def run(
    experiment: Experiment,
    resume: bool,
    callback: RunCallback,
    stop: threading.Event,
    backend: Backend | None = None,
    *,
    restarted: bool = False,
) -> Path:
    """Run an experiment from this process, with client actors if its backend is ray (which must be connected).

    Args:
        resume: go on with the newest run of the same digest, if there is one; a finished one is left as it is, and
            settings that were edited since the run of this name was begun are refused.
        callback: receives progress.
        stop: set from outside to abandon the round that is going on; those before it are kept.
        backend: workers to borrow; None: its own, as the settings say.
        restarted: this process takes the place of one that died: go on with what it began.

    Returns:
        The folder of the finished run.

    Raises:
        UserError: something given cannot be used; nothing was begun.
        Interrupted: `stop` was set.
        FedPGPError: the run failed; its rows are kept and `resume` goes on from them.
    """
    callback.on_prepare()
    ready = plan(experiment)
    name, storage = experiment.name, experiment.storage
    wanted = resume or restarted
    earlier = RunFolder.find_resumable(storage.root, name, ready.digest, storage.uri) if wanted else None
    if resume and not restarted and earlier is None:
        refuse_edited(ready)
        callback.on_message("no earlier run of exactly these settings, data and weights: starting a new one")
    return to_the_end(advance(ready, earlier, callback, stop, backend))


def advance(
    plan: Plan, earlier: RunFolder | None, callback: RunCallback, stop: threading.Event, backend: Backend | None = None
) -> Generator[RoundRow, None, Path]:
    """As `run`, a round at a time: each is yielded once it is committed. Closed before its end, the run is `stopped`.

    Args:
        earlier: the run to go on with; None: begin a new one.

    Returns:
        The folder of the finished run.
    """
    if earlier is not None and earlier.status["state"] == "finished":
        rounds = plan.experiment.federation.rounds
        callback.on_begin(str(earlier.path), rounds, rounds)
        callback.on_end(str(earlier.path), "finished")
        return earlier.path
    workers = backend or make_backend(plan.experiment.resources, stop)
    try:
        job = make_job(plan, *extract(plan, workers, callback))
        workers.load(job)
        store = earlier or _create(plan)
        with _ending(store, callback):
            yield from _rounds(plan, Server(job, workers), store, callback)
    finally:
        if backend is None:
            workers.close()
    return store.path


def to_the_end(rounds: Generator[RoundRow, None, Path]) -> Path:
    """What `advance` returns, its rounds run without a look at them."""
    while True:
        try:
            next(rounds)
        except StopIteration as end:
            folder: Path = end.value
            return folder


def extract_only(experiment: Experiment, callback: RunCallback, stop: threading.Event) -> list[Path]:
    """Extract the features that an experiment needs, and nothing more; their files."""
    callback.on_prepare()
    ready = plan(experiment)
    backend = make_backend(experiment.resources, stop)
    try:
        return extract_all([ready], backend, callback)
    finally:
        backend.close()


def make_backend(resources: ResourceSettings, stop: threading.Event) -> Backend:
    """Workers as the settings say; Ray must be connected for its own."""
    if resources.backend == "serial":
        return SerialBackend(resources.threads, gpu=resources.gpus_per_actor > 0, stop=stop)
    from fedpgp.federation.backends.actors import ActorPool

    return ActorPool(resources, stop)


def _create(plan: Plan) -> RunFolder:
    experiment = plan.experiment
    storage, content = experiment.storage, redacted(config.dump(experiment))
    store = RunFolder.create(storage.root, experiment.name, plan.digest, content, _identity(plan), storage.uri)
    store.save_partition(partition_table(plan.manifest, plan.data))
    return store


@contextmanager
def _ending(store: RunFolder, callback: RunCallback) -> Iterator[None]:
    """Hold the run's lock, write how the run ended, then report the end."""
    try:
        with store.lock(), _final_status(store):
            yield
    finally:
        callback.on_end(str(store.path), store.state)


@contextmanager
def _final_status(store: RunFolder) -> Iterator[None]:
    """Write how the run ended, unless it finished."""
    try:
        yield
    except GeneratorExit:
        store.stop("not wanted any further")
        raise
    except (Interrupted, KeyboardInterrupt):
        store.stop("asked to stop")
        raise Interrupted(f"stopped; the run lies in {store.path}; go on with --resume") from None
    except BaseException as error:
        with suppress(OSError):  # the disk may be full; it counts as interrupted then
            store.fail(reason(error), redacted("".join(traceback.format_exception(error))))
        if isinstance(error, OSError) and is_full(error):
            raise FedPGPError(f"{store.path}: {error.strerror}; free some, and go on with --resume") from None
        raise


def reason(error: BaseException) -> str:
    """What went wrong, as the status of a run has it."""
    return redacted(str(error) if isinstance(error, FedPGPError) else f"{type(error).__name__}: {error}")


def _rounds(plan: Plan, server: Server, store: RunFolder, callback: RunCallback) -> Iterator[RoundRow]:
    """Run and commit what is left."""
    state, reference = store.last_good(plan.digest) or (server.initial_state(), None)
    callback.on_plan(_described(plan, server, state))
    callback.on_begin(str(store.path), state.round, server.rounds)
    for result in server.run(state):
        reference = checkpoint.save(store.checkpoints, result.state, plan.digest, result.changed, reference)
        if result.confusion is not None:  # before the round: what is committed is complete
            store.save_confusion(result.confusion)
        store.commit(result.row, result.clients, reference)
        callback.on_round(str(store.path), result.row.round, server.rounds, result.row.metrics)
        yield result.row
    store.finish(summarize(store.identity, store.rounds()))


def _described(plan: Plan, server: Server, state: State) -> str:
    """The plan in a line: who trains where, and the memory that it takes."""
    resources, where = plan.experiment.resources, "this process"
    if resources.backend == "ray":
        each = f"{resources.cpus_per_actor:g} CPU, {resources.gpus_per_actor:g} GPU, {resources.threads} threads"
        where = f"{resources.actors} actors x ({each})"
    size = server.memory(state)
    memory = "" if size is None else f", about {memory_size(size)} of memory each"
    blocks = f"{plan.data.num_clients} clients in blocks of {server.block_size}"
    return f"plan: {plan.experiment.method.name}, {blocks} on {where}{memory}"


def _cache(plan: Plan, views: int) -> Features:
    experiment = plan.experiment
    code = plan.plugins.get("data", {}).get("digest")  # it may decode images in its own way
    key = FeatureKey(
        manifest="-".join(filter(None, (plan.manifest.files_digest, code))),
        weights=plan.weights,
        transform=plan.image.digest,
        views=views,
        seed=0 if views == 1 else experiment.seed,
        dtype=experiment.backbone.dtype,
        variant=plan.method.image_inputs,
    )
    return Features(cache_path(experiment.storage.root.absolute() / "features", key), key)


def extraction_job(plan: Plan, cache: Features) -> ExtractionJob:
    """What the workers need to fill a cache of the plan."""
    visual: Any = plan.backbone.model.visual if plan.backbone else nn.Identity()
    return ExtractionJob(visual, plan.image, plan.experiment.data, plan.manifest, cache.key)


def _fill(plan: Plan, cache: Features, rows: np.ndarray, backend: Backend, callback: RunCallback) -> None:
    """Extract what is missing of `rows`, on the workers."""
    begun: list[tuple[float, int]] = []

    def run_chunks(chunks: list[Chunk]) -> Iterator[Chunk]:
        backend.load(extraction_job(plan, cache))
        return backend.map("encode_chunk", chunks)

    def progress(done: int, total: int) -> None:
        """Images per second are those since the start, without what an interrupted extraction had left."""
        begun.append((time.monotonic(), done))
        (start, first), (now, _) = begun[0], begun[-1]
        callback.on_extract(done, total, (done - first) / (now - start) if done > first else None)

    feature_cache.extract(cache.path.parent, cache.key, rows, run_chunks, progress)


def make_job(plan: Plan, train: Features, test: Features) -> FederationJob:
    """What the workers need, given where the features lie."""
    experiment = plan.experiment
    return FederationJob(
        method=plan.method,
        text=plan.text,
        data=plan.data,
        train_features=train,
        test_features=test,
        federation=experiment.federation,
        seed=experiment.seed,
        dtype=getattr(torch, experiment.backbone.dtype),
    )


def _identity(plan: Plan) -> dict[str, Any]:
    return {
        "method": plan.experiment.method.name,
        "data": plan.experiment.data.name,
        "backbone": plan.backbone.name if plan.backbone else None,
        "seed": plan.experiment.seed,
        "client_names": list(plan.data.client_names),
        "class_names": list(plan.data.class_names),
        "num_examples": [len(rows) for rows in plan.data.train_rows],
        "manifest_digest": plan.manifest.digest,
        "partition_digest": plan.data.digest,
        "weights_fingerprint": plan.weights,
        **({"plugins": plan.plugins} if plan.plugins else {}),
        **provenance.describe(),
    }

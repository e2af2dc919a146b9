"""Run one experiment, from settings to rows on disk."""

import threading
import traceback
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fedpgp import config
from fedpgp.config import Experiment, ResourceSettings
from fedpgp.core import memory, provenance
from fedpgp.core.callbacks import RunCallback
from fedpgp.core.errors import FedPGPError, Interrupted, StorageError
from fedpgp.core.files import is_full
from fedpgp.core.text import memory_size, redacted
from fedpgp.data.federated import OF_PART
from fedpgp.data.summary import partition_table
from fedpgp.experiments import placement, privacy_planning
from fedpgp.experiments.features import extract
from fedpgp.experiments.planning import Plan, describe_resources, plan, refuse_edited
from fedpgp.federation import attacks, rule_needs
from fedpgp.federation.backends.base import Backend, OnDemand, SerialBackend
from fedpgp.federation.backends.choice import choose
from fedpgp.federation.client_rows import OnDisk, Place
from fedpgp.federation.cohorts import rounding
from fedpgp.federation.messages import Features
from fedpgp.federation.metrics import RoundRow, summarize
from fedpgp.federation.server import Server
from fedpgp.federation.worker import FederationJob
from fedpgp.methods.base import DiffersByClient
from fedpgp.storage import checkpoint
from fedpgp.storage.run_folder import RunFolder

DEFAULT_SHARE = 1 / 4
"""Of the machine's memory, for the personal parameters of all clients, where `resources.personal_memory` is null."""
OpenWorkers = Callable[[ResourceSettings, threading.Event], Backend]
"""Starts workers, which stop when the event is set."""


def make_backend(resources: ResourceSettings, stop: threading.Event) -> Backend:
    """Start workers according to the settings, with `auto` as if there were work for all of them.

    For the ray backend, Ray must be connected.
    """
    resources = choose(resources, resources.actors).resources
    if resources.backend == "serial":
        return SerialBackend(resources.threads, gpus=resources.gpus_per_actor, stop=stop)
    from fedpgp.federation.backends.actors import ActorPool

    return ActorPool(resources, stop)


def run(
    experiment: Experiment,
    resume: bool,
    callback: RunCallback,
    stop: threading.Event,
    backend: Backend | None = None,
    *,
    restarted: bool = False,
    open_workers: OpenWorkers = make_backend,
) -> Path:
    """Run an experiment from this process.

    Args:
        resume: continue the newest run of the same digest and images, if any; a finished run is returned as it is.
            Refused if an unfinished run of this name has other settings or images.
        stop: set it to abandon the current round; earlier rounds are kept.
        backend: workers to use; None: new ones, which `open_workers` starts according to the settings.
        restarted: Ray replaced a driver process that died by this one, which continues its run.

    Raises:
        UserError: invalid input; nothing was started.
        Interrupted: `stop` was set.
        FedPGPError: the run failed; committed rounds are kept, and `resume` continues after them.
    """
    callback.on_prepare()
    ready = plan(experiment)
    name, storage = experiment.name, experiment.storage
    earlier = None
    if resume or restarted:
        earlier = RunFolder.find_resumable(storage.root, name, ready.digest, storage.uri, ready.content)
    if resume and not restarted and earlier is None:
        refuse_edited(ready)
        callback.on_message("no earlier run of exactly these settings, images and weights: starting a new one")
    return run_to_end(advance(ready, earlier, callback, stop, backend, open_workers))


def run_to_end(rounds: Generator[RoundRow, None, Path]) -> Path:
    """Run all rounds of `advance`; return what it returns."""
    while True:
        try:
            next(rounds)
        except StopIteration as end:
            folder: Path = end.value
            return folder


def advance(
    plan: Plan,
    earlier: RunFolder | None,
    callback: RunCallback,
    stop: threading.Event,
    backend: Backend | None = None,
    open_workers: OpenWorkers = make_backend,
) -> Generator[RoundRow, None, Path]:
    """Run a plan, or continue `earlier`; yield each round once it is committed, and return the folder of the run.

    If closed early, the run is `stopped`. Arguments as of `run`.
    """
    rounds = plan.experiment.federation.rounds
    if earlier is not None and earlier.status["state"] == "finished":
        callback.on_begin(str(earlier.path), rounds, rounds)
        callback.on_end(str(earlier.path), "finished")
        return earlier.path
    if backend is None:
        plan = placement.of_run(plan, callback)
    opened = OnDemand(partial(open_workers, plan.experiment.resources, stop))
    with nullcontext(backend) if backend else closing(opened) as workers:
        job = make_job(plan, *extract(plan, workers, callback))
        workers.load(job)
        store = earlier or _create(plan)
        with _ending(store, callback):
            server = Server(job, workers, _place(plan.experiment.resources, store.path))
            yield from _rounds(plan, server, store, callback, resumed=earlier is not None)
    return store.path


def _place(resources: ResourceSettings, folder: Path) -> Place:
    """Where the parameters of the clients are held."""
    limit = resources.personal_memory
    return Place(memory.total() * DEFAULT_SHARE if limit is None else limit, folder)


def _create(plan: Plan) -> RunFolder:
    experiment = plan.experiment
    storage, content = experiment.storage, redacted(config.dump(experiment))
    store = RunFolder.create(storage.root, experiment.name, plan.digest, content, _identity(plan), storage.uri)
    store.save_partition(partition_table(plan.manifest, plan.data))
    return store


@contextmanager
def _ending(store: RunFolder, callback: RunCallback) -> Iterator[None]:
    """Hold the run's lock, write how the run ended, and report it."""
    try:
        with store.lock():
            try:
                yield
            except GeneratorExit:
                with suppress(StorageError):
                    store.stop("stopped early")
                raise
            except (Interrupted, KeyboardInterrupt) as error:
                with suppress(StorageError):
                    store.stop(str(error) or "stopped by the user")
                raise Interrupted(f"stopped; run folder: {store.path}; continue with --resume") from None
            except BaseException as error:
                with suppress(OSError, StorageError):  # then the status stays `running`, which counts as interrupted
                    store.fail(reason(error), redacted("".join(traceback.format_exception(error))))
                if isinstance(error, OSError) and is_full(error):
                    raise FedPGPError(
                        f"{store.path}: disk full ({error.strerror}); free disk space, then rerun with --resume"
                    ) from error
                if isinstance(error, StorageError):
                    raise FedPGPError(f"{error}; what is stored there is kept, rerun with --resume") from error
                raise
    finally:
        callback.on_end(str(store.path), store.state)


def reason(error: BaseException) -> str:
    """Format an exception for the status of a run."""
    return redacted(str(error) if isinstance(error, FedPGPError) else f"{type(error).__name__}: {error}")


def _rounds(plan: Plan, server: Server, store: RunFolder, callback: RunCallback, resumed: bool) -> Iterator[RoundRow]:
    """Run and commit the remaining rounds."""
    personal_of = server.job.method.personal_of if isinstance(server.job.method, DiffersByClient) else None
    state, reference = store.last_good(plan.digest, personal_of) or (server.initial_state(), None)
    if resumed and state.round < server.rounds:
        changed = store.continue_with(state.round + 1, provenance.describe())
        if changed:
            callback.on_message(
                f"{store.path.name}: round {state.round + 1} and the next ones are made with different "
                f"{provenance.as_text(changed)}: they may differ from an uninterrupted run; `fedpgp report` shows both",
                warning=True,
            )
    size = server.memory(state)
    memory = "" if size is None else f", about {memory_size(size)} of memory each"
    blocks = f"{plan.data.num_clients} clients in blocks of {server.block_size}"
    where = describe_resources(plan.experiment.resources)
    lines = [f"plan: {plan.experiment.method.name}, {blocks} on {where}{memory}"]
    federation, clients = plan.experiment.federation, len(plan.data.training_clients)
    if server.rounds:
        lines += filter(None, [rule_needs.describe(plan.rule, federation, clients, state.shared)])
    lines += filter(None, [rounding(clients, federation)])
    if unseen := len(plan.data.unseen_clients):
        lines.append(f"partition.unseen_clients: {unseen} of {plan.data.num_clients} clients never train")
    if (attack := federation.attack) is not None:
        attackers = f"{len(server.job.attackers)} of {clients} clients that train"
        lines.append(f"federation.attack: {attack.kind} by {attackers}; accuracies are those of the others")
    if plan.privacy is not None:
        lines.append(privacy_planning.describe(plan.privacy, federation))
    if any(isinstance(rows, OnDisk) for rows in (state.personal, state.kept)):
        size = state.personal.num_bytes + state.kept.num_bytes
        lines.append(f"resources.personal_memory: {memory_size(size)} of the clients are held in a file, as they train")
    callback.on_plan("\n".join(lines))
    callback.on_begin(str(store.path), state.round, server.rounds)
    for result in server.run(state):
        reference = checkpoint.save(store.checkpoints, result.state, plan.digest, result.changed, reference)
        if result.confusion is not None:  # before the round, so that a committed round is complete
            store.save_confusion(result.confusion)
        store.commit(result.row, result.clients, reference, result.pooled)
        callback.on_round(str(store.path), result.row.round, server.rounds, result.row.metrics)
        yield result.row
    store.finish(summarize(store.identity, store.rounds()))


def make_job(plan: Plan, train: Features, test: Features) -> FederationJob:
    """Build the job with which workers run the plan on these features."""
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
        rule=plan.rule,
        privacy=plan.privacy,
    )


def _parts(plan: Plan) -> dict[str, dict[str, Any]]:
    """Of each part of a union its class names, as in prompts, its domains, and the clients that train on it."""
    domains: dict[str, list[str]] = {}
    for domain, title in plan.data.part_of.items():
        domains.setdefault(title, []).append(domain)
    holders: dict[str, list[str]] = {title: [] for title in domains}
    for name, train_set in zip(plan.data.client_names, plan.data.train_sets, strict=True):
        holders[train_set.partition(OF_PART)[2]].append(name)
    return {
        part.name: {
            "class_names": list(part.class_names),
            "domains": domains[part.name],
            "clients": holders[part.name],
        }
        for part in plan.manifest.parts
    }


def _identity(plan: Plan) -> dict[str, Any]:
    attack = plan.experiment.federation.attack
    attackers = attacks.attackers(attack, plan.data.training_clients, plan.experiment.seed).tolist()
    return {
        "method": plan.experiment.method.name,
        "data": plan.experiment.data.name,
        "backbone": plan.backbone.name if plan.backbone else None,
        "seed": plan.experiment.seed,
        "client_names": list(plan.data.client_names),
        "class_names": list(plan.data.class_names),
        **({"parts": _parts(plan)} if plan.manifest.parts else {}),
        "num_examples": plan.data.train_rows.counts.tolist(),
        "manifest_digest": plan.manifest.digest,
        **({"content_digest": plan.content} if plan.content else {}),
        "partition_digest": plan.data.digest,
        "weights_fingerprint": plan.weights,
        **({"unseen_clients": list(plan.data.unseen_clients)} if plan.data.unseen_clients else {}),
        **({"attack": {"kind": attack.kind, "clients": attackers}} if attack else {}),
        **({"plugins": plan.plugins} if plan.plugins else {}),
        **({"privacy": privacy_planning.record(plan.privacy)} if plan.privacy else {}),
        **provenance.describe(),
    }

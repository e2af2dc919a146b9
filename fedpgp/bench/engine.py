"""Measure the engine at up to thousands of clients: rounds that compute nothing, and time and memory of real ones."""

import itertools
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from fedpgp import config
from fedpgp.bench.measurement import Measurement, Report, peak, resident, seconds
from fedpgp.bench.workload import round_seconds
from fedpgp.clip.text_backbone import names_only
from fedpgp.config import Experiment, FederationSettings, ResourceSettings
from fedpgp.core.callbacks import RunCallback
from fedpgp.core.seeding import numpy_generator
from fedpgp.core.text import memory_size
from fedpgp.core.tree import ParamTree, select
from fedpgp.data.federated import FederatedData
from fedpgp.data.ragged import Ragged
from fedpgp.experiments import features, planning, runner
from fedpgp.federation import rule_needs
from fedpgp.federation.backends import ray_cluster
from fedpgp.federation.backends.actors import ActorPool
from fedpgp.federation.backends.base import SerialBackend
from fedpgp.federation.messages import Arrays, Call, TrainResult
from fedpgp.federation.server import Server
from fedpgp.federation.worker import FederationJob, FederationWorker
from fedpgp.methods.base import Phase
from fedpgp.server_rules.base import ServerRule
from fedpgp.server_rules.fedavg import FEDAVG
from fedpgp.storage import checkpoint
from fedpgp.storage.run_folder import RunFolder
from fedpgp.tracking import default_uri, sync_run

N_CTX, WIDTH, RANK = 16, 512, 8
WARM_UP, MEASURED, SEPARATE = 3, 15, 5
"""Rounds of clients that do nothing: not counted; timed; followed by a timed checkpoint and update of MLflow."""
IMAGES_PER_CLIENT = 16
REAL_WARM_UP, REAL_MEASURED = 2, 5
"""Rounds of FedPGP: not counted; timed."""
GROWTH_FROM, GROWTH_ROUNDS = 5, 50
BLOCK = 100
"""Clients of a block where the memory of a server rule is measured."""
LEAST_MEMORY = 2**25
"""Bytes of an estimate from which it is compared with a measurement."""


class IdleMethod:
    """A method with FedPGP's parameters at the size of ViT-B/16 that computes nothing."""

    shared_keys = frozenset({"ctx"})
    phases = (Phase(frozenset({"ctx", "U", "V"})),)

    def init(self, frozen: Any, generator: torch.Generator) -> ParamTree:
        """A 16 x 512 prompt and rank-8 personal parameters."""
        return {"ctx": torch.zeros(N_CTX, WIDTH), "U": torch.zeros(N_CTX, RANK), "V": torch.zeros(RANK, WIDTH)}


class IdleJob(FederationJob):
    """A job whose worker returns every client unchanged, as far as its server rule lets it."""

    def build(self, device: torch.device) -> Any:
        """The job itself, as its own worker."""
        return self

    def train(self, call: Call, shared: Arrays) -> TrainResult:
        """Send the personal parameters back, and a sum or a stack of what the server sent."""
        count = len(call.clients)
        ones, sums = np.ones(count), self.rule.uploads == "sum"
        return TrainResult(
            clients=call.clients,
            accepted=ones.astype(bool),
            weights=ones.astype(np.int64),
            total={key: value.astype(np.float64) * count for key, value in shared.items()} if sums else {},
            stack={} if sums else {key: np.repeat(value[None], count, 0) for key, value in shared.items()},
            personal=call.personal,
            kept={key: value.copy() for key, value in call.kept.items()},
            num_examples=ones.astype(np.int64),
            bytes_up=count * sum(value.nbytes for value in shared.values()),
            loss=ones,
            events=(None,) * count,
        )


def idle_job(clients: int, actors: int, rule: ServerRule = FEDAVG) -> IdleJob:
    """Idle clients, one block per actor."""
    nothing = Ragged(np.zeros(clients, np.int64), np.arange(1, clients + 1))
    data = FederatedData(
        client_names=tuple(f"client {client}" for client in range(clients)),
        class_names=("a",),
        domains=("only",),
        class_sets={"all": (0,)},
        train_set="all",
        train_rows=nothing,
        train_labels=nothing,
        evaluation_sets=(),
        manifest_digest="idle",
    )
    federation = FederationSettings(rounds=10**6, block_size=-(-clients // actors), eval_every=10**6)
    method: Any = IdleMethod()
    no_features: Any = None
    text = names_only(data.class_names, "{}")
    return IdleJob(method, text, data, no_features, no_features, federation, seed=1, rule=rule)


def overhead(
    clients: Sequence[int], actors: int, report: Report, rules: Mapping[str, ServerRule] = MappingProxyType({})
) -> Measurement:
    """Measure a round of clients that do nothing: sampling, blocks, messages to actors and back, averaging, rows.

    Median seconds per round for each number of clients, who all participate, and for each of the server rules; then of
    a checkpoint and of an update of MLflow in the last rounds. For a rule that takes memory, also by how much the peak
    of this process grows in the first round, in relation to the estimate.

    Args:
        rules: by name; empty: FedAvg.
    """
    figures, rows = {}, []
    shared = select(IdleMethod().init(None, torch.Generator()), IdleMethod.shared_keys)
    resources = ResourceSettings(actors=actors)
    with ray_cluster.connected(resources), tempfile.TemporaryDirectory() as folder:
        pool = ActorPool(resources)
        for count, (name, rule) in itertools.product(clients, (rules or {FEDAVG.name: FEDAVG}).items()):
            report(f"{count} clients, {name}")
            job, root = idle_job(count, actors, rule), Path(folder) / f"{name}-{count}"
            pool.load(job)
            medians = [median(times) for times in _idle_rounds(Server(job, pool), root)]
            key = f"{count}" if name == FEDAVG.name else f"{count}_{name}"
            figures[f"seconds_per_round_{key}"] = medians[0]
            needed = rule_needs.server_bytes(rule, job.federation, count, shared)
            memory = [memory_size(needed) if needed else "-", "-"]
            if needed >= LEAST_MEMORY:
                figures[f"memory_of_estimate_{key}"] = _in_a_new_process(server_memory, count, rule) / needed
                memory[1] = f"{figures[f'memory_of_estimate_{key}']:.2f}"
            rows.append([name, f"{count:,}", *(f"{value:.4f}" for value in medians), *memory])
        pool.close()
    note = f"{actors} actors, {N_CTX} x {WIDTH} prompt, rank-{RANK} personal parameters, one block each, rows synced"
    headings = (
        "server rule", "clients", "seconds per round", "checkpoint, separately", "MLflow, separately",
        "memory of the rule, estimated", "measured / estimated",
    )  # fmt: skip
    return Measurement("overhead", figures, headings, rows, (f"{note} to disk",))


def _in_a_new_process(function: Callable[..., int], *arguments: Any) -> int:
    """Call a function where no memory has been freed, which new values could take."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def server_memory(clients: int, rule: ServerRule) -> int:
    """Bytes by which the peak of this process grows in a round, beyond those with FedAvg.

    A few clients first load the code that the rule needs.
    """
    grown = []
    for one, count in ((rule, 10), (FEDAVG, clients), (rule, clients)):
        job = idle_job(count, -(-count // BLOCK), one)
        with closing(SerialBackend(torch.get_num_threads())) as backend:
            backend.load(job)
            server = Server(job, backend)
            before = peak(reset=True)
            server.step(server.initial_state())
            grown.append(peak() - before)
    return grown[-1] - grown[-2]


def _idle_rounds(server: Server, root: Path) -> tuple[list[float], list[float], list[float]]:
    """Seconds of the measured rounds with their rows, of checkpoints, and of updates of MLflow."""
    store = RunFolder.create(root, "idle", "0" * 12, config.dump(Experiment()), {"method": "idle", "data": "-"})
    state = server.initial_state()
    rounds, checkpoints, mlflow = [], [], []
    for number in range(WARM_UP + MEASURED + SEPARATE):
        start = time.perf_counter()
        result = server.step(state)
        store.commit(result.row, result.clients, {"files": []}, result.pooled)
        rounds.append(time.perf_counter() - start)
        state = result.state
        if number >= WARM_UP + MEASURED:
            checkpoints.append(seconds(partial(checkpoint.save, store.checkpoints, state, "0" * 12, result.changed)))
            mlflow.append(seconds(partial(sync_run, store.path, default_uri(root.parent))))
    return rounds[WARM_UP : WARM_UP + MEASURED], checkpoints, mlflow


def experiment(root: Path, actors: int) -> Experiment:
    """FedPGP on the icons, 10% of the clients per round."""
    return config.parse(
        {
            "name": "scale",
            "data": {"name": "icons"},
            "backbone": {"name": "icon-clip", "weights": None},
            "partition": {"scheme": "iid", "clients": 2},
            "method": {"name": "fedpgp", "n_ctx": 16, "rank": 8},
            "federation": {"rounds": 10**6, "participation": 0.1, "local_epochs": 1, "eval_every": 10**6},
            "resources": {"actors": actors},
            "storage": {"root": str(root)},
        }
    )


class WatchedJob(FederationJob):
    """A job whose worker also reports its memory."""

    def build(self, device: torch.device) -> FederationWorker:
        """The real worker with a `resident` call."""
        return _Watched(self, device)


class _Watched(FederationWorker):
    def resident(self, call: None) -> tuple[int, int]:
        """Process id and resident bytes."""
        return os.getpid(), resident()


def growth(clients: Sequence[int], actors: int, report: Report) -> Measurement:
    """Measure seconds per participant for each number of clients, and growth of memory over rounds at the largest."""
    rows, per_participant = [], {}
    with tempfile.TemporaryDirectory() as folder:
        wanted = experiment(Path(folder), actors)
        with ray_cluster.connected(wanted.resources):
            ready = planning.plan(wanted)
            backend = runner.make_backend(wanted.resources, threading.Event())
            job = runner.make_job(ready, *features.extract(ready, backend, RunCallback()))
            for count in clients:
                report(f"{count} clients")
                watched = WatchedJob(**{**vars(job), "data": crowd(job.data, count)})
                server = Server(watched, backend)
                backend.load(watched)
                taken = median(round_seconds(server, REAL_WARM_UP + REAL_MEASURED)[REAL_WARM_UP:])
                per_participant[count] = taken / max(1, count // 10)
                rows.append([f"{count:,}", f"{taken:.3f}", f"{1000 * per_participant[count]:.2f}"])
            report(f"memory over {GROWTH_ROUNDS} rounds of {clients[-1]} clients")
            in_driver, in_actor = _growth(server, actors)
            backend.close()
    figures = {
        "linearity": per_participant[clients[-1]] / per_participant[clients[0]],
        "driver_growth_percent": in_driver,
        "actor_growth_percent": in_actor,
    }
    notes = [f"{name}: {value:.2f}" for name, value in figures.items()]
    headings = ("clients", "seconds per round", "ms per participant")
    return Measurement("growth", figures, headings, rows, (f"{actors} actors, 10% per round", *notes))


def crowd(data: FederatedData, count: int, images: int = IMAGES_PER_CLIENT) -> FederatedData:
    """`count` clients that each draw `images` of all training images. They overlap, which does not change the cost."""
    drawn = numpy_generator(1, "crowd").integers(len(data.train_rows.flat), size=count * images)
    own = Ragged(drawn, np.arange(1, count + 1) * images)
    return replace(
        data,
        client_names=tuple(f"client {client}" for client in range(count)),
        train_rows=own.taken(data.train_rows.flat),
        train_labels=own.taken(data.train_labels.flat),
        evaluation_sets=(),
    )


def _growth(server: Server, actors: int) -> tuple[float, float]:
    """Percent by which resident memory grows from round 5 to round 55, of this process and of the largest actor."""
    state = server.initial_state()
    for _ in range(GROWTH_FROM):
        state = server.step(state).state
    before = _memory(server, actors)
    for _ in range(GROWTH_ROUNDS):
        state = server.step(state).state
    own, largest = (100 * (after / earlier - 1) for after, earlier in zip(_memory(server, actors), before, strict=True))
    return own, largest


def _memory(server: Server, actors: int) -> tuple[int, int]:
    """Resident bytes of this process and of the largest actor."""
    by_process = dict(server.backend.map("resident", [None] * (8 * actors)))
    return resident(), max(by_process.values())

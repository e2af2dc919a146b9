"""Measure what unequal clients cost: rounds with Dirichlet shares, by the steps of the clients and by actors."""

import heapq
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedpgp.bench.measurement import Measurement, Report, seconds
from fedpgp.bench.workload import Workload, job, vit_b_16
from fedpgp.config import PartitionSettings, ResourceSettings
from fedpgp.data.partition import Labelled, assign
from fedpgp.data.ragged import Ragged
from fedpgp.federation.backends import ray_cluster
from fedpgp.federation.backends.actors import ActorPool
from fedpgp.federation.backends.base import Backend, Common, SerialBackend
from fedpgp.federation.client import expected_steps
from fedpgp.federation.cohorts import blocks, training_blocks
from fedpgp.federation.resources import keep_freed_memory
from fedpgp.federation.server import Server
from fedpgp.federation.usage import Usage
from fedpgp.federation.worker import FederationJob

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CLIENTS, BLOCK, BATCH = 100, 10, 32
BETAS = (0.1, 0.3, 1.0)
ACTORS_BETA, ACTORS_IMAGES, ACTORS_REPEATS = 0.3, 2_500, 3
"""Of the rounds on several actors, which are timed several times and must therefore be short."""


def cifar10() -> Workload:
    """ViT-B/16 with random weights and CIFAR-10's ten names."""
    return replace(vit_b_16(), base=CIFAR10, novel=())


def shares(labels: np.ndarray, clients: int, beta: float) -> list[np.ndarray]:
    """The images of each client: every class divided by shares from Dirichlet(beta), at least one image each."""
    settings = PartitionSettings(scheme="dirichlet", clients=clients, beta=beta, min_per_client=1)
    images = Labelled(labels=labels, domains=np.zeros_like(labels))
    return list(assign(settings, {"train": images}, clients, seed=1)["train"])


def divided(wanted: FederationJob, parts: Sequence[np.ndarray]) -> FederationJob:
    """The job with its images divided among clients, one epoch in blocks of `BLOCK`, and nobody tested."""
    labels = np.concatenate(wanted.data.train_labels)
    data = replace(
        wanted.data,
        client_names=tuple(f"client {client}" for client in range(len(parts))),
        train_rows=Ragged.of(parts),
        train_labels=Ragged.of(labels[part] for part in parts),
        evaluation_sets=(),
    )
    changes = {"block_size": BLOCK, "local_epochs": 1, "drop_last": False, "evaluate_before_aggregation": False}
    federation = wanted.federation.model_copy(update={**changes, "eval_every": wanted.federation.rounds})
    return replace(wanted, data=data, federation=federation)


def steps(wanted: FederationJob) -> np.ndarray:
    """Steps of each client in a round (K,)."""
    return expected_steps(np.array([len(own) for own in wanted.data.train_rows]), wanted.federation)


def whole_blocks(of_clients: np.ndarray) -> float:
    """The cost of a round in which every client of a block is computed until its last one is done, by its steps."""
    parts = blocks(np.arange(len(of_clients)), BLOCK)
    return float(sum(len(part) * of_clients[part].max() for part in parts) / of_clients.sum())


def schedule(work: Sequence[int], actors: int) -> float:
    """The share of the time that actors are busy if a free one starts the longest call that is left: at most 1."""
    ends = [0] * actors
    for size in sorted(work, reverse=True):
        heapq.heappush(ends, heapq.heappop(ends) + size)
    return sum(work) / (actors * max(ends))


class _Metered(ActorPool):
    """Actors that keep what each call of the last map used."""

    used: list[Usage]

    def map(
        self, method: str, calls: Sequence[Any], common: Common | None = None, work: Sequence[int] = ()
    ) -> Iterator[Any]:
        """See `Backend.map`."""
        self.used = []
        for result in super().map(method, calls, common, work):
            self.used.append(result.usage)
            yield result


def _round(server: Server) -> None:
    server.step(server.initial_state())


def _timed(server: Server) -> np.ndarray:
    """Seconds of a round, and CPU seconds of this process in it (2,)."""
    start = time.perf_counter(), time.process_time()
    _round(server)
    return np.array([time.perf_counter(), time.process_time()]) - start


def _metered(pool: _Metered, server: Server, count: int) -> tuple[float, float, float]:
    """Seconds of a round, the share of it in which the `count` actors work, and the CPU seconds of their work."""
    taken = seconds(partial(_round, server))
    return taken, sum(one.seconds for one in pool.used) / (taken * count), sum(one.cpu_seconds for one in pool.used)


def _loaded(wanted: FederationJob, backend: Backend) -> Server:
    backend.load(wanted)
    return Server(wanted, backend)


def measure(
    threads: int, report: Report, images: int, workload: Workload | None = None, clients: int = CLIENTS
) -> Measurement:
    """Measure `cost_over_sum_of_steps` of a round of FedPGP, for each beta.

    It is the seconds of the round, divided by the clients' steps and by the seconds of one step of one client in a full
    block: of a round in which every client has one full batch, the mean of one right before and one right after. Both
    are whole rounds of the server in this process, without tests. `cpu_cost_over_sum_of_steps` is the same in CPU
    seconds, which other processes disturb less.

    Args:
        images: of all clients together, evenly from all classes.
    """
    torch.set_num_threads(threads)
    keep_freed_memory()
    workload = workload or cifar10()
    figures, rows = dict[str, float](), []
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        classes = len(workload.base)
        wanted = job(workload, Path(folder), 1, images // classes, BATCH, (0, 0))
        labels = np.concatenate(wanted.data.train_labels)
        full = [np.arange(client, client + BATCH) for client in range(clients)]

        def server(parts: Sequence[np.ndarray]) -> Server:
            return _loaded(divided(wanted, parts), stack.enter_context(closing(SerialBackend(threads))))

        equal = server(full)
        report("one full batch each")
        _round(equal)  # warm-up
        for beta in BETAS:
            report(f"beta {beta:g}")
            unequal = server(shares(labels, clients, beta))
            before, taken, after = _timed(equal), _timed(unequal), _timed(equal)
            unit, of_clients = (before + after) / 2 / clients, steps(unequal.job)
            cost, cpu_cost = taken / (unit * of_clients.sum())
            figures |= {
                f"cost_over_sum_of_steps_{beta:g}": cost,
                f"cpu_cost_over_sum_of_steps_{beta:g}": cpu_cost,
                f"cost_of_whole_blocks_{beta:g}": whole_blocks(of_clients),
                f"seconds_{beta:g}": taken[0],
            }
            work = [
                f"{beta:g}",
                f"{of_clients.sum()}",
                f"{of_clients.max()}",
                f"{taken[0]:.1f}",
                f"{1e3 * unit[0]:.0f}",
            ]
            rows.append([*work, f"{cost:.2f}", f"{cpu_cost:.2f}", f"{whole_blocks(of_clients):.2f}"])
    notes = (
        f"FedPGP, {clients} clients with {images} images of {classes} classes, batch {BATCH}, one epoch, blocks of "
        f"{BLOCK}, {threads} threads; one round of each",
        "cost: of the round, by the sum of its clients' steps; step: of one client in a full block, in rounds before "
        "and after in which each has one full batch",
        "whole blocks: the cost by steps if clients stayed in the batch until the last of their block is done",
    )
    headings = ("beta", "steps", "most of a client", "seconds", "ms per step", "cost", "CPU cost", "whole blocks")
    return Measurement("dirichlet", figures, headings, rows, notes)


def actors(
    numbers: Sequence[int],
    report: Report,
    workload: Workload | None = None,
    clients: int = CLIENTS,
    images: int = ACTORS_IMAGES,
) -> Measurement:
    """Measure the efficiency of a round of unequal clients on so many actors with a thread each.

    It is the seconds on one actor, divided by the seconds on several and by their number, or the machine's cores if
    these are fewer. Of its two factors `busy` is the share of the round in which the actors work, for which the order
    of the blocks allows `schedule`, and `cpu_cost` the CPU seconds of their work by those of one actor: what cores
    that share caches and memory lose to each other.
    """
    workload, cores = workload or cifar10(), len(os.sched_getaffinity(0))
    counts = sorted({1, *numbers})
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        wanted = job(workload, Path(folder), 1, images // len(workload.base), BATCH, (0, 0))
        labels = np.concatenate(wanted.data.train_labels)
        wanted = divided(wanted, shares(labels, clients, ACTORS_BETA))
        of_clients = steps(wanted)
        work = [int(of_clients[part].sum()) for part in training_blocks(np.arange(clients), BLOCK, of_clients)]
        stack.enter_context(ray_cluster.connected(ResourceSettings(actors=max(counts), cpus_per_actor=0.1)))
        servers = []
        for count in counts:
            report(f"{count} actors")
            pool = _Metered(ResourceSettings(actors=count, cpus_per_actor=0.1, threads_per_actor=1))
            server = _loaded(wanted, stack.enter_context(closing(pool)))
            _round(server)  # warm-up
            servers.append((pool, server, count))
        report(f"{ACTORS_REPEATS} rounds of each, alternated")
        rounds = [[_metered(*one) for one in servers] for _ in range(ACTORS_REPEATS)]
    taken, busy, cpu = np.median(rounds, 0).T
    figures, rows = dict[str, float](), []
    for place, count in enumerate(counts):
        own = {
            "seconds": taken[place],
            "efficiency": taken[0] / taken[place] / min(count, cores),
            "busy": busy[place],
            "schedule": schedule(work, count),
            "cpu_cost": cpu[place] / cpu[0],
        }
        figures |= {f"{name}_{count}": float(value) for name, value in own.items()}
        rows.append([str(count), *(f"{value:.2f}" for value in own.values())])
    headings = ("efficiency", "busy", "schedule", "CPU cost")
    notes = (
        f"FedPGP, {clients} clients with Dirichlet({ACTORS_BETA:g}) shares of {images} images, {of_clients.sum()} "
        f"steps in {len(work)} blocks, one thread per actor, {cores} cores; medians of {ACTORS_REPEATS}, alternated",
        "efficiency: of one actor per core; busy: share of the round in which the actors work; schedule: what "
        "the order of the blocks allows of it; CPU cost: CPU seconds of the work, by those on one actor",
    )
    return Measurement("round", figures, ("actors", "seconds", *headings), rows, notes)

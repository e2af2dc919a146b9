"""Thousands of clients: does a round cost the same per participant, and does memory stay flat?"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from fedpgp import config
from fedpgp.bench.outcome import Outcome
from fedpgp.config import Experiment
from fedpgp.core.callbacks import RunCallback
from fedpgp.core.seeding import numpy_generator
from fedpgp.data.protocol import FederatedData
from fedpgp.experiments import planning
from fedpgp.experiments import runner as experiments
from fedpgp.federation.backends import driver
from fedpgp.federation.server import Server
from fedpgp.federation.worker import FederationJob

IMAGES_PER_CLIENT = 16
WARM_UP, MEASURED = 2, 5
GROWTH_FROM, GROWTH_ROUNDS = 5, 50


def experiment(root: Path, actors: int) -> Experiment:
    """FedPGP on the embedded world, 10% of the clients a round."""
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


@dataclass(frozen=True)
class WatchedJob(FederationJob):
    """A job whose worker also tells its memory."""

    def build(self, device: torch.device) -> Any:
        """The real worker, watched."""
        return _Watched(super().build(device))


class _Watched:
    def __init__(self, worker: Any) -> None:
        self.train = worker.train

    def memory(self, call: None) -> tuple[int, int]:
        """Process id and resident bytes."""
        return os.getpid(), resident()


def resident() -> int:
    """Bytes of memory that this process holds (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure(clients: Sequence[int], actors: int, progress: Callable[[str], None]) -> Outcome:
    """Median seconds per participant for each number of clients, and growth of memory over rounds at the largest."""
    rows, per_participant, growth = [], {}, {"driver": 0.0, "actor": 0.0}
    with tempfile.TemporaryDirectory() as folder:
        wanted = experiment(Path(folder), actors)
        with driver.connected(wanted.resources):
            ready = planning.plan(wanted)
            backend = experiments.make_backend(wanted.resources, threading.Event())
            job = experiments.make_job(ready, *experiments.extract(ready, backend, RunCallback()))
            for count in clients:
                progress(f"{count} clients")
                watched = WatchedJob(**{**vars(job), "data": crowd(job.data, count)})
                server = Server(watched, backend)
                backend.load(watched)
                seconds = _seconds(server)
                participants = max(1, count // 10)
                per_participant[count] = seconds / participants
                rows.append([f"{count:,}", f"{seconds:.3f}", f"{1000 * per_participant[count]:.2f}"])
            progress(f"memory over {GROWTH_ROUNDS} rounds of {clients[-1]} clients")
            growth = _growth(server, actors)
            backend.close()
    figures = {
        "linearity": per_participant[clients[-1]] / per_participant[clients[0]],
        "driver_growth_percent": growth["driver"],
        "actor_growth_percent": growth["actor"],
    }
    notes = [f"{name}: {value:.2f}" for name, value in figures.items()]
    headings = ("clients", "seconds per round", "ms per participant")
    return Outcome("scale", figures, headings, rows, (f"{actors} actors, 10% a round", *notes))


def crowd(data: FederatedData, count: int) -> FederatedData:
    """`count` clients that each draw their images from all training images; clients overlap, which costs the same."""
    rows, labels = np.concatenate(data.train_rows), np.concatenate(data.train_labels)
    drawn = numpy_generator(1, "crowd").integers(len(rows), size=(count, IMAGES_PER_CLIENT))
    return replace(
        data,
        client_names=tuple(f"client {client}" for client in range(count)),
        train_rows=tuple(rows[drawn]),
        train_labels=tuple(labels[drawn]),
        evaluation_sets=(),
    )


def _seconds(server: Server) -> float:
    state, seconds = server.initial_state(), []
    for _ in range(WARM_UP + MEASURED):
        start = time.perf_counter()
        state = server.step(state).state
        seconds.append(time.perf_counter() - start)
    return median(seconds[WARM_UP:])


def _growth(server: Server, actors: int) -> dict[str, float]:
    """Percent by which resident memory grows from round 5 to round 55, of this process and of the largest actor."""
    state, before = server.initial_state(), {"driver": 0, "actor": 0}
    for number in range(GROWTH_FROM + GROWTH_ROUNDS):
        if number == GROWTH_FROM:
            before = _memory(server, actors)
        state = server.step(state).state
    after = _memory(server, actors)
    return {who: 100 * (after[who] / before[who] - 1) for who in before}


def _memory(server: Server, actors: int) -> dict[str, int]:
    told = dict(server.backend.map("memory", [None] * (8 * actors)))
    return {"driver": resident(), "actor": max(told.values())}

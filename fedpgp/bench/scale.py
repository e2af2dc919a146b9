"""Measure whether the time per participant and the memory stay constant with thousands of clients."""

import os
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from fedpgp import config
from fedpgp.bench.measurement import Measurement, Report
from fedpgp.bench.processes import resident
from fedpgp.bench.workload import round_seconds
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


@dataclass(frozen=True)
class WatchedJob(FederationJob):
    """A job whose worker also reports its memory."""

    def build(self, device: torch.device) -> Any:
        """The real worker with a `memory` call."""
        return _Watched(super().build(device))


class _Watched:
    def __init__(self, worker: Any) -> None:
        self.train = worker.train

    def memory(self, call: None) -> tuple[int, int]:
        """Process id and resident bytes."""
        return os.getpid(), resident()


def measure(clients: Sequence[int], actors: int, report: Report) -> Measurement:
    """Measure seconds per participant for each number of clients, and growth of memory over rounds at the largest."""
    rows, per_participant = [], {}
    with tempfile.TemporaryDirectory() as folder:
        wanted = experiment(Path(folder), actors)
        with driver.connected(wanted.resources):
            ready = planning.plan(wanted)
            backend = experiments.make_backend(wanted.resources, threading.Event())
            job = experiments.make_job(ready, *experiments.extract(ready, backend, RunCallback()))
            for count in clients:
                report(f"{count} clients")
                watched = WatchedJob(**{**vars(job), "data": crowd(job.data, count)})
                server = Server(watched, backend)
                backend.load(watched)
                seconds = median(round_seconds(server, WARM_UP + MEASURED)[WARM_UP:])
                per_participant[count] = seconds / max(1, count // 10)
                rows.append([f"{count:,}", f"{seconds:.3f}", f"{1000 * per_participant[count]:.2f}"])
            report(f"memory over {GROWTH_ROUNDS} rounds of {clients[-1]} clients")
            growth = _growth(server, actors)
            backend.close()
    figures = {
        "linearity": per_participant[clients[-1]] / per_participant[clients[0]],
        "driver_growth_percent": growth["driver"],
        "actor_growth_percent": growth["actor"],
    }
    notes = [f"{name}: {value:.2f}" for name, value in figures.items()]
    headings = ("clients", "seconds per round", "ms per participant")
    return Measurement("scale", figures, headings, rows, (f"{actors} actors, 10% per round", *notes))


def crowd(data: FederatedData, count: int) -> FederatedData:
    """`count` clients that each draw images from all training images. They overlap, which does not change the cost."""
    rows, labels = np.concatenate(data.train_rows), np.concatenate(data.train_labels)
    drawn = numpy_generator(1, "crowd").integers(len(rows), size=(count, IMAGES_PER_CLIENT))
    return replace(
        data,
        client_names=tuple(f"client {client}" for client in range(count)),
        train_rows=tuple(rows[drawn]),
        train_labels=tuple(labels[drawn]),
        evaluation_sets=(),
    )


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
    by_process = dict(server.backend.map("memory", [None] * (8 * actors)))
    return {"driver": resident(), "actor": max(by_process.values())}

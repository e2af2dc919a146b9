"""Measure a round of clients that do nothing: sampling, blocks, messages to the actors and back, averaging, rows."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from fedpgp import config
from fedpgp.bench.measurement import Measurement, Report, seconds
from fedpgp.config import Experiment, FederationSettings, ResourceSettings
from fedpgp.core.tree import ParamTree
from fedpgp.data.protocol import FederatedData
from fedpgp.federation.backends import driver
from fedpgp.federation.backends.actors import ActorPool
from fedpgp.federation.messages import Arrays, Call, TrainResult
from fedpgp.federation.server import RoundResult, Server
from fedpgp.federation.worker import FederationJob
from fedpgp.methods.base import Phase
from fedpgp.storage import checkpoint
from fedpgp.storage.run_folder import RunFolder
from fedpgp.tracking import default_uri, sync_run

N_CTX, WIDTH, RANK = 16, 512, 8
WARM_UP, MEASURED, SEPARATE = 3, 15, 5
"""Rounds: not counted; timed; followed by a timed checkpoint and update of MLflow."""


class IdleMethod:
    """A method with FedPGP's parameters at the size of ViT-B/16 that computes nothing."""

    shared_keys = frozenset({"ctx"})
    phases = (Phase(frozenset({"ctx", "U", "V"})),)

    def init(self, frozen: Any, generator: torch.Generator) -> ParamTree:
        """A 16 x 512 prompt and rank-8 personal parameters."""
        return {"ctx": torch.zeros(N_CTX, WIDTH), "U": torch.zeros(N_CTX, RANK), "V": torch.zeros(RANK, WIDTH)}


class IdleWorker:
    """A worker that returns every client unchanged."""

    def train(self, call: Call, shared: Arrays) -> TrainResult:
        """Send the personal parameters back, and a weighted sum of the shared ones."""
        count = len(call.clients)
        ones = np.ones(count)
        return TrainResult(
            clients=call.clients,
            shared_sum={key: value.astype(np.float64) * count for key, value in shared.items()},
            personal=call.personal,
            num_examples=ones.astype(np.int64),
            weight=float(count),
            loss=ones,
            events=(None,) * count,
        )


class _NoText:
    def on(self, classes: Sequence[int]) -> None:
        """Stand in for the text tower."""


@dataclass(frozen=True)
class IdleJob(FederationJob):
    """A job that builds idle workers."""

    def build(self, device: torch.device) -> Any:
        """An idle worker."""
        return IdleWorker()


def job(clients: int, actors: int) -> IdleJob:
    """Idle clients, one block per actor."""
    nothing = np.zeros(1, dtype=np.int64)
    data = FederatedData(
        client_names=tuple(f"client {client}" for client in range(clients)),
        class_names=("a",),
        domains=("only",),
        class_sets={"all": (0,)},
        train_set="all",
        train_rows=(nothing,) * clients,
        train_labels=(nothing,) * clients,
        evaluation_sets=(),
        manifest_digest="idle",
    )
    block_size = -(-clients // actors)
    federation = FederationSettings(rounds=10**6, block_size=block_size, eval_every=10**6)
    no_features: Any = None
    no_text: Any = _NoText()
    method: Any = IdleMethod()
    return IdleJob(method, no_text, data, no_features, no_features, federation, seed=1)


def measure(clients: Sequence[int], actors: int, report: Report) -> Measurement:
    """Measure median seconds per round for each number of clients; all participate."""
    figures, rows = {}, []
    resources = ResourceSettings(actors=actors)
    with driver.connected(resources), tempfile.TemporaryDirectory() as folder:
        pool = ActorPool(resources)
        for count in clients:
            report(f"{count} clients")
            medians = _time(Server(job(count, actors), pool), pool, Path(folder) / str(count))
            figures[f"seconds_per_round_{count}"] = medians[0]
            rows.append([f"{count:,}", *(f"{value:.4f}" for value in medians)])
        pool.close()
    note = f"{actors} actors, {N_CTX} x {WIDTH} prompt, rank-{RANK} personal parameters, one block each, rows synced"
    headings = ("clients", "seconds per round", "checkpoint, separately", "MLflow, separately")
    return Measurement("overhead", figures, headings, rows, (f"{note} to disk",))


def _time(server: Server, pool: ActorPool, root: Path) -> tuple[float, float, float]:
    """Median seconds of a round with its rows, and, in the last rounds, of a checkpoint and an update of MLflow."""
    pool.load(server.job)
    store = RunFolder.create(root, "idle", "0" * 12, config.dump(Experiment()), {"method": "idle", "data": "-"})
    state = server.initial_state()
    result: RoundResult

    def round() -> None:
        nonlocal result
        result = server.step(state)
        store.commit(result.row, result.clients, {"files": []})

    rounds, checkpoints, mlflow = [], [], []
    for number in range(WARM_UP + MEASURED + SEPARATE):
        rounds.append(seconds(round))
        state = result.state
        if number >= WARM_UP + MEASURED:
            checkpoints.append(seconds(partial(checkpoint.save, store.checkpoints, state, "0" * 12, result.changed)))
            mlflow.append(seconds(partial(sync_run, store.path, default_uri(root.parent))))
    return median(rounds[WARM_UP : WARM_UP + MEASURED]), median(checkpoints), median(mlflow)

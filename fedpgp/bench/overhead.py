"""What a round costs when clients do nothing: sampling, blocks, the way to the actors and back, averaging, rows."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from fedpgp import config
from fedpgp.bench.outcome import Outcome
from fedpgp.config import Experiment, FederationSettings, ResourceSettings
from fedpgp.core.tree import ParamTree
from fedpgp.data.protocol import FederatedData
from fedpgp.federation.backends import driver
from fedpgp.federation.backends.actors import ActorPool
from fedpgp.federation.messages import Arrays, TrainCall, TrainResult
from fedpgp.federation.server import RoundResult, Server
from fedpgp.federation.worker import FederationJob
from fedpgp.methods.base import Phase
from fedpgp.storage import checkpoint
from fedpgp.storage.run_folder import RunFolder
from fedpgp.tracking import default_uri, sync_run

N_CTX, WIDTH, RANK = 16, 512, 8
WARM_UP, MEASURED, APART = 3, 15, 5


class IdleMethod:
    """FedPGP's parameters at the size of ViT-B/16, and nothing done with them."""

    shared_keys = frozenset({"ctx"})
    phases = (Phase(frozenset({"ctx", "U", "V"})),)

    def init(self, frozen: Any, generator: torch.Generator) -> ParamTree:
        """A 16 x 512 prompt and rank-8 personal parts."""
        return {"ctx": torch.zeros(N_CTX, WIDTH), "U": torch.zeros(N_CTX, RANK), "V": torch.zeros(RANK, WIDTH)}


class IdleWorker:
    """Gives every client back as it came."""

    def train(self, call: TrainCall, shared: Arrays) -> TrainResult:
        """Personal parts travel both ways, and the weighted sum is one."""
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
        """There is no text."""


@dataclass(frozen=True)
class IdleJob(FederationJob):
    """Sent to the actors in place of a real one."""

    def build(self, device: torch.device) -> Any:
        """An idle worker."""
        return IdleWorker()


def job(clients: int, actors: int) -> IdleJob:
    """Idle clients, a block for each actor."""
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


def measure(clients: Sequence[int], actors: int, progress: Callable[[str], None]) -> Outcome:
    """Median seconds per round for each number of clients, after a warm-up; full participation."""
    figures, rows = {}, []
    resources = ResourceSettings(actors=actors)
    with driver.connected(resources), tempfile.TemporaryDirectory() as folder:
        pool = ActorPool(resources)
        for count in clients:
            progress(f"{count} clients")
            timed = _time(Server(job(count, actors), pool), pool, Path(folder) / str(count))
            figures[f"seconds_per_round_{count}"] = timed["round"]
            rows.append([f"{count:,}", *(f"{timed[name]:.4f}" for name in ("round", "checkpoint", "mlflow"))])
        pool.close()
    return Outcome(
        "overhead",
        figures,
        ("clients", "seconds per round", "checkpoint, apart", "MLflow, apart"),
        rows,
        (f"{actors} actors, {N_CTX} x {WIDTH} prompt, rank-{RANK} personal parts, a block each, rows synced to disk",),
    )


def _time(server: Server, pool: ActorPool, root: Path) -> dict[str, float]:
    """Medians: a round with its rows; after all of them, a checkpoint and a round's way to MLflow."""
    pool.load(server.job)
    store = RunFolder.create(root, "idle", "0" * 12, config.dump(Experiment()), {"method": "idle", "data": "-"})
    seconds: dict[str, list[float]] = {"round": [], "checkpoint": [], "mlflow": []}
    state = server.initial_state()
    none: dict[str, Any] = {"files": []}
    for number in range(WARM_UP + MEASURED + APART):
        start = time.perf_counter()
        result: RoundResult = server.step(state)
        store.commit(result.row, result.clients, none)
        end = time.perf_counter()
        state = result.state
        if number < WARM_UP + MEASURED:
            seconds["round"].append(end - start)
            continue
        start = time.perf_counter()
        checkpoint.save(store.checkpoints, state, "0" * 12, result.changed)
        saved = time.perf_counter()
        sync_run(store.path, default_uri(root.parent))
        seconds["checkpoint"].append(saved - start)
        seconds["mlflow"].append(time.perf_counter() - saved)
    return {name: median(values[WARM_UP if name == "round" else 0 :]) for name, values in seconds.items()}

"""Compare a GPU with the CPU (logits, gradients, a trajectory), and on it all backends with each other, bit by bit."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path

import torch
from torch import Tensor

from fedpgp.bench.step import difference
from fedpgp.bench.workload import CPU, Workload, job
from fedpgp.config import ResourceSettings
from fedpgp.federation.backends.actors import ActorPool
from fedpgp.federation.backends.base import Backend, SerialBackend
from fedpgp.federation.server import Server
from fedpgp.federation.state import State
from fedpgp.federation.worker import FederationJob

CLIENTS, BATCH, SHOTS, ROUNDS = 4, 4, 2, 3
"""The small federation, whose clients are one block each."""
SHARE, ACTORS = 0.25, (1, 4)
"""Of a GPU, for each actor; numbers of actors."""


@dataclass(frozen=True)
class Precision:
    """A dtype of the towers, and the largest relative differences from the CPU in float32 that pass.

    Of a ViT-B/16 with random weights on a CPU, logits, gradients and trajectory in bfloat16 differ by 0.02, 0.11 and
    0.27, logits and gradients in float16 by 0.003 and 0.02. A trajectory that stays at its start differs by 1. In
    float32 only the order of sums differs.
    """

    dtype: torch.dtype
    logits: float
    gradients: float
    trajectory: float

    @property
    def name(self) -> str:
        """For example `bfloat16`."""
        return str(self.dtype).removeprefix("torch.")


PRECISIONS = (
    Precision(torch.float32, logits=1e-4, gradients=1e-3, trajectory=5e-3),
    Precision(torch.bfloat16, logits=0.05, gradients=0.25, trajectory=0.7),
    Precision(torch.float16, logits=0.01, gradients=0.05, trajectory=0.25),
)


@dataclass(frozen=True)
class Figure:
    """What was measured, and the range in which it passes; by default any number does."""

    key: str
    value: float
    most: float = inf
    least: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether the value is in the range; one that is not a number is not."""
        return self.least <= self.value <= self.most

    @property
    def range(self) -> str:
        """The range in words; empty: any."""
        if self.most == inf:
            return ""
        return f"{self.least:.3g} to {self.most:.3g}" if self.least else f"at most {self.most:.3g}"


Figures = Iterator[Figure]


def outputs(workload: Workload, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, list[Tensor]]:
    """Logits (K, B, C) and gradients of a step of some clients, on the CPU in float32."""
    _, *gradients = workload.step(BATCH, CLIENTS, dtype=dtype, device=device)()
    with torch.no_grad():
        classify = workload.method.classifier(workload.params(CLIENTS, device), workload.on_base(dtype, device))
        logits = classify(workload.batch(BATCH, CLIENTS, device).features)
    return logits.cpu(), [gradient.cpu() for gradient in gradients]


def step_parity(workload: Workload, device: torch.device, precisions: Sequence[Precision]) -> Figures:
    """Compare logits and gradients of a step with those of the CPU in float32."""
    logits, gradients = outputs(workload, torch.float32, CPU)
    for one in precisions:
        own_logits, own_gradients = outputs(workload, one.dtype, device)
        yield Figure(f"logit_error_{one.name}", difference([own_logits], [logits]), one.logits)
        yield Figure(f"gradient_error_{one.name}", difference(own_gradients, gradients), one.gradients)


@contextmanager
def small_federation(workload: Workload) -> Iterator[FederationJob]:
    """A few clients, without tests."""
    with tempfile.TemporaryDirectory() as folder:
        wanted = job(workload, Path(folder), CLIENTS, SHOTS, BATCH, (CLIENTS, 1))
        federation = wanted.federation.model_copy(update={"block_size": 1, "evaluate_before_aggregation": False})
        yield replace(wanted, federation=federation, data=replace(wanted.data, evaluation_sets=()))


def trained(wanted: FederationJob, backend: Backend) -> State:
    """The state after `ROUNDS` rounds."""
    backend.load(wanted)
    server = Server(wanted, backend)
    state = server.initial_state()
    for _ in range(ROUNDS):
        state = server.step(state).state
    return state


def serially(wanted: FederationJob, threads: int, gpus: float) -> State:
    """The same in this process; `gpus` as in `open_device`."""
    with closing(SerialBackend(threads, gpus)) as backend:
        return trained(wanted, backend)


def trajectory_parity(wanted: FederationJob, threads: int, gpus: float, precisions: Sequence[Precision]) -> Figures:
    """Compare the shared parameters after some rounds with the CPU's, in relation to how far these have gone."""
    with closing(SerialBackend(threads)) as backend:
        start = Server(wanted, backend).initial_state().shared
        expected = trained(wanted, backend).shared
    gone = [expected[key] - value for key, value in start.items()]
    for one in precisions:
        found = serially(replace(wanted, dtype=one.dtype), threads, gpus).shared
        error = difference([found[key] - value for key, value in start.items()], gone)
        yield Figure(f"trajectory_error_{one.name}", error, one.trajectory)


def equal_bits(wanted: FederationJob, gpus: float) -> Figures:
    """Count the parameters, shared or of clients, that differ between this process and actors after some rounds.

    The actors have `SHARE` of `gpus` each, and all processes one thread. Ray must be connected.
    """
    expected = serially(wanted, 1, gpus)
    for count in ACTORS:
        with closing(ActorPool(ResourceSettings(actors=count, gpus_per_actor=SHARE * gpus))) as pool:
            found = trained(wanted, pool)
        yield Figure(f"different_parameters_{count}_actors", different(found, expected), 0)


def different(found: State, expected: State) -> int:
    """The number of parameters with other bits."""
    pairs = [
        (own[key], value)
        for own, other in ((found.shared, expected.shared), (found.personal, expected.personal))
        for key, value in other.items()
    ]
    return sum(not torch.equal(one.view(torch.uint8), other.view(torch.uint8)) for one, other in pairs)

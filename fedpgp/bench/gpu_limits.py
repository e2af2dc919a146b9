"""Check what only a GPU can show: steps that wait for it, the limit of a process's memory, and the error beyond it."""

import tempfile
import warnings
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from math import inf
from pathlib import Path
from typing import Any, Self

import torch

from fedpgp import methods
from fedpgp.bench.gpu_parity import SHARE, Figure, Figures
from fedpgp.bench.methods import Setting
from fedpgp.clip import model
from fedpgp.config import BackboneSettings, ResourceSettings
from fedpgp.core.errors import FedPGPError
from fedpgp.federation.backends import device
from fedpgp.federation.backends.actors import ActorPool
from fedpgp.federation.backends.base import SerialBackend
from fedpgp.federation.server import Server

MAY_WAIT = frozenset({"fedotp", "fedpha", "pfedpt"})
"""Methods whose steps wait for the device, as their docstrings say."""
STEPS = (1, 3)
SETTINGS = {"fedmaple": {"depth": 2}}
"""Settings that a model of two layers needs."""
CHUNK = 2**26
"""Bytes that are allocated at a time to fill the memory."""
WASTE = 0.9
"""The part of its share that a process must be able to use."""


def names() -> list[str]:
    """All methods of this package that train."""
    kinds = {name: kind for name, _, kind in methods.available() if isinstance(kind, type)}
    return [name for name in kinds if methods.create(name, SETTINGS.get(name, {})).phases]


def waiting(chosen: Sequence[str]) -> Figures:
    """Count how often a step of each method waits for the GPU: in rounds of three steps beyond rounds of one, by two.

    What waits once per round is not counted.
    """
    backbone = model.load(BackboneSettings(name="tiny", weights="random"))
    for name in chosen:
        method = methods.create(name, SETTINGS.get(name, {}))
        found = []
        for steps in STEPS:
            setting = Setting(backbone, clients=2, classes=6, images=4, steps=steps, threads=1)
            with tempfile.TemporaryDirectory() as folder, closing(SerialBackend(1, gpus=1)) as backend:
                wanted = setting.job(method, setting.text([method]), Path(folder))
                backend.load(wanted)
                server = Server(wanted, backend)
                state = server.step(server.initial_state()).state  # makes constants
                found.append(waits(partial(server.step, state)))
        most = inf if name in MAY_WAIT else 0.0
        yield Figure(f"waits_per_step_{name}", (found[1] - found[0]) / (STEPS[1] - STEPS[0]), most)


def waits(run: Callable[[], object]) -> int:
    """How often a run waits for the GPU."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("called a synchronizing CUDA operation" in str(one.message) for one in caught)


class Filling:
    """A job that is its own worker, and allocates memory until there is no more."""

    def build(self, device: torch.device) -> Self:
        """Keep the device."""
        self._device = device
        return self

    def fill(self, beyond: bool) -> float:
        """The part of the GPU's memory that this process can take; with `beyond` raise `torch.OutOfMemoryError`."""
        taken = list[torch.Tensor]()
        total = torch.cuda.get_device_properties(self._device).total_memory
        try:
            while len(taken) * CHUNK < total or beyond:
                taken.append(torch.empty(CHUNK, dtype=torch.uint8, device=self._device))
        except torch.OutOfMemoryError:
            if beyond:
                raise
        return len(taken) * CHUNK / total


def memory(job: Any, gpus: float) -> Figures:
    """Fill the memory of an actor with `SHARE` of a GPU up to its limit, then beyond it, and read the error.

    Ray must be connected.

    Args:
        job: `Filling`.
        gpus: 1; 0 if there is none.
    """
    with closing(ActorPool(ResourceSettings(actors=1, gpus_per_actor=SHARE * gpus))) as pool:
        pool.load(job)
        (taken,) = pool.map("fill", [False])
        yield Figure("memory_of_a_quarter", taken, SHARE, WASTE * SHARE)
        try:
            list(pool.map("fill", [True]))
            error = ""
        except FedPGPError as found:
            error = str(found)
    yield Figure("out_of_memory_without_advice", float("\n" in error or not error.endswith(device.ADVICE)), 0)

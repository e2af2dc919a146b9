"""Measure a device: its peak, steps and rounds in relation to it, kernels of a step, attention, and extraction."""

import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch.profiler import ProfilerActivity

from fedpgp.bench.features import photograph
from fedpgp.bench.gpu_parity import ACTORS, SHARE, Figure, Figures
from fedpgp.bench.measurement import counted
from fedpgp.bench.step import launches
from fedpgp.bench.workload import CPU, Workload, job, round_seconds
from fedpgp.clip import images
from fedpgp.clip.feature_cache import Chunk
from fedpgp.clip.prompt_encoder import attention, fused_attention
from fedpgp.config import ResourceSettings
from fedpgp.data.sources import open_source
from fedpgp.federation.backends.actors import ActorPool
from fedpgp.federation.backends.base import SerialBackend
from fedpgp.federation.server import Server
from fedpgp.federation.worker import FederationJob

DTYPES = (torch.float32, torch.bfloat16)
"""Those of `backbone.dtype`."""
ROUNDS = 3
HEAD = 64
"""Width of a head of CLIP's text towers."""


@dataclass(frozen=True)
class Setting:
    """A federation of the poster whose steps and rounds are measured."""

    name: str
    workload: Workload
    clients: int
    shots: int  # images of a class of a client
    participation: float
    batch: int
    epochs: int
    tests: tuple[int, int]  # images of base and of novel classes on which every client is tested; none: no tests

    @property
    def participants(self) -> int:
        """Clients of a round."""
        return int(self.clients * self.participation)

    def job(self, folder: Path, dtype: torch.dtype) -> FederationJob:
        """The federation, with noise as images and the participants of a round in one block."""
        wanted = job(self.workload, folder, self.clients, self.shots, self.batch, self.tests)
        sets = wanted.data.evaluation_sets if any(self.tests) else ()
        federation = wanted.federation.model_copy(
            update={
                "participation": self.participation,
                "local_epochs": self.epochs,
                "block_size": self.participants,
                "evaluate_before_aggregation": bool(sets),
            }
        )
        return replace(wanted, dtype=dtype, federation=federation, data=replace(wanted.data, evaluation_sets=sets))


def timed(run: Callable[[], object], times: int, device: torch.device) -> float:
    """Mean seconds of consecutive runs, after one that makes constants, until the device has finished."""
    run()
    wait_for(device)
    start = time.perf_counter()
    for _ in range(times):
        run()
    wait_for(device)
    return (time.perf_counter() - start) / times


def wait_for(device: torch.device) -> None:
    """Wait until the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def name_of(dtype: torch.dtype) -> str:
    """For example `bfloat16`."""
    return str(dtype).removeprefix("torch.")


def peak(device: torch.device, dtype: torch.dtype, sizes: Sequence[int], times: int) -> float:
    """The best rate of products of square matrices, in operations per second."""
    rates = []
    for size in sizes:
        left, right = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(2))
        rates.append(2 * size**3 / timed(partial(torch.mm, left, right), times, device))
    return max(rates)


def speed(
    settings: Sequence[Setting],
    device: torch.device,
    dtype: torch.dtype,
    squares: Sequence[int],
    tokens: int,
    times: int,
) -> Figures:
    """The peak in a dtype; attention; and steps and rounds of each setting."""
    best = peak(device, dtype, squares, times)
    yield Figure(f"peak_tflops_{name_of(dtype)}", best / 1e12)
    yield from fused(settings[0], device, dtype, tokens, times)
    for setting in settings:
        yield from steps(setting, device, dtype, best, times)
        yield from rounds(setting, float(device.type == "cuda"), dtype, best)


def steps(setting: Setting, device: torch.device, dtype: torch.dtype, best: float, times: int) -> Figures:
    """Steps of all participants of a round as one batch: their rate, their part of the peak, and what they launch."""
    step = setting.workload.step(setting.batch, setting.participants, dtype=dtype, device=device)
    step()
    work = counted(step)[1]
    taken = timed(step, times, device)
    key = f"{setting.name}_{name_of(dtype)}"
    yield Figure(f"steps_per_second_{key}", 1 / taken)
    yield Figure(f"step_peak_fraction_{key}", work / taken / best)
    yield Figure(f"operators_per_step_{key}", float(launches(step)))
    if device.type == "cuda":
        kernels, busy = profiled(step)
        yield Figure(f"kernels_per_step_{key}", float(kernels))
        yield Figure(f"idle_fraction_{key}", max(0.0, 1 - busy / taken))


def profiled(step: Callable[[], object]) -> tuple[int, float]:
    """Kernels that a step launches, copies included, and the seconds for which they run."""
    with torch.profiler.profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        step()
        torch.cuda.synchronize()
    kernels = [event for event in profiler.events() if event.device_type.name == "CUDA"]
    return len(kernels), sum(event.self_device_time_total for event in kernels) / 1e6


def rounds(setting: Setting, gpus: float, dtype: torch.dtype, best: float) -> Figures:
    """Rounds in this process, with their tests: their rate, and their part of the peak."""
    key = f"{setting.name}_{name_of(dtype)}"
    with tempfile.TemporaryDirectory() as folder, closing(SerialBackend(torch.get_num_threads(), gpus)) as backend:
        wanted = setting.job(Path(folder), dtype)
        backend.load(wanted)
        server = Server(wanted, backend)
        round_seconds(server, 1)  # makes constants
        work = counted(lambda: server.step(server.initial_state()))[1]
        taken = median(round_seconds(server, ROUNDS))
    yield Figure(f"rounds_per_second_{key}", 1 / taken)
    yield Figure(f"round_peak_fraction_{key}", work / taken / best)


def fused(setting: Setting, device: torch.device, dtype: torch.dtype, tokens: int, times: int) -> Figures:
    """How much faster fused attention is than plain products and a softmax, forward and backward, on trees."""
    mask = torch.full((tokens, tokens), float("-inf"), dtype=dtype, device=device).triu(1)
    shape = (2 * setting.participants, setting.workload.on_base().width // HEAD, tokens, HEAD)
    q, k, v = (torch.ones(shape, dtype=dtype, device=device, requires_grad=True) for _ in range(3))

    def run(attend: Callable[..., torch.Tensor]) -> object:
        return torch.autograd.grad(attend(q, k, v, mask).sum(), (q, k, v))

    plain, own = (timed(partial(run, attend), times, device) for attend in (attention, fused_attention))
    yield Figure(f"fused_attention_speedup_{name_of(dtype)}", plain / own)


def extraction(workload: Workload, device: torch.device, photos: int) -> Figures:
    """Images per second of one actor, of several on the device, and of the bare tower. Ray must be connected."""
    with tempfile.TemporaryDirectory() as folder:
        wanted = photograph(Path(folder), photos, workload.backbone)
        for count in ACTORS:
            chunks = [
                Chunk(rows, Path(folder) / f"{count}-{rows[0]}")
                for rows in np.array_split(range(photos), min(photos, 4 * count))
            ]
            gpus = SHARE if device.type == "cuda" else 0.0
            with closing(ActorPool(ResourceSettings(actors=count, gpus_per_actor=gpus))) as pool:
                pool.load(wanted)
                encode = partial(_exhaust, pool, chunks)
                yield Figure(f"extraction_images_per_second_{count}_actors", photos / timed(encode, 1, device))
        pixels = images.cropped(list(open_source(wanted.data).read(wanted.manifest.table)), wanted.image)
        wanted.visual.to(device)
        bare = timed(lambda: images.encode(wanted.visual, wanted.image, pixels, "pooled", "float32"), 1, device)
        wanted.visual.to(CPU)
        yield Figure("tower_images_per_second", photos / bare)


def _exhaust(pool: ActorPool, chunks: Sequence[Chunk]) -> None:
    """Encode all chunks."""
    for _ in pool.map("encode_chunk", chunks):
        pass

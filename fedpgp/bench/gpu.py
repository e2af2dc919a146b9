"""Check a GPU against the CPU and measure it: one command for a new card, of at most five minutes."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from fedpgp.bench import gpu_limits, gpu_parity, gpu_speed
from fedpgp.bench.gpu_parity import ACTORS, PRECISIONS, Figure, Figures
from fedpgp.bench.gpu_speed import DTYPES, ROUNDS, Setting, name_of
from fedpgp.bench.measurement import Measurement, Report
from fedpgp.bench.workload import BASE, BASE_TEST, NOVEL, NOVEL_TEST, vit_b_16
from fedpgp.config import ResourceSettings
from fedpgp.core.errors import ResourceError
from fedpgp.core.text import cause_line
from fedpgp.federation.backends import ray_cluster
from fedpgp.federation.backends.device import open_device

SQUARES = (2048, 4096, 8192)
"""Sizes of the matrices whose products find the peak of a GPU."""
CHECKED = 10
"""Classes of the checks, which the CPU repeats."""


@dataclass(frozen=True)
class Size:
    """How much is checked and measured."""

    settings: tuple[Setting, ...]
    squares: tuple[int, ...] = SQUARES
    tokens: int = 188  # of the tree of 50 class names
    times: int = 20  # runs of what is timed
    photos: int = 1024


def full() -> Size:
    """The poster's settings: 50 classes and 10 clients; CIFAR-100 and 100 clients, a tenth of them in each round."""
    base = vit_b_16()
    cifar = replace(base, base=(*BASE, *NOVEL), novel=NOVEL[:1])
    tests = (BASE_TEST, NOVEL_TEST)
    return Size(
        (
            Setting("50_classes", base, clients=10, shots=16, participation=1.0, batch=32, epochs=2, tests=tests),
            Setting("cifar100", cifar, clients=100, shots=500, participation=0.1, batch=32, epochs=1, tests=(0, 0)),
        )
    )


def require() -> torch.device:
    """The first GPU, prepared as a worker's; raise `ResourceError`, one line, if torch cannot use any."""
    try:
        torch.cuda.init()
        torch.zeros(1, device="cuda")
    except (AssertionError, RuntimeError) as error:  # of a torch without CUDA; driver missing, too old, or GPU busy
        reason = str(error).partition("\n")[0].split(". ")[0].rstrip(".")
        raise ResourceError(
            f"bench gpu needs an NVIDIA GPU, and torch can use none here ({reason}); run it on a machine with one, "
            "or look at the driver with nvidia-smi"
        ) from None
    return open_device(1)


def measure(report: Report, device: torch.device, size: Size) -> Measurement:
    """Check and measure a device. On the CPU, what only a GPU has is left out.

    `failures` of the result names each figure that is out of its range, and each stage that ended with an error.
    """
    figures, failures = list[Figure](), list[str]()
    with ray_cluster.connected(ResourceSettings(actors=max(ACTORS))):
        for what, stage in _stages(device, size):
            report(what)
            try:
                figures.extend(stage)
            except Exception as error:  # whatever a device makes torch raise: the other figures are still wanted
                failures.append(f"{what}: {cause_line(error)}")
    failures += [f"{one.key} is {one.value:.3g}, not {one.range}" for one in figures if not one.passed]
    rows = [[one.key, f"{one.value:.3g}", one.range, _passed(one)] for one in figures]
    headings = ("figure", "value", "range", "check")
    return Measurement("gpu", {one.key: one.value for one in figures}, headings, rows, _notes(size), failures)


def _stages(device: torch.device, size: Size) -> Iterator[tuple[str, Figures]]:
    """What is measured, one after the other."""
    workload, threads, gpus = size.settings[0].workload, torch.get_num_threads(), float(device.type == "cuda")
    small = replace(workload, base=workload.base[:CHECKED], novel=workload.novel[:1])
    yield "logits and gradients against the CPU", gpu_parity.step_parity(small, device, PRECISIONS)
    with gpu_parity.small_federation(small) as wanted:
        yield "a trajectory against the CPU", gpu_parity.trajectory_parity(wanted, threads, gpus, PRECISIONS)
        yield "equal bits of one process, 1 and 4 actors", gpu_parity.equal_bits(wanted, gpus)
    if gpus:
        yield "steps that wait for the device", gpu_limits.waiting(gpu_limits.names())
        yield "the memory of a quarter of the device", gpu_limits.memory(gpu_limits.Filling(), gpus)
    for dtype in DTYPES:
        figures = gpu_speed.speed(size.settings, device, dtype, size.squares, size.tokens, size.times)
        yield f"speed in {name_of(dtype)}", figures
    yield f"extraction of {size.photos} photos", gpu_speed.extraction(workload, device, size.photos)


def _passed(one: Figure) -> str:
    return "FAILED" if not one.passed else "passed" if one.range else ""


def _notes(size: Size) -> tuple[str, ...]:
    first = size.settings[0].workload
    settings = (
        f"{one.name}: {len(one.workload.base)} classes, {one.participants} of {one.clients} clients, batch {one.batch}"
        for one in size.settings
    )
    return (
        f"FedPGP, {first.backbone.name} with random weights, {first.n_ctx} context tokens; {'; '.join(settings)}",
        f"errors are relative to float32 on the CPU; a step is one of all clients of a round; means of {size.times} "
        f"steps, medians of {ROUNDS} rounds with the tests of 50_classes",
        "peak_fraction: of the measured peak of matrix products in the same dtype; idle_fraction: of a step's time in "
        "which the GPU waits for launches, what CUDA graphs could save at most",
    )

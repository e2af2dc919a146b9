"""What the benches share: a measurement with its machine, clocks, counted operations, profiles, resources in use."""

import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.profiler import ProfilerActivity
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from fedpgp.core import provenance
from fedpgp.core.errors import FedPGPError

ATTENTION_ON_CPU = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad, q, k, v)
    ),
}
"""Fused attention, which torch's counter omits."""
SQUARES = (1024, 2048, 3072)
"""Sizes of the square matrices that are multiplied to find the peak."""
TRIES = 5
MB = 2**20

KINDS = {
    "products with weights": ("mm", "addmm", "linear"),
    "attention's products": ("bmm", "baddbmm"),
    "nonlinearity": ("gelu", "gelu_backward", "silu", "silu_backward"),
    "softmax": ("_softmax", "_softmax_backward_data", "_log_softmax", "_log_softmax_backward_data"),
    "layer norm": ("native_layer_norm", "native_layer_norm_backward"),
    "additions": ("add", "add_", "sum"),
    "copies": ("copy_", "cat", "index_select", "index", "index_add_", "index_put_", "fill_", "zero_"),
}
"""Operators of PyTorch that take noticeable time, by purpose."""
OTHER = "other operators, autograd"
OUTSIDE = "Python, between operators"

Report = Callable[[str], None]
"""Shows one line of progress."""


@dataclass(frozen=True)
class Measurement:
    """The result of one bench: figures by name, and a table."""

    bench: str
    figures: Mapping[str, float]
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = field(default_factory=tuple)
    failures: Sequence[str] = field(default_factory=tuple)
    """checks that failed, each in a few words"""

    def as_json(self) -> str:
        """`{"bench", "machine", "figures"}` on one line."""
        return json.dumps({"bench": self.bench, "machine": machine(), "figures": dict(self.figures)})


def machine() -> dict[str, Any]:
    """Describe this machine; `load` is the mean number of processes that wanted a core over the last minute."""
    return {
        "cpu": provenance.named("/proc/cpuinfo", "model name") or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "ray")},
        **(_gpu() if torch.cuda.is_available() else {}),
    }


def _gpu() -> dict[str, Any]:
    """Describe the first GPU."""
    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name,
        "gpu_memory_gb": round(properties.total_memory / 2**30, 1),
        "driver": provenance.gpu_driver() or "unknown",
        "cuda": torch.version.cuda,
    }


def seconds(run: Callable[[], object]) -> float:
    """Time one run."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def alternated(repeats: int, *runs: Callable[[], object]) -> list[float]:
    """Median seconds of each run; they take turns, so that a change of the machine's speed affects all."""
    taken = [[seconds(run) for run in runs] for _ in range(repeats)]
    return [median(times) for times in zip(*taken, strict=True)]


def counted(run: Callable[[], Any]) -> tuple[Any, int]:
    """The result of a run, and the floating-point operations of its matrix products, attention and convolutions."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the fused layer hides its products from the counter
    try:
        with FlopCounterMode(display=False, custom_mapping=ATTENTION_ON_CPU) as counter:
            result = run()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return result, int(counter.get_total_flops())


class Peak:
    """The best rate of matrix products in operations per second: for each shape, the median over the bench.

    Medians are compared with medians, not with the luckiest product.

    Args:
        shapes: products (m, k) x (k, n) of the measured work, in addition to squares.
    """

    def __init__(self, *shapes: tuple[int, int, int]) -> None:
        squares = [(size, size, size) for size in SQUARES]
        self._pairs = [(torch.randn(m, k), torch.randn(k, n)) for m, k, n in (*squares, *shapes)]
        self._rates: list[list[float]] = [[] for _ in self._pairs]

    def probe(self) -> None:
        """Multiply each pair, several times."""
        for (left, right), rates in zip(self._pairs, self._rates, strict=True):
            work = 2 * left.numel() * right.shape[1]
            rates += [work / seconds(partial(torch.mm, left, right)) for _ in range(TRIES)]

    @property
    def rate(self) -> float:
        """The rate of the best shape."""
        return max(map(median, self._rates))


def profile(what: str, run: Callable[[], object], times: int, notes: tuple[str, ...]) -> Measurement:
    """Time by kind of operator: the mean of `times` runs after a first one. Profiling slows small operators down."""
    run()
    with torch.profiler.profile(activities=[ProfilerActivity.CPU]) as profiler:
        whole = seconds(lambda: [run() for _ in range(times)])
    kinds = {f"aten::{operator}": kind for kind, operators in KINDS.items() for operator in operators}
    taken = dict.fromkeys([*KINDS, OTHER], 0.0)
    for event in profiler.key_averages():
        taken[kinds.get(event.key, OTHER)] += event.self_cpu_time_total / 1e6
    taken[OUTSIDE] = max(0.0, whole - sum(taken.values()))
    ordered = sorted(taken.items(), key=lambda item: -item[1])
    rows = [[kind, f"{1e3 * spent / times:.1f}", f"{100 * spent / whole:.1f}"] for kind, spent in ordered]
    figures = {"milliseconds": 1e3 * whole / times, **{kind: spent / whole for kind, spent in taken.items()}}
    return Measurement(f"{what}: where the time goes", figures, ("kind", "ms", "% of time"), rows, notes)


def resident() -> int:
    """Resident memory of this process, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak(reset: bool = False) -> int:
    """Most resident memory of this process so far, in bytes; `reset`: from now on."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    return int((provenance.named("/proc/self/status", "VmHWM") or "0").removesuffix(" kB")) * 1024


def descendants(pid: int) -> dict[int, str]:
    """All processes below `pid`, with their command lines."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # ended in the meantime
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    below: dict[int, str] = {}
    generation = {pid}
    while generation := {child for child, parent in parents.items() if parent in generation}:
        for child in generation:
            below[child] = " ".join(provenance.lines(f"/proc/{child}/cmdline")).replace("\0", " ")
    return below


def usage(pids: Sequence[int]) -> dict[str, float]:
    """Resources that these processes hold together; shared memory counts once.

    Mapped files do not count as memory. The kernel drops their pages at will and divides them among all processes that
    map them, so they would seem to grow when another process ends.

    Raises:
        FedPGPError: this kernel does not report mapped files separately.
    """
    found = {"memory_mb": 0.0, "handles": 0.0, "threads": 0.0, "processes": 0.0}
    for pid in pids:
        folder = Path("/proc", str(pid))
        try:
            lines = (folder / "smaps_rollup").read_text().splitlines()
            own = [int(line.split()[1]) for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:"))]
            handles, threads = len(os.listdir(folder / "fd")), len(os.listdir(folder / "task"))
        except OSError:
            continue
        if not own:
            raise FedPGPError(f"{folder}/smaps_rollup: no Pss_Anon; Linux 5.9 or later is required")
        found["memory_mb"] += sum(own) / 1024
        found["handles"] += handles
        found["threads"] += threads
        found["processes"] += 1
    return found

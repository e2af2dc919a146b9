"""Measure one local step of FedPGP: against the authors' code, for blocks of clients, and for chunks of classes.

Loss and gradient of both implementations are compared, and their speed with the machine's peak.
"""

import gc
import resource
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fedpgp.bench import measurement
from fedpgp.bench.measurement import Measurement, Peak, Report, alternated, counted, seconds
from fedpgp.bench.workload import MODEL, TEMPLATE, ReferenceFedPGP, Workload, one_batch, vit_b_16
from fedpgp.core import provenance
from fedpgp.core.errors import FedPGPError
from fedpgp.federation.resources import keep_freed_memory

REPEATS = 3
STEPS_PER_REFERENCE = 5
"""Steps of fedpgp for each step of the reference."""
PROFILED = 10
TOLERANCE = 1e-3
"""Largest difference of loss and gradients in float32, relative to their norm, that counts as equal."""
CLIENTS, BATCH = 10, 32
CLIENT_CHUNKS = (1, 2, 5, 10)
CLASS_CHUNKS = (10, 50, 250)
NO_KERNEL = {"aten::detach", "aten::empty", "aten::empty_like", "aten::empty_strided", "aten::_unsafe_view"}
"""Operators, besides views, that compute nothing."""


class Steps:
    """The same step in both implementations, on the same images; ours gets their features.

    A step returns the loss, then the gradients of ctx, U and V.
    """

    def __init__(self, workload: Workload, batch: int) -> None:
        self._model = ReferenceFedPGP(workload.backbone, workload.base, TEMPLATE, workload.n_ctx)
        self._method, self._params = workload.method, workload.params()
        self._towers = {dtype: workload.on_base(dtype) for dtype in (torch.float32, torch.bfloat16)}
        self._images, self._labels = workload.images(batch)
        self._features = self.encode()
        self._batch = one_batch(self._features.unsqueeze(0), self._labels.unsqueeze(0))

    def reference(self) -> list[Tensor]:
        """A step of the authors' code."""
        return self._with_gradients(self._model.loss(self._params, self._images, self._labels))

    def ours(self, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """A step of fedpgp with the text tower in `dtype`."""
        (loss,) = self._method.loss(self._params, {}, self._towers[dtype], self._batch)[0]
        return self._with_gradients(loss)

    @torch.no_grad()
    def encode(self) -> Tensor:
        """Encode the images as the authors' code does: (B, E)."""
        return self._model.image_features(self._images)

    @torch.no_grad()
    def classify(self) -> Tensor:
        """Classify the features as the authors' code does: logits (B, C)."""
        return self._model.logits(self._params, self._features)

    @torch.no_grad()
    def logits(self) -> tuple[Tensor, Tensor]:
        """Logits of the reference and of ours, (B, C)."""
        ours = self._method.classifier(self._params, self._towers[torch.float32])(self._batch.features)[0]
        return self.classify(), ours

    def _with_gradients(self, loss: Tensor) -> list[Tensor]:
        return [loss.detach(), *torch.autograd.grad(loss, list(self._params.values()))]


def difference(left: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    """The largest |left - right| / |right| of all tensors (Euclidean norms)."""
    return max(float((a - b).norm() / b.norm()) for a, b in zip(left, right, strict=True))


@dataclass(frozen=True)
class Comparison:
    """Both implementations at one batch size."""

    reference: float  # median seconds
    ours: float
    reference_work: int  # floating-point operations
    our_work: int
    peak: float  # operations per second, measured at the same time
    logit_difference: float  # largest absolute one

    @property
    def peak_fractions(self) -> tuple[float, float]:
        """The fraction of the peak that the reference and ours reach."""
        return self.reference_work / self.reference / self.peak, self.our_work / self.ours / self.peak


def compare(workload: Workload, both: Steps, batch: int, repeats: int, report: Report) -> Comparison:
    """Compare the results of the first steps, which also warm up, then time alternated steps.

    The operations are those of a later step, because the first one also makes constants. The peak is measured with each
    batch size, because the speed of a shared machine changes within minutes.

    Raises:
        FedPGPError: the implementations differ in loss or gradients.
    """
    peak = Peak((77 * len(workload.base), 512, 2048), (77 * len(workload.base), 2048, 512))
    report(f"batch {batch}: comparing loss and gradients")
    both.ours()
    (expected, reference_work), (found, our_work) = counted(both.reference), counted(both.ours)
    distance = difference(found, expected)
    if distance > TOLERANCE:
        raise FedPGPError(f"bench step: loss or gradients differ by {distance:.1e} (relative); expected equal")
    reference, ours = [], []
    for repeat in range(repeats):
        report(f"batch {batch}: {repeat + 1} of {repeats}")
        peak.probe()
        reference.append(seconds(both.reference))
        ours += [seconds(both.ours) for _ in range(STEPS_PER_REFERENCE)]
    left, right = both.logits()
    logit_difference = float((left - right).abs().max())
    return Comparison(median(reference), median(ours), reference_work, our_work, peak.rate, logit_difference)


def measure(threads: int, report: Report, workload: Workload | None = None, repeats: int = REPEATS) -> Measurement:
    """Measure batches of 32 and 8 in float32, and ours in bfloat16 compared with the reference in float32."""
    torch.set_num_threads(threads)
    keep_freed_memory()  # page faults would slow mainly the reference down
    workload = workload or vit_b_16()
    pairs = {batch: Steps(workload, batch) for batch in (32, 8)}
    found = {batch: compare(workload, both, batch, repeats, report) for batch, both in pairs.items()}
    large, small = found[32], found[8]
    report("bfloat16")
    in_bfloat16 = partial(pairs[32].ours, torch.bfloat16)
    in_bfloat16()  # warm-up
    half = median(seconds(in_bfloat16) for _ in range(repeats))
    figures = {
        "ratio_fp32_b32": large.reference / large.ours,
        "ratio_fp32_b8": small.reference / small.ours,
        "ratio_bf16_b32": large.reference / half,
        "ours_peak_fraction": large.peak_fractions[1],
        "oracle_peak_fraction": large.peak_fractions[0],
        "max_abs_logit_difference": max(large.logit_difference, small.logit_difference),
    }
    rows = []
    for batch, one in found.items():
        near = [f"{fraction:.2f}" for fraction in one.peak_fractions]
        rows.append([f"plain, batch {batch}", f"{one.reference:.3f}", f"{one.reference_work / 1e9:.0f}", near[0], "1"])
        faster = f"{one.reference / one.ours:.1f}"
        rows.append([f"fedpgp, batch {batch}", f"{one.ours:.3f}", f"{one.our_work / 1e9:.0f}", near[1], faster])
    rows.append(["fedpgp in bfloat16, batch 32", f"{half:.3f}", "", "", f"{large.reference / half:.1f}"])
    notes = [
        f"{MODEL} with random weights, {len(workload.base)} Caltech101 names, {threads} threads; alternated medians of "
        f"{repeats} plain steps (the authors' way) and {STEPS_PER_REFERENCE} times as many of fedpgp",
        f"peak {large.peak / 1e9:.0f} and {small.peak / 1e9:.0f} GFLOP/s: the best of several matrix shapes, by median",
        f"loss and gradients equal within {TOLERANCE:g}, relative; logits within "
        f"{figures['max_abs_logit_difference']:.1e}",
    ]
    if {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(" ".join(provenance.lines("/proc/cpuinfo")).split()):
        notes.append("this CPU emulates bfloat16, so that figure says nothing about CPUs that have it in hardware")
    return Measurement("step", figures, ("step", "seconds", "GFLOP", "of peak", "times faster"), rows, notes)


def profile(threads: int, workload: Workload | None = None) -> Measurement:
    """Profile our step, batch 32 in float32."""
    torch.set_num_threads(threads)
    ours = Steps(workload or vit_b_16(), 32).ours
    note = f"fedpgp's step, batch 32, {threads} threads; mean of {PROFILED}"
    return measurement.profile("step", ours, PROFILED, (note,))


class Launches(TorchDispatchMode):
    """Counts the operators that compute something, in the forward and the backward pass."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator."""
        if not func.is_view and func.name().split(".")[0] not in NO_KERNEL:
            self.count += 1
        return func(*args, **(kwargs or {}))


def launches(step: Callable[[], object]) -> int:
    """The number of operators that a step launches. A first step, which also makes constants, is not counted."""
    step()
    with Launches() as counter:  # type: ignore[no-untyped-call]
        step()
    return int(counter.count)


def clients(threads: int, report: Report, workload: Workload | None = None) -> Measurement:
    """Compare a block of clients as one batch with smaller chunks of it: seconds and operators per client and step."""
    torch.set_num_threads(threads)
    workload = workload or vit_b_16()
    steps = {chunk: workload.step(BATCH, chunk) for chunk in CLIENT_CHUNKS}
    count = {chunk: launches(step) / chunk for chunk, step in steps.items()}
    report(f"{REPEATS} steps of {CLIENTS} clients in chunks of {', '.join(map(str, CLIENT_CHUNKS))}")

    def all_clients(chunk: int) -> None:
        for _ in range(CLIENTS // chunk):
            steps[chunk]()

    medians = alternated(REPEATS, *(partial(all_clients, chunk) for chunk in CLIENT_CHUNKS))
    taken = {chunk: value / CLIENTS for chunk, value in zip(CLIENT_CHUNKS, medians, strict=True)}
    rows = [
        [str(chunk), f"{value:.3f}", f"{taken[1] / value:.2f}", f"{count[chunk]:.0f}"] for chunk, value in taken.items()
    ]
    figures = {"ratio_block_to_single": taken[1] / taken[CLIENTS], "kernels_per_client_step": count[CLIENTS]}
    notes = (
        f"{CLIENTS} clients, batch {BATCH}, {len(workload.base)} classes, {threads} threads; medians of {REPEATS}",
        "ratio: one client at a time to the whole block as one batch (federation.chunk_size null, the default)",
    )
    headings = ("clients in one batch", "seconds per client and step", "times faster", "operators per client and step")
    return Measurement("clients", figures, headings, rows, notes)


def classes(
    threads: int, report: Report, workload: Workload | None = None, chunks: Sequence[int] = CLASS_CHUNKS
) -> Measurement:
    """Measure memory and time of a step on ImageNet's 1,000 classes, by how many are encoded at once.

    The peak resident memory of a process only grows, so the smallest chunk is first and all classes at once are last.
    Each is compared with the peak before the first step.
    """
    torch.set_num_threads(threads)
    if workload is None:
        from open_clip import IMAGENET_CLASSNAMES

        workload = replace(vit_b_16(), base=tuple(IMAGENET_CLASSNAMES), novel=())
    workload.step(BATCH, class_chunk=chunks[0])  # loads the model and encodes the names
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rows, figures = [], {}
    for chunk in (*sorted(chunks), None):
        report(f"{chunk or 'all'} of {len(workload.base)} classes at once")
        step = workload.step(BATCH, class_chunk=chunk)
        step()  # also makes the constants
        taken = seconds(step)
        del step
        gc.collect()
        added = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024  # from kB
        figures[f"megabytes_{chunk or 'all'}"] = added
        figures[f"seconds_{chunk or 'all'}"] = taken
        rows.append([str(chunk or "all (null)"), f"{added:,.0f}", f"{taken:.1f}"])
    notes = (
        f"{len(workload.base)} classes, batch {BATCH}, {threads} threads; one step each after a first one",
        "memory: the peak in addition to that with the model loaded; a size that needs less than the one above it in "
        "the table repeats that number",
    )
    return Measurement("classes", figures, ("backbone.class_chunk", "MB", "seconds per step"), rows, notes)

"""Compare one local step of FedPGP (loss and gradient) with the authors' code, and both with the machine's peak."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from fedpgp.bench.measurement import Measurement, Peak, Report, counted, seconds
from fedpgp.bench.measurement import profile as profile_run
from fedpgp.bench.workload import MODEL, MU, TAU, Workload, one_batch, vit_b_16
from fedpgp.clip.text_backbone import ClassSet
from fedpgp.core.errors import FedPGPError
from fedpgp.federation.resources import keep_freed_memory

REPEATS = 3
STEPS_PER_REFERENCE = 5
"""Steps of fedpgp for each step of the reference."""
PROFILED = 10
TOLERANCE = 1e-3
"""Largest difference of loss and gradients in float32, relative to their norm, that counts as equal."""


@dataclass(frozen=True)
class Steps:
    """The same step in both implementations. Each returns the loss, then the gradients of ctx, U and V."""

    reference: Callable[[], list[Tensor]]
    ours: Callable[[], list[Tensor]]
    bfloat16: Callable[[], list[Tensor]]
    """ours with the text tower in bfloat16"""
    logits: Callable[[], tuple[Tensor, Tensor]]
    """of the reference and ours, (B, C)"""


def steps(workload: Workload, batch: int) -> Steps:
    """Bind both implementations to the same images; ours gets their features."""
    reference, method, frozen = workload.reference(), workload.method, workload.on_base()
    images, labels = workload.images(batch)
    with torch.no_grad():
        features = reference.image_features(images)
    params, ours = workload.params(), one_batch(features.unsqueeze(0), labels.unsqueeze(0))
    leaves = list(params.values())

    def reference_step() -> list[Tensor]:
        loss = reference.loss(params, images, labels, MU, TAU)
        return [loss.detach(), *torch.autograd.grad(loss, leaves)]

    def our_step(frozen: ClassSet) -> list[Tensor]:
        (loss,) = method.loss(params, {}, frozen, ours)[0]
        return [loss.detach(), *torch.autograd.grad(loss, leaves)]

    def logits() -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return reference.logits(params, features), method.classifier(params, frozen)(ours.features)[0]

    half = partial(our_step, workload.on_base(torch.bfloat16))
    return Steps(reference_step, partial(our_step, frozen), half, logits)


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
    pairs = {batch: steps(workload, batch) for batch in (32, 8)}
    found = {batch: compare(workload, both, batch, repeats, report) for batch, both in pairs.items()}
    large, small = found[32], found[8]
    report("bfloat16")
    pairs[32].bfloat16()  # warm-up
    half = median(seconds(pairs[32].bfloat16) for _ in range(repeats))
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
    if not bfloat16_in_hardware():
        notes.append("this CPU emulates bfloat16, so that figure says nothing about CPUs that have it in hardware")
    return Measurement("step", figures, ("step", "seconds", "GFLOP", "of peak", "times faster"), rows, notes)


def profile(threads: int, workload: Workload | None = None) -> Measurement:
    """Profile our step, batch 32 in float32."""
    torch.set_num_threads(threads)
    ours = steps(workload or vit_b_16(), 32).ours
    return profile_run("step", ours, PROFILED, (f"fedpgp's step, batch 32, {threads} threads; mean of {PROFILED}",))


def bfloat16_in_hardware() -> bool:
    """Whether this CPU has instructions for bfloat16."""
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags or "bf16" in flags.split()

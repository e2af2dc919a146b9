"""One local step of FedPGP (loss and gradient) against the authors' way of it, and how near both come to peak."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from fedpgp.bench.caltech import MODEL, MU, TAU, Scene, one_batch, vit_b_16
from fedpgp.bench.outcome import Outcome
from fedpgp.bench.profile import where_time_goes
from fedpgp.bench.timing import Peak, counted, seconds
from fedpgp.clip.text_backbone import ClassSet
from fedpgp.core.errors import FedPGPError
from fedpgp.federation.resources import keep_freed_memory

REPEATS = 3
OURS_PER_PLAIN = 5
PROFILED = 10
TOLERANCE = 1e-3
"""Largest difference of loss and gradient, relative to their size, that counts as equal in float32."""


@dataclass(frozen=True)
class Sides:
    """The same step taken both ways, on the same images: each gives the loss, then the gradients of ctx, U and V."""

    plain: Callable[[], list[Tensor]]
    ours: Callable[[], list[Tensor]]
    rough: Callable[[], list[Tensor]]
    """ours with the text tower in bfloat16"""
    logits: Callable[[], tuple[Tensor, Tensor]]
    """of both, (B, C)"""


def sides(scene: Scene, batch: int) -> Sides:
    """Bind both to the same images, of which ours has the features."""
    plain, method, frozen = scene.plain(), scene.method, scene.on_base()
    images, labels = scene.images(batch)
    with torch.no_grad():
        features = plain.model.encode_image(images)
    params, ours = scene.params(), one_batch(features.unsqueeze(0), labels.unsqueeze(0))
    leaves = list(params.values())

    def plain_step() -> list[Tensor]:
        loss = plain.loss(params, images, labels, MU, TAU)
        return [loss.detach(), *torch.autograd.grad(loss, leaves)]

    def our_step(frozen: ClassSet) -> list[Tensor]:
        (loss,) = method.loss(params, {}, frozen, ours)[0]
        return [loss.detach(), *torch.autograd.grad(loss, leaves)]

    def logits() -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return plain.logits(params, features), method.classifier(params, frozen)(ours.features)[0]

    return Sides(plain_step, partial(our_step, frozen), partial(our_step, scene.on_base(torch.bfloat16)), logits)


def difference(left: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    """The largest over all tensors of |left - right| / |right| (Euclidean norms)."""
    return max(float((a - b).norm() / b.norm()) for a, b in zip(left, right, strict=True))


@dataclass(frozen=True)
class Race:
    """Both ways at one batch size."""

    plain: float  # median seconds
    ours: float
    plain_work: int  # floating-point operations
    our_work: int
    peak: float  # operations per second, at the same time
    logit_difference: float  # largest absolute one

    @property
    def of_peak(self) -> tuple[float, float]:
        """How near each way comes to it: the plain one, ours."""
        return self.plain_work / self.plain / self.peak, self.our_work / self.ours / self.peak


def race(scene: Scene, both: Sides, batch: int, repeats: int, progress: Callable[[str], None]) -> Race:
    """Compare the first steps, which are warm-ups too, then take turns.

    The operations of a step are those of a later one: the first also makes constants. Each race has a peak of its own:
    a machine shared with others does not keep its speed for the minutes of both.

    Raises:
        FedPGPError: the two differ in loss or gradient.
    """
    peak = Peak((77 * len(scene.base), 512, 2048), (77 * len(scene.base), 2048, 512))
    progress(f"batch {batch}: both ways compared")
    both.ours()
    (theirs, plain_work), (ours, our_work) = counted(both.plain), counted(both.ours)
    apart = difference(ours, theirs)
    if apart > TOLERANCE:
        raise FedPGPError(f"bench step: loss or gradients are {apart:.1e} apart, relative; they should be equal")
    plain, fast = [], []
    for repeat in range(repeats):
        progress(f"batch {batch}: {repeat + 1} of {repeats}")
        peak.probe()
        plain.append(seconds(both.plain))
        fast += [seconds(both.ours) for _ in range(OURS_PER_PLAIN)]
    left, right = both.logits()
    apart = float((left - right).abs().max())
    return Race(median(plain), median(fast), plain_work, our_work, peak.rate, apart)


def measure(
    threads: int, progress: Callable[[str], None], scene: Scene | None = None, repeats: int = REPEATS
) -> Outcome:
    """At batch 32 and 8 in float32, and ours in bfloat16 against the plain way in float32."""
    torch.set_num_threads(threads)
    keep_freed_memory()  # page faults would slow the plain way down, and ours hardly
    scene = scene or vit_b_16()
    pairs = {batch: sides(scene, batch) for batch in (32, 8)}
    races = {batch: race(scene, both, batch, repeats, progress) for batch, both in pairs.items()}
    large, small = races[32], races[8]
    progress("bfloat16")
    pairs[32].rough()  # a warm-up
    rough = median(seconds(pairs[32].rough) for _ in range(repeats))
    figures = {
        "ratio_fp32_b32": large.plain / large.ours,
        "ratio_fp32_b8": small.plain / small.ours,
        "ratio_bf16_b32": large.plain / rough,
        "ours_peak_fraction": large.of_peak[1],
        "oracle_peak_fraction": large.of_peak[0],
        "max_abs_logit_difference": max(large.logit_difference, small.logit_difference),
    }
    rows = []
    for batch, one in races.items():
        near = [f"{fraction:.2f}" for fraction in one.of_peak]
        rows.append([f"plain, batch {batch}", f"{one.plain:.3f}", f"{one.plain_work / 1e9:.0f}", near[0], "1"])
        faster = f"{one.plain / one.ours:.1f}"
        rows.append([f"ours, batch {batch}", f"{one.ours:.3f}", f"{one.our_work / 1e9:.0f}", near[1], faster])
    rows.append(["ours in bfloat16, batch 32", f"{rough:.3f}", "", "", f"{large.plain / rough:.1f}"])
    notes = [
        f"{MODEL} with random weights, {len(scene.base)} Caltech101 names, {threads} threads; medians of {repeats} "
        f"plain steps and {OURS_PER_PLAIN} times as many of ours, in turns",
        f"peak {large.peak / 1e9:.0f} and {small.peak / 1e9:.0f} GFLOP/s, the best of several shapes of matrices by "
        "their medians",
        f"loss and gradients equal within {TOLERANCE:g}, relative; logits within "
        f"{figures['max_abs_logit_difference']:.1e}",
    ]
    if not bfloat16_in_hardware():
        notes.append("no bf16 hardware: bfloat16 is emulated here, so its figure says nothing of CPUs that have it")
    return Outcome("step", figures, ("step", "seconds", "GFLOP", "of peak", "times faster"), rows, notes)


def profile(threads: int, scene: Scene | None = None) -> Outcome:
    """Where the time of our step goes, batch 32 in float32."""
    torch.set_num_threads(threads)
    ours = sides(scene or vit_b_16(), 32).ours
    return where_time_goes("step", ours, PROFILED, (f"our step, batch 32, {threads} threads; mean of {PROFILED}",))


def bfloat16_in_hardware() -> bool:
    """Whether this CPU multiplies bfloat16 itself."""
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags or "bf16" in flags.split()

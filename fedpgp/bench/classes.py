"""Measure memory and time of a FedPGP step on ImageNet's 1,000 classes, by how many are encoded at once."""

import gc
import resource
from collections.abc import Sequence
from dataclasses import replace

import torch

from fedpgp.bench.measurement import MB, Measurement, Report, seconds
from fedpgp.bench.workload import Workload, vit_b_16

BATCH = 32
CHUNKS = (10, 50, 250)


def imagenet() -> Workload:
    """ViT-B/16 with random weights and the 1,000 names that CLIP's authors give ImageNet's classes."""
    from open_clip import IMAGENET_CLASSNAMES

    return replace(vit_b_16(), base=tuple(IMAGENET_CLASSNAMES), novel=())


def measure(
    threads: int, report: Report, workload: Workload | None = None, chunks: Sequence[int] = CHUNKS
) -> Measurement:
    """Measure each chunk size, smallest first, then all classes at once.

    The peak resident memory of a process only grows, so sizes must grow too. Each is compared with the peak before the
    first step.
    """
    torch.set_num_threads(threads)
    workload = workload or imagenet()
    workload.step(BATCH, class_chunk=chunks[0])  # loads the model and encodes the names
    before = _peak_bytes()
    rows, figures = [], {}
    for chunk in (*sorted(chunks), None):
        report(f"{chunk or 'all'} of {len(workload.base)} classes at once")
        step = workload.step(BATCH, class_chunk=chunk)
        step()  # also makes the constants
        taken = seconds(step)
        del step
        gc.collect()
        added = (_peak_bytes() - before) / MB
        figures[f"megabytes_{chunk or 'all'}"] = added
        figures[f"seconds_{chunk or 'all'}"] = taken
        rows.append([str(chunk or "all (null)"), f"{added:,.0f}", f"{taken:.1f}"])
    notes = (
        f"{len(workload.base)} classes, batch {BATCH}, {threads} threads; one step each after a first one",
        "memory: the peak in addition to that with the model loaded; a size that needs less than the one above it in "
        "the table repeats that number",
    )
    return Measurement("classes", figures, ("backbone.class_chunk", "MB", "seconds per step"), rows, notes)


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

"""Memory and time of a FedPGP step on ImageNet's 1,000 classes, by how many of them are encoded at once."""

from __future__ import annotations

import gc
import resource
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fedpgp.bench.caltech import Scene, one_batch, vit_b_16
from fedpgp.bench.outcome import Outcome
from fedpgp.bench.timing import seconds

BATCH = 32
CHUNKS = (10, 50, 250)
MB = 1 << 20


def imagenet() -> Scene:
    """ViT-B/16 with random weights and the 1,000 names that CLIP's authors give ImageNet's classes."""
    from open_clip import IMAGENET_CLASSNAMES

    return replace(vit_b_16(), base=tuple(IMAGENET_CLASSNAMES), novel=())


def step(scene: Scene, class_chunk: int | None) -> Callable[[], list[Tensor]]:
    """Loss and gradients of one client (`backbone.class_chunk`)."""
    frozen = replace(scene.text, class_chunk=class_chunk).on(range(len(scene.base)))
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(1, BATCH, frozen.joint_width, generator=generator)
    batch = one_batch(features, torch.randint(len(scene.base), (1, BATCH), generator=generator))
    params = scene.params()

    def run() -> list[Tensor]:
        loss, _ = scene.method.loss(params, {}, frozen, batch)
        return [loss.detach(), *torch.autograd.grad(loss.sum(), list(params.values()))]

    return run


def measure(
    threads: int,
    progress: Callable[[str], None],
    scene: Scene | None = None,
    chunks: Sequence[int] = CHUNKS,
) -> Outcome:
    """Each chunk size, smallest first, then all classes at once.

    A process's largest resident memory only grows, so what a size adds to it is known as long as sizes grow: each is
    told above what the process had before the first step.
    """
    torch.set_num_threads(threads)
    scene = scene or imagenet()
    step(scene, chunks[0])  # the model and its names are there
    before = _peak()
    rows, figures = [], {}
    for chunk in (*sorted(chunks), None):
        progress(f"{chunk or 'all'} of {len(scene.base)} classes at once")
        run = step(scene, chunk)
        run()  # also makes the constants
        taken = seconds(run)
        del run
        gc.collect()
        added = (_peak() - before) / MB
        figures[f"megabytes_{chunk or 'all'}"] = added
        figures[f"seconds_{chunk or 'all'}"] = taken
        rows.append([str(chunk or "all (null)"), f"{added:,.0f}", f"{taken:.1f}"])
    notes = (
        f"{len(scene.base)} classes, batch {BATCH}, {threads} threads; one step each after a first one",
        "memory: what the process took at most above what it had with the model loaded; where a size needs less than "
        "the one above it in the table, that one's number stands",
    )
    return Outcome("classes", figures, ("backbone.class_chunk", "MB", "seconds per step"), rows, notes)


def _peak() -> int:
    """Largest resident memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

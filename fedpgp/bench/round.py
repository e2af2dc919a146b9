"""A whole FedPGP round with its tests, against the authors' way of it: clients one after another, images every time."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from statistics import median

import torch

from fedpgp.bench.caltech import BASE_TEST, MU, NOVEL_TEST, TAU, Scene, job, vit_b_16
from fedpgp.bench.outcome import Outcome
from fedpgp.bench.profile import where_time_goes
from fedpgp.bench.timing import seconds
from fedpgp.federation.backends.serial import SerialBackend
from fedpgp.federation.resources import keep_freed_memory
from fedpgp.federation.server import Server
from fedpgp.federation.worker import FederationJob

CLIENTS, SHOTS, BATCH, EPOCHS = 10, 16, 32, 2
TEST_BATCH = 100
"""Images that the authors' test loop takes at once; the text features are made anew for each."""
REPEATS = 3


@dataclass(frozen=True)
class PlainCost:
    """Seconds of the authors' way."""

    step: float
    image: float
    text: float

    def round(self, steps: int, tests: list[int]) -> float:
        """So many steps, and tests on so many images each."""
        return self.step * steps + sum(self.image * count + self.text * ceil(count / TEST_BATCH) for count in tests)


def plain_cost(scene: Scene, batch: int, repeats: int) -> PlainCost:
    """Medians of a step, of an image's way through the tower, and of the text features of p_i."""
    plain, params = scene.plain(), scene.params()
    images, labels = scene.images(batch)
    features = torch.zeros(1, scene.on_base().joint_width)

    @torch.no_grad()
    def encode() -> None:
        plain.image_features(images)

    @torch.no_grad()
    def classify() -> None:
        plain.logits(params, features)

    def step() -> None:
        torch.autograd.grad(plain.loss(params, images, labels, MU, TAU), list(params.values()))

    for first in (step, encode, classify):  # warm-up: the first of each also sets up buffers
        first()
    taken = [(seconds(step), seconds(encode), seconds(classify)) for _ in range(repeats)]
    whole, encoding, text = (median(part) for part in zip(*taken, strict=True))
    return PlainCost(whole, encoding / batch, text)


def our_round(wanted: FederationJob, threads: int) -> float:
    """Median seconds of a round of all clients in one block, in this process."""
    backend = SerialBackend(threads)
    backend.load(wanted)
    server = Server(wanted, backend)
    state, taken = server.initial_state(), []
    for _ in range(REPEATS):
        start = time.perf_counter()
        state = server.step(state).state
        taken.append(time.perf_counter() - start)
    backend.close()
    return median(taken)


def profile(
    threads: int, scene: Scene | None = None, tests: tuple[int, int] = (BASE_TEST, NOVEL_TEST), batch: int = BATCH
) -> Outcome:
    """Where the time of our round goes, Base and Novel for every client included."""
    torch.set_num_threads(threads)
    backend = SerialBackend(threads)
    with tempfile.TemporaryDirectory() as folder:
        wanted = job(scene or vit_b_16(), Path(folder), CLIENTS, SHOTS, batch, tests)
        backend.load(wanted)
        server = Server(wanted, backend)
        state = server.initial_state()
        stages: dict[str, float] = {}

        def one() -> None:
            stages.update(server.step(state).row.seconds)

        told = where_time_goes("round", one, 1, ())
    backend.close()
    parts = ", ".join(f"{stage} {taken:.2f} s" for stage, taken in stages.items())
    return replace(told, notes=(f"our round with Base and Novel, {threads} threads; by stage: {parts}",))


def measure(
    threads: int,
    progress: Callable[[str], None],
    scene: Scene | None = None,
    tests: tuple[int, int] = (BASE_TEST, NOVEL_TEST),
    batch: int = BATCH,
) -> Outcome:
    """Ours as it runs (server, block of all clients, rows) with cached features; the plain way scaled from a few steps.

    Args:
        tests: number of base and of novel test images.
    """
    torch.set_num_threads(threads)
    keep_freed_memory()  # page faults would slow the plain way down, and ours hardly
    scene = scene or vit_b_16()
    progress("the authors' way: a few steps, images and prompts")
    cost = plain_cost(scene, batch, REPEATS)
    with tempfile.TemporaryDirectory() as folder:
        wanted = job(scene, Path(folder), CLIENTS, SHOTS, batch, tests)
        without_novel = replace(wanted, data=replace(wanted.data, evaluation_sets=wanted.data.evaluation_sets[:1]))
        progress("ours, tests on own classes (Base comes with them)")
        local = our_round(without_novel, threads)
        progress("ours, Base and Novel for every client")
        full = our_round(wanted, threads)
    counts = [len(rows) for rows in wanted.data.train_rows]
    steps = sum(max(1, count // batch) for count in counts) * EPOCHS
    members = [len(own) for own in wanted.data.evaluation_sets[0].members or ()]
    plain_local = cost.round(steps, members * 2)
    plain_full = plain_local + cost.round(0, [tests[0] - own for own in members] + [tests[1]] * CLIENTS)
    rows = [
        ["plain", f"{plain_local:.0f}", f"{plain_full:.0f}"],
        ["ours", f"{local:.2f}", f"{full:.2f}"],
        ["times faster", f"{plain_local / local:.1f}", f"{plain_full / full:.1f}"],
    ]
    notes = (
        f"{CLIENTS} clients, {steps} steps of {batch} images, {len(scene.base)} classes, {threads} threads; every "
        "client is tested on its own classes after training and after aggregation",
        f"Base and Novel: every client also on all {tests[0]} base and {tests[1]} novel images after aggregation",
        f"plain: scaled from medians of {REPEATS}: {cost.step:.2f} s a step, {cost.image:.3f} s an image, "
        f"{cost.text:.2f} s the prompts of a test batch of {TEST_BATCH} (p_i alone, though their code encodes more)",
        "ours: features from the cache; encoding them once is not in it",
    )
    figures = {"ratio": plain_local / local, "ratio_full_evaluation": plain_full / full}
    return Outcome("round", figures, ("seconds of a round", "own classes", "with Base and Novel"), rows, notes)

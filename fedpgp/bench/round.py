"""Compare a FedPGP round and its tests with the authors' code: clients in sequence, images encoded every time."""

import tempfile
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from math import ceil
from pathlib import Path
from statistics import median

import torch

from fedpgp.bench import measurement
from fedpgp.bench.measurement import Measurement, Report, alternated
from fedpgp.bench.step import Steps
from fedpgp.bench.workload import BASE_TEST, NOVEL_TEST, Workload, job, round_seconds, vit_b_16
from fedpgp.federation.backends.base import SerialBackend
from fedpgp.federation.resources import keep_freed_memory
from fedpgp.federation.server import Server
from fedpgp.federation.worker import FederationJob

CLIENTS, SHOTS, BATCH, EPOCHS = 10, 16, 32, 2
TEST_BATCH = 100
"""Images per batch of the authors' test loop, which encodes the prompts again for each batch."""
TESTS = (BASE_TEST, NOVEL_TEST)
REPEATS = 3


def reference_seconds(step: float, image: float, text: float, steps: int, tests: Sequence[int]) -> float:
    """Seconds of the authors' code for that many steps, and for tests on that many images each.

    Args:
        step: seconds of a step; `image`: of encoding an image; `text`: of the text features of p_i.
    """
    return step * steps + sum(image * count + text * ceil(count / TEST_BATCH) for count in tests)


def our_round(wanted: FederationJob, threads: int) -> float:
    """Median seconds of a round with all clients in one block, in this process."""
    with closing(SerialBackend(threads)) as backend:
        backend.load(wanted)
        return median(round_seconds(Server(wanted, backend), REPEATS))


def profile(
    threads: int, workload: Workload | None = None, tests: tuple[int, int] = TESTS, batch: int = BATCH
) -> Measurement:
    """Profile our round, including the tests of every client on Base and Novel."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder, closing(SerialBackend(threads)) as backend:
        wanted = job(workload or vit_b_16(), Path(folder), CLIENTS, SHOTS, batch, tests)
        backend.load(wanted)
        server, stages = Server(wanted, backend), dict[str, float]()
        state = server.initial_state()
        found = measurement.profile("round", lambda: stages.update(server.step(state).row.seconds), 1, ())
    parts = ", ".join(f"{stage} {taken:.2f} s" for stage, taken in stages.items())
    return replace(found, notes=(f"fedpgp's round with Base and Novel, {threads} threads; by stage: {parts}",))


def measure(
    threads: int, report: Report, workload: Workload | None = None, tests: tuple[int, int] = TESTS, batch: int = BATCH
) -> Measurement:
    """Measure ours as it runs (server, one block, rows, cached features); extrapolate the reference from a few steps.

    Args:
        tests: number of base and of novel test images.
    """
    torch.set_num_threads(threads)
    keep_freed_memory()  # page faults would slow mainly the reference down
    workload = workload or vit_b_16()
    report("the authors' way: a few steps, images and prompts")
    both = Steps(workload, batch)
    parts = (both.reference, both.encode, both.classify)
    for warm_up in parts:
        warm_up()
    step, encoding, text = alternated(REPEATS, *parts)
    image = encoding / batch
    with tempfile.TemporaryDirectory() as folder:
        wanted = job(workload, Path(folder), CLIENTS, SHOTS, batch, tests)
        without_novel = replace(wanted, data=replace(wanted.data, evaluation_sets=wanted.data.evaluation_sets[:1]))
        report("fedpgp, tests on own classes (which include Base)")
        local = our_round(without_novel, threads)
        report("fedpgp, Base and Novel for every client")
        full = our_round(wanted, threads)
    counts = [len(rows) for rows in wanted.data.train_rows]
    steps = sum(max(1, count // batch) for count in counts) * EPOCHS
    members = [len(own) for own in wanted.data.evaluation_sets[0].members or ()]
    reference_local = reference_seconds(step, image, text, steps, members * 2)
    others = [tests[0] - own for own in members] + [tests[1]] * CLIENTS
    reference_full = reference_local + reference_seconds(step, image, text, 0, others)
    rows = [
        ["plain", f"{reference_local:.0f}", f"{reference_full:.0f}"],
        ["fedpgp", f"{local:.2f}", f"{full:.2f}"],
        ["times faster", f"{reference_local / local:.1f}", f"{reference_full / full:.1f}"],
    ]
    notes = (
        f"{CLIENTS} clients, {steps} steps of {batch} images, {len(workload.base)} classes, {threads} threads; every "
        "client is tested on its own classes after training and after aggregation",
        f"Base and Novel: every client also on all {tests[0]} base and {tests[1]} novel images after aggregation",
        f"plain (the authors' way): extrapolated from medians of {REPEATS}: {step:.2f} s per step, "
        f"{image:.3f} s per image, {text:.2f} s for the prompts of a test batch of {TEST_BATCH} (p_i only, "
        "though their code encodes more)",
        "fedpgp: features from the cache; encoding them once is not included",
    )
    figures = {"ratio": reference_local / local, "ratio_full_evaluation": reference_full / full}
    return Measurement("round", figures, ("seconds of a round", "own classes", "with Base and Novel"), rows, notes)

"""Measure a training round of every method: seconds and floating-point operations, both beside PromptFL's.

A method should not take more time than its operations say.
"""

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np
import torch

from fedpgp import methods
from fedpgp.bench.measurement import Measurement, Report, counted
from fedpgp.bench.workload import BASE, NOVEL, TEMPLATE
from fedpgp.clip.feature_cache import Array, FeatureKey, write_shard
from fedpgp.clip.images import patch_tokens
from fedpgp.clip.model import Backbone
from fedpgp.clip.text_backbone import FrozenText, freeze, names_only
from fedpgp.config import FederationSettings
from fedpgp.core import memory
from fedpgp.core.errors import ConfigError
from fedpgp.core.seeding import numpy_generator
from fedpgp.data.federated import FederatedData
from fedpgp.data.ragged import Ragged
from fedpgp.federation import rule_needs
from fedpgp.federation.backends.base import SerialBackend
from fedpgp.federation.messages import Features
from fedpgp.federation.resources import keep_freed_memory
from fedpgp.federation.server import Server
from fedpgp.federation.worker import FederationJob
from fedpgp.methods.base import BringsNetwork, Method, PreparesRound

ORACLE = "promptfl"
NAMES = (*BASE, *NOVEL)
REPEATS = 3
PATIENCE = 60.0
"""Seconds for the timed rounds of a method. If none fits, the round whose operations are counted is timed: that
lengthens a long round by little."""


@dataclass(frozen=True)
class Setting:
    """What all methods are measured with."""

    backbone: Backbone
    clients: int
    classes: int
    images: int  # of each client, which are one batch
    steps: int  # of a client in a round
    threads: int

    @property
    def names(self) -> tuple[str, ...]:
        """The classes."""
        return NAMES[: self.classes]

    def text(self, chosen: Sequence[Method]) -> FrozenText:
        """The frozen towers for all of these methods."""
        texts = dict.fromkeys(text for method in chosen for text in method.extra_texts)
        visual = any("image" in method.required_towers for method in chosen)
        return freeze(self.backbone, self.names, TEMPLATE, tuple(texts), visual=visual)

    def job(self, method: Method, text: FrozenText, folder: Path) -> FederationJob:
        """Clients with noise in place of images, in the form that the method receives. Nobody is tested."""
        if isinstance(method, BringsNetwork):
            image, text = method.image, names_only(self.names, TEMPLATE)
        else:
            image = self.backbone.image
            text = text if "image" in method.required_towers else replace(text, visual=None)
        key = FeatureKey(f"bench {method.name}", "random", image.digest, variant=method.image_inputs)
        cache = Features(folder / f"{key.digest}.arrow", key)
        rows = np.arange(self.clients * self.images)
        write_shard(cache.path, key, rows, self._noise(method, image.size, len(rows)))
        labels = numpy_generator(1, "bench labels").integers(self.classes, size=len(rows))
        data = FederatedData(
            client_names=tuple(f"client {client}" for client in range(self.clients)),
            class_names=self.names,
            domains=("only",),
            class_sets={"all": tuple(range(self.classes))},
            train_set="all",
            train_rows=Ragged.of(np.split(rows, self.clients)),
            train_labels=Ragged.of(np.split(labels, self.clients)),
            evaluation_sets=(),
            manifest_digest="bench",
        )
        federation = FederationSettings(
            rounds=10**6, local_steps=self.steps, batch_size=self.images, block_size=self.clients, eval_every=10**6
        )
        rule = rule_needs.rule_of(method, federation)
        return FederationJob(method, text, data, cache, cache, federation, seed=1, rule=rule)

    def _noise(self, method: Method, size: int, count: int) -> Array:
        """Features (count, 1, ...)."""
        generator = numpy_generator(1, "bench images")
        if method.image_inputs == "pixels":
            return generator.integers(256, size=(count, 1, 3, size, size), dtype=np.uint8)
        with torch.no_grad():
            tokens = patch_tokens(self.backbone.model.visual, torch.zeros(1, 3, size, size))
        shape = tokens.shape[1:] if method.image_inputs == "patches" else tokens.shape[2:]
        return generator.standard_normal((count, 1, *shape), np.float32)


class Rounds:
    """Consecutive rounds of a method in this process, all clients in one batch if memory allows, else one by one."""

    def __init__(self, job: FederationJob, threads: int, stack: ExitStack) -> None:
        backend = stack.enter_context(closing(SerialBackend(threads)))
        backend.load(job)
        self.server = Server(job, backend)
        self.state = self.server.initial_state()
        needed, there = self.server.memory(self.state) or 0, memory.free() or memory.total()
        self.together = min(job.data.num_clients, self.server.block_size)
        if needed > there / 2:
            self.together = 1
            job = replace(job, federation=job.federation.model_copy(update={"chunk_size": 1}))
            backend.load(job)
            self.server = Server(job, backend)

    def run(self) -> float:
        """Run a round; the seconds of its local training."""
        result = self.server.step(self.state)
        self.state = result.state
        return result.row.seconds["train"]

    def work_once(self) -> int:
        """The operations of what the method computes once per round, before its first step."""
        job = self.server.job
        method = job.method
        if not isinstance(method, PreparesRound):
            return 0
        common, own = job.rule.broadcast(self.state.server, self.state.shared, job.data.training_clients)
        received, frozen = {**common, **own}, job.text.on(job.data.class_sets[job.data.train_set])
        method.prepare(received, frozen)  # makes constants
        return counted(lambda: method.prepare(received, frozen))[1]


@dataclass(frozen=True)
class Found:
    """What was measured of a method."""

    seconds: float  # of a round's local training, median
    oracle: float  # PromptFL's, alternated with these
    work: int  # operations of a round
    once: int  # those of them before the first step
    steps: int  # of a client in a round, in all phases
    together: int  # clients in one batch


def measure(chosen: Mapping[str, Method], setting: Setting, report: Report) -> Measurement:
    """Measure the methods, each alternated with PromptFL.

    Methods that train nothing, or that do not fit the backbone with their default settings, are left out.

    The first round is not timed: it makes constants, and there may be nothing to receive yet. The operations are those
    of the second.

    Args:
        chosen: by the names that the figures have.
        setting: the sizes.
        report: shows progress.
    """
    torch.set_num_threads(setting.threads)
    keep_freed_memory()
    trained = {name: method for name, method in chosen.items() if method.phases}
    oracle = methods.create(ORACLE, {})
    text = setting.text([oracle, *(method for method in trained.values() if not isinstance(method, BringsNetwork))])
    unfit = _unfit(trained, text)
    trained = {name: method for name, method in trained.items() if name not in unfit}
    found = {}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        report(f"{ORACLE}, with which the others are compared")
        reference = Rounds(setting.job(oracle, text, Path(folder)), setting.threads, stack)
        reference.run()
        _, work = counted(reference.run)
        for number, (name, method) in enumerate(trained.items(), 1):
            with ExitStack() as own:
                report(f"{name}, {number} of {len(trained)}")
                found[name] = _of(Rounds(setting.job(method, text, Path(folder)), setting.threads, own), reference)
    untrained = [name for name, method in chosen.items() if not method.phases]
    return _measurement(found, work, setting, untrained, unfit)


def _unfit(trained: Mapping[str, Method], text: FrozenText) -> dict[str, str]:
    """Why methods do not fit the backbone with their settings."""
    reasons = {}
    for name, method in trained.items():
        if not isinstance(method, BringsNetwork):
            try:
                method.init(text.on(range(len(text.class_names))), torch.Generator())
            except ConfigError as error:
                reasons[name] = str(error)
    return reasons


def _of(rounds: Rounds, reference: Rounds) -> Found:
    rounds.run()
    seconds_counted, work = counted(rounds.run)
    repeats = min(REPEATS, int(PATIENCE / seconds_counted))
    pairs = [(reference.run(), rounds.run()) for _ in range(repeats)] or [(reference.run(), seconds_counted)]
    oracle, seconds = (median(times) for times in zip(*pairs, strict=True))
    given = rounds.server.job.federation.local_steps or 0
    steps = sum(phase.epochs or given for phase in rounds.server.job.method.phases)  # an epoch is one batch
    return Found(seconds, oracle, work, rounds.work_once(), steps, rounds.together)


def _measurement(
    found: Mapping[str, Found], work: int, setting: Setting, untrained: Sequence[str], unfit: Mapping[str, str]
) -> Measurement:
    figures: dict[str, float] = {}
    rows = []
    for name, one in found.items():
        slower, more = one.seconds / one.oracle, one.work / work
        per_step = (one.work - one.once) / one.steps / 1e9
        figures |= {
            f"seconds_{name}": one.seconds,
            f"gflop_per_step_{name}": per_step,
            f"gflop_per_round_{name}": one.work / 1e9,
            f"gflop_once_per_round_{name}": one.once / 1e9,
            f"seconds_ratio_{name}": slower,
            f"flops_ratio_{name}": more,
            f"seconds_per_flop_ratio_{name}": slower / more,
            f"clients_in_one_batch_{name}": one.together,
        }
        numbers = (one.seconds, per_step, one.once / 1e9, slower, more, slower / more)
        rows.append([name, *(f"{number:,.2f}" for number in numbers), str(one.together)])
    image = f"{setting.backbone.name} with random weights"
    notes = [
        f"{image}, {setting.clients} clients, {setting.classes} classes, {setting.images} images in a batch, "
        f"{setting.steps} steps in a round (more where a phase has epochs of its own), {setting.threads} threads",
        f"seconds: of a round, medians of up to {REPEATS}, alternated with {ORACLE}; ratios and time per FLOP are to "
        f"{ORACLE}'s",
        "GFLOP: of matrix products, attention and convolutions, forward and backward, in a step of all clients; once: "
        "before the first step of a round. Other operators, such as decompositions, take time and are not counted",
        "in one batch: clients; one by one where the memory for all is short or the method says so",
    ]
    notes += [f"not measured, for they train nothing: {', '.join(untrained)}"] if untrained else []
    notes += [f"not measured: {reason}" for reason in unfit.values()]
    headings = (
        "method", "seconds", "GFLOP per step", "GFLOP once", "time ratio", "FLOP ratio", "time per FLOP",
        "in one batch",
    )  # fmt: skip
    return Measurement("methods", figures, headings, rows, notes)

"""What a sweep will take, told before it starts and without its data: runs, resources, rough time and bytes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from fedpgp import methods
from fedpgp.clip import icon_clip
from fedpgp.clip.model import TINY
from fedpgp.config import BackboneSettings, DataSettings, Experiment, ResourceSettings
from fedpgp.core.errors import ConfigError, DataError, FedPGPError
from fedpgp.data import manifest, protocol
from fedpgp.data.manifest import Manifest
from fedpgp.experiments.sweeps import sampling
from fedpgp.experiments.sweeps.sampling import SampledTrials, Trial
from fedpgp.experiments.sweeps.sweep_settings import Sweep
from fedpgp.federation.metrics import METRICS
from fedpgp.methods.size import parameter_counts
from fedpgp.storage.run_folder import RunFolder
from fedpgp.storage.sweep_folder import Fold

ASSUMED_CLASSES = 100
ASSUMED_CLIENTS = 5
TOKENS_PER_CLASS = 4
FLOPS_PER_THREAD, FLOPS_PER_GPU = 3e10, 1e13
PASSES = 3
"""A step is a forward pass and a backward one that takes as long as two."""
ROW_BYTES = 60
KEPT_CHECKPOINTS = 3


@dataclass(frozen=True)
class Estimate:
    """A sweep before it starts. Times and bytes are rough: they tell minutes from days."""

    folds: tuple[tuple[Fold, ...], ...]
    """of each trial"""
    resources: tuple[str, ...]
    """what a trial reserves, a line for each kind"""
    seconds: float
    """of the whole sweep, after the frozen features are there"""
    basis: str
    """where the time comes from"""
    disk_bytes: int
    """rows and checkpoints of all runs"""
    wire_bytes: int
    """parameters sent up and down on the simulated wire"""
    skipped: tuple[str, ...]
    """checks that need what is not here"""


def estimate(sweep: Sweep, drawn: SampledTrials) -> Estimate:
    """Look at every fold of every trial, as far as it goes without data and weights.

    Raises:
        UserError: data that are here cannot be used as a trial wants it.
    """
    manifests, skipped = _manifests(drawn.trials)
    measured = _measured(drawn.trials)
    folds, seconds, disk, wire, guessed = [], 0.0, 0, 0, 0
    for trial in drawn.trials:
        experiment = trial.experiment
        found = manifests[experiment.data]
        own = sampling.folds(sweep, trial, None if found is None else found.domains)
        folds.append(own)
        for fold in own:
            size = _size(trial.fold(fold), found)
            known = measured.get(_kind(experiment))
            guessed += known is None
            seconds += size.rounds * (known if known is not None else size.seconds_per_round)
            disk += size.disk_bytes
            wire += size.wire_bytes
    total = sum(map(len, folds))
    basis = (
        "from rounds of earlier runs here" if not guessed else f"computed, not measured, for {guessed} of {total} runs"
    )
    skipped += [
        f"backbone {name} is not loaded: whether its weights are there, and whether each method fits its text tower"
        for name in dict.fromkeys(trial.experiment.backbone.name for trial in drawn.trials)
    ]
    return Estimate(
        folds=tuple(folds),
        resources=tuple(dict.fromkeys(reserved(trial.experiment.resources) for trial in drawn.trials)),
        seconds=seconds / min(sweep.tune.max_concurrent, len(drawn.trials)),
        basis=basis,
        disk_bytes=disk,
        wire_bytes=wire,
        skipped=tuple(skipped),
    )


def reserved(resources: ResourceSettings) -> str:
    """What a trial reserves, in words."""
    each = f"{resources.cpus_per_actor:g} CPU, {resources.gpus_per_actor:g} GPU"
    return each if resources.backend == "serial" else f"{resources.actors} actors x ({each})"


@dataclass(frozen=True)
class _Size:
    rounds: int
    seconds_per_round: float
    disk_bytes: int
    wire_bytes: int


def _manifests(trials: Sequence[Trial]) -> tuple[dict[DataSettings, Manifest | None], list[str]]:
    """The data that are here, and what cannot be checked because some are not."""
    found: dict[DataSettings, Manifest | None] = {}
    skipped = []
    for data in dict.fromkeys(trial.experiment.data for trial in trials):
        try:
            found[data] = manifest.build(data)
        except DataError as error:
            found[data] = None
            skipped.append(f"data {data.name}: domains, clients, classes and shots ({str(error).splitlines()[0]})")
    return found, skipped


def _size(experiment: Experiment, found: Manifest | None) -> _Size:
    """How large one run is."""
    method = methods.create(experiment.method.name, experiment.method.settings)
    federation = experiment.federation
    clients, classes, images, domains = _shape(experiment, found)
    rounds = federation.rounds if method.phases else 0
    try:
        shared, personal = parameter_counts(method)
    except ConfigError:  # it does not fit the tower of reference; whether it fits its own only that one can tell
        shared, personal = 0, 0
    participants = max(1, round(clients * federation.participation))
    steps = participants * federation.local_epochs * -(-images // federation.batch_size)
    layers, width = _text_tower(experiment.backbone)
    flops = PASSES * 2 * 12 * layers * width**2 * (classes * TOKENS_PER_CLASS + 20) * (2 if personal else 1)
    resources = experiment.resources
    blocks = -(-participants // federation.block_size)
    workers = 1 if resources.backend == "serial" else min(resources.actors, blocks)
    rate = workers * (FLOPS_PER_GPU * resources.gpus_per_actor or FLOPS_PER_THREAD * resources.threads)
    rows = 2 * (rounds / federation.eval_every + 1) * clients * len(METRICS) / 3 * (1 + domains * (domains > 1))
    return _Size(
        rounds=max(1, rounds),
        seconds_per_round=steps * flops / rate,
        disk_bytes=int(2 * rows * ROW_BYTES + KEPT_CHECKPOINTS * 4 * (shared + clients * personal)),
        wire_bytes=2 * 4 * shared * participants * rounds,
    )


def _shape(experiment: Experiment, found: Manifest | None) -> tuple[int, int, int, int]:
    """Clients, classes trained on, training images of a client, domains: counted; assumed if the data are not here."""
    if found is not None and experiment.protocol.held_out != protocol.EVERY_DOMAIN:
        data = protocol.build(found, experiment.partition, experiment.protocol, experiment.seed)
        images = sum(map(len, data.train_rows)) // len(data.train_rows)
        return len(data.train_rows), len(data.class_sets[data.train_set]), images, len(data.domains)
    partition = experiment.partition
    clients = partition.clients or ASSUMED_CLIENTS * partition.clients_per_domain
    classes = ASSUMED_CLASSES // (2 if experiment.protocol.name == "base_to_novel" else 1)
    own = -(-classes // clients) if partition.scheme in ("pathological", "authors_2023") else classes
    return clients, classes, own * (experiment.protocol.shots or 100), 1


def _text_tower(backbone: BackboneSettings) -> tuple[int, int]:
    """Layers and width; ViT-B's where nothing else is known without loading a library."""
    if backbone.name == "tiny":
        text = TINY["text_cfg"]
    elif backbone.name == icon_clip.NAME:
        text = json.loads(icon_clip.CONFIG.read_text(encoding="utf-8"))["model_cfg"]["text_cfg"]
    else:
        text = {"layers": 12, "width": 768 if "-L" in backbone.name else 512}
    return int(text["layers"]), int(text["width"])


def _kind(experiment: Experiment) -> tuple[str, str, str]:
    return experiment.method.name, experiment.data.name, experiment.backbone.name


def _measured(trials: Sequence[Trial]) -> dict[tuple[str, str, str], float]:
    """Mean seconds per round of the finished runs in the trials' stores, by method, data and backbone."""
    seconds: dict[tuple[str, str, str], list[float]] = {}
    for root in dict.fromkeys(trial.experiment.storage.root for trial in trials):
        for store in _finished(root):
            summary, identity = store.summary or {}, store.identity
            kind = (identity["method"], identity["data"], str(identity["backbone"]))
            seconds.setdefault(kind, []).append(sum(summary.get("seconds", {}).values()))
    return {kind: fmean(values) for kind, values in seconds.items()}


def _finished(root: Path) -> list[RunFolder]:
    try:
        return [store for store in RunFolder.find(root) if (store.path / "summary.json").exists()]
    except FedPGPError:
        return []

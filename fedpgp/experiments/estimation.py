"""Estimate what a plan or a sweep will take: images to encode, memory, time, and bytes on disk and on the wire."""

import tempfile
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np

from fedpgp import methods, server_rules
from fedpgp.clip.feature_cache import Chunk, FeatureCache, write_shard
from fedpgp.clip.model import ICON_CLIP, read_config
from fedpgp.config import BackboneSettings, DataSettings, Experiment
from fedpgp.core.errors import ConfigError, DataError, FedPGPError
from fedpgp.core.seeding import count_of_share
from fedpgp.core.tree import ParamTree, num_bytes
from fedpgp.data import manifest, protocol
from fedpgp.data.manifest import Manifest
from fedpgp.experiments import placement
from fedpgp.experiments.features import extraction_job, required_features
from fedpgp.experiments.planning import Plan, describe_resources
from fedpgp.experiments.runner import make_job
from fedpgp.experiments.sweeps import sampling
from fedpgp.experiments.sweeps.sampling import SampledTrials, Trial
from fedpgp.experiments.sweeps.sweep_settings import Sweep
from fedpgp.federation import extraction, rule_needs, traffic
from fedpgp.federation.backends.base import SerialBackend
from fedpgp.federation.cohorts import participants, rounding
from fedpgp.federation.extraction import Forecast
from fedpgp.federation.messages import Features
from fedpgp.federation.pooled_counts import BINS
from fedpgp.federation.server import Server
from fedpgp.methods.size import parameters
from fedpgp.server_rules.base import ClientHalf, ServerRule
from fedpgp.storage.run_folder import RunFolder
from fedpgp.storage.sweep_folder import Fold

ASSUMED_CLASSES = 100
ASSUMED_CLIENTS = 5
TOKENS_PER_CLASS = 4
FLOPS_PER_THREAD, FLOPS_PER_GPU = 3e10, 1e13
PASSES = 3
"""A step is a forward pass and a backward one that takes as long as two."""
ROW_BYTES, POOLED_BYTES = 60, 13
"""Of a row of a client, which is written twice, and of one over all clients."""
ACCURACIES = 4
"""Of a client on the images of a split."""
KEPT_CHECKPOINTS = 3


def of_extraction(plan: Plan) -> list[Forecast]:
    """Estimate the extraction of each feature cache of a plan, by encoding a few images in this process."""
    with closing(_backend(plan)) as backend:
        return [
            extraction.forecast(extraction_job(plan, cache), cache.path, rows, backend)
            for cache, (_, rows) in required_features([plan]).items()
        ]


def of_memory(plan: Plan) -> int | None:
    """Estimate the bytes that an actor needs to train a block, by one step in this process; None: nothing is trained.

    No features are needed: the first image of the first client is encoded and used for all its images.
    """
    if not plan.method.phases:
        return None
    train, rows = next(iter(required_features([plan]))), plan.data.train_rows[0]
    with tempfile.TemporaryDirectory() as folder, closing(_backend(plan)) as backend:
        backend.load(extraction_job(plan, train))
        (chunk,) = backend.map("encode_chunk", [Chunk(rows[:1], Path(folder) / "one.arrow")])
        one = FeatureCache.open(chunk.shard, train.key).gather(rows[:1])
        repeated = Features(Path(folder) / "repeated.arrow", train.key)
        write_shard(repeated.path, train.key, rows, np.broadcast_to(one, (len(rows), train.key.views, *one.shape[1:])))
        job = make_job(plan, repeated, repeated)
        backend.load(job)
        server = Server(job, backend)
        return server.memory(server.initial_state())


def _backend(plan: Plan) -> SerialBackend:
    resources = plan.experiment.resources
    return SerialBackend(resources.threads, gpus=resources.gpus_per_actor)


@dataclass(frozen=True)
class Estimate:
    """Rough time and bytes of a sweep, to tell minutes from days."""

    folds: tuple[tuple[Fold, ...], ...]
    """of each trial"""
    resources: tuple[str, ...]
    """reserved by a trial, one line for each kind of trial"""
    seconds: float
    """of the whole sweep, without the extraction of features"""
    basis: str
    """source of the time"""
    disk_bytes: int
    """rows and checkpoints of all runs"""
    wire_bytes: int
    """parameters sent up and down on the simulated wire"""
    skipped: tuple[str, ...]
    """checks that need missing data or weights"""
    rounded: tuple[str, ...]
    """numbers of participants that are not exactly the fraction asked for"""


def of_sweep(sweep: Sweep, drawn: SampledTrials) -> Estimate:
    """Estimate a sweep without weights and missing data; raise `UserError` if existing data do not fit a trial."""
    manifests, skipped = _manifests(sweep, drawn.trials)
    measured = _measured(drawn.trials)
    folds, seconds, disk, wire, computed = [], 0.0, 0, 0, 0
    rounded, resources = [], []
    for trial in drawn.trials:
        experiment, found = trial.experiment, manifests[trial.experiment.data]
        known = measured.get((experiment.method.name, experiment.data.name, experiment.backbone.name))
        held_out = None if found is None else protocol.held_out_names(found)
        own = sampling.folds(sweep, trial, held_out)
        folds.append(own)
        if sweep.folds.splits is not None:
            data = {fold: manifests[trial.fold(fold).data] for fold in own}
            sampling.check_splits(trial, {fold: one.digest for fold, one in data.items() if one})
        clients, training, *_ = _shape(trial.fold(own[0]), found)
        rounded.append(rounding(training, experiment.federation))
        resources.append(describe_resources(placement.in_trial(experiment, clients)))
        for fold in own:
            rounds, seconds_per_round, disk_bytes, wire_bytes = _size(trial.fold(fold), found)
            computed += known is None
            seconds += rounds * (seconds_per_round if known is None else known)
            disk += disk_bytes
            wire += wire_bytes
    trials = sweep.tune.num_samples if sweep.tune.adaptive else len(drawn.trials)
    share = trials / len(drawn.trials)  # what a search will suggest costs as much as the trials that it is checked with
    of_runs = f"computed, not measured, for {computed} of {sum(map(len, folds))} runs"
    skipped += [
        f"backbone {name} is not loaded: whether its weights exist, and whether each method fits its text tower"
        for name in dict.fromkeys(trial.experiment.backbone.name for trial in drawn.trials)
    ]
    return Estimate(
        folds=tuple(folds),
        resources=tuple(dict.fromkeys(resources)),
        seconds=share * seconds / min(sweep.tune.max_concurrent, trials),
        basis=of_runs if computed else "from rounds of earlier runs here",
        disk_bytes=round(share * disk),
        wire_bytes=round(share * wire),
        skipped=tuple(dict.fromkeys(skipped)),
        rounded=tuple(dict.fromkeys(filter(None, rounded))),
    )


def _manifests(sweep: Sweep, trials: Sequence[Trial]) -> tuple[dict[DataSettings, Manifest | None], list[str]]:
    """The data that exist, and the checks that missing data prevent."""
    found: dict[DataSettings, Manifest | None] = {}
    skipped = []
    data_of_trials = dict.fromkeys(trial.experiment.data for trial in trials)
    splits = sweep.folds.splits or (None,)
    for data in (one if split is None else one.with_split(split) for one in data_of_trials for split in splits):
        try:
            found[data] = manifest.build(data)
        except DataError as error:
            found[data] = None
            skipped.append(f"data {data.name}: domains, clients, classes and shots ({str(error).splitlines()[0]})")
    return found, skipped


def _size(experiment: Experiment, found: Manifest | None) -> tuple[int, float, int, int]:
    """Rounds, seconds per round, bytes on disk and bytes on the wire of one run."""
    method = methods.create(experiment.method.name, experiment.method.settings)
    federation, resources = experiment.federation, experiment.resources
    clients, training, classes, images, domains = _shape(experiment, found)
    rounds = federation.rounds if method.phases else 0
    try:
        shared, personal = parameters(method)
    except ConfigError:  # it does not fit the reference tower; whether it fits its own is known once that is loaded
        shared, personal = {}, {}
    rule = rule_needs.rule_of(method, federation)
    if server_rules.plugin(federation.server.name):
        server_rules.plugin_check.dry_run(federation.server.name, rule, shared)
    held, kept, sent = _of_rule(rule, shared, training)
    kept += rule_needs.momentum_bytes(method, federation, shared | personal)
    trained = participants(training, federation.participation)
    steps = trained * (federation.local_steps or federation.local_epochs * -(-images // federation.batch_size))
    layers, width = _text_tower(experiment.backbone)
    flops = PASSES * 2 * 12 * layers * width**2 * (classes * TOKENS_PER_CLASS + 20) * (2 if personal else 1)
    workers = min(resources.workers, -(-trained // federation.block_size))
    rate = workers * (FLOPS_PER_GPU * resources.gpus_per_actor or FLOPS_PER_THREAD * resources.threads)
    accuracies = 2 * (rounds / federation.eval_every + 1) * ACCURACIES
    most = federation.eval_clients or clients
    tested = min(most, training) + min(most, clients - training)
    rows = accuracies * tested * (1 + domains * (domains > 1))
    pooled = accuracies * domains * (classes + BINS)
    state = num_bytes(shared) + held + clients * (num_bytes(personal) + kept)
    disk_bytes = int(2 * rows * ROW_BYTES + pooled * POOLED_BYTES + KEPT_CHECKPOINTS * state)
    return max(1, rounds), steps * flops / rate, disk_bytes, sent * trained * rounds


def _of_rule(rule: ServerRule, shared: ParamTree, training: int) -> tuple[int, int, int]:
    """Bytes that the server holds beside the shared parameters, that a client keeps, and that it sends and receives."""
    held = rule.init(shared, training)
    kept = rule.init_kept(shared) if isinstance(rule, ClientHalf) else {}
    travel = traffic.bytes_down(rule, held, shared, padded=True) + num_bytes(traffic.sent(rule, held, shared))
    return num_bytes(held), num_bytes(kept), travel


def _shape(experiment: Experiment, found: Manifest | None) -> tuple[int, int, int, int, int]:
    """Clients, those that train, training classes, images of a client, domains; assumed if the data are missing."""
    if found is not None and experiment.protocol.held_out != protocol.EVERY_DOMAIN:
        data = protocol.build(found, experiment.partition, experiment.protocol, experiment.seed)
        images = len(data.train_rows.flat) // len(data.train_rows)
        training = len(data.training_clients)
        return data.num_clients, training, len(data.class_sets[data.train_set]), images, len(data.domains)
    partition = experiment.partition
    given, parts = partition.clients, len(experiment.data.members)
    each = given or ASSUMED_CLIENTS * partition.clients_per_domain
    clients = sum(each.values()) if isinstance(each, dict) else each * parts
    classes = ASSUMED_CLASSES // (2 if experiment.protocol.name == "base_to_novel" else 1)
    own = -(-classes * parts // clients) if partition.scheme in ("pathological", "authors_2023") else classes
    training = clients - count_of_share(clients, partition.unseen_clients)
    return clients, training, classes, own * (experiment.protocol.shots or 100), 1


def _text_tower(backbone: BackboneSettings) -> tuple[int, int]:
    """Layers and width; those of ViT-B or ViT-L if the backbone would have to be loaded."""
    if backbone.name in ("tiny", ICON_CLIP):
        text = read_config(backbone.name)[0]["text_cfg"]
    else:
        text = {"layers": 12, "width": 768 if "-L" in backbone.name else 512}
    return int(text["layers"]), int(text["width"])


def _measured(trials: Sequence[Trial]) -> dict[tuple[str, str, str], float]:
    """Mean seconds per round of the finished runs in the trials' storage roots, by method, data and backbone."""
    seconds: dict[tuple[str, str, str], list[float]] = {}
    for root in dict.fromkeys(trial.experiment.storage.root for trial in trials):
        try:
            stores = RunFolder.find(root)
        except FedPGPError:
            continue
        for store in stores:
            if summary := store.summary:
                identity = store.identity
                kind = (identity["method"], identity["data"], str(identity["backbone"]))
                seconds.setdefault(kind, []).append(sum(summary.get("seconds", {}).values()))
    return {kind: fmean(values) for kind, values in seconds.items()}

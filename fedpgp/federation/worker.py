"""The worker: trains or evaluates a block of clients in one call. It is stateless between calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from fedpgp.clip.feature_cache import FeatureCache
from fedpgp.clip.text_backbone import FrozenText
from fedpgp.clip.towers import tensors_of
from fedpgp.config import FederationSettings
from fedpgp.core.seeding import numpy_generator
from fedpgp.core.tree import ParamTree, choose, num_bytes, repeated, rows, select, without
from fedpgp.data.protocol import EvaluationSet, FederatedData
from fedpgp.federation.client import (
    LocalData,
    Optimizer,
    Order,
    Update,
    batches,
    local_update,
    schedule,
    travel,
    validate,
)
from fedpgp.federation.learning_rates import factors
from fedpgp.federation.messages import Arrays, Call, Counts, Features, TrainResult, to_arrays
from fedpgp.federation.privacy import Mechanism
from fedpgp.federation.state import weighted_sum
from fedpgp.methods.base import Classifier, HasGlobalModel, Method
from fedpgp.server_rules.base import ClientHalf, ServerRule
from fedpgp.server_rules.fedavg import FEDAVG

PROCESS_BYTES = 1024**3 // 2  # memory of a process that has loaded torch and Ray and nothing else
MOST_CLASSES = 1000  # with more there is no confusion matrix, which would take more than 8 MB
VALUES_PER_CHUNK = 1 << 24  # most logits or feature values of an evaluation at a time: 64 MB of float32


@dataclass(frozen=True)
class FederationJob:
    """The constant inputs of training and evaluation, sent to every worker once."""

    method: Method
    text: FrozenText
    data: FederatedData
    train_features: Features
    test_features: Features
    federation: FederationSettings
    seed: int
    dtype: torch.dtype = torch.float32
    rule: ServerRule = FEDAVG
    privacy: Mechanism | None = None

    def build(self, device: torch.device) -> FederationWorker:
        """Create the worker on a device."""
        return FederationWorker(self, device)


class FederationWorker:
    """Trains and evaluates any block of clients."""

    def __init__(self, job: FederationJob, device: torch.device) -> None:
        self.job = job
        self.device = device
        self._text = job.text.to(device, job.dtype)
        self._class_sets = {name: self._text.on(classes) for name, classes in job.data.class_sets.items()}
        self._num_examples = np.array([len(own) for own in job.data.train_rows])
        self._train_cache = FeatureCache.open(job.train_features.path, job.train_features.key)
        self._test_cache = FeatureCache.open(job.test_features.path, job.test_features.key)

    def train(self, call: Call, common: Arrays) -> TrainResult:
        """Train a block locally, and validate and sum its updates; raise `ClientError` if `federation.policy` says so.

        Excluded clients keep their own entries. `common`, which the server sends to all clients, is only read.
        """
        federation, rule = self.job.federation, self.job.rule
        received = self._tree(common) | self._tree(call.sent)
        personal, kept = self._tree(call.personal), self._tree(call.kept)
        correction = rule.correction(kept, received) if isinstance(rule, ClientHalf) else None
        update = self._update(call, received, personal, "batches", federation.local_epochs, correction)
        valid = validate(update, received, federation, call)
        uploads, kept_now = valid.shared, kept
        if isinstance(rule, ClientHalf):
            trained = select(update.params, valid.shared)
            kept_now, more = rule.after_training(kept, received, trained, self._travel(call, trained))
            uploads = uploads | more
        num_examples = self._num_examples[call.clients]
        weights = num_examples if rule.weighting == "images" else np.ones_like(num_examples)
        sent = rows(uploads, valid.accepted)
        if (privacy := self.job.privacy) is None:
            summed, votes = weighted_sum(sent, torch.from_numpy(weights).to(self.device)[valid.accepted]), 0.0
        else:
            summed, votes = privacy.upload(valid.shared, received, valid.accepted, call, self.job.seed)
        return TrainResult(
            clients=call.clients,
            accepted=valid.accepted.cpu().numpy(),
            weights=weights,
            total=to_arrays(summed if rule.uploads == "sum" else {}),
            stack=to_arrays(sent if rule.uploads == "stack" else {}),
            personal=to_arrays(choose(valid.accepted, without(update.params, valid.shared), personal)),
            kept=to_arrays(choose(valid.accepted, kept_now, kept)),
            num_examples=num_examples,
            bytes_up=num_bytes(uploads),
            loss=update.loss.cpu().numpy(),
            parts=to_arrays(update.parts),
            events=valid.events,
            votes=votes,
            before_aggregation=self._before_aggregation(update.params, call.clients, valid.accepted),
        )

    def _update(
        self,
        call: Call,
        received: ParamTree,
        personal: ParamTree,
        purpose: str,
        epochs: int,
        correction: ParamTree | None = None,
    ) -> Update:
        """Train the clients in chunks of `chunk_size`, each as one batch."""
        federation = self.job.federation
        size = federation.chunk_size or len(call.clients)
        phases = range(len(self.job.method.phases))
        start = self._start(call, received) | personal
        parts = []
        for part in (slice(first, first + size) for first in range(0, len(call.clients), size)):
            chunk = call.clients[part]
            orders = [self._orders(purpose, phase, call.round, chunk, epochs) for phase in phases]
            parts.append(
                local_update(
                    self.job.method,
                    self._class_sets[self.job.data.train_set],
                    _part(start, part),
                    {key: value[part] if key in call.sent else value for key, value in received.items()},
                    self._local_data(chunk),
                    orders,
                    Optimizer(federation.lr, federation.momentum, federation.weight_decay),
                    call.round,
                    [factors(federation, call.round, _steps(own)) for own in orders] if purpose == "batches" else None,
                    None if correction is None else _part(correction, part),
                )
            )
        return Update.concatenate(parts)

    def _start(self, call: Call, received: ParamTree) -> ParamTree:
        """The shared parameters that the clients of a call start from (K, ...)."""
        shared = select(received, self.job.method.shared_keys)
        return repeated(without(shared, call.sent), len(call.clients)) | select(shared, call.sent)

    def _travel(self, call: Call, shared: ParamTree) -> dict[str, Tensor]:
        """See `ClientHalf.after_training`."""
        federation, (phase,) = self.job.federation, self.job.method.phases
        settings = Optimizer(federation.lr, federation.momentum, federation.weight_decay).within(phase, call.round)
        steps = _steps(self._orders("batches", 0, call.round, call.clients, federation.local_epochs))
        far = travel(steps, factors(federation, call.round, steps), settings.momentum)
        return {key: torch.from_numpy(settings.of(key) * far).float().to(self.device) for key in shared}

    def memory(self, call: Call, common: Arrays) -> int:
        """Bytes to train a block: frozen weights, a chunk's features and, measured on one client, its activations."""
        first = call.clients[:1]
        received = self._tree(common) | _part(self._tree(call.sent), slice(1))
        params = _part(self._start(call, received) | self._tree(call.personal), slice(1))
        data = self._local_data(first)
        orders = self._orders("batches", 0, call.round, first, epochs=1)
        frozen = self._class_sets[self.job.data.train_set]
        storages = [tensor.untyped_storage() for tensor in tensors_of((self._text.tower, self._text.visual))]
        weights = {storage.data_ptr(): storage.nbytes() for storage in storages}

        def step() -> Tensor:
            for phase in self.job.method.phases:
                for key in phase.keys:
                    params[key].requires_grad_()
            return self.job.method.loss(params, received, frozen, next(schedule(data, orders)))[0]

        chunk = min(len(call.clients), self.job.federation.chunk_size or len(call.clients))
        per_client = kept_for_backward(step, set(weights)) + data.features.nbytes
        return PROCESS_BYTES + sum(weights.values()) + chunk * per_client

    def evaluate(self, call: Call, shared: Arrays) -> list[Counts]:
        """Count the correct answers of each client's model on every evaluation set that its method supports.

        Without personal parameters all clients have one model, which runs once. With `finetune_epochs` each model is
        first trained for that many epochs on its client's images; if that fails, the unchanged one is evaluated, or
        `ClientError` raised if `federation.policy` says so.
        """
        federation = self.job.federation
        received, personal = self._tree(shared), self._tree(call.personal)
        params = evaluated = {**repeated(received, len(call.clients) if personal else 1), **personal}
        if federation.finetune_epochs:
            update = self._update(call, received, personal, "finetune", federation.finetune_epochs)
            valid = validate(update, {}, federation, call, "fine-tuning")
            evaluated = choose(valid.accepted, update.params, {**repeated(received, len(call.clients)), **personal})
        counts = self._counts(evaluated, call.clients, self.job.data.evaluation_sets, confusion=call.confusion)
        return counts + (self._global_counts(params, call) if shared else [])

    @torch.no_grad()
    def _counts(
        self,
        params: ParamTree,
        clients: np.ndarray,
        evaluation_sets: Sequence[EvaluationSet],
        whole: bool = True,
        local: str = "local",
        confusion: bool = False,
    ) -> list[Counts]:
        """Counts on each client's own images, and with `whole` on all images of a set."""
        data, method, domains = self.job.data, self.job.method, len(self.job.data.domains)
        classifiers: dict[str, Classifier] = {}
        counts = []
        for images in evaluation_sets:
            if images.class_set != data.train_set and not method.supports_unseen_classes:
                continue
            if images.class_set not in classifiers:
                classifiers[images.class_set] = method.classifier(params, self._class_sets[images.class_set])
            answers = self._answers(classifiers[images.class_set], images, models=len(next(iter(params.values()), [0])))
            num_classes = self._class_sets[images.class_set].num_classes if confusion else None
            if images.members is not None:
                members = [images.members[client] for client in clients]
                counts.append(count(images, local, clients, answers, members, domains, num_classes))
            if whole:
                counts.append(count(images, images.metric, clients, answers, None, domains, num_classes))
        return counts

    def _global_counts(self, params: ParamTree, call: Call) -> list[Counts]:
        """Counts of the server's model, without personal parameters; the same for all clients.

        Evaluated on a held-out domain, and on all sets with `evaluate_global`. Empty if the shared parameters do not
        form a model.
        """
        everywhere = self.job.federation.evaluate_global
        evaluation_sets = [images for images in self.job.data.evaluation_sets if images.held_out or everywhere]
        if not evaluation_sets:
            return []
        params = {key: value[:1] for key, value in params.items()}
        if call.personal:
            if not isinstance(self.job.method, HasGlobalModel):
                return []
            params = self.job.method.global_model(params)
        counts = self._counts(params, call.clients, evaluation_sets)
        return [replace(part, metric=f"{part.metric}_global") for part in counts]

    def _answers(self, classifier: Classifier, images: EvaluationSet, models: int) -> np.ndarray:
        """Predicted class of each model for each image (models, n); -1 where its logits are not finite."""
        num_classes = self._class_sets[images.class_set].num_classes
        size = max(1, VALUES_PER_CHUNK // max(models * num_classes, prod(self._test_cache.shape)))
        parts = []
        for start in range(0, len(images.rows), size):
            features = torch.from_numpy(self._test_cache.gather(images.rows[start : start + size])).to(self.device)
            best, answers = classifier(features.unsqueeze(0)).max(-1)
            parts.append(answers.int().masked_fill_(~best.isfinite(), -1))  # max prefers NaN to any number
        return torch.cat(parts, dim=1).cpu().numpy()

    def _before_aggregation(self, params: ParamTree, clients: np.ndarray, accepted: Tensor) -> list[Counts]:
        """Counts of the accepted clients on their own images, before averaging."""
        if not (self.job.federation.evaluate_before_aggregation and bool(accepted.any())):
            return []
        evaluation_sets = [images for images in self.job.data.evaluation_sets if images.members is not None]
        kept = clients[accepted.cpu().numpy()]
        return self._counts(
            rows(params, accepted), kept, evaluation_sets, whole=False, local="local_before_aggregation"
        )

    def _orders(self, purpose: str, phase: int, round: int, clients: np.ndarray, epochs: int) -> list[Order]:
        job = self.job
        return [
            batches(
                count=int(self._num_examples[client]),
                views=job.train_features.key.views,
                batch_size=job.federation.batch_size,
                epochs=job.method.phases[phase].epochs or epochs,
                drop_last=job.federation.drop_last,
                generator=numpy_generator(job.seed, purpose, phase, round, int(client)),
            )
            for client in clients
        ]

    def _local_data(self, clients: np.ndarray) -> LocalData:
        """The clients' images; all views of an image are consecutive."""
        views = self.job.train_features.key.views
        rows = np.concatenate([self.job.data.train_rows[client] for client in clients])
        labels = np.concatenate([self.job.data.train_labels[client] for client in clients])
        features = np.stack([self._train_cache.gather(rows, view) for view in range(views)], axis=1)
        counts = self._num_examples[clients]
        return LocalData(
            features=torch.from_numpy(features.reshape(len(rows) * views, *features.shape[2:])).to(self.device),
            labels=torch.from_numpy(np.repeat(labels, views)).to(self.device),
            starts=(np.cumsum(counts) - counts) * views,
        )

    def _tree(self, arrays: Mapping[str, np.ndarray]) -> ParamTree:
        return {key: torch.from_numpy(value.copy()).to(self.device) for key, value in arrays.items()}


def _part(tree: ParamTree, part: slice) -> ParamTree:
    return {key: value[part] for key, value in tree.items()}


def _steps(orders: Sequence[Order]) -> np.ndarray:
    return np.array([len(order) for order in orders])


def kept_for_backward(run: Callable[[], Tensor], frozen: set[int]) -> int:
    """Count the bytes of the tensors that autograd keeps while `run` computes a loss, each storage once.

    Storages at the addresses `frozen` are left out, because they exist anyway.
    """
    kept: dict[int, int] = {}
    alive: list[Tensor] = []  # so that no address is reused

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in frozen:
            kept[storage.data_ptr()] = storage.nbytes()
        alive.append(tensor)
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(kept.values())


def count(
    images: EvaluationSet,
    metric: str,
    clients: np.ndarray,
    answers: np.ndarray,
    members: Sequence[np.ndarray] | None,
    num_domains: int,
    num_classes: int | None,
) -> Counts:
    """Count the correct answers of each client's model, or of the one model of all, as `metric`.

    Args:
        answers: predicted class of each model for each image (models, n).
        members: each client's images; None: all of them.
        num_classes: for the confusion matrix; None: without one.
    """
    right = np.broadcast_to(answers == images.labels, (len(clients), len(images.rows)))
    chosen: Sequence[np.ndarray | slice] = [slice(None)] * len(clients) if members is None else members
    correct = [
        np.bincount(images.domains[own], weights=row[own], minlength=num_domains)
        for row, own in zip(right, chosen, strict=True)
    ]
    total = [np.bincount(images.domains[own], minlength=num_domains) for own in chosen]
    confusion = count_confusion(images.labels, answers, len(clients), members, num_classes) if num_classes else None
    return Counts(
        images.split, metric, clients, np.array(correct, dtype=np.int64), np.array(total, dtype=np.int64), confusion
    )


def count_confusion(
    labels: np.ndarray, answers: np.ndarray, clients: int, members: Sequence[np.ndarray] | None, num_classes: int
) -> np.ndarray | None:
    """Count how often the models of a block's clients predicted each class (column) for each true class (row) (C, C).

    Answers that are not a class are left out: -1 (no answer) and the columns of further prompt sets (see `FedPGP`).
    None for more than `MOST_CLASSES` classes. Arguments as in `count`, labels (n,).
    """
    if num_classes > MOST_CLASSES:
        return None
    classes = (answers >= 0) & (answers < num_classes)
    pairs = np.where(classes, labels * num_classes + answers, num_classes**2)
    if members is None:
        counts = np.bincount(pairs.ravel(), minlength=num_classes**2) * (clients // len(answers))
    else:
        rows = np.broadcast_to(pairs, (clients, len(labels)))
        own = np.concatenate([row[chosen] for row, chosen in zip(rows, members, strict=True)])
        counts = np.bincount(own, minlength=num_classes**2)
    return counts[: num_classes**2].reshape(num_classes, num_classes).astype(np.int64)

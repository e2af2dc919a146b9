"""The worker: trains or evaluates a block of clients in one call. It is stateless between calls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fedpgp.clip.feature_cache import FeatureCache
from fedpgp.clip.text_backbone import ClassSet, FrozenText
from fedpgp.clip.towers import tensors_of
from fedpgp.config import FederationSettings
from fedpgp.core.errors import ClientError
from fedpgp.core.seeding import numpy_generator
from fedpgp.core.tree import ParamTree, choose, repeated, rows, without
from fedpgp.data.protocol import FederatedData
from fedpgp.federation.aggregation import weighted_sum
from fedpgp.federation.client import LocalData, Optimizer, Order, Update, batches, concatenate, local_update, schedule
from fedpgp.federation.evaluation import Evaluator
from fedpgp.federation.messages import Arrays, Counts, EvaluateCall, Features, TrainCall, TrainResult
from fedpgp.federation.resources import PROCESS_BYTES, kept_for_backward
from fedpgp.federation.update_validation import UpdateRejected, all_finite, non_finite, validate
from fedpgp.methods.base import Method


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

    def build(self, device: torch.device) -> FederationWorker:
        """Create the worker on a device."""
        return FederationWorker(self, device)


class FederationWorker:
    """Trains and evaluates any block of clients."""

    def __init__(self, job: FederationJob, device: torch.device) -> None:
        self.job = job
        self.device = device
        self._text = job.text.to(device, job.dtype)
        self._class_sets: dict[str, ClassSet] = {}
        self._evaluator = Evaluator(job, self._frozen, device)

    def train(self, call: TrainCall, shared: Arrays) -> TrainResult:
        """Train a block locally, and validate and sum its updates.

        Args:
            shared: parameters that the server sends to all clients; only read.

        Raises:
            ClientError: an update is invalid, and `federation.policy` is `fail`.
        """
        federation = self.job.federation
        received, personal = self._tree(shared), self._tree(call.personal)
        num_examples = self._num_examples(call.clients)
        update = self._update("batches", call.round, call.clients, received, personal, federation.local_epochs)
        try:
            valid = validate(update, received, federation)
        except UpdateRejected as error:
            raise self._error("local training", call, error.index, error.reason) from None
        weights = torch.from_numpy(num_examples).to(self.device)[valid.accepted]
        return TrainResult(
            clients=call.clients,
            shared_sum=_arrays(weighted_sum(rows(valid.shared, valid.accepted), weights)),
            personal=_arrays(choose(valid.accepted, without(update.params, received), personal)),
            num_examples=num_examples,
            weight=float(weights.sum()),
            loss=update.loss.cpu().numpy(),
            parts=_arrays(update.parts),
            events=valid.events,
            before_aggregation=self._before_aggregation(update.params, call.clients, valid.accepted),
        )

    def _update(
        self, purpose: str, round: int, clients: np.ndarray, received: ParamTree, personal: ParamTree, epochs: int
    ) -> Update:
        """Train these clients in chunks of `chunk_size`, each as one batch."""
        federation = self.job.federation
        size = federation.chunk_size or len(clients)
        phases = range(len(self.job.method.phases))
        parts = []
        for part in (slice(start, start + size) for start in range(0, len(clients), size)):
            chunk = clients[part]
            parts.append(
                local_update(
                    self.job.method,
                    self._frozen(self.job.data.train_set),
                    {**repeated(received, len(chunk)), **{key: value[part] for key, value in personal.items()}},
                    received,
                    self._local_data(chunk),
                    [self._orders(purpose, phase, round, chunk, epochs) for phase in phases],
                    Optimizer(federation.lr, federation.momentum, federation.weight_decay),
                    round,
                )
            )
        return concatenate(parts)

    def memory(self, call: TrainCall, shared: Arrays) -> int:
        """Bytes that this worker needs to train a block: frozen weights, and a chunk's features and activations.

        Measured on the first step of the first client.
        """
        first = call.clients[:1]
        received = self._tree(shared)
        params = {**repeated(received, 1), **{key: value[:1] for key, value in self._tree(call.personal).items()}}
        data = self._local_data(first)
        orders = self._orders("batches", 0, call.round, first, epochs=1)
        frozen = self._frozen(self.job.data.train_set)
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

    def evaluate(self, call: EvaluateCall, shared: Arrays) -> list[Counts]:
        """Count the correct answers of each client's model on every evaluation set that its method supports.

        Without personal parameters all clients have one model, which runs once. With `finetune_epochs` each model is
        first trained for that many epochs on its client's images.

        Raises:
            ClientError: fine-tuning failed, and `federation.policy` is `fail`.
        """
        received, personal = self._tree(shared), self._tree(call.personal)
        models = len(call.clients) if personal else 1
        params = {**repeated(received, models), **personal}
        evaluated = params
        if self.job.federation.finetune_epochs:
            evaluated = self._finetuned(call, received, personal)
        return [
            *self._evaluator.counts(
                evaluated, call.clients, self.job.data.evaluation_sets, whole=True, confusion=call.confusion
            ),
            *self._evaluator.global_counts(params, call, bool(shared)),
        ]

    def _finetuned(self, call: EvaluateCall, received: ParamTree, personal: ParamTree) -> ParamTree:
        """Each client's model after `finetune_epochs`; the unchanged one if that failed and the policy allows it."""
        federation = self.job.federation
        update = self._update("finetune", call.round, call.clients, received, personal, federation.finetune_epochs)
        finite = all_finite(update)
        if federation.policy == "fail" and not bool(finite.all()):
            index = int((~finite).nonzero()[0])
            raise self._error("fine-tuning", call, index, non_finite(update, index))
        return choose(finite, update.params, {**repeated(received, len(call.clients)), **personal})

    def _error(self, stage: str, call: TrainCall | EvaluateCall, index: int, reason: str) -> ClientError:
        return ClientError(stage, call.round, int(call.clients[index]), f"{reason}; lower the learning rate")

    def _before_aggregation(self, params: ParamTree, clients: np.ndarray, accepted: Tensor) -> list[Counts]:
        """Counts of the accepted clients on their own images, before averaging."""
        if not (self.job.federation.evaluate_before_aggregation and bool(accepted.any())):
            return []
        evaluation_sets = [images for images in self.job.data.evaluation_sets if images.members is not None]
        kept = clients[accepted.cpu().numpy()]
        return self._evaluator.counts(
            rows(params, accepted), kept, evaluation_sets, whole=False, local="local_before_aggregation"
        )

    def _orders(self, purpose: str, phase: int, round: int, clients: np.ndarray, epochs: int) -> list[Order]:
        job = self.job
        return [
            batches(
                count=len(job.data.train_rows[client]),
                views=job.train_features.key.views,
                batch_size=job.federation.batch_size,
                epochs=job.method.phases[phase].epochs or epochs,
                drop_last=job.federation.drop_last,
                generator=numpy_generator(job.seed, purpose, phase, round, int(client)),
            )
            for client in clients
        ]

    def _num_examples(self, clients: np.ndarray) -> np.ndarray:
        return np.array([len(self.job.data.train_rows[client]) for client in clients])

    def _local_data(self, clients: np.ndarray) -> LocalData:
        """The clients' images; all views of an image are consecutive."""
        views = self.job.train_features.key.views
        rows = np.concatenate([self.job.data.train_rows[client] for client in clients])
        labels = np.concatenate([self.job.data.train_labels[client] for client in clients])
        features = np.stack([self._train_cache.gather(rows, view) for view in range(views)], axis=1)
        counts = self._num_examples(clients)
        return LocalData(
            features=torch.from_numpy(features.reshape(len(rows) * views, *features.shape[2:])).to(self.device),
            labels=torch.from_numpy(np.repeat(labels, views)).to(self.device),
            starts=(np.cumsum(counts) - counts) * views,
        )

    def _frozen(self, class_set: str) -> ClassSet:
        if class_set not in self._class_sets:
            self._class_sets[class_set] = self._text.on(self.job.data.class_sets[class_set])
        return self._class_sets[class_set]

    @cached_property
    def _train_cache(self) -> FeatureCache:
        return FeatureCache.open(self.job.train_features.path, self.job.train_features.key)

    def _tree(self, arrays: Mapping[str, np.ndarray]) -> ParamTree:
        return {key: torch.from_numpy(value.copy()).to(self.device) for key, value in arrays.items()}


def _arrays(tree: Mapping[str, Tensor]) -> Arrays:
    return {key: value.detach().cpu().numpy() for key, value in tree.items()}

"""The worker: trains or evaluates a block of clients in one call. It is stateless between calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

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
from fedpgp.data.protocol import FederatedData
from fedpgp.federation import absence, attacks
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
from fedpgp.federation.evaluation import Evaluator
from fedpgp.federation.learning_rates import factors
from fedpgp.federation.messages import Arrays, Call, Counts, Features, TrainResult, to_arrays
from fedpgp.federation.metrics import NEW_CLIENT
from fedpgp.federation.privacy import Mechanism
from fedpgp.federation.state import weighted_sum
from fedpgp.methods.base import Method
from fedpgp.server_rules.base import ClientHalf, ServerRule
from fedpgp.server_rules.fedavg import FEDAVG

PROCESS_BYTES = 1024**3 // 2  # memory of a process that has loaded torch and Ray and nothing else
TRAINING = "batches"  # the purpose of the orders of local training


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

    @property
    def attackers(self) -> np.ndarray:
        """The clients that attack, sorted."""
        return attacks.attackers(self.federation.attack, self.data.training_clients, self.seed)

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
        self._attackers = job.attackers
        self._train_cache = FeatureCache.open(job.train_features.path, job.train_features.key)
        test_cache = FeatureCache.open(job.test_features.path, job.test_features.key)
        self._evaluator = Evaluator(job.method, job.data, self._class_sets, test_cache, device)

    def train(self, call: Call, common: Arrays) -> TrainResult:
        """Train a block locally, and validate and sum its updates; raise `ClientError` if `federation.policy` says so.

        Excluded clients keep their own entries, and so do lost ones what the server rule lets them keep. `common`,
        which the server sends to all clients, is only read.
        """
        federation, rule = self.job.federation, self.job.rule
        received = self._tree(common) | self._tree(call.sent)
        personal, kept = self._tree(call.personal), self._tree(call.kept)
        correction = rule.correction(kept, received) if isinstance(rule, ClientHalf) else None
        honest = self._update(call, received, personal, TRAINING, federation.local_epochs, correction)
        update = self._attacked(call, honest, received)
        valid = validate(update, received, federation, call)
        lost = absence.lost(federation, self.job.seed, call.round, call.clients)
        arrived = valid.accepted & torch.from_numpy(~lost).to(self.device)
        keeping = valid.accepted if federation.dropout_keeps_personal else arrived
        uploads, kept_now = valid.shared, kept
        if isinstance(rule, ClientHalf):
            attacking = torch.from_numpy(self._attacking(call.round, call.clients)).to(self.device)
            trained = choose(attacking, select(honest.params, valid.shared), valid.shared)  # attackers keep the truth
            far = self._travel(call, trained)
            kept_now, _ = rule.after_training(kept, received, trained, far)
            uploads = uploads | rule.after_training(kept, received, valid.shared, far)[1]
        num_examples = self._num_examples[call.clients]
        weights = num_examples if rule.weighting == "images" else np.ones_like(num_examples)
        sent = rows(uploads, arrived)
        if (privacy := self.job.privacy) is None:
            summed, votes = weighted_sum(sent, torch.from_numpy(weights).to(self.device)[arrived]), 0.0
        else:
            summed, votes = privacy.upload(valid.shared, received, arrived, call, self.job.seed)
        return TrainResult(
            clients=call.clients,
            accepted=arrived.cpu().numpy(),
            weights=weights,
            total=to_arrays(summed if rule.uploads == "sum" else {}),
            stack=to_arrays(sent if rule.uploads == "stack" else {}),
            personal=to_arrays(choose(keeping, without(update.params, valid.shared), personal)),
            kept=to_arrays(choose(arrived, kept_now, kept)),
            num_examples=num_examples,
            bytes_up=num_bytes(uploads) // len(lost) * int((~lost).sum()),
            loss=update.loss.cpu().numpy(),
            parts=to_arrays(update.parts),
            events=self._events(call, valid.events, lost),
            votes=votes,
            before_aggregation=self._before_aggregation(update.params, call.clients, arrived.cpu().numpy()),
        )

    def _attacked(self, call: Call, update: Update, received: ParamTree) -> Update:
        """The update, in which attackers have replaced their shared parameters; their own stay as trained."""
        shared, attack = select(update.params, received), self.job.federation.attack
        if attack is None or not shared:
            return update
        generators = {
            int(index): numpy_generator(self.job.seed, "attack", call.round, int(call.clients[index]))
            for index in np.flatnonzero(self._attacking(call.round, call.clients))
        }
        shared = attacks.attacked(attack, shared, self._start(call, received), generators)
        return replace(update, params=update.params | shared)

    def _attacking(self, round: int, clients: np.ndarray) -> np.ndarray:
        """Which of the clients attack in a round (K,)."""
        attack = self.job.federation.attack
        return np.isin(clients, self._attackers) & (attack is not None and round >= attack.start_round)

    def _events(self, call: Call, found: Sequence[str | None], lost: np.ndarray) -> tuple[str | None, ...]:
        """What happened to each client (K,), for the rows; `found`: in the validation of its update."""
        federation = self.job.federation
        attack, full = federation.attack, federation.local_epochs
        done = absence.epochs(federation, self.job.seed, call.round, call.clients)
        attacking = self._attacking(call.round, call.clients)
        return absence.joined(
            [f"attack: {attack.kind}" if attack and one else None for one in attacking],
            [f"straggler: {own} of {full} epochs" if own < full else None for own in done],
            found,
            ["lost" if one else None for one in lost],
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
                    self._local_data(purpose, call.round, chunk),
                    orders,
                    Optimizer(federation.lr, federation.momentum, federation.weight_decay),
                    call.round,
                    [factors(federation, call.round, _steps(own)) for own in orders] if purpose == TRAINING else None,
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
        steps = _steps(self._orders(TRAINING, 0, call.round, call.clients, federation.local_epochs))
        far = travel(steps, factors(federation, call.round, steps), settings.momentum)
        return {key: torch.from_numpy(settings.of(key) * far).float().to(self.device) for key in shared}

    def memory(self, call: Call, common: Arrays) -> int:
        """Bytes to train a block: frozen weights, a chunk's features and, measured on one client, its activations."""
        first = call.clients[:1]
        received = self._tree(common) | _part(self._tree(call.sent), slice(1))
        params = _part(self._start(call, received) | self._tree(call.personal), slice(1))
        data = self._local_data(TRAINING, call.round, first)
        orders = self._orders(TRAINING, 0, call.round, first, epochs=1)
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
        everything = self.job.data.evaluation_sets
        counts = self._evaluator.counts(evaluated, call.clients, everything, confusion=call.confusion)
        if shared:
            counts += self._evaluator.global_counts(params, call, everywhere=federation.evaluate_global)
        return counts

    def evaluate_new(self, call: Call, shared: Arrays) -> list[Counts]:
        """Count on test images the correct answers of clients that never train, as split `new_client`.

        First those of the global model; then (`local_adapted`, ...) those of each client's model, which starts from the
        shared parameters and the initial personal ones, after `new_client_epochs` epochs on its own images. If these
        fail, the model at their start is evaluated, or `ClientError` raised if `federation.policy` says so.
        """
        federation = self.job.federation
        received, personal = self._tree(shared), self._tree(call.personal)
        start = {**repeated(received, len(call.clients)), **personal}
        models = {"": self._evaluator.global_model(start, call)}
        if federation.new_client_epochs and self.job.method.phases:
            update = self._update(call, received, personal, NEW_CLIENT, federation.new_client_epochs)
            valid = validate(update, {}, federation, call, "adaptation of a new client")
            models["_adapted"] = choose(valid.accepted, update.params, start)
        tests = [images for images in self.job.data.evaluation_sets if images.split == "test"]
        return [
            replace(part, split=NEW_CLIENT, metric=part.metric + suffix)
            for suffix, params in models.items()
            if params is not None
            for part in self._evaluator.counts(params, call.clients, tests)
        ]

    def _before_aggregation(self, params: ParamTree, clients: np.ndarray, accepted: np.ndarray) -> list[Counts]:
        """Counts of the accepted clients that never attack on their own images, before averaging."""
        honest = accepted & ~np.isin(clients, self._attackers)
        if not (self.job.federation.evaluate_before_aggregation and honest.any()):
            return []
        evaluation_sets = [images for images in self.job.data.evaluation_sets if images.members is not None]
        own = rows(params, torch.from_numpy(honest).to(self.device))
        return self._evaluator.counts(own, clients[honest], evaluation_sets, False, "local_before_aggregation")

    def _orders(self, purpose: str, phase: int, round: int, clients: np.ndarray, epochs: int) -> list[Order]:
        """The batches of each client in a phase, which may have its own epochs.

        A straggler that does e of E local epochs does the first e / E (rounded up) of those of each phase.
        """
        job, full = self.job, self.job.federation.local_epochs
        own = job.method.phases[phase].epochs or epochs
        trains = purpose == TRAINING
        share = absence.epochs(job.federation, job.seed, round, clients) if trains else [full] * len(clients)
        return [
            batches(
                count=int(self._num_examples[client]),
                views=job.train_features.key.views,
                batch_size=job.federation.batch_size,
                epochs=-(-own * int(part) // full),
                drop_last=job.federation.drop_last,
                generator=numpy_generator(job.seed, purpose, phase, round, int(client)),
            )
            for client, part in zip(clients, share, strict=True)
        ]

    def _local_data(self, purpose: str, round: int, clients: np.ndarray) -> LocalData:
        """The clients' images; all views of an image are consecutive. Attackers with false labels train with these."""
        views = self.job.train_features.key.views
        rows = np.concatenate([self.job.data.train_rows[client] for client in clients])
        given = [self.job.data.train_labels[client] for client in clients]
        if purpose == TRAINING and self.job.federation.attack is not None:
            attack, num_classes = self.job.federation.attack, self._class_sets[self.job.data.train_set].num_classes
            for index in np.flatnonzero(self._attacking(round, clients)):
                given[index] = attacks.train_labels(attack, given[index], num_classes)
        labels = np.concatenate(given)
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

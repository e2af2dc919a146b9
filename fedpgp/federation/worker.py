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
from fedpgp.data.federated import FederatedData
from fedpgp.federation import absence, attacks
from fedpgp.federation.client import Update, validate
from fedpgp.federation.evaluation import Evaluator
from fedpgp.federation.messages import Arrays, Call, Counts, Features, TrainResult, to_arrays
from fedpgp.federation.metrics import NEW_CLIENT
from fedpgp.federation.privacy import Mechanism
from fedpgp.federation.state import weighted_sum
from fedpgp.federation.training import TRAINING, Trainer
from fedpgp.federation.usage import measured
from fedpgp.methods.base import Method
from fedpgp.server_rules.base import ClientHalf, ServerRule
from fedpgp.server_rules.fedavg import FEDAVG

PROCESS_BYTES = 1024**3 // 2  # memory of a process that has loaded torch and Ray and nothing else


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
        self._trainer = Trainer(job, self._text, device)
        test_cache = FeatureCache.open(job.test_features.path, job.test_features.key)
        self._evaluator = Evaluator(job.method, job.data, self._class_sets, test_cache, device)

    def train(self, call: Call, common: Arrays) -> TrainResult:
        """Train a block locally, and validate and sum its updates; raise `ClientError` if `federation.policy` says so.

        Excluded clients keep their own entries, and so do lost ones what the server rule lets them keep. `common`,
        which the server sends to all clients, is only read.
        """
        with measured() as usage:
            result = self._train(call, common)
        return replace(result, usage=usage)

    def _train(self, call: Call, common: Arrays) -> TrainResult:
        federation, rule = self.job.federation, self.job.rule
        received = self._tree(common) | self._tree(call.sent)
        personal, kept = self._tree(call.personal), self._tree(call.kept)
        correction = rule.correction(kept, received) if isinstance(rule, ClientHalf) else None
        momentum = kept if federation.keep_momentum else None
        honest = self._trainer.update(call, received, personal, TRAINING, federation.local_epochs, correction, momentum)
        update = self._attacked(call, honest, received)
        valid = validate(update, received, federation, call)
        lost = absence.lost(federation, self.job.seed, call.round, call.clients)
        arrived = valid.accepted & torch.from_numpy(~lost).to(self.device)
        keeping = valid.accepted if federation.dropout_keeps_personal else arrived
        uploads, kept_now = valid.shared, kept
        if isinstance(rule, ClientHalf):
            attacking = torch.from_numpy(self._trainer.attacking(call.round, call.clients)).to(self.device)
            trained = choose(attacking, select(honest.params, valid.shared), valid.shared)  # attackers keep the truth
            far = self._trainer.travel(call, trained)
            kept_now, _ = rule.after_training(kept, received, trained, far)
            uploads = uploads | rule.after_training(kept, received, valid.shared, far)[1]
        num_examples = self._trainer.num_examples[call.clients]
        weights = num_examples if rule.weighting == "images" else np.ones_like(num_examples)
        sent = rows(uploads, arrived)
        models = self._models(call, received, {}, len(call.clients)) | update.params
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
            kept=to_arrays(choose(keeping, honest.momentum, kept) if momentum else choose(arrived, kept_now, kept)),
            num_examples=num_examples,
            bytes_up=num_bytes(uploads) // len(lost) * int((~lost).sum()),
            loss=update.loss.cpu().numpy(),
            parts=to_arrays(update.parts),
            events=self._events(call, valid.events, lost),
            votes=votes,
            before_aggregation=self._before_aggregation(models, call.clients, arrived.cpu().numpy()),
        )

    def _attacked(self, call: Call, update: Update, received: ParamTree) -> Update:
        """The update, in which attackers have replaced their shared parameters; their own stay as trained."""
        shared, attack = select(update.params, received), self.job.federation.attack
        if attack is None or not shared:
            return update
        generators = {
            int(index): numpy_generator(self.job.seed, "attack", call.round, int(call.clients[index]))
            for index in np.flatnonzero(self._trainer.attacking(call.round, call.clients))
        }
        shared = attacks.attacked(attack, shared, self._trainer.start(call, received), generators)
        return replace(update, params=update.params | shared)

    def _events(self, call: Call, found: Sequence[str | None], lost: np.ndarray) -> tuple[str | None, ...]:
        """What happened to each client (K,), for the rows; `found`: in the validation of its update."""
        federation = self.job.federation
        attack, full = federation.attack, federation.local_epochs
        done = absence.epochs(federation, self.job.seed, call.round, call.clients)
        attacking = self._trainer.attacking(call.round, call.clients)
        return absence.joined(
            [f"attack: {attack.kind}" if attack and one else None for one in attacking],
            [f"straggler: {own} of {full} epochs" if own < full else None for own in done],
            found,
            ["lost" if one else None for one in lost],
        )

    def memory(self, call: Call, common: Arrays) -> int:
        """Bytes to train a block: frozen weights and, of each client of a chunk, its features, gradients and momentum.

        And its activations with the parameters that they need, measured on one client.
        """
        one = replace(call, clients=call.clients[:1], sent={key: value[:1] for key, value in call.sent.items()})
        received = self._tree(common) | self._tree(one.sent)
        personal = self._tree({key: value[:1] for key, value in call.personal.items()})
        params = self._trainer.start(one, received) | personal
        frozen, received, batch = self._trainer.first_step(one, received)
        storages = [tensor.untyped_storage() for tensor in tensors_of((self._text.tower, self._text.visual))]
        weights = {storage.data_ptr(): storage.nbytes() for storage in storages}

        def step() -> Tensor:
            for phase in self.job.method.phases:
                for key in phase.keys:
                    params[key].requires_grad_()
            return self.job.method.loss(params, received, frozen, batch)[0]

        chunk = min(len(call.clients), self.job.federation.chunk_size or len(call.clients))
        learned = frozenset().union(*(phase.keys for phase in self.job.method.phases))
        per_client = kept_for_backward(step, set(weights)) + self._trainer.bytes_of_images(one.clients)
        per_client += 2 * num_bytes(select(params, learned))
        return PROCESS_BYTES + sum(weights.values()) + chunk * per_client

    def evaluate(self, call: Call, common: Arrays) -> list[Counts]:
        """Count the correct answers of each client's model on every evaluation set that its method supports.

        Clients that have nothing of their own all have one model, which runs once. With `finetune_epochs` each model is
        first trained for that many epochs on its client's images; if that fails, the unchanged one is evaluated, or
        `ClientError` raised if `federation.policy` says so.
        """
        federation = self.job.federation
        received, personal = self._tree(common) | self._tree(call.sent), self._tree(call.personal)
        several = bool(personal or call.sent or federation.finetune_epochs)
        params = self._models(call, received, personal, len(call.clients) if several else 1)
        shared = select(self._tree(common), self.job.method.shared_keys)
        server = {**repeated(shared, 1), **{key: value[:1] for key, value in personal.items()}}
        if federation.finetune_epochs:
            update = self._trainer.update(call, received, personal, "finetune", federation.finetune_epochs)
            valid = validate(update, {}, federation, call, "fine-tuning")
            params = params | choose(valid.accepted, update.params, params)
        everything = self.job.data.evaluation_sets
        counts = self._evaluator.counts(params, call.clients, everything, confusion=call.confusion)
        if self.job.data.own_classes and self.job.method.phases:
            counts += self._evaluator.own_counts(params, call.clients, self._trainer.class_set)
        if shared:
            counts += self._evaluator.global_counts(server, call, everywhere=federation.evaluate_global)
        return counts

    def _models(self, call: Call, received: ParamTree, personal: ParamTree, count: int) -> ParamTree:
        """The parameters of the clients' models (count, ...), with what the server sent to each alone."""
        common = select(without(received, call.sent), self.job.method.shared_keys)
        return {**repeated(common, count), **select(received, call.sent), **personal}

    def evaluate_new(self, call: Call, common: Arrays) -> list[Counts]:
        """Count on test images the correct answers of clients that never train, as split `new_client`.

        First those of the global model; then (`local_adapted`, ...) those of each client's model, which starts from the
        shared parameters and the initial personal ones, after `new_client_epochs` epochs on its own images. If these
        fail, the model at their start is evaluated, or `ClientError` raised if `federation.policy` says so.
        """
        federation = self.job.federation
        received, personal = self._tree(common) | self._tree(call.sent), self._tree(call.personal)
        start = self._models(call, received, personal, len(call.clients))
        shared = select(self._tree(common), self.job.method.shared_keys)
        models = {"": self._evaluator.global_model({**repeated(shared, 1), **personal}, call)}
        if federation.new_client_epochs and self.job.method.phases:
            update = self._trainer.update(call, received, personal, NEW_CLIENT, federation.new_client_epochs)
            valid = validate(update, {}, federation, call, "adaptation of a new client")
            models["_adapted"] = start | choose(valid.accepted, update.params, start)
        tests = [images for images in self.job.data.evaluation_sets if images.split == "test"]
        return [
            replace(part, split=NEW_CLIENT, metric=part.metric + suffix)
            for suffix, params in models.items()
            if params is not None
            for part in self._evaluator.counts(params, call.clients, tests)
        ]

    def _before_aggregation(self, params: ParamTree, clients: np.ndarray, accepted: np.ndarray) -> list[Counts]:
        """Counts of the accepted clients that never attack on their own images, before averaging."""
        honest = accepted & ~np.isin(clients, self._trainer.attackers)
        if not (self.job.federation.evaluate_before_aggregation and honest.any()):
            return []
        evaluation_sets = [images for images in self.job.data.evaluation_sets if images.members is not None]
        own = rows(params, torch.from_numpy(honest).to(self.device))
        return self._evaluator.counts(own, clients[honest], evaluation_sets, False, "local_before_aggregation")

    def _tree(self, arrays: Mapping[str, np.ndarray]) -> ParamTree:
        return {key: torch.from_numpy(value.copy()).to(self.device) for key, value in arrays.items()}


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

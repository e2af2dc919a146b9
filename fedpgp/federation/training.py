"""Local training of a block of clients in one worker: its batches, classes, random numbers and learning rates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fedpgp.clip.feature_cache import FeatureCache
from fedpgp.clip.text_backbone import ClassSet, FrozenText
from fedpgp.core.seeding import numpy_generator, torch_generator
from fedpgp.core.tree import ParamTree, repeated, select, to_device, without
from fedpgp.federation import absence, attacks
from fedpgp.federation.client import Draws, LocalData, Optimizer, Order, Update, batches, local_update, schedule, travel
from fedpgp.federation.learning_rates import factors
from fedpgp.federation.messages import Call
from fedpgp.methods.base import Batch, FinishesTraining, HasDraws, PreparesRound

if TYPE_CHECKING:
    from fedpgp.federation.worker import FederationJob

TRAINING = "batches"  # the purpose of the orders of local training
MOST_CLASS_SETS = 64  # sets of classes whose frozen models are kept


class Trainer:
    """Trains any clients, in chunks that share their classes."""

    def __init__(self, job: FederationJob, text: FrozenText, device: torch.device) -> None:
        self.job = job
        self.num_examples = job.data.train_rows.counts
        self.attackers = job.attackers
        self._text, self._device = text, device
        self._cache = FeatureCache.open(job.train_features.path, job.train_features.key)
        self._class_sets: dict[tuple[int, ...], ClassSet] = {}

    def update(
        self,
        call: Call,
        received: ParamTree,
        personal: ParamTree,
        purpose: str,
        epochs: int,
        correction: ParamTree | None = None,
        momentum: ParamTree | None = None,
    ) -> Update:
        """Train the clients of a call in chunks, each as one batch. `received` is (K, ...) for keys of `call.sent`.

        `correction` and `momentum`: see `local_update`, of all clients of the call; None: nothing.
        """
        method, federation = self.job.method, self.job.federation
        start = self.start(call, received) | personal
        parts = []
        for part in self._chunks(call.clients):
            clients = call.clients[part]
            orders = [self.orders(purpose, phase, call.round, clients, epochs) for phase in range(len(method.phases))]
            frozen, data = self.local_data(purpose, call.round, clients)
            own = {key: value[part] if key in call.sent else value for key, value in received.items()}
            prepared = self._prepared(own, frozen)
            update = local_update(
                method,
                frozen,
                {key: value[part] for key, value in start.items()},
                prepared,
                data,
                orders,
                Optimizer(federation.lr, federation.momentum, federation.weight_decay),
                call.round,
                [factors(federation, call.round, _steps(order)) for order in orders] if purpose == TRAINING else None,
                None if correction is None else {key: value[part] for key, value in correction.items()},
                self._draws(frozen, purpose, call.round, clients),
                {key: value[part] for key, value in (momentum or {}).items()},
                sent={*call.sent, *(prepared.keys() - own.keys())} if call.sent else (),
            )
            if purpose == TRAINING and isinstance(method, FinishesTraining):
                generators = self._generators("after_training", call.round, clients)
                update = replace(update, params=method.after_training(update.params, own, call.round, generators))
            parts.append(update)
        return Update.concatenate(parts)

    def bytes_of_images(self, clients: np.ndarray) -> int:
        """Bytes of the clients' images on the device."""
        return self.local_data(TRAINING, 1, clients)[1].features.nbytes

    def start(self, call: Call, received: ParamTree) -> ParamTree:
        """The shared parameters that the clients of a call start from (K, ...)."""
        shared = select(received, self.job.method.shared_keys)
        return repeated(without(shared, call.sent), len(call.clients)) | select(shared, call.sent)

    def first_step(self, call: Call, received: ParamTree) -> tuple[ClassSet, ParamTree, Batch]:
        """The frozen model, what the server sent, and the batch of the first step of a call's clients."""
        frozen, data = self.local_data(TRAINING, call.round, call.clients)
        orders = self.orders(TRAINING, 0, call.round, call.clients, epochs=1)
        batch = next(schedule(data, [order[:1] for order in orders]))
        draws = self._draws(frozen, TRAINING, call.round, call.clients)
        drawn = draws(np.arange(len(call.clients))) if draws else {}
        return frozen, self._prepared(received, frozen), replace(batch, draws=drawn)

    def _prepared(self, received: ParamTree, frozen: ClassSet) -> ParamTree:
        """What the steps of a round get of what the server sent: with what the method computes of it beforehand."""
        if not isinstance(self.job.method, PreparesRound):
            return received
        with torch.no_grad():
            return {**received, **self.job.method.prepare(received, frozen)}

    def travel(self, call: Call, shared: ParamTree) -> dict[str, Tensor]:
        """See `ClientHalf.after_training`."""
        federation, (phase,) = self.job.federation, self.job.method.phases
        settings = Optimizer(federation.lr, federation.momentum, federation.weight_decay).within(phase, call.round)
        steps = _steps(self.orders(TRAINING, 0, call.round, call.clients, federation.local_epochs))
        far = travel(steps, factors(federation, call.round, steps), settings.momentum)
        return {key: torch.from_numpy(settings.of(key) * far).float().to(self._device) for key in shared}

    def attacking(self, round: int, clients: np.ndarray) -> np.ndarray:
        """Which of the clients attack in a round (K,)."""
        attack = self.job.federation.attack
        return np.isin(clients, self.attackers) & (attack is not None and round >= attack.start_round)

    def orders(self, purpose: str, phase: int, round: int, clients: np.ndarray, epochs: int) -> list[Order]:
        """The batches of each client in a phase, which may have its own epochs.

        A straggler that does e of E local epochs does the first e / E (rounded up) of those of each phase. With
        `local_steps` the federation's epochs give way to that number of batches.
        """
        federation, full = self.job.federation, self.job.federation.local_epochs
        own = self.job.method.phases[phase].epochs or epochs
        trains = purpose == TRAINING
        steps = federation.local_steps if trains and self.job.method.phases[phase].epochs is None else None
        share = absence.epochs(federation, self.job.seed, round, clients) if trains else np.full(len(clients), full)
        full_batches = np.maximum(1, self.num_examples[clients] // federation.batch_size)  # of an epoch
        counts = -(-own * share // full) if steps is None else -(-steps // full_batches)
        return [
            batches(
                count=int(self.num_examples[client]),
                views=self.job.train_features.key.views,
                batch_size=federation.batch_size,
                epochs=int(count),
                drop_last=federation.drop_last,
                generator=numpy_generator(self.job.seed, purpose, phase, round, int(client)),
            )[:steps]
            for client, count in zip(clients, counts, strict=True)
        ]

    def local_data(self, purpose: str, round: int, clients: np.ndarray) -> tuple[ClassSet, LocalData]:
        """The classes and the images of a chunk of clients; all views of an image are consecutive.

        Attackers with false labels train with these.
        """
        classes = [self.job.data.training_classes(int(client)) for client in clients]
        chosen = max(classes, key=len)  # the others are subsets of it, see `_chunks`
        rows = np.concatenate([self.job.data.train_rows[client] for client in clients])
        attacking = self.attacking(round, clients) & (purpose == TRAINING)
        labels = np.concatenate(
            [
                np.searchsorted(chosen, own[self._labels(int(client), own, bool(attacks_now))])
                for client, own, attacks_now in zip(clients, classes, attacking, strict=True)
            ]
        )
        views, counts = self.job.train_features.key.views, self.num_examples[clients]
        features = np.stack([self._cache.gather(rows, view) for view in range(views)], axis=1)
        counted = None
        if any(len(own) < len(chosen) for own in classes):
            counted = torch.from_numpy(np.stack([np.isin(chosen, own) for own in classes])).to(self._device)
        return self.class_set(chosen), LocalData(
            features=torch.from_numpy(features.reshape(len(rows) * views, *features.shape[2:])).to(self._device),
            labels=torch.from_numpy(np.repeat(labels, views)).to(self._device),
            starts=(np.cumsum(counts) - counts) * views,
            own=counted,
        )

    def _labels(self, client: int, classes: np.ndarray, attacks_now: bool) -> np.ndarray:
        """The labels that a client trains with, numbered within its `classes`."""
        own = np.searchsorted(classes, self.job.data.global_labels(client))
        if attacks_now and self.job.federation.attack is not None:
            own = attacks.train_labels(self.job.federation.attack, own, len(classes))
        return own

    def _chunks(self, clients: np.ndarray) -> Iterator[slice]:
        """The clients in runs of at most `chunk_size` that one set of classes serves: that of one of them."""
        size, first, most = self.job.federation.chunk_size or len(clients), 0, np.empty(0, np.int64)
        for index, client in enumerate(clients.tolist()):
            own = self.job.data.training_classes(client)
            larger, smaller = (own, most) if len(own) > len(most) else (most, own)
            if index - first == size or (index > first and not np.isin(smaller, larger).all()):
                yield slice(first, index)
                first, larger = index, own
            most = larger
        yield slice(first, len(clients))

    def class_set(self, classes: np.ndarray) -> ClassSet:
        """The frozen model of some classes; the last few are kept."""
        key = tuple(classes.tolist())
        found = self._class_sets.pop(key, None) or self._text.on(key)
        self._class_sets[key] = found
        if len(self._class_sets) > MOST_CLASS_SETS:
            self._class_sets.pop(next(iter(self._class_sets)))
        return found

    def _draws(self, frozen: ClassSet, purpose: str, round: int, clients: np.ndarray) -> Draws | None:
        """The random numbers of each step, if the method needs any: a client draws its own in its own steps alone."""
        method = self.job.method
        if not isinstance(method, HasDraws):
            return None
        generators = self._generators(f"draws of {purpose}", round, clients)

        def drawn(chosen: np.ndarray) -> ParamTree:
            each = [method.draws(frozen, generators[client]) for client in chosen]
            return {key: to_device(torch.stack([one[key] for one in each]), self._device) for key in each[0]}

        return drawn

    def _generators(self, purpose: str, round: int, clients: np.ndarray) -> list[torch.Generator]:
        return [torch_generator(self.job.seed, purpose, round, int(client)) for client in clients]


def _steps(orders: Sequence[Order]) -> np.ndarray:
    return np.array([len(order) for order in orders])

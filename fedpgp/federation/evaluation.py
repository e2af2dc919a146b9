"""Counts of correct, confident and confused answers, for each client's model and for the server's."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import torch

from fedpgp.clip.feature_cache import FeatureCache
from fedpgp.clip.text_backbone import ClassSet
from fedpgp.core.tree import ParamTree, to_device
from fedpgp.data.federated import EvaluationSet, FederatedData
from fedpgp.federation.messages import Call, Counts
from fedpgp.federation.pooled_counts import Answers, confidences, pool
from fedpgp.methods.base import Classifier, HasGlobalModel, Method

MOST_CLASSES = 1000  # with more there is no confusion matrix, which would take more than 8 MB
VALUES_PER_CHUNK = 1 << 24  # most logits or feature values of an evaluation at a time: 64 MB of float32


@dataclass(frozen=True)
class Evaluator:
    """Evaluates models on the evaluation sets of a federation."""

    method: Method
    data: FederatedData
    class_sets: Mapping[str, ClassSet]
    cache: FeatureCache  # of the images that are tested on
    device: torch.device

    @torch.no_grad()
    def counts(
        self,
        params: ParamTree,
        clients: np.ndarray,
        evaluation_sets: Sequence[EvaluationSet],
        whole: bool = True,
        local: str = "local",
        confusion: bool = False,
    ) -> list[Counts]:
        """Counts on each client's own images, and with `whole` on all images of a set."""
        data, method = self.data, self.method
        classifiers: dict[str, Classifier] = {}
        counts = []
        for images in evaluation_sets:
            tested = images.tested(clients)
            if not tested.any() or (images.kind != data.train_kind and not method.supports_unseen_classes):
                continue
            own, models, frozen = clients[tested], _of(params, tested), self.class_sets[images.class_set]
            if images.class_set not in classifiers:
                classifiers[images.class_set] = method.classifier(models, frozen)
            answers = self._answers(classifiers[images.class_set], images.rows, _number(models), frozen.num_classes)
            sizes = len(data.domains), data.class_sets[images.class_set]
            if images.members is not None:
                members = [images.members[client] for client in own]
                counts.append(count(images, local, own, answers, members, *sizes, confusion))
            if whole:
                counts.append(count(images, images.metric, own, answers, None, *sizes, confusion))
        return counts

    @torch.no_grad()
    def own_counts(
        self, params: ParamTree, clients: np.ndarray, class_set: Callable[[np.ndarray], ClassSet]
    ) -> list[Counts]:
        """Counts as `local_own` on those of each client's own images that show classes it trains among, among these.

        Args:
            class_set: the frozen model of some classes, given by their labels among all.
        """
        counts = []
        for images in self.data.evaluation_sets:
            if images.members is None:
                continue
            labels = np.array(self.data.class_sets[images.class_set])[images.labels]
            for client in clients[images.tested(clients)]:
                classes = self.data.training_classes(int(client))
                rows = images.members[client][np.isin(labels[images.members[client]], classes)]
                frozen, models = class_set(classes), _of(params, clients == client)
                answers = self._answers(self.method.classifier(models, frozen), images.rows[rows], 1, len(classes))
                own = replace(
                    images, rows=images.rows[rows], labels=np.searchsorted(classes, labels[rows]),
                    domains=images.domains[rows],
                )  # fmt: skip
                sizes = len(self.data.domains), tuple(classes.tolist())
                counts.append(count(own, "local_own", np.array([client]), answers, None, *sizes, False))
        return counts

    def global_counts(self, params: ParamTree, call: Call, everywhere: bool) -> list[Counts]:
        """Counts of the server's model, without personal parameters; the same for all clients.

        On a held-out domain, on test images of clients if others never train (for `participation_gap`), or
        `everywhere`. Empty if the shared parameters do not form a model.
        """
        gap = bool(self.data.unseen_clients)
        evaluation_sets = [
            images
            for images in self.data.evaluation_sets
            if everywhere or images.held_out or (gap and images.split == "test" and images.members is not None)
        ]
        model = self.global_model(params, call) if evaluation_sets else None
        counts = [] if model is None else self.counts(model, call.clients, evaluation_sets)
        return [replace(part, metric=f"{part.metric}_global") for part in counts]

    def global_model(self, params: ParamTree, call: Call) -> ParamTree | None:
        """The server's model (1, ...) from the clients' `params` (K, ...); None: it needs personal parameters."""
        one = {key: value[:1] for key, value in params.items()}
        if not call.personal:
            return one
        return self.method.global_model(one) if isinstance(self.method, HasGlobalModel) else None

    def _answers(self, classifier: Classifier, rows: np.ndarray, models: int, num_classes: int) -> Answers:
        """What each model answers for each image."""
        size = max(1, VALUES_PER_CHUNK // max(models * num_classes, prod(self.cache.shape)))
        classes, confidence = [], []
        for start in range(0, max(1, len(rows)), size):
            features = to_device(torch.from_numpy(self.cache.gather(rows[start : start + size])), self.device)
            logits = classifier(features.unsqueeze(0))
            best, answers = logits.max(-1)
            classes.append(answers.int().masked_fill_(~best.isfinite(), -1))  # max prefers NaN to any number
            confidence.append(confidences(logits, best))
        return Answers(*(torch.cat(parts, dim=1).cpu().numpy() for parts in (classes, confidence)))


def _number(params: ParamTree) -> int:
    """The number of models; 1 without parameters."""
    return len(next(iter(params.values()), [0]))


def _of(params: ParamTree, chosen: np.ndarray) -> ParamTree:
    """The models of some of the clients (K,); the one of all if there is one."""
    if chosen.all() or _number(params) == 1:
        return params
    index = torch.from_numpy(np.flatnonzero(chosen))
    return {key: value[index.to(value.device)] for key, value in params.items()}


def count(
    images: EvaluationSet,
    metric: str,
    clients: np.ndarray,
    answers: Answers,
    members: Sequence[np.ndarray] | None,
    num_domains: int,
    labels: tuple[int, ...],
    confusion: bool,
) -> Counts:
    """Count the correct answers of each client's model, or of the one model of all, as `metric`.

    Args:
        members: each client's images; None: all of them.
        labels: those of the classes among all classes of the data.
        confusion: whether to count a confusion matrix.
    """
    right = np.broadcast_to(answers.classes == images.labels, (len(clients), len(images.rows)))
    chosen: Sequence[np.ndarray | slice] = [slice(None)] * len(clients) if members is None else members
    correct = [
        np.bincount(images.domains[own], weights=row[own], minlength=num_domains)
        for row, own in zip(right, chosen, strict=True)
    ]
    total = [np.bincount(images.domains[own], minlength=num_domains) for own in chosen]
    pooled = pool(images, answers, members, len(clients), num_domains, labels)
    of_clients = np.array([correct, total], dtype=np.int64)
    matrix = count_confusion(images.labels, answers.classes, len(clients), members, len(labels)) if confusion else None
    return Counts(images.split, metric, clients, of_clients[0], of_clients[1], pooled, matrix)


def count_confusion(
    labels: np.ndarray, answers: np.ndarray, clients: int, members: Sequence[np.ndarray] | None, num_classes: int
) -> np.ndarray | None:
    """Count how often the models of a block's clients predicted each class (column) for each true class (row) (C, C).

    Answers that are not a class are left out: -1 (no answer) and the columns of further prompt sets (see `FedPGP`).
    None for more than `MOST_CLASSES` classes. Arguments as in `count`, labels (n,), answers (models, n).
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

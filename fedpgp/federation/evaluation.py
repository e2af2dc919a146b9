"""Evaluation of models in a worker: correct answers per client and domain, and confusion matrices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING

import numpy as np
import torch

from fedpgp.clip.feature_cache import FeatureCache
from fedpgp.clip.text_backbone import ClassSet
from fedpgp.core.tree import ParamTree
from fedpgp.data.protocol import EvaluationSet
from fedpgp.federation.messages import Counts, EvaluateCall
from fedpgp.methods.base import Classifier, HasGlobalModel

if TYPE_CHECKING:
    from fedpgp.federation.worker import FederationJob

MOST_CLASSES = 1000  # with more there is no confusion matrix, which would take more than 8 MB
VALUES_PER_CHUNK = 1 << 24  # most logits or feature values at a time: 64 MB of float32


class Evaluator:
    """Evaluates models on the evaluation sets of a job.

    Args:
        frozen: returns the frozen model of a class set by its name.
    """

    def __init__(self, job: FederationJob, frozen: Callable[[str], ClassSet], device: torch.device) -> None:
        self._method, self._data, self._features = job.method, job.data, job.test_features
        self._evaluate_global = job.federation.evaluate_global
        self._frozen = frozen
        self._device = device

    @torch.no_grad()
    def counts(
        self,
        params: ParamTree,
        clients: np.ndarray,
        evaluation_sets: Sequence[EvaluationSet],
        whole: bool,
        local: str = "local",
        confusion: bool = False,
    ) -> list[Counts]:
        """Counts on each client's own images, and with `whole` on all images of a set."""
        classifiers: dict[str, Classifier] = {}
        counts = []
        for images in evaluation_sets:
            if images.class_set != self._data.train_set and not self._method.supports_unseen_classes:
                continue
            if images.class_set not in classifiers:
                classifiers[images.class_set] = self._method.classifier(params, self._frozen(images.class_set))
            answers = self._answers(classifiers[images.class_set], images, models=len(next(iter(params.values()), [0])))
            num_classes = self._frozen(images.class_set).num_classes if confusion else None
            if images.members is not None:
                members = [images.members[client] for client in clients]
                counts.append(self._count(images, local, clients, answers, members, num_classes))
            if whole:
                counts.append(self._count(images, images.metric, clients, answers, None, num_classes))
        return counts

    @torch.no_grad()
    def global_counts(self, params: ParamTree, call: EvaluateCall, shares: bool) -> list[Counts]:
        """Counts of the server's model, without personal parameters; the same for all clients.

        Evaluated on a held-out domain, and on all sets with `evaluate_global`. Empty if the method has no such model:
        everything is personal, or the shared parameters do not form a model.
        """
        evaluation_sets = [images for images in self._data.evaluation_sets if images.held_out or self._evaluate_global]
        if not evaluation_sets or not shares:
            return []
        params = {key: value[:1] for key, value in params.items()}
        if call.personal:
            if not isinstance(self._method, HasGlobalModel):
                return []
            params = self._method.global_model(params)
        counts = self.counts(params, call.clients, evaluation_sets, whole=True)
        return [replace(part, metric=f"{part.metric}_global") for part in counts]

    def _answers(self, classifier: Classifier, images: EvaluationSet, models: int) -> np.ndarray:
        """Predicted class of each model for each image (models, n); -1 where its logits are not finite."""
        num_classes = self._frozen(images.class_set).num_classes
        size = max(1, VALUES_PER_CHUNK // max(models * num_classes, prod(self._cache.shape)))
        parts = []
        for start in range(0, len(images.rows), size):
            features = torch.from_numpy(self._cache.gather(images.rows[start : start + size])).to(self._device)
            best, answers = classifier(features.unsqueeze(0)).max(-1)
            parts.append(answers.int().masked_fill_(~best.isfinite(), -1))  # max prefers NaN to any number
        return torch.cat(parts, dim=1).cpu().numpy()

    def _count(
        self,
        images: EvaluationSet,
        metric: str,
        clients: np.ndarray,
        answers: np.ndarray,
        members: Sequence[np.ndarray] | None,
        num_classes: int | None,
    ) -> Counts:
        """Correct answers of each client's model (or of the one model of all) on its members, or on the whole set."""
        domains = len(self._data.domains)
        right = np.broadcast_to(answers == images.labels, (len(clients), len(images.rows)))
        chosen: Sequence[np.ndarray | slice] = [slice(None)] * len(clients) if members is None else members
        correct = [
            np.bincount(images.domains[own], weights=row[own], minlength=domains)
            for row, own in zip(right, chosen, strict=True)
        ]
        total = [np.bincount(images.domains[own], minlength=domains) for own in chosen]
        confusion = count_confusion(images.labels, answers, len(clients), members, num_classes) if num_classes else None
        return Counts(
            images.split, metric, clients, np.array(correct, dtype=np.int64), np.array(total, dtype=np.int64), confusion
        )

    @cached_property
    def _cache(self) -> FeatureCache:
        return FeatureCache.open(self._features.path, self._features.key)


def count_confusion(
    labels: np.ndarray, answers: np.ndarray, clients: int, members: Sequence[np.ndarray] | None, num_classes: int
) -> np.ndarray | None:
    """Count how often the models of a block's clients predicted each class (column) for each true class (row) (C, C).

    Args:
        labels: of the images (n,).
        answers: of each client's model, or of the one model of all clients (models, n). Answers that are not a class
            are left out: -1 (no answer) and the columns of further prompt sets (see `FedPGP`).
        members: each client's images; None: all of them.

    Returns:
        None for more than `MOST_CLASSES` classes.
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

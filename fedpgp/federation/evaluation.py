"""How an actor tests models on pools of images: right answers per client and domain, and what was taken for what."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from math import prod

import numpy as np
import torch

from fedpgp.clip.feature_cache import FeatureCache
from fedpgp.clip.text_backbone import ClassSet
from fedpgp.core.tree import ParamTree
from fedpgp.data.protocol import EvaluationSet, FederatedData
from fedpgp.federation.confusion import count_confusion
from fedpgp.federation.messages import Counts, EvaluateCall, Features
from fedpgp.methods.base import Classifier, HasGlobalModel, Method

VALUES_PER_CHUNK = 1 << 24  # 64 MB of float32, of logits or of features: bounds the memory of an evaluation


class Scorer:
    """Tests models on the pools of images.

    Args:
        features: of the images to test on.
        evaluate_global: whether the global model is tested on every pool, and not on the held-out one alone.
        frozen: gives the frozen side of a class set, by its name.
    """

    def __init__(
        self,
        method: Method,
        data: FederatedData,
        features: Features,
        evaluate_global: bool,
        frozen: Callable[[str], ClassSet],
        device: torch.device,
    ) -> None:
        self._method, self._data, self._features = method, data, features
        self._evaluate_global = evaluate_global
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
        """Local counts of the pools that have members, and with `whole` those of the entire pool."""
        classifiers: dict[str, Classifier] = {}
        counts = []
        for pool in evaluation_sets:
            if pool.class_set != self._data.train_set and not self._method.supports_unseen_classes:
                continue
            if pool.class_set not in classifiers:
                classifiers[pool.class_set] = self._method.classifier(params, self._frozen(pool.class_set))
            answers = self._answers(classifiers[pool.class_set], pool, models=len(next(iter(params.values()), [0])))
            num_classes = self._frozen(pool.class_set).num_classes if confusion else None
            if pool.members is not None:
                members = [pool.members[client] for client in clients]
                counts.append(self._tally(pool, local, clients, answers, members, num_classes))
            if whole:
                counts.append(self._tally(pool, pool.metric, clients, answers, None, num_classes))
        return counts

    @torch.no_grad()
    def global_counts(self, params: ParamTree, call: EvaluateCall, shares: bool) -> list[Counts]:
        """The model that the server has, without any client's own part: the same for all.

        On a held-out domain always, on the rest if it is asked for. Nothing if the method has no such model: all of it
        is personal, or its shared part is no model.
        """
        evaluation_sets = [pool for pool in self._data.evaluation_sets if pool.held_out or self._evaluate_global]
        if not evaluation_sets or not shares:
            return []
        params = {key: value[:1] for key, value in params.items()}
        if call.personal:
            if not isinstance(self._method, HasGlobalModel):
                return []
            params = self._method.global_model(params)
        counts = self.counts(params, call.clients, evaluation_sets, whole=True)
        return [replace(part, metric=f"{part.metric}_global") for part in counts]

    def _answers(self, classifier: Classifier, pool: EvaluationSet, models: int) -> np.ndarray:
        """The class that each model takes each image for (models, n); -1 where its logits are not finite."""
        num_classes = self._frozen(pool.class_set).num_classes
        size = max(1, VALUES_PER_CHUNK // max(models * num_classes, prod(self._cache.shape)))
        parts = []
        for start in range(0, len(pool.rows), size):
            features = torch.from_numpy(self._cache.gather(pool.rows[start : start + size])).to(self._device)
            best, answers = classifier(features.unsqueeze(0)).max(-1)
            parts.append(answers.int().masked_fill_(~best.isfinite(), -1))  # max takes NaN before any number
        return torch.cat(parts, dim=1).cpu().numpy()

    def _tally(
        self,
        pool: EvaluationSet,
        metric: str,
        clients: np.ndarray,
        answers: np.ndarray,
        members: Sequence[np.ndarray] | None,
        num_classes: int | None,
    ) -> Counts:
        """What each client's model (or the one of all) got right among its members, or in the whole pool."""
        domains = len(self._data.domains)
        right = np.broadcast_to(answers == pool.labels, (len(clients), len(pool.rows)))
        chosen: Sequence[np.ndarray | slice] = [slice(None)] * len(clients) if members is None else members
        correct = [
            np.bincount(pool.domains[own], weights=row[own], minlength=domains)
            for row, own in zip(right, chosen, strict=True)
        ]
        total = [np.bincount(pool.domains[own], minlength=domains) for own in chosen]
        confusion = count_confusion(pool.labels, answers, len(clients), members, num_classes) if num_classes else None
        return Counts(
            pool.split,
            metric,
            clients,
            np.array(correct, dtype=np.int64),
            np.array(total, dtype=np.int64),
            confusion,
        )

    @cached_property
    def _cache(self) -> FeatureCache:
        return FeatureCache.open(self._features.path, self._features.key)

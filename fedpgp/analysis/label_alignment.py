"""Check that class names fit the labels: zero-shot accuracy against that of the best assignment of names."""

import threading
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from fedpgp.clip.feature_cache import FeatureCache
from fedpgp.clip.model import ICON_CLIP
from fedpgp.config import Experiment, MethodSettings, PartitionSettings, ProtocolSettings
from fedpgp.core.callbacks import RunCallback
from fedpgp.experiments import planning, runner
from fedpgp.experiments.features import extract

IMAGES_PER_CLASS = 8


@dataclass(frozen=True)
class Alignment:
    """Zero-shot accuracy, in percent, on a few training images of each class."""

    given: float
    """with the given names"""
    best: float
    """with the assignment of names that fits other images of the classes best"""
    images: int
    classes: int
    moved: tuple[tuple[str, str], ...]
    """(name, name that fits its images better) of the classes that have one"""
    gained: int = 0
    """images that are correct only with the best assignment"""
    lost: int = 0
    """images that are correct only with the given names"""

    @property
    def by_chance(self) -> bool:
        """Whether the given names are not better than guessing by 3 standard errors."""
        chance = 1 / self.classes
        return bool(self.given <= 100 * (chance + 3 * np.sqrt(chance * (1 - chance) / max(1, self.images))))

    @property
    def suspicious(self) -> bool:
        """Whether the best assignment is significantly better (McNemar's test, 2.5 standard errors).

        A few classes may be exchanged, or the model confuses them: the user has to judge.
        """
        return bool(self.gained - self.lost > 2.5 * np.sqrt(self.gained + self.lost))

    @property
    def exchanged(self) -> bool:
        """Whether the best assignment is better by 3 standard errors and by half of the accuracy."""
        error = 100 * np.sqrt(2 * 0.25 / max(1, self.images))
        return bool(self.moved) and self.best > max(1.5 * self.given, self.given + 3 * error)


def can_judge(settings: Experiment) -> bool:
    """Whether the backbone knows such images: random weights do not, the model of the package only its icons."""
    backbone = settings.backbone
    return backbone.weights != "random" and (backbone.name != ICON_CLIP or settings.data.name == "icons")


def zero_shot(settings: Experiment, callback: RunCallback) -> Alignment:
    """Classify a few images of each class by the names of all classes; features are cached as in any run.

    Half of the images determine the best assignment of names, the other half measure it.
    """
    small = settings.model_copy(
        update={
            "method": MethodSettings(name="zero_shot"),
            "partition": PartitionSettings(scheme="iid", clients=1),
            "protocol": ProtocolSettings(name="all_classes", shots=IMAGES_PER_CLASS),
            "data": settings.data.model_copy(update={"views": 1}),
        }
    )
    plan = planning.plan(small)
    plan = replace(plan, data=replace(plan.data, evaluation_sets=()))
    resources = small.resources.model_copy(update={"backend": "serial"})
    with closing(runner.make_backend(resources, threading.Event())) as backend:
        cache, _ = extract(plan, backend, callback)
    features = torch.from_numpy(np.array(FeatureCache.open(cache.path, cache.key).gather(plan.data.train_rows[0])))
    text = plan.text.on(range(len(plan.data.class_names))).template().float()
    scores = F.normalize(features.float(), dim=-1) @ F.normalize(text, dim=-1).T
    return align(scores.argmax(-1).numpy(), plan.data.train_labels[0], plan.data.class_names)


def align(predicted: np.ndarray, labels: np.ndarray, names: tuple[str, ...]) -> Alignment:
    """Judge predictions [n] for labels [n]."""
    from scipy.optimize import linear_sum_assignment

    order = np.argsort(labels, kind="stable")
    predicted, labels = predicted[order], labels[order]
    choosing = np.arange(len(labels)) % 2 == 0
    votes_CC = np.zeros((len(names), len(names)), np.int64)
    np.add.at(votes_CC, (labels[choosing], predicted[choosing]), 1)
    _, fitting = linear_sum_assignment(-(votes_CC + 0.5 * np.eye(len(names))))  # ties go to the given name
    predicted, labels = predicted[~choosing], labels[~choosing]
    moved = [(names[label], names[other]) for label, other in enumerate(fitting) if label != other]
    given, best = predicted == labels, predicted == fitting[labels]
    return Alignment(
        given=100 * float(given.mean()) if len(labels) else 0.0,
        best=100 * float(best.mean()) if len(labels) else 0.0,
        images=len(labels),
        classes=len(names),
        moved=tuple(moved),
        gained=int((best & ~given).sum()),
        lost=int((given & ~best).sum()),
    )

"""Which metrics the runs of an experiment record, as far as its settings and its images tell."""

from fedpgp import methods
from fedpgp.config import Experiment
from fedpgp.core.errors import ConfigError
from fedpgp.data.federated import FederatedData
from fedpgp.federation.measures import split_name

UNSEEN = ("novel", "hm")
"""Metrics on classes that nobody trains on."""
IMAGES = {"val": "validation", "test": "test"}


def why_not(experiment: Experiment, metric: str) -> str | None:
    """Why no round of an experiment has a metric (`val/hm`, `train/loss`); None: some do, as far as is known here."""
    split, _, name = metric.partition("/")
    name = split_name(name)[0]
    method = methods.create(experiment.method.name, experiment.method.settings)
    federation = experiment.federation
    if not method.phases and (split == "train" or name.endswith("_before_aggregation")):
        return f"method {method.name} does not train"
    if name.startswith(UNSEEN) and not method.supports_unseen_classes:
        return f"method {method.name} only knows the classes that it was trained on"
    if name.endswith("_before_aggregation") and not federation.evaluate_before_aggregation:
        return "federation.evaluate_before_aggregation is false"
    gap = experiment.partition.unseen_clients > 0 and split == "test" and name == "local_global"
    if name.endswith("_global") and not (federation.evaluate_global or gap or name == "held_out_global"):
        return "federation.evaluate_global is false"
    return None


def check_images(metric: str, data: FederatedData) -> None:
    """Raise `ConfigError` if a metric on validation or test images has no image."""
    split, _, name = metric.partition("/")
    stem = split_name(name)[0].split("_")[0]
    needed = {"hm": {"base", "novel"}, "held": set(), "local": {data.train_kind}}.get(stem, {stem})
    missing = needed - {pool.kind for pool in data.evaluation_sets if pool.split == split}
    if split in IMAGES and missing:
        raise ConfigError(
            f"tune.metric: {metric} is not measured: no {IMAGES[split]} image of {' and '.join(sorted(missing))} "
            "classes; see data.val_fraction and protocol.val_shots, or use another metric"
        )

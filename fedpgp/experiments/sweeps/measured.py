"""Which metrics the runs of an experiment record, as far as its settings and its images tell."""

from collections.abc import Mapping, Sequence

from fedpgp import methods
from fedpgp.config import Experiment
from fedpgp.core.errors import ConfigError
from fedpgp.data.federated import FederatedData
from fedpgp.federation.measures import smaller_is_better, split_name
from fedpgp.federation.metrics import NEW_CLIENT

MEASURED = {
    "base_to_novel": ("local", "base", "novel", "hm"),
    "all_classes": ("local", "all"),
    "leave_one_domain_out": ("local", "all", "held_out"),
    "cross_data": ("local", "all", "held_out"),
}
"""Metrics of each protocol; variants such as `local_global` begin with one of these names."""
ADAPTED = "_adapted"
NOT_OF_NEW_CLIENTS = ("_global", "_before_aggregation")
"""Ends of variants that are measured on clients that train."""
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


def check_metric(metric: str, mode: str, experiments: Sequence[Experiment]) -> None:
    """Raise `ConfigError` unless the protocol of every experiment has a metric."""
    protocols = {one.protocol.name for one in experiments}
    split, _, name = metric.partition("/")
    name = split_name(name)[0]
    if smaller_is_better(metric) and mode == "max":
        raise ConfigError(f"tune.mode: {metric} is the better the smaller it is; give tune.mode=min")
    for protocol in sorted(protocols) if split != "train" else ():
        known = MEASURED[protocol]
        if not name.startswith(known) or (name == "held_out" and split == "val"):
            names = ", ".join(f"{split}/{one}" for one in known if (split, one) != ("val", "held_out"))
            raise ConfigError(f"tune.metric: {metric} is not measured with protocol.name={protocol}; use {names}")
    if name == "local_own" and not all(one.protocol.train_classes == "own" for one in experiments):
        raise ConfigError(f"tune.metric: {metric} is not measured without protocol.train_classes=own")
    if split == NEW_CLIENT and not all(one.partition.unseen_clients for one in experiments):
        raise ConfigError(f"tune.metric: {metric} is not measured without partition.unseen_clients above 0")
    if split == NEW_CLIENT and name.endswith(NOT_OF_NEW_CLIENTS):
        raise ConfigError(f"tune.metric: {metric} is not measured; use {NEW_CLIENT}/{_stem(name)}")
    if name.endswith(ADAPTED):
        if split != NEW_CLIENT:
            raise ConfigError(f"tune.metric: {metric} is measured on new clients only; use {NEW_CLIENT}/{name}")
        if not all(map(_adapts, experiments)):
            raise ConfigError(
                f"tune.metric: {metric} is not measured with federation.new_client_epochs=0, nor by a method that does "
                f"not train; use {NEW_CLIENT}/{_stem(name)}"
            )


def unranked(metric: str, experiments: Mapping[str, Experiment]) -> str:
    """Which experiments, by label, do not record a metric, and why; raise `ConfigError` if none does."""
    reasons = {label: reason for label, one in experiments.items() if (reason := why_not(one, metric))}
    if len(reasons) == len(experiments):
        why = "; ".join(dict.fromkeys(reasons.values()))
        raise ConfigError(f"tune.metric: {metric} is not measured, because {why}; use another metric")
    lines = (
        f"{', '.join(label for label, own in reasons.items() if own == reason)} ({reason})"
        for reason in dict.fromkeys(reasons.values())
    )
    return f"tune.metric: {metric} is not measured, and so not ranked, for {'; '.join(lines)}" if reasons else ""


def check_domain(metric: str, domains: Sequence[str], held_out: Sequence[str | None]) -> None:
    """Raise `ConfigError` if a metric is of one domain (`val/local.sketch`) that some fold does not measure."""
    domain = split_name(metric)[2]
    several = len(domains) - any(name is not None for name in held_out) > 1
    known = [name for name in domains if name not in held_out] if several else []
    if domain is not None and domain not in known:
        hint = (
            f"domains of every fold: {', '.join(known)}" if known else "no domain is measured by itself in every fold"
        )
        raise ConfigError(f"tune.metric: {metric} is not measured with these data and folds; {hint}")


def _stem(name: str) -> str:
    """The metric of which a name is a variant."""
    for end in (ADAPTED, *NOT_OF_NEW_CLIENTS):
        name = name.removesuffix(end)
    return name


def _adapts(experiment: Experiment) -> bool:
    """Whether new clients are also tested after local epochs of their own."""
    method = methods.create(experiment.method.name, experiment.method.settings)
    return bool(method.phases) and experiment.federation.new_client_epochs > 0

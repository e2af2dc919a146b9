"""The names of tags and metrics in MLflow. Nothing heavy is imported, so that the user interface starts fast."""

import re
from collections.abc import Collection

from fedpgp.federation.metrics import METRICS, TESTED

PARENT_TAG = "mlflow.parentRunId"
SWEEP_TAG = "fedpgp.sweep"
"""The tag that identifies a sweep, see `writers.sweep_tag`."""
RUN_TAG = "fedpgp.run"
"""The tag that holds the unique id of a run on disk, as `RunFolder.create` assigned it."""
SEARCHED_TAG = "fedpgp.searched"
"""The tag that lists, as JSON, the settings by which the trials of a sweep differ."""
FORBIDDEN = re.compile(r"[^\w.\- ]")
"""Signs that a metric's name may not have after its first slash."""


def metric_key(name: str) -> str:
    """The name of a metric as MLflow accepts it: signs of a domain's name that it rejects become `_` and their code.

    `test/local.R&B` is `test/local.R_26B`.
    """
    section, slash, rest = name.partition("/")
    return section + slash + FORBIDDEN.sub(lambda found: f"_{ord(found[0]):x}", rest)


def accuracies(metrics: Collection[str]) -> list[str]:
    """Names of accuracy metrics, in the order of the tables."""
    return [f"{split}/{metric}" for split in TESTED for metric in METRICS if f"{split}/{metric}" in metrics]

"""The columns that MLflow's table of runs has at first: what the sweeps there search over, and how they are judged."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from fedpgp.tracking.descriptions import measured
from fedpgp.tracking.sweep_writer import SPACE, SWEEP_TAG

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

NAME = "fedpgp"
VIEW_TAG = f"mlflow.sharedViewState.{NAME}"
"""Of an experiment: a view as MLflow's own Share button leaves it, for pages with `viewStateShareKey`."""
MOST_SWEEPS = 20
"""The newest."""


def renew(client: MlflowClient, experiment: str) -> str | None:
    """Keep a view for the sweeps of an MLflow experiment; its name, or None if there is no sweep."""
    sweeps = client.search_runs([experiment], f"tags.`{SWEEP_TAG}` LIKE '%'", max_results=MOST_SWEEPS)
    if not sweeps:
        return None
    columns: dict[str, None] = {}
    for sweep in sweeps:
        columns |= dict.fromkeys(f"params.`{key}`" for key in _searched(sweep.data.params))
    for sweep in sweeps:
        tested = [name for name in measured(sweep.data.metrics) if name.startswith("test/")]
        columns |= dict.fromkeys(f"metrics.`{name}`" for name in (sweep.data.params["tune.metric"], *tested))
    client.set_experiment_tag(experiment, VIEW_TAG, json.dumps({"selectedColumns": list(columns)}))
    return NAME


def _searched(params: Mapping[str, str]) -> list[str]:
    """`method.rank` of `space.method.rank.grid_search`."""
    return sorted(name.removeprefix(SPACE).rpartition(".")[0] for name in params if name.startswith(SPACE))

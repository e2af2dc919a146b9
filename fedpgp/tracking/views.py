"""Save views of MLflow's table of runs: the trials of the newest sweep, charts of them, single runs, and all runs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedpgp.federation.metrics import on_test_images
from fedpgp.tracking.artifact_links import WORKFLOW
from fedpgp.tracking.connection import connect, mlflow_errors
from fedpgp.tracking.names import PARENT_TAG, RUN_TAG, SEARCHED_TAG, SWEEP_TAG, accuracies, metric_key

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

TAG_PREFIX = "mlflow.sharedViewState."
"""Tag of an experiment that holds a saved view of its table of runs.

MLflow does not document it. The menu `Views` of its page lists these tags, and the page opens one if the address has
`viewStateShareKey=KEY`. A test compares the names in this file with those in the scripts of the page.
"""
MOST = 200
"""Largest number of runs that are read to find out what a view shows."""
MAX_SWEEPS = 20
"""The number of sweeps, newest first, whose columns are shown together."""
IDENTIFYING = ("method.name", "data.name", "seed")
"""Parameters that tell single runs apart."""
FIRST_COLUMNS = ("attributes.`Run Name`", "runDateAndNestInfo")
"""Columns that MLflow's table always has."""
MAIN = "Trials"
"""The section of the charts."""
TRADEOFF = ("test/local", "test/novel")
"""What the scatter chart shows of a sweep with one objective."""


@dataclass(frozen=True)
class View:
    """A saved view."""

    key: str
    name: str
    state: dict[str, Any]
    """as MLflow's page keeps it"""
    mode: str = "TABLE"
    """TABLE or CHART"""


def save(uri: str) -> dict[str, str]:
    """Save the views of the store in MLflow, and return their names with the paths of their pages, the first one first.

    The views are those of the experiment of the newest sweep, or else of the newest run that is mirrored there. Without
    any it is the list of experiments.
    """
    with mlflow_errors(uri):
        client = connect(uri)
        experiments = [one.experiment_id for one in client.search_experiments(filter_string="name != 'Default'")]
        newest = [run for tag in (SWEEP_TAG, RUN_TAG) for run in _search(client, experiments, _has(tag), 1)]
        if not newest:
            return {"experiments": f"/#/experiments?{WORKFLOW}"}
        experiment, created_ms = newest[0].info.experiment_id, newest[0].info.start_time
        views = _views(client, experiment)
        for place, view in enumerate(views):
            made = created_ms - place  # the menu lists the newest one first
            content = {"name": view.name, "createdAt": made, "updatedAt": made, "state": json.dumps(view.state)}
            client.set_experiment_tag(experiment, TAG_PREFIX + view.key, json.dumps(content))
    page = f"/#/experiments/{experiment}/runs?{WORKFLOW}"
    return {view.name: f"{page}&compareRunsMode={view.mode}&viewStateShareKey={view.key}" for view in views}


def _views(client: MlflowClient, experiment: str) -> list[View]:
    """The views of an experiment that have something to show."""
    views = []
    sweeps = _search(client, [experiment], _has(SWEEP_TAG), MAX_SWEEPS)
    for sweep in sweeps[:1]:
        below = f"tags.`{PARENT_TAG}` = '{sweep.info.run_id}'"
        views += _of_sweep(sweep, below, _search(client, [experiment], below, MOST))
    # The page takes a filter for a part of a name unless it begins with a comparison.
    alone = f"{_has(RUN_TAG)} AND tags.`{PARENT_TAG}` IS NULL"
    if single := _search(client, [experiment], alone, MOST):
        columns = _columns(IDENTIFYING, _tested(single))
        views.append(View("fedpgp-runs", "Single runs", {"searchFilter": alone, **columns}))
    if sweeps:
        params = dict.fromkeys(key for sweep in sweeps for key in searched(sweep))
        metrics = dict.fromkeys(name for sweep in sweeps for name in (*objectives(sweep), *_tested([sweep])))
        views.append(View("fedpgp-all", "Sweeps, trials and folds", _columns(params, metrics)))
    return views


def _of_sweep(sweep: Run, below: str, trials: Sequence[Run]) -> list[View]:
    """The list of trials, best first, and the charts of them."""
    metrics, params = objectives(sweep), searched(sweep)
    shown = list(dict.fromkeys([*metrics, *_tested(trials)]))
    charts = _charts(metrics, params, trials)
    sections = {name.rpartition("/")[0] for run in trials for name in run.data.metrics} - {""}
    state = {
        "searchFilter": below,
        "orderByKey": f"metrics.`{metrics[0]}`",
        "orderByAsc": sweep.data.params.get("tune.mode") == "min",
        **_columns(params, shown),
        "runsHiddenMode": "SHOW_ALL",
        "compareRunCharts": charts,
        "compareRunSections": [_section(MAIN, True), *(_section(name, False) for name in sorted(sections))],
        "isAccordionReordered": True,
    }
    name = sweep.info.run_name
    return [
        View("fedpgp", f"Trials of {name}", state),
        View("fedpgp-charts", f"Charts of {name}", {**state, "viewMaximized": True}, "CHART"),
    ]


def objectives(sweep: Run) -> list[str]:
    """The metrics by which the trials of a sweep are compared, as MLflow names them."""
    return [metric_key(name) for name in sweep.data.params["tune.metric"].split(", ")]


def searched(sweep: Run) -> list[str]:
    """The settings that the trials of a sweep differ by, if it was mirrored by a version that says so."""
    keys: list[str] = json.loads(sweep.data.tags.get(SEARCHED_TAG, "[]"))
    return keys


def _charts(metrics: Sequence[str], params: Sequence[str], trials: Sequence[Run]) -> list[dict[str, Any]]:
    """Bars by trial, a scatter plot, parallel coordinates of what varies, and the contour of the first two numbers."""
    across, up = metrics if len(metrics) == 2 else TRADEOFF
    charts = [_chart("BAR", metricKey=name, selectedMetricKeys=[name]) for name in metrics]
    if all(any(name in run.data.metrics for run in trials) for name in (across, up)):
        charts.append(_chart("SCATTER", xaxis=_axis(across), yaxis=_axis(up)))
    if varied := [key for key in params if len(_values(key, trials)) > 1]:
        shown = {"selectedParams": varied, "selectedMetrics": [metrics[0]]}
        charts.append(_chart("PARALLEL", **shown, showAllRuns=True))
    numeric = [key for key in varied if _are_numbers(_values(key, trials))]
    if len(numeric) > 1:
        axes = {"xaxis": _axis(numeric[0], "PARAM"), "yaxis": _axis(numeric[1], "PARAM"), "zaxis": _axis(metrics[0])}
        charts.append(_chart("CONTOUR", **axes))
    return [{"uuid": f"chart {place}", **chart} for place, chart in enumerate(charts)]


def _chart(kind: str, **settings: Any) -> dict[str, Any]:
    """A chart in the first section, with a title that MLflow's page makes."""
    return {"type": kind, "metricSectionId": MAIN, "deleted": False, "isGenerated": False, **settings}


def _section(name: str, display: bool) -> dict[str, Any]:
    return {"uuid": name, "name": name, "display": display, "isReordered": True, "deleted": False, "isGenerated": False}


def _axis(key: str, kind: str = "METRIC") -> dict[str, str]:
    return {"key": key, "type": kind}


def _values(key: str, runs: Iterable[Run]) -> set[str]:
    """The values that a setting has in the runs that have it."""
    return {run.data.params[key] for run in runs if key in run.data.params}


def _are_numbers(values: Iterable[str]) -> bool:
    try:
        list(map(float, values))
    except ValueError:
        return False
    return True


def _tested(runs: Iterable[Run]) -> list[str]:
    """The accuracies on test images that any of the runs has, in the order of the tables."""
    return [name for name in accuracies({name for run in runs for name in run.data.metrics}) if on_test_images(name)]


def _columns(params: Iterable[str], metrics: Iterable[str]) -> dict[str, list[str]]:
    """The columns of a view, parameters first; MLflow's own order is the other one, and alphabetical."""
    columns = [*(f"params.`{key}`" for key in params), *(f"metrics.`{key}`" for key in metrics)]
    return {"selectedColumns": columns, "columnOrder": [*FIRST_COLUMNS, *columns]}


def _has(tag: str) -> str:
    """The condition that a run has a tag."""
    return f"tags.`{tag}` LIKE '%'"


def _search(client: MlflowClient, experiments: list[str], condition: str, most: int) -> list[Run]:
    """The newest runs that meet a condition."""
    order = ["attributes.start_time DESC"]
    return list(client.search_runs(experiments, condition, max_results=most, order_by=order)) if experiments else []

"""The views of MLflow's page show the trials of the newest sweep, charts of them, single runs, and all runs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import mlflow
import pytest
from mlflow.tracking import MlflowClient

from fedpgp import tracking
from fedpgp.tracking import views

PARENT = "mlflow.parentRunId"


class Store:
    """An MLflow store with one experiment, to which a test adds runs; each is younger than those before."""

    def __init__(self, root, name="mine"):
        self.uri = tracking.default_uri(root)
        self.client, self.root, self.now = MlflowClient(self.uri), root, 1_000
        self.experiment = tracking.prepare(root, self.uri, name)

    def add(self, name, params=None, metrics=None, **tags):
        self.now += 1_000
        tags = {PARENT if key == "parent" else f"fedpgp.{key}": value for key, value in tags.items()}
        run = self.client.create_run(self.experiment, start_time=self.now, tags=tags, run_name=name).info.run_id
        for key, value in (params or {}).items():
            self.client.log_param(run, key, value)
        for key, value in (metrics or {}).items():
            self.client.log_metric(run, key, value)
        return run

    def add_sweep(self, name, searched, metric="val/hm", mode="max"):
        tune = {"tune.metric": metric, "tune.mode": mode}
        return self.add(name, tune, sweep=f"{name}-1", searched=json.dumps(searched))

    def state(self, key):
        """The state of a view, as MLflow's page reads it."""
        content = json.loads(self.client.get_experiment(self.experiment).tags[f"mlflow.sharedViewState.{key}"])
        return json.loads(content["state"])

    def shown(self, key):
        """The names of the runs that a view lists, in its order."""
        state = self.state(key)
        order = f"{state['orderByKey']} {'ASC' if state['orderByAsc'] else 'DESC'}" if "orderByKey" in state else None
        found = self.client.search_runs([self.experiment], state.get("searchFilter", ""), order_by=order and [order])
        return [run.info.run_name for run in found]


@pytest.fixture(scope="module")
def stores(tmp_path_factory, shared_uri):
    """Make stores as copies of one, whose experiments are deleted: to create one takes seconds."""
    other = Path(shared_uri.removeprefix("sqlite:///")).read_bytes()

    def make(name="mine"):
        root = tmp_path_factory.mktemp("store")
        (root / "mlflow.db").write_bytes(other)
        client = MlflowClient(tracking.default_uri(root))
        for experiment in client.search_experiments(filter_string="name != 'Default'"):
            client.delete_experiment(experiment.experiment_id)
        return Store(root, name)

    return make


def test_without_mirrored_runs_there_is_the_list_of_experiments(stores):
    store = stores()
    store.client.create_run(store.experiment, run_name="of another program")
    assert views.save(store.uri) == {"experiments": "/#/experiments?workflowType=machine_learning"}


def test_the_newest_sweep_comes_first_with_its_trials_best_first(stores):
    store = stores()
    store.add_sweep("earlier", ["federation.lr"])
    sweep = store.add_sweep("ranks", ["method.rank", "method.mu"])
    for rank, mu, val, test in ((1, 0.5, 60.0, 70.0), (2, 0.5, 64.0, 66.0), (4, 1, 62.0, 68.0)):
        params = {"method.rank": rank, "method.mu": mu, "federation.rounds": 5}
        trial = store.add(f"rank={rank}", params, {"val/hm": val, "test/hm": test, "best/val/hm": val}, parent=sweep)
        store.add("seed 1", params, {"val/hm": 99.0}, parent=trial, run=f"r{rank}")
    saved = views.save(store.uri)
    assert list(saved) == ["Trials of ranks", "Charts of ranks", "Sweeps, trials and folds"]
    page = f"/#/experiments/{store.experiment}/runs?workflowType=machine_learning&compareRunsMode="
    assert list(saved.values()) == [
        f"{page}TABLE&viewStateShareKey=fedpgp",
        f"{page}CHART&viewStateShareKey=fedpgp-charts",
        f"{page}TABLE&viewStateShareKey=fedpgp-all",
    ]
    assert store.shown("fedpgp") == store.shown("fedpgp-charts") == ["rank=2", "rank=4", "rank=1"]
    assert store.state("fedpgp")["selectedColumns"] == [
        "params.`method.rank`", "params.`method.mu`", "metrics.`val/hm`", "metrics.`test/hm`"
    ]  # fmt: skip
    assert len(store.shown("fedpgp-all")) == 8
    assert store.state("fedpgp-all")["selectedColumns"] == [
        "params.`method.rank`", "params.`method.mu`", "params.`federation.lr`", "metrics.`val/hm`",
    ]  # fmt: skip


def test_the_menu_lists_the_views_in_their_order_and_saving_again_changes_nothing(stores):
    store = stores()
    store.add_sweep("ranks", [])
    store.add("alone", run="r")
    for _ in range(2):
        views.save(store.uri)
        tags = store.client.get_experiment(store.experiment).tags
        found = [json.loads(text) for key, text in tags.items() if key.startswith("mlflow.sharedViewState.")]
        found.sort(key=lambda one: -one["createdAt"])  # as the menu does
        assert [(one["name"], one["createdAt"], one["updatedAt"]) for one in found] == [
            ("Trials of ranks", 2_000, 2_000), ("Charts of ranks", 1_999, 1_999),
            ("Single runs", 1_998, 1_998), ("Sweeps, trials and folds", 1_997, 1_997),
        ]  # fmt: skip


def test_a_metric_that_should_be_small_lists_the_smallest_first(stores):
    store = stores()
    sweep = store.add_sweep("errors", [], "val/base_ece", "min")
    for name, value in (("worse", 0.3), ("better", 0.1)):
        store.add(name, {}, {"val/base_ece": value}, parent=sweep)
    views.save(store.uri)
    assert store.shown("fedpgp") == ["better", "worse"]


def test_charts_show_bars_a_tradeoff_parallel_coordinates_and_a_contour(stores):
    store = stores()
    sweep = store.add_sweep("ranks", ["method.name", "method.rank", "method.mu", "data.name"])
    for rank, mu in ((1, 0.5), (2, 1)):
        params = {"method.name": "fedpgp", "method.rank": rank, "method.mu": mu, "data.name": "icons"}
        metrics = {"val/hm": 60.0 + rank, "test/local": 70.0, "test/novel": 50.0, "best/val/hm": 65.0, "step": 1.0}
        store.add(f"rank={rank}", params, metrics, parent=sweep)
    views.save(store.uri)
    state = store.state("fedpgp-charts")
    bar, scatter, parallel, contour = state["compareRunCharts"]
    assert state.keys() == STATE
    assert bar.keys() | scatter.keys() | parallel.keys() | contour.keys() == CHART
    assert (bar["type"], bar["metricKey"], bar["selectedMetricKeys"]) == ("BAR", "val/hm", ["val/hm"])
    assert (scatter["type"], scatter["xaxis"], scatter["yaxis"]) == (
        "SCATTER", {"key": "test/local", "type": "METRIC"}, {"key": "test/novel", "type": "METRIC"},
    )  # fmt: skip
    assert (parallel["type"], parallel["selectedParams"], parallel["selectedMetrics"]) == (
        "PARALLEL", ["method.rank", "method.mu"], ["val/hm"],
    )  # fmt: skip
    assert (contour["type"], contour["xaxis"]["key"], contour["yaxis"]["key"], contour["zaxis"]["key"]) == (
        "CONTOUR", "method.rank", "method.mu", "val/hm",
    )  # fmt: skip
    assert contour["xaxis"]["type"] == contour["yaxis"]["type"] == "PARAM"
    sections = [(one["name"], one["display"]) for one in store.state("fedpgp-charts")["compareRunSections"]]
    assert sections == [("Trials", True), ("best/val", False), ("test", False), ("val", False)]


def test_two_objectives_are_the_axes_of_the_tradeoff(stores):
    store = stores()
    sweep = store.add_sweep("front", ["method.mu"], "val/local, val/novel")
    store.add("mu=1", {"method.mu": 1}, {"val/local": 70.0, "val/novel": 50.0}, parent=sweep)
    views.save(store.uri)
    state = store.state("fedpgp")
    assert state["orderByKey"] == "metrics.`val/local`"
    assert [one["metricKey"] for one in state["compareRunCharts"] if one["type"] == "BAR"] == ["val/local", "val/novel"]
    (scatter,) = [one for one in state["compareRunCharts"] if one["type"] == "SCATTER"]
    assert (scatter["xaxis"]["key"], scatter["yaxis"]["key"]) == ("val/local", "val/novel")
    assert not [one for one in state["compareRunCharts"] if one["type"] == "CONTOUR"]


def test_single_runs_are_those_below_nothing_that_are_no_sweep(stores):
    store = stores()
    sweep = store.add_sweep("ranks", [])
    store.add("fold", parent=store.add("trial", parent=sweep, trial="t"), run="a")
    store.add("alone", {"seed": 1}, {"test/hm": 70.0, "val/hm": 60.0}, run="b")
    assert "Single runs" in views.save(store.uri)
    assert store.shown("fedpgp-runs") == ["alone"]
    assert store.state("fedpgp-runs")["selectedColumns"] == [
        "params.`method.name`", "params.`data.name`", "params.`seed`", "metrics.`test/hm`"
    ]  # fmt: skip
    assert store.state("fedpgp-runs")["columnOrder"][2:] == store.state("fedpgp-runs")["selectedColumns"]


def test_without_a_sweep_single_runs_come_first(stores):
    store = stores()
    store.add("alone", run="b")
    assert list(views.save(store.uri)) == ["Single runs"]


def test_of_several_experiments_that_of_the_newest_sweep_is_shown(stores):
    store = stores()
    store.add_sweep("ranks", [])
    other = Store(store.root, "other")
    other.now = 50_000
    other.add("alone", run="b")
    assert next(iter(views.save(store.uri))) == "Trials of ranks"
    other.add_sweep("later", [])
    saved = views.save(store.uri)
    assert list(saved) == ["Trials of later", "Charts of later", "Single runs", "Sweeps, trials and folds"]
    assert all(f"/experiments/{other.experiment}/" in page for page in saved.values())


FACETS = {"searchFilter", "orderByKey", "orderByAsc"}
STATE = {
    *FACETS, "selectedColumns", "columnOrder", "runsHiddenMode", "compareRunCharts", "compareRunSections",
    "isAccordionReordered", "viewMaximized",
}  # fmt: skip
CHART = {
    "uuid", "type", "metricSectionId", "deleted", "isGenerated", "metricKey", "selectedMetricKeys", "xaxis", "yaxis",
    "zaxis", "selectedParams", "selectedMetrics", "showAllRuns",
}  # fmt: skip
"""All names that are written; the tests above see no others."""
SCRIPTS = Path(mlflow.__file__).parent / "server" / "js" / "build" / "static" / "js"


def test_mlflows_page_reads_the_views_as_they_are_written():
    """They are not documented. If this fails after an upgrade, see what the menu `Views` of the new page writes."""
    (main,) = [text for path in SCRIPTS.glob("main.*.js") if (text := path.read_text(encoding="utf-8"))]
    assert f'"{views.TAG_PREFIX}"' in main
    assert '="viewStateShareKey"' in main
    assert 'PARAMS:"params",METRICS:"metrics"' in main
    assert re.search(r'\(e,t\)=>e\+"\.`"\+t\+"`"', main)  # the name of a column: group.`key`
    state = re.search(r'=\["selectedColumns",[^\]]*\]', main)[0]
    assert {f'"{name}"' for name in STATE - FACETS} <= set(re.findall(r'"\w+"', state))
    assert 'SHOWALL="SHOW_ALL"' in main
    for kind in ("BAR", "SCATTER", "PARALLEL", "CONTOUR"):
        assert f'e.{kind}="{kind}"' in main
    assert {name for name in CHART if f"this.{name}=" not in main} == set()
    assert '{key:"",type:"METRIC"}' in main
    assert re.search(r"\{uuid:\w+\[e\],name:e,display:!0,isReordered:!1,deleted:!1,isGenerated:!0\}", main)
    chunks = [path.read_text(encoding="utf-8") for path in SCRIPTS.glob("*.chunk.js")]
    assert any('["searchFilter","orderByKey","orderByAsc",' in text for text in chunks)
    assert any('"compareRunsMode"' in text and '"TABLE"' in text for text in chunks)
    assert any('"CHART"===' in text for text in chunks)
    assert any('"PARAM"===' in text for text in chunks)
    envelope = r"JSON\.stringify\(\{name:\w,createdAt:\w,updatedAt:\w,state:\w\}\)"
    assert any(re.search(envelope, text) for text in chunks)
    assert any('"string"!==typeof i.state' in text for text in chunks)
    assert any(re.search(r"sort\(\(e,t\)=>t\.createdAt-e\.createdAt\)", text) for text in chunks)

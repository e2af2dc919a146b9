"""Every shipped sweep runs on the data and the model in the package, cut to a trial per variant, a fold and a round."""

from __future__ import annotations

import pytest

from fedpgp.analysis.reproduce.tables import TABLES
from fedpgp.config import DataSettings, shipped_configs
from fedpgp.core.callbacks import EventStream
from fedpgp.data import manifest
from fedpgp.experiments.sweeps import sweep_runner, sweep_settings
from fedpgp.experiments.tracker import Tracker

ELSEWHERE = {
    "dp_fpl": "dp_fpl", "fedtpg_cross_class": "fedtpg", "fedtpg_cross_data": "fedtpg",
    "all_methods_tuning": "all_methods",
}  # fmt: skip
"""Sweeps that run elsewhere: as `fedpgp reproduce NAME --smoke` (analysis/reproduce/test_cli_reproduce.py), or with the
methods of another sweep."""
SWEEPS = sorted({path.stem for path in shipped_configs().glob("*.yaml")} - ELSEWHERE.keys())
EMBEDDED = ["base.data.name=icons", "base.backbone.name=icon-clip"]
CUT = [
    "folds.seeds=[1]", "federation.rounds=1", "federation.local_epochs=1", "tracking.mlflow=false",
    "tune.max_concurrent=1",
]  # fmt: skip
FEWER = {
    name: ["partition.clients=2", "protocol.shots=1"] for name in ("all_methods", "base_to_novel_9datasets")
}  # fmt: skip
"""Further cuts of sweeps with methods that run the image tower."""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """One store: features are extracted once."""
    return tmp_path_factory.mktemp("store")


def fixed(value):
    """A fixed value in place of a variant's own term."""
    return value["grid_search"][0] if isinstance(value, dict) and "grid_search" in value else value


@pytest.mark.slow
@pytest.mark.parametrize("name", SWEEPS)
def test_it_runs(name, root, ray_cluster):
    settings, _ = sweep_settings.load(
        name, [*EMBEDDED, *CUT, *FEWER.get(name, []), "resources.backend=serial", f"storage.root={root}"]
    )
    terms = settings.terms
    space = {key: {"grid_search": list(terms[key].values[:1])} for key in settings.space if not terms[key].when}
    variants = {label: {key: fixed(value) for key, value in own.items()} for label, own in settings.variants.items()}
    settings = settings.model_copy(update={"space": space, "variants": variants})
    if settings.folds.held_out is not None:
        first = manifest.build(DataSettings(name="icons")).domains[:1]
        settings = settings.model_copy(update={"folds": settings.folds.model_copy(update={"held_out": first})})
    events = []
    folder = sweep_runner.run(settings, None, EventStream(events.append), Tracker())
    results = folder.results().values()
    assert len(results) == max(1, len(settings.variants))
    assert {result.state for result in results} == {"finished"}, events
    values = [result.value for result in results]
    assert values.count(None) == (name == "all_methods")  # its pFedPT has no Novel, and so no HM
    assert all(0 <= value <= 100 for value in values if value is not None)


def test_sweeps_that_run_elsewhere():
    assert {"dp_fpl", "fedtpg"} <= TABLES.keys()
    variants, tuned = (sweep_settings.load(name, [])[0].variants for name in ("all_methods", "all_methods_tuning"))
    assert len(variants) == 18
    assert tuned.keys() == variants.keys() - {"zero-shot"}
    for name, given in tuned.items():
        assert {**given, "federation.lr": variants[name]["federation.lr"]} == variants[name]

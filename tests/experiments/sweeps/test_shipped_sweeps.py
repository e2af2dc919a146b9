"""Every shipped sweep runs on the data and the model in the package, cut to a trial per variant, a fold and a round."""

from __future__ import annotations

import pytest

from fedpgp.config import DataSettings, shipped_configs
from fedpgp.core.callbacks import EventStream
from fedpgp.data import manifest
from fedpgp.experiments.sweeps import sweep_runner, sweep_settings
from fedpgp.experiments.tracker import Tracker

pytestmark = pytest.mark.slow

SWEEPS = sorted(path.stem for path in shipped_configs().glob("*.yaml"))
EMBEDDED = ["base.data.name=icons", "base.backbone.name=icon-clip"]
CUT = [
    "folds.seeds=[1]", "federation.rounds=1", "federation.local_epochs=1", "tracking.mlflow=false",
    "tune.max_concurrent=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """One store: features are extracted once."""
    return tmp_path_factory.mktemp("store")


@pytest.mark.parametrize("name", SWEEPS)
def test_it_runs(name, root, ray_cluster):
    settings, _ = sweep_settings.load(name, [*EMBEDDED, *CUT, "resources.backend=serial", f"storage.root={root}"])
    space = {key: {"grid_search": list(term.values[:1])} for key, term in settings.terms.items()}
    if settings.folds.held_out is not None:
        first = manifest.build(DataSettings(name="icons")).domains[:1]
        settings = settings.model_copy(update={"folds": settings.folds.model_copy(update={"held_out": first})})
    events = []
    folder = sweep_runner.run(settings.model_copy(update={"space": space}), None, EventStream(events.append), Tracker())
    results = folder.results().values()
    assert len(results) == max(1, len(settings.variants))
    assert {result.state for result in results} == {"finished"}, events
    assert all(0 <= result.value <= 100 for result in results)

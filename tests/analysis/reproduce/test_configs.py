"""Every shipped sweep can be read and drawn without data, and on the data and the model in the package."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedpgp.config import shipped_configs
from fedpgp.data.protocol import build
from fedpgp.experiments import estimation
from fedpgp.experiments.sweeps import sampling, sweep_settings

SWEEPS = sorted(path.stem for path in shipped_configs().glob("*.yaml"))
TRIALS = {
    "base_to_novel_5datasets": 8 * 5, "office_lodo": 6, "domainnet_lodo": 6, "cifar_dirichlet": 5 * 2,
    "ablations": 3 * 5, "ablation_negative": 2 * 5, "rank_by_shots": 4 * 5 * 4, "pfedpt": 2, "lora": 3,
    "fedtpg_cross_class": 1, "fedtpg_cross_data": 1, "base_to_novel_9datasets": 6 * 9, "dp_fpl": 7 * 4,
}  # fmt: skip
"""Of the tables of the papers."""


WORLD = ["base.data.name=icons", "base.backbone.name=icon-clip"]
UNION = ["data.parts=null", "partition.clients=10"]
INSTEAD_OF_A_UNION = {
    "fedtpg_cross_class": UNION,
    "fedtpg_cross_data": [*UNION, "protocol.name=all_classes", "protocol.source=null"],
}
"""As the comments of these sweeps say."""


@pytest.mark.parametrize("name", SWEEPS)
def test_it_is_planned_without_data(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # nothing lies in data/
    settings, said = sweep_settings.load(name)
    drawn = sampling.draw(settings)
    found = estimation.of_sweep(settings, drawn)
    assert said == []
    assert drawn.repeated == 0
    assert drawn.objectives.name.startswith("val/")
    assert len(drawn.trials) == TRIALS.get(name, len(drawn.trials))
    assert found.seconds > 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", SWEEPS)
def test_it_fits_the_world_in_the_package(name):
    settings, _ = sweep_settings.load(name, [*WORLD, *INSTEAD_OF_A_UNION.get(name, [])])
    drawn = sampling.draw(settings)
    found = estimation.of_sweep(settings, drawn)
    from fedpgp.data import manifest

    for trial, folds in zip(drawn.trials, found.folds, strict=True):
        one = trial.fold(folds[-1])
        assert (one.data.name, one.data.root, one.backbone.weights) == ("icons", None, None)
        build(manifest.build(one.data), one.partition, one.protocol, one.seed)  # enough images for every client


def test_each_is_commented():
    for name in SWEEPS:
        assert (Path(shipped_configs()) / f"{name}.yaml").read_text(encoding="utf-8").startswith("# ")

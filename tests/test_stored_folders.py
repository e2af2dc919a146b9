"""Run and sweep folders written before the package was restructured are read, compared, exported and resumed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import fedpgp
from fedpgp.storage.run_folder import RunFolder

STORED = Path(__file__).with_name("stored")
RUN = "before-87cad8844848"
SWEEP = "before_sweep-e39a76c261b8"


@pytest.fixture
def root(tmp_path):
    return Path(shutil.copytree(STORED, tmp_path / "store"))


def settings(run, root):
    tree = fedpgp.Run(run).settings
    return {**tree, "storage": {**tree["storage"], "root": str(root)}}


def test_a_run_is_read(root):
    run = fedpgp.Run(root / "runs" / RUN)
    rows = [json.loads(line) for line in (run.path / "rounds.jsonl").read_text().splitlines()]
    assert run.state == "finished"
    assert [list(run.rounds[name]) for name in ("test/hm", "train/loss")] == [
        [row["metrics"][name] for row in rows] for name in ("test/hm", "train/loss")
    ]
    assert run.clients["total"].sum() > 0
    assert run.confusion["count"].sum() > 0


def test_measures_of_an_older_run_are_absent_and_not_zero(fedpgp, root):
    from fedpgp.export.results import Run

    run = Run(root / "runs" / RUN)
    assert [len(frame) for frame in (run.measures, run.calibration, run.classes)] == [0, 0, 0]
    assert not any("_ece" in name for name in run.metrics)
    assert "reliability" not in run.figures()
    for where in (root / "runs" / RUN, root / "sweeps" / SWEEP):
        code, out, err = fedpgp("report", where)
        assert (code, err) == (0, "")
        assert "ECE" not in out


def test_reports_and_comparisons(fedpgp, root):
    code, out, _ = fedpgp("report", root / "runs" / RUN)
    assert (code, "mean of last 5" in out) == (0, True)
    code, out, _ = fedpgp("report", root / "sweeps" / SWEEP)
    assert (code, "mu=0.5" in out) == (0, True)
    first, second = sorted(path for path in (root / "runs").iterdir() if path.name != RUN)[:2]
    code, out, err = fedpgp("compare", first, second, "--allow-mismatch")
    assert (code, err) == (0, "")
    assert "HM" in out


def test_a_prompt_is_exported(fedpgp, root, tmp_path):
    code, _, err = fedpgp("export", root / "runs" / RUN, "--client", "0", "--out", tmp_path / "prompt")
    assert code == 0, err
    from safetensors.numpy import load_file

    found = load_file(tmp_path / "prompt" / "prompt.safetensors")
    last = load_file(root / "runs" / RUN / "checkpoints" / "000003.safetensors")
    np.testing.assert_array_equal(found["ctx"], last["shared/ctx"])
    np.testing.assert_array_equal(found["U"], last["personal/U"][0])


def test_a_finished_run_is_the_answer_to_its_settings(root):
    """The digest of the settings has not changed."""
    run = root / "runs" / RUN
    assert fedpgp.run(settings(run, root), resume=True, progress=False).path == run
    assert sorted(path.name for path in (root / "runs").iterdir()) == sorted(
        path.name for path in (STORED / "runs").iterdir()
    )


def test_an_interrupted_run_is_resumed(root):
    """Killed after its second round, it ends where the uninterrupted one ended, up to the rounding of other CPUs."""
    run = root / "runs" / RUN
    for name in ("rounds/000003.arrow", "checkpoints/000003.safetensors", "summary.json", "rounds.jsonl"):
        (run / name).unlink()
    (run / "clients.arrow").unlink()
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps({**status, "state": "running"}))
    (run / ".lock").write_text("1")  # of a process that is gone
    assert fedpgp.Run(run).state == "interrupted"
    resumed = fedpgp.run(settings(run, root), resume=True, progress=False)
    assert (resumed.path, resumed.state) == (run, "finished")
    ours, theirs = (RunFolder.open(folder).state_at(3) for folder in (run, STORED / "runs" / RUN))
    for key in ("U", "V"):
        np.testing.assert_allclose(ours.personal[key], theirs.personal[key], atol=1e-5)
    np.testing.assert_allclose(ours.shared["ctx"], theirs.shared["ctx"], atol=1e-5)
    assert resumed.rounds["test/hm"][1] == fedpgp.Run(STORED / "runs" / RUN).rounds["test/hm"][1]


@pytest.mark.slow
def test_a_sweep_is_resumed(root):
    """A trial without a result is run again from its folds; the other is not touched."""
    sweep = fedpgp.Sweep(root / "sweeps" / SWEEP)
    before = sweep.trials
    (sweep.path / "trials" / f"{before['id'][1]}.json").unlink()
    (sweep.path / "status.json").write_text((sweep.path / "status.json").read_text().replace("finished", "stopped"))
    tree = {
        "base": sweep.runs()[0].settings | {"storage": {"root": str(root)}},
        "name": "before_sweep",
        "space": {"method.mu": {"grid_search": [0.0, 0.5]}},
        "folds": {"seeds": [1, 2]},
        "tune": {"metric": "val/hm", "mode": "max", "max_concurrent": 1},
    }
    resumed = fedpgp.sweep(tree, "name=before_sweep", resume=True, progress=False)
    assert resumed.path == sweep.path
    assert resumed.trials.equals(before)
    assert sorted(path.name for path in (root / "runs").iterdir()) == sorted(
        path.name for path in (STORED / "runs").iterdir()
    )

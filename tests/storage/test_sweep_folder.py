"""Folders of sweeps: what is stored of their folds."""

from __future__ import annotations

import json

from fedpgp.storage.objectives import Objectives
from fedpgp.storage.sweep_folder import Fold, FoldRun, Result, SweepFolder, TrialSpec


def made(root, *folds):
    folder = SweepFolder.create(root, "s", "d", "", Objectives(("val/hm",)), [TrialSpec("t", "it", {}, folds)])
    folder.record(Result("t", "finished", 1.0, tuple(FoldRun.of(fold, f"run-{fold.seed}") for fold in folds)))
    return folder


def test_a_split_is_stored_and_read(tmp_path):
    folds = Fold(1, None, 2), Fold(2, "ink", 3)
    folder = made(tmp_path, *folds)
    assert folder.trials[0].folds == folds
    assert folder.result("t").folds == (FoldRun(1, None, "run-1", 2), FoldRun(2, "ink", "run-2", 3))
    assert [one.fold for one in folder.result("t").folds] == list(folds)


def test_a_sweep_without_splits_is_stored_as_before_there_were_any(tmp_path):
    folder = made(tmp_path, Fold(1, None), Fold(2, "ink"))
    planned = json.loads((folder.path / "trials.json").read_text())["trials"]
    assert planned[0]["folds"] == [{"seed": 1, "held_out": None}, {"seed": 2, "held_out": "ink"}]
    stored = json.loads((folder.path / "trials" / "t.json").read_text())
    assert stored["folds"] == [
        {"seed": 1, "held_out": None, "run": "run-1"},
        {"seed": 2, "held_out": "ink", "run": "run-2"},
    ]
    assert folder.result("t").folds[1].fold == Fold(2, "ink")


def test_a_repetition_is_a_seed_or_a_seed_and_a_split():
    assert [Fold(1, "a").repetition, Fold(1, "a", 2).repetition] == [1, (1, 2)]

"""Recognize runs on several splits of the same data, which are folds and not different experiments."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fedpgp.analysis.comparison import Run


def by_split(runs: Sequence[Run]) -> list[Run]:
    """Make the split a part of the fold, and no setting, for runs that differ in the split of the same images.

    These are runs on data with equal settings and images but several values of `data.split_seed`, each of which gave
    one split of its own. Others stay as they are, so that there is no split in their folds.
    """
    data = [_without_split(run) for run in runs]
    found: dict[str, dict[int, set[Any]]] = {}
    for run, (same, split, _) in zip(runs, data, strict=True):
        if split is not None:
            found.setdefault(same, {}).setdefault(split, set()).add(run.settings["data.digest"])
    several = {
        same
        for same, splits in found.items()
        if len(splits) > 1 and sum(map(len, splits.values())) == len(splits) == len(set.union(*splits.values()))
    }
    return [
        replace(run, fold=replace(run.fold, split=split), settings=settings)
        if same in several and split is not None
        else run
        for run, (same, split, settings) in zip(runs, data, strict=True)
    ]


def _without_split(run: Run) -> tuple[str, int | None, dict[str, Any]]:
    """What the data of a run are but for the split, the seed of the split, and its settings without these."""
    settings = {key: value for key, value in run.settings.items() if key not in ("data.split_seed", "data.digest")}
    seeds = {run.settings["data.split_seed"]}
    if parts := settings.get("data.parts"):
        seeds = {part["split_seed"] for part in parts}
        settings["data.parts"] = [{key: one for key, one in part.items() if key != "split_seed"} for part in parts]
    same = {key: value for key, value in settings.items() if key.startswith("data.")}
    return json.dumps([same, run.content]), seeds.pop() if len(seeds) == 1 else None, settings

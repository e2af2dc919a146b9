"""From what a user asks for to sweeps, checked before any work starts, and how they differ from the paper's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedpgp.analysis.reproduce import tables
from fedpgp.analysis.reproduce.tables import Table
from fedpgp.clip.model import CHECKPOINT_SUFFIXES
from fedpgp.clip.weights import is_archive
from fedpgp.config import Experiment
from fedpgp.core.errors import ConfigError
from fedpgp.data import sources
from fedpgp.experiments.sweeps import sampling, sweep_settings
from fedpgp.experiments.sweeps.sampling import SampledTrials, Trial
from fedpgp.experiments.sweeps.sweep_settings import Sweep

CLIP = "ViT-B-16-quickgelu"
"""The papers' backbone, with OpenAI's weights."""
SMOKE = {
    "data.name": "icons", "backbone.name": "icon-clip", "protocol.shots": "2", "federation.rounds": "2",
    "federation.local_epochs": "1", "federation.eval_every": "2", "folds.seeds": "[1]", "resources.actors": "1",
}  # fmt: skip
"""The least that shows that a table can be made; what its variants set is left to them."""
NO_NUMBER = (
    "data.root", "backbone.class_chunk", "protocol.held_out",
    "federation.block_size", "federation.chunk_size", "federation.eval_every",
)  # fmt: skip
"""Settings that change no number after the last round, or make a fold."""


@dataclass(frozen=True)
class Part:
    """One sweep of a table."""

    sweep: Sweep
    drawn: SampledTrials
    asked: tuple[str, ...]
    """the paper's data sets that it stands for"""
    changed: Mapping[str, tuple[str, ...]]
    """by trial: what differs from the shipped sweep, in words that begin with the setting's key"""

    def stands_for(self, experiment: Experiment) -> tuple[str, ...]:
        """The paper's data sets that a trial's data are: themselves, or all of the part if they are foreign."""
        return (experiment.data.name,) if experiment.data.name in self.asked else self.asked


@dataclass(frozen=True)
class Plan:
    """What a table needs."""

    name: str
    table: Table
    asked: tuple[str, ...]
    """the paper's data sets that were asked for"""
    parts: tuple[Part, ...]


def plan(
    name: str,
    data: Sequence[str] = (),
    root: Path | None = None,
    backbone: str | None = None,
    smoke: bool = False,
    overrides: Sequence[str] = (),
) -> Plan:
    """The sweeps of a table, drawn and validated.

    Args:
        data: of the table's data sets; none: all.
        root: folder in which each data set has its own; None: `data`.
        backbone: model name, or file with weights of CLIP's ViT-B/16; None: OpenAI's.
        smoke: two rounds on the data set and the model in the package.
        overrides: `a.b=value`, as of a sweep.

    Raises:
        ConfigError: a table, data set, folder or setting that cannot be used.
    """
    table = tables.find(name)
    unknown = [one for one in data if one not in table.data]
    if unknown:
        raise ConfigError(f"--data {', '.join(unknown)}: not in {name}, which has {', '.join(table.data)}")
    asked = tuple(one for one in table.data if one in data or not data)
    parts = []
    for sweep, own in table.sweeps.items():
        if here := tuple(one for one in own if one in asked):
            parts.append(_part(sweep, table.variants, here, root, backbone, smoke, overrides))
    _refuse_missing([root for part in parts for root in _roots(part)])
    return Plan(name, table, asked, tuple(parts))


def _part(
    name: str,
    variants: Sequence[str] | None,
    asked: tuple[str, ...],
    root: Path | None,
    backbone: str | None,
    smoke: bool,
    overrides: Sequence[str],
) -> Part:
    shipped, _ = sweep_settings.load(name)
    prompted = shipped.base["backbone"]["name"] == CLIP
    if backbone is not None and not prompted:
        raise ConfigError(f"--backbone {backbone}: there is no CLIP in {name}; leave it out")
    sweep, _ = sweep_settings.load(
        name, [*(_smoke(shipped, prompted) if smoke else ()), *_backbone(backbone), *overrides]
    )
    sweep = _narrowed(sweep, variants, asked, root)
    drawn = sampling.draw(sweep)
    published = sampling.draw(_narrowed(shipped, variants, asked, root)).trials
    changed = {trial.id: _changed(trial, published) for trial in drawn.trials}
    return Part(sweep, drawn, asked, changed)


def _smoke(shipped: Sweep, prompted: bool) -> list[str]:
    varied = {key for own in shipped.variants.values() for key in own}
    left = varied if prompted else {*varied, "backbone.name"}
    return [f"{key}={value}" for key, value in SMOKE.items() if key not in left]


def _backbone(given: str | None) -> list[str]:
    """The overrides that a backbone stands for; a file holds weights of the papers' model."""
    if given is None:
        return []
    if Path(given).suffix not in CHECKPOINT_SUFFIXES and not Path(given).is_file():
        return [f"backbone.name={given}"]
    return [f"backbone.name={CLIP}", f"backbone.weights={given}", "backbone.activation=quick_gelu"]


def _narrowed(sweep: Sweep, variants: Sequence[str] | None, asked: Sequence[str], root: Path | None) -> Sweep:
    """The same with some of its variants and data sets, each in its folder under `root`."""
    kept = {label: own for label, own in sweep.variants.items() if variants is None or label in variants}
    base, space = dict(sweep.base), dict(sweep.space)
    if "data" in space:
        grid = [one for one in space["data"]["grid_search"] if one["name"] in asked]
        space["data"] = {"grid_search": [_placed(one, root) for one in grid]}
    elif base["data"]["name"] in asked:
        base["data"] = _placed(base["data"], root)
    return sweep.model_copy(update={"variants": kept, "base": base, "space": space})


def _placed(data: Mapping[str, Any], root: Path | None) -> dict[str, Any]:
    """Settings of data whose root is DIR/NAME or, where only the folder of its download lies there, DIR."""
    if root is None:
        return dict(data)
    own = root / data["name"]
    downloaded = any((root / folder).is_dir() for folder in sources.SOURCES[data["name"]].folders)
    return {**data, "root": str(root if downloaded and not own.is_dir() else own)}


def _roots(part: Part) -> list[tuple[str, Path]]:
    experiments = [trial.experiment for trial in part.drawn.trials]
    return [(one.data.name, one.data.root) for one in experiments if isinstance(one.data.root, Path)]


def _refuse_missing(roots: Sequence[tuple[str, Path]]) -> None:
    missing = dict.fromkeys((name, root) for name, root in roots if not root.expanduser().is_dir())
    if missing:
        raise ConfigError(
            "\n".join(f"{root}: no such folder; --root DIR is where {name} has its folder" for name, root in missing)
        )


def _changed(trial: Trial, published: Sequence[Trial]) -> tuple[str, ...]:
    """What differs from the trial of the shipped sweep that is nearest to it."""
    rivals = [_settings(one.experiment) for one in published if one.variant == trial.variant]
    return min((tuple(_told(_settings(trial.experiment), one)) for one in rivals), key=len)


def _told(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[str]:
    """In words; of a section with another name that name alone."""
    keys = [key for key in dict.fromkeys([*ours, *theirs]) if ours.get(key) != theirs.get(key)]
    for key in keys:
        named = f"{key.partition('.')[0]}.name"
        if named not in keys:
            yield f"{key} is {_shown(ours.get(key))}, not {_shown(theirs.get(key))}"
        elif key == named:
            yield f"{key} is {ours[key]}"


def _shown(value: Any) -> str:
    return "left unset" if value is None else str(value)


def _settings(experiment: Experiment) -> dict[str, Any]:
    experiment = sources.complete(experiment)
    tree = experiment.model_dump(mode="json", exclude={"name", "seed", "resources", "tracking", "storage"})
    weights = Path(experiment.backbone.weights or "")
    if weights.is_file() and is_archive(weights):  # which is refused unless OpenAI published it
        tree["backbone"] |= {"weights": "openai", "activation": None}
    return {key: value for key, value in sweep_settings.leaves(tree).items() if key not in NO_NUMBER}

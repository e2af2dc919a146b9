"""Plan a table: its sweeps, checked before any work starts, and how they differ from the paper's."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedpgp.analysis.reproduce.tables import TABLES, Table
from fedpgp.clip.checkpoint_files import is_archive
from fedpgp.clip.model import CHECKPOINT_SUFFIXES
from fedpgp.config import DataSettings, Experiment, leaves
from fedpgp.config.settings import UNION, PartSettings
from fedpgp.core.errors import ConfigError
from fedpgp.core.text import did_you_mean
from fedpgp.data import sources
from fedpgp.experiments.sweeps import sampling, sweep_settings
from fedpgp.experiments.sweeps.sampling import SampledTrials, Trial
from fedpgp.experiments.sweeps.sweep_settings import Sweep

CLIP = "ViT-B-16-quickgelu"
"""The papers' backbone, with OpenAI's weights."""
SMOKE = {
    "data.name": "icons", "data.root": "null", "backbone.name": "icon-clip", "backbone.weights": "null",
    "protocol.shots": "2", "federation.rounds": "2", "federation.local_epochs": "1", "federation.eval_every": "2",
    "folds.seeds": "[1]", "resources.actors": "1",
}  # fmt: skip
"""Overrides for the shortest run of a table; settings that its variants define are not overridden."""
NO_NUMBER = (
    "data.root", "backbone.class_chunk", "protocol.held_out",
    "federation.block_size", "federation.chunk_size", "federation.eval_every",
)  # fmt: skip
"""Settings that change no number after the last round, or define a fold."""


@dataclass(frozen=True)
class Part:
    """One sweep of a table."""

    sweep: Sweep
    drawn: SampledTrials
    asked: tuple[str, ...]
    """the requested data sets of the paper"""
    changed: Mapping[str, tuple[str, ...]]
    """by trial: differences from the shipped sweep, in words that begin with the key of the setting"""

    def stands_for(self, experiment: Experiment) -> tuple[str, ...]:
        """The paper's data sets that a trial represents: those it trains on, or all of the part for other data."""
        return tuple(name for name in names(experiment.data) if name in self.asked) or self.asked

    @property
    def data(self) -> frozenset[str]:
        """Names of the data sets that its trials train or test on."""
        return frozenset(name for trial in self.drawn.trials for name in names(trial.experiment.data))

    @property
    def foreign(self) -> bool:
        """Whether a trial is on none of the requested data sets."""
        return any(not {*self.asked} & {*names(trial.experiment.data)} for trial in self.drawn.trials)


@dataclass(frozen=True)
class Plan:
    """A table and the sweeps that it needs."""

    name: str
    table: Table
    asked: tuple[str, ...]
    """the requested data sets of the paper"""
    parts: tuple[Part, ...]


def plan(
    name: str,
    data: Sequence[str] = (),
    root: Path | None = None,
    backbone: str | None = None,
    smoke: bool = False,
    overrides: Sequence[str] = (),
) -> Plan:
    """Sample and validate the sweeps of a table.

    Args:
        data: data sets of the table; empty: all.
        root: folder with a subfolder per data set; None: `data`.
        backbone: model name, or file with weights of CLIP's ViT-B/16; None: OpenAI's.
        smoke: two rounds on the data set and the model of the package.
        overrides: `a.b=value`, as for a sweep.

    Raises:
        ConfigError: a table, data set, folder or setting that cannot be used.
    """
    if (table := TABLES.get(name)) is None:
        hint = did_you_mean(name.lower(), TABLES, "give one of them")
        raise ConfigError(f"{name}: no such table; {hint} (known: {', '.join(TABLES)})")
    unknown = [one for one in data if one not in table.data]
    if unknown:
        raise ConfigError(f"--data {', '.join(unknown)}: not in {name}, which has {', '.join(table.data)}")
    asked = tuple(one for one in table.data if one in data or not data)
    parts = []
    for shipped_name, own in table.sweeps.items():
        here = tuple(one for one in own if one in asked)
        if not here:
            continue
        shipped, _ = sweep_settings.load(shipped_name)
        prompted = shipped.base["backbone"]["name"] == CLIP
        if backbone is not None and not prompted:
            raise ConfigError(f"--backbone {backbone}: {shipped_name} does not use CLIP; leave the option out")
        own_keys = {item.partition("=")[0] for item in overrides}
        options = [*(_smoke(shipped, prompted) if smoke else ()), *_backbone(backbone)]
        given = [*(item for item in options if item.partition("=")[0] not in own_keys), *overrides]
        sweep = narrowed(sweep_settings.load(shipped_name, given)[0], table.variants, here, root)
        drawn = sampling.draw(sweep)
        published = sampling.draw(narrowed(shipped, table.variants, here, root)).trials
        less = here != own and "parts" in shipped.base.get("data", {})  # it changes the federation itself
        fewer = [f"data.parts is {', '.join(here)} only"] if less else []
        changed = {trial.id: (*fewer, *_changed(trial, published)) for trial in drawn.trials}
        parts.append(Part(sweep, drawn, here, changed))
    _check_roots(parts)
    return Plan(name, table, asked, tuple(parts))


def _smoke(shipped: Sweep, prompted: bool) -> list[str]:
    left = {key for own in shipped.variants.values() for key in own}
    left |= set() if prompted else {"backbone.name"}
    left |= {"federation.local_epochs"} if shipped.base["federation"].get("local_steps") else set()
    options = dict(SMOKE)
    if parts := shipped.base.get("data", {}).get("parts"):  # each part is the data set of the package by another name
        options["data.name"] = UNION
        options["data.parts"] = json.dumps([{"name": SMOKE["data.name"], "title": part["name"]} for part in parts])
        options["partition.clients"] = "2"
    return [f"{key}={value}" for key, value in options.items() if key not in left]


def _backbone(given: str | None) -> list[str]:
    """Overrides for a backbone; a file has weights of the papers' model."""
    if given is None:
        return []
    if Path(given).suffix not in CHECKPOINT_SUFFIXES and not Path(given).is_file():
        return [f"backbone.name={given}", "backbone.weights=null"]
    return [f"backbone.name={CLIP}", f"backbone.weights={given}", "backbone.activation=quick_gelu"]


def narrowed(sweep: Sweep, variants: Sequence[str] | None, asked: Sequence[str], root: Path | None) -> Sweep:
    """The sweep with some of its variants and data sets, each in its folder under `root`."""
    kept = {label: own for label, own in sweep.variants.items() if variants is None or label in variants}
    base, space = dict(sweep.base), dict(sweep.space)
    if "data" in space:
        grid = [one for one in space["data"]["grid_search"] if one["name"] in asked]
        space["data"] = {"grid_search": [_placed(one, root) for one in grid]}
    elif base["data"].get("parts"):
        base |= _narrowed_union(base, asked, root)
    elif base["data"]["name"] in asked:
        base["data"] = _placed(base["data"], root)
    return sweep.model_copy(update={"variants": kept, "base": base, "space": space})


def _narrowed_union(base: Mapping[str, Any], asked: Sequence[str], root: Path | None) -> dict[str, Any]:
    """The sections `data` and `partition` of a union with the requested parts; one part alone is plain data.

    With `protocol.source` all parts stay: what trains is asked for, and the others test it.
    """
    tested, clients = base["protocol"].get("source") is not None, base["partition"]["clients"]
    parts = {part.get("title", part["name"]): part for part in base["data"]["parts"]}
    kept = {title: part for title, part in parts.items() if tested or title in asked}
    placed = {title: part if "title" in part else _placed(part, root) for title, part in kept.items()}
    if isinstance(clients, Mapping):
        clients = {title: number for title, number in clients.items() if title in placed}
    data = {**base["data"], "parts": list(placed.values())}
    if len(placed) == 1:
        ((title, part),) = placed.items()
        clients = clients[title] if isinstance(clients, Mapping) else clients
        data = {key: value for key, value in {**data, "parts": None, **part}.items() if key != "title"}
    return {"data": data, "partition": {**base["partition"], "clients": clients}}


def _placed(data: Mapping[str, Any], root: Path | None) -> dict[str, Any]:
    """Data settings with the root DIR/NAME, or DIR if it only has the folder of the download."""
    if root is None:
        return dict(data)
    own = root / data["name"]
    downloaded = any((root / folder).is_dir() for folder in sources.SOURCES[data["name"]].folders)
    return {**data, "root": str(root if downloaded and not own.is_dir() else own)}


def _check_roots(parts: Sequence[Part]) -> None:
    used = [data for part in parts for trial in part.drawn.trials for data in trial.experiment.data.members]
    roots = dict.fromkeys((data.name, data.root) for data in used if isinstance(data.root, Path))
    missing = [(name, root) for name, root in roots if not root.expanduser().is_dir()]
    if missing:
        lines = (f"{root}: no such folder; --root DIR must contain the folder of {name}" for name, root in missing)
        raise ConfigError("\n".join(lines))


def _changed(trial: Trial, published: Sequence[Trial]) -> tuple[str, ...]:
    """Differences from the most similar trial of the shipped sweep."""
    rivals = [_settings(one.experiment) for one in published if one.variant == trial.variant]
    return min((tuple(_differences(_settings(trial.experiment), one)) for one in rivals), key=len)


def _differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[str]:
    """Differences in words; a section with another name is one difference."""
    keys = [key for key in dict.fromkeys([*ours, *theirs]) if ours.get(key) != theirs.get(key)]
    for key in keys:
        named = f"{key.partition('.')[0]}.name"
        if named not in keys:
            our, their = ("left unset" if one.get(key) is None else one[key] for one in (ours, theirs))
            yield f"{key} is {our}, not {their}"
        elif key == named:
            yield f"{key} is {ours[key]}"


def _settings(experiment: Experiment) -> dict[str, Any]:
    parts = [_described(part) for part in experiment.data.parts or ()]
    experiment = sources.complete(experiment)
    tree = experiment.model_dump(mode="json", exclude={"name", "seed", "resources", "tracking", "storage"})
    tree["data"]["parts"] = ", ".join(parts) or None
    tree["partition"]["clients"] = str(experiment.partition.clients)  # one setting, also by part
    weights = Path(experiment.backbone.weights or "")
    if weights.is_file() and is_archive(weights):  # which is refused unless OpenAI published it
        tree["backbone"] |= {"weights": "openai", "activation": None}
    return {key: value for key, value in leaves(tree).items() if key not in NO_NUMBER}


def _described(part: PartSettings) -> str:
    """A part of a union in words: its name, another title, and the settings that are not defaults."""
    given = part.model_dump(mode="json", exclude_defaults=True, exclude={"name", "title", "root"})
    return part.name + (f" as {part.title}" if part.title else "") + (f" {given}" if given else "")


def names(data: DataSettings) -> tuple[str, ...]:
    """The data set, or those of a union by their titles."""
    return tuple(part.title_or_name for part in data.parts) if data.parts else (data.name,)

"""What distinguishes settings, in words: the settings that differ, without those that follow from others."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fedpgp.config import differing
from fedpgp.core.text import distinct

SCENARIO_SECTIONS = ("data", "partition", "protocol")
"""Sections of the settings that define on what a run was trained and tested."""
NO_SCENARIO = ("data.template", "data.views")
"""Settings in these sections that do not."""
DIGESTS = ("digest", "fingerprint", "content")
"""Last parts of keys of settings that are digests of files."""
CHOICES = (".name", ".kind", ".level", ".scheme")
"""Ends of keys that choose what the other keys of their section mean."""


def is_scenario(key: str) -> bool:
    """Whether a setting defines on what a run is trained and tested."""
    return key.partition(".")[0] in SCENARIO_SECTIONS and key not in NO_SCENARIO


def labels(
    names: Sequence[tuple[str, str]],
    settings: Sequence[Mapping[str, Any]],
    shown: Sequence[Mapping[str, str]],
    merge_scenarios: bool,
) -> list[str]:
    """The names, followed by the differing settings of groups that share a name and a scenario."""
    same: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for pair, tree in zip(names, settings, strict=True):
        same.setdefault(pair, []).append(tree)
    common = [key for key in differing(settings) if is_scenario(key)] if merge_scenarios else []
    keys: dict[str, dict[str, None]] = {name: {} for name, _ in names}
    for (name, _), trees in same.items():
        keys[name].update(dict.fromkeys(key for key in telling(trees) if not is_scenario(key)))
    return [
        ", ".join(filter(None, (name, named(texts, [*keys[name], *common]))))
        for (name, _), texts in zip(names, shown, strict=True)
    ]


def choice_of(key: str, keys: Sequence[str]) -> str | None:
    """The one of the keys that chooses what a key means; None: none of them does."""
    beside = [key.rpartition(".")[0] + end for end in CHOICES]
    return next((one for one in keys if one != key and one in beside), None)


def telling(trees: Sequence[Mapping[str, Any]]) -> list[str]:
    """The dotted keys that tell settings apart: `differing` ones without those that another of them determines.

    That is a section that is null in some trees, and what belongs to one choice alone: `federation.server.trim` if all
    trees with the rule `trimmed_mean` have the same.
    """
    keys = differing(trees)
    kept = []
    for key in keys:
        choice = choice_of(key, keys)
        by_choice: dict[str, set[str]] = {}
        for tree in trees:
            chosen = json.dumps(tree.get(choice)) if choice else ""
            by_choice.setdefault(chosen, set()).add(json.dumps(tree.get(key, "(absent)")))
        is_section = any(one.startswith(f"{key}.") for one in keys)
        if not is_section and max(map(len, by_choice.values())) > 1:
            kept.append(key)
    return kept


def texts(settings: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """The values of the settings that differ, each with as many digits as tell it apart from those of the others."""
    keys = differing(settings)
    columns = [distinct([tree.get(key, "-") for tree in settings]) for key in keys]
    return [dict(zip(keys, row, strict=True)) for row in zip(*columns, strict=True)] if keys else [{} for _ in settings]


def scenario_name(texts: Mapping[str, str], others: Sequence[Mapping[str, str]], keys: Sequence[str]) -> str:
    """As `named`, without settings that have one value in all scenarios of the same choice: `scheme=dirichlet, beta=1`.

    Args:
        texts: of the scenario.
        others: of all scenarios.
        keys: the settings that differ between scenarios.
    """

    def tells(key: str) -> bool:
        choice = choice_of(key, keys)
        return choice is None or len({one[key] for one in others if one[choice] == texts[choice]}) > 1

    return named(texts, [key for key in keys if tells(key)])


def named(texts: Mapping[str, str], keys: Sequence[str]) -> str:
    """`rank=4, shots=2`; digests are shown only if nothing else differs."""
    own = [key for key in keys if texts[key] != "-" or choice_of(key, keys) is None]  # without those of other choices
    plain = [key for key in own if key.rpartition(".")[2] not in DIGESTS] or own
    last = [key.rpartition(".")[2] for key in plain]
    shown = [one if last.count(one) == 1 and one != "name" else key for key, one in zip(plain, last, strict=True)]
    nested = [key.split(".")[1] if key.count(".") == 2 and key.endswith(CHOICES) else "" for key in plain]
    names = [section or one for section, one in zip(nested, shown, strict=True)]
    return ", ".join(f"{name}={texts[key]}" for key, name in zip(plain, names, strict=True))

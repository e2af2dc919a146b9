"""Tables of what can be chosen by name: the methods and the server rules."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Set
from typing import Any

from fedpgp.analysis.report.tables import Table
from fedpgp.server_rules.base import ClientHalf

MAX_KEYS = 8
Available = Iterable[tuple[str, str, type[Any] | Exception]]
"""Name, origin, and the class or why it cannot be used."""


def method_table(methods: Available, count: Callable[[Any], tuple[int, int]], backbone: str) -> Table:
    """The methods: paper, origin, shared and personal parameters, settings.

    Args:
        methods: those that can be chosen.
        count: shared and personal parameters of a method on `backbone`.
    """

    def cells(method: Any) -> list[str]:
        shared, personal = count(method)
        learned = {key for phase in method.phases for key in phase.keys}
        return [_counted(method.shared_keys, shared), _counted(learned - method.shared_keys, personal)]

    headings = ("method", "origin", "shared", "personal", "settings and defaults")
    caption = f"in brackets: numbers of parameters of one client on {backbone}, with these settings"
    return Table("Methods", headings, _rows(methods, cells, 2), text_columns=5, caption=caption)


def rule_table(rules: Available) -> Table:
    """The server rules: paper, origin, what they need of the clients and keep, weights, settings."""

    def cells(rule: Any) -> list[str]:
        needs = "every update" if rule.uploads == "stack" else "a sum"
        kept = ", and a part of every client's own" if isinstance(rule, ClientHalf) else ""
        return [f"{needs}{kept}", rule.weighting]

    headings = ("server rule", "origin", "needs", "weights", "settings and defaults")
    caption = (
        "every update: memory grows with the clients of a round, and is checked before work; a method that shares "
        "nothing has the same results with every rule"
    )
    return Table("Server rules", headings, _rows(rules, cells, 2), text_columns=5, caption=caption)


def _rows(available: Available, cells: Callable[[Any], list[str]], width: int) -> list[tuple[str, ...]]:
    """Name and paper, origin, the cells of the object with default settings, and these; or why there is none."""
    rows = []
    for name, origin, kind in available:
        try:
            if isinstance(kind, Exception):
                raise kind
            one = kind(kind.settings_type())
            own = cells(one)
            defaults = one.settings.model_dump(mode="json").items()
            settings = "\n".join(f"{key}: {json.dumps(value)}" for key, value in defaults) or "-"
            paper = kind.paper
        except Exception as error:  # whatever code from outside the package raises
            paper, own, settings = "", ["-"] * width, f"cannot be used: {' '.join(str(error).split())}"
        rows.append((f"{name}\n{paper}\n", origin, *own, settings))  # ends in an empty line between two
    return rows


def shown_keys(keys: Set[str]) -> str:
    """The keys of parameters in alphabetical order; many keys by their common prefixes."""
    return ", ".join(sorted(keys if len(keys) <= MAX_KEYS else set(map(prefix_of, keys))))


def prefix_of(key: str) -> str:
    """`gate.*` for `gate.weight`; a key without a dot stays."""
    first, dot, _ = key.partition(".")
    return f"{first}.*" if dot else key


def _counted(keys: Set[str], number: int) -> str:
    """The keys and their number of parameters."""
    return f"{shown_keys(keys)} ({number:,})" if keys else "-"

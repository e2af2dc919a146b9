"""What a measurement gives: figures by name, the machine they were measured on, and a table for people."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """One measurement."""

    bench: str
    figures: Mapping[str, float]
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = field(default_factory=tuple)

    def as_json(self) -> str:
        """`{"bench", "machine", "figures"}` on one line."""
        return json.dumps({"bench": self.bench, "machine": machine(), "figures": dict(self.figures)})


def machine() -> dict[str, Any]:
    """What it was measured on; `load` counts the processes that wanted a core over the last minute, ours included."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "ray")},
    }


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.machine()

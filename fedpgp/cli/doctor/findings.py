"""Results of checks: state, description and advice of each, and a verdict on all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from functools import partial
from pathlib import Path

from fedpgp.core.text import redacted


class State(IntEnum):
    """The state of a check; higher is worse."""

    ok = 0
    warning = 1
    """works, but not optimally, or is untested"""
    problem = 2
    """will not work, or is damaged"""


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    name: str
    state: State = field(kw_only=True)
    what: str
    advice: str | None = None
    """what to do; None: nothing, or `what` is an error message that includes it"""

    def shown(self) -> Finding:
        """The finding without credentials and without the path of the home folder."""
        return replace(self, what=_shown(self.what), advice=self.advice and _shown(self.advice))


ok = partial(Finding, state=State.ok)
warning = partial(Finding, state=State.warning)
problem = partial(Finding, state=State.problem)


def verdict(findings: Sequence[Finding]) -> tuple[State, str]:
    """The worst state of all findings, and a summary of them in one line."""
    worst, counts = max((finding.state for finding in findings), default=State.ok), []
    for state in (State.problem, State.warning):
        names = list(dict.fromkeys(finding.name for finding in findings if finding.state is state))
        if names:
            counts.append(f"{len(names)} {state.name}{'s' if len(names) > 1 else ''} ({', '.join(names)})")
    start = {State.ok: "ready", State.warning: "usable", State.problem: "not ready"}[worst]
    return worst, f"{start}: {', '.join(counts) or f'all {len(findings)} checks passed'}"


def _shown(text: str) -> str:
    return redacted(text).replace(str(Path.home()), "~")

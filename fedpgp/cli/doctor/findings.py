"""Results of checks: state, description and advice of each, and a verdict on all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from fedpgp.core.redaction import redacted


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
    state: State
    what: str
    advice: str | None = None
    """what to do; None: nothing"""

    def shown(self) -> Finding:
        """The finding without credentials and without the path of the home folder."""
        return Finding(self.name, self.state, _shown(self.what), self.advice and _shown(self.advice))


def ok(name: str, what: str) -> Finding:
    """A check that passed."""
    return Finding(name, State.ok, what)


def warning(name: str, what: str, advice: str) -> Finding:
    """Something that could be better."""
    return Finding(name, State.warning, what, advice)


def problem(name: str, what: str, advice: str | None = None) -> Finding:
    """Something that must be fixed. Without advice, `what` is an error message that includes it."""
    return Finding(name, State.problem, what, advice)


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

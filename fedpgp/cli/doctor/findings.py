"""What was found: each thing looked at, how it stands, and what to do about it; and the verdict over all of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from fedpgp.core.redaction import redacted


class State(IntEnum):
    """How something stands; the higher, the worse."""

    ok = 0
    warning = 1
    """it will work, but not as well as it could, or nobody has tried it"""
    problem = 2
    """something will not work, or has been damaged"""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    name: str
    state: State
    what: str
    advice: str | None = None
    """what to do; None: nothing"""

    def shown(self) -> Finding:
        """As it can be shown to anyone: without credentials, and without the name of the home folder."""
        return Finding(self.name, self.state, _shown(self.what), self.advice and _shown(self.advice))


def ok(name: str, what: str) -> Finding:
    """It is as it should be."""
    return Finding(name, State.ok, what)


def warning(name: str, what: str, advice: str) -> Finding:
    """It could be better."""
    return Finding(name, State.warning, what, advice)


def problem(name: str, what: str, advice: str | None = None) -> Finding:
    """It has to be seen to. Without advice `what` is an error of ours, which says what to do."""
    return Finding(name, State.problem, what, advice)


def worst(findings: Sequence[Finding]) -> State:
    """The state of the whole."""
    return max((finding.state for finding in findings), default=State.ok)


def verdict(findings: Sequence[Finding]) -> str:
    """All of it in one line."""
    named = {state: _names(findings, state) for state in (State.problem, State.warning)}
    told = [f"{_counted(len(names), state.name)} ({', '.join(names)})" for state, names in named.items() if names]
    start = {State.ok: "ready", State.warning: "usable", State.problem: "not ready"}[worst(findings)]
    return f"{start}: {', '.join(told) or f'all {len(findings)} checks passed'}"


def _names(findings: Sequence[Finding], state: State) -> list[str]:
    return list(dict.fromkeys(finding.name for finding in findings if finding.state is state))


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" + ("s" if number != 1 else "")


def _shown(text: str) -> str:
    return redacted(text).replace(str(Path.home()), "~")

"""What was found, and the verdict on it."""

from __future__ import annotations

from pathlib import Path

from fedpgp.cli.doctor.findings import Finding, State, ok, problem, verdict, warning


def test_the_verdict_names_what_is_wrong_once():
    fine, slow, torn = ok("a", "fine"), warning("b", "slow", "hurry"), problem("c", "torn", "mend")
    assert verdict([fine, fine]) == (State.ok, "ready: all 2 checks passed")
    assert verdict([fine, slow]) == (State.warning, "usable: 1 warning (b)")
    assert verdict([torn, slow])[0] is State.problem
    found = verdict([slow, torn, torn, problem("d", "gone", "find")])
    assert found == (State.problem, "not ready: 2 problems (c, d), 1 warning (b)")


def test_what_is_shown_has_no_credentials_and_no_home():
    shown = problem("tracking", f"http://me:S3CRET@host/x in {Path.home()}/store", f"cd {Path.home()}").shown()
    assert shown == Finding("tracking", "http://***@host/x in ~/store", "cd ~", state=State.problem)

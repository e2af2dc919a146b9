"""Docstrings as sections."""

from __future__ import annotations

from fedpgp.core.docstrings import DEPARTURES, NOTES, SUMMARY, Block, Section, sections

TEXT = """y = f(x), which is
    trained.

    Legend: x is the input:

        y = x
          + 1,

    averaged. It has: no colon heading.

    A round at a client has two phases: first, second.

    Not so long: steps
    - one,
      and more
    - two

    No guarantee: none. Departs from the code: it
    differs.

    x - 1 follows. Neither departs.

    Departs only here.
    """


def test_sections():
    assert sections(TEXT) == [
        Section(SUMMARY, (Block("y = f(x), which is trained."),)),
        Section(
            "Legend",
            (
                Block("x is the input:"),
                Block("y = x\n  + 1,", "verbatim"),
                Block("averaged. It has: no colon heading."),
            ),
        ),
        Section(NOTES, (Block("A round at a client has two phases: first, second."),)),
        Section("Not so long", (Block("steps"), Block("one, and more", "item"), Block("two", "item"))),
        Section("No guarantee", (Block("none."),)),
        Section(
            DEPARTURES,
            (
                Block("Departs from the code: it differs."),
                Block("x - 1 follows. Neither departs."),
                Block("Departs only here."),
            ),
        ),
    ]

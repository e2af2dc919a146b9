"""Memory of the machine, and of a container that has less."""

from __future__ import annotations

import os

from fedpgp.core import memory


def test_free_memory_is_at_most_all_and_that_at_most_the_machines():
    assert 0 < memory.free() <= memory.total() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_a_container_has_no_more_than_its_limit(monkeypatch):
    monkeypatch.setattr(
        "fedpgp.core.provenance.lines", lambda path: ["MemAvailable: 2000 kB"] if "proc" in path else ["1000"]
    )
    assert memory.free() == memory.total() == 1000

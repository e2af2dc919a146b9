"""Freed memory is used again: large tensors fault in no pages after the first time."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

CODE = """
import resource, torch
from fedpgp.federation.allocator import keep_freed_memory
{call}
for _ in range(12):  # until the heap has grown
    torch.ones(20_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    torch.ones(20_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(call):
    done = subprocess.run([sys.executable, "-c", CODE.format(call=call)], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="not glibc")
def test_large_tensors_fault_in_no_pages_again():
    """80 MB three times, in pages of 4 KB or of 2 MB."""
    assert faults("") > 3 * 30
    assert faults("assert keep_freed_memory()") < 30

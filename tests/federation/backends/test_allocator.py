"""Freed memory is used again: large tensors fault in no pages after the first time, and threads share few heaps."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

CODE = """
import resource, torch
from fedpgp.federation.backends.allocator import keep_freed_memory
{call}
for _ in range(12):  # until the heap has grown
    torch.ones(20_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    torch.ones(20_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

HEAPS = """
import ctypes, sys, threading
from fedpgp.federation.backends.allocator import share_heaps
{call}
start, kept = threading.Barrier(12), []
def allocate():
    start.wait()
    kept.append(bytearray(10_000))
    start.wait()  # no thread takes over the heap of one that has ended
threads = [threading.Thread(target=allocate) for _ in range(12)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p
file = ctypes.c_void_p(libc.fopen(b"/dev/stdout", b"w"))
libc.malloc_info(0, file)
libc.fflush(file)
"""

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="not glibc")


def told(code, call):
    done = subprocess.run([sys.executable, "-c", code.format(call=call)], capture_output=True, text=True, check=True)
    return done.stdout


def faults(call):
    return int(told(CODE, call))


def heaps(call):
    return told(HEAPS, call).count("<heap nr=")


def test_twelve_threads_share_two_heaps():
    assert heaps("") > 4
    assert heaps("assert share_heaps()") == 2


def test_large_tensors_fault_in_no_pages_again():
    """80 MB three times, in pages of 4 KB or of 2 MB."""
    assert faults("") > 3 * 30
    assert faults("assert keep_freed_memory()") < 30

"""Requests that fit a cluster or not, and reuse of freed memory."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from fedpgp.federation.resources import capacity, shortfall


def test_a_fraction_is_on_one_device():
    assert capacity({"CPU": 64, "GPU": 2}, 1, 0.3) == 6
    assert capacity({"CPU": 64, "GPU": 2}, 1, 0.5) == 4
    assert capacity({"CPU": 64, "GPU": 1}, 1, 0.1) == 10
    assert capacity({"CPU": 64, "GPU": 1}, 1, 0.6) == 1
    assert capacity({"CPU": 64, "GPU": 5}, 1, 2) == 2
    assert capacity({"CPU": 3, "GPU": 2}, 1, 0.5) == 3
    assert capacity({"CPU": 2}, 0.5, 0) == 4


def test_a_request_that_fits_has_no_shortfall():
    assert shortfall(4, 1, 0.5, [{"CPU": 4, "GPU": 2}]) is None
    assert shortfall(3, 1, 0, [{"CPU": 1}, {"CPU": 2}]) is None


def test_the_shortfall_is_named():
    assert "short of GPU, 2 fit" in shortfall(4, 1, 0.5, [{"CPU": 4, "GPU": 1}])
    assert "short of CPU and GPU" in shortfall(4, 1, 1, [{"CPU": 2, "GPU": 1}])
    assert "do not pack" in shortfall(7, 1, 0.28, [{"CPU": 8, "GPU": 2}])
    assert "do not pack" in shortfall(2, 3, 0, [{"CPU": 4}, {"CPU": 2}])


CODE = """
import resource, torch
from fedpgp.federation.resources import keep_freed_memory
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
from fedpgp.federation.resources import share_heaps
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

only_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="not glibc")


def output(code, call):
    done = subprocess.run([sys.executable, "-c", code.format(call=call)], capture_output=True, text=True, check=True)
    return done.stdout


@only_glibc
def test_twelve_threads_share_two_heaps():
    counts = [output(HEAPS, call).count("<heap nr=") for call in ("", "assert share_heaps()")]
    assert counts[0] > 4
    assert counts[1] == 2


@only_glibc
def test_large_tensors_fault_in_no_pages_again():
    """80 MB three times, in pages of 4 KB or of 2 MB."""
    faults = [int(output(CODE, call)) for call in ("", "assert keep_freed_memory()")]
    assert faults[0] > 3 * 30
    assert faults[1] < 30

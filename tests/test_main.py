"""The command's process ends at once, but after its threads and exit functions, and with the status of the command."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import atexit, sys, threading, time
from fedpgp import __main__, cli

class Late:
    def __del__(self):
        print("taken apart")

late = Late()

def command():
    atexit.register(print, "exit function")
    threading.Thread(target=lambda: (time.sleep(0.2), print("thread"))).start()
    {ending}

cli.main = command
__main__.main()
"""


@pytest.mark.parametrize(
    ("ending", "status", "said"),
    [
        ("pass", 0, ""),
        ("sys.exit()", 0, ""),
        ("sys.exit(3)", 3, ""),
        ("sys.exit('no')", 1, "no\n"),
        ("raise ValueError('unexpected')", 1, "ValueError: unexpected\n"),
    ],
)
def test_the_process_ends_after_threads_and_exit_functions_and_takes_nothing_apart(ending, status, said):
    code = SCRIPT.format(ending=ending)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (status, "thread\nexit function\n")
    assert done.stderr.endswith(said)


def test_the_module_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "fedpgp", "methods", "--no"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "No such option: --no" in done.stderr

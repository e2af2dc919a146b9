"""Time the commands that a person waits for, each in a process of its own: a run, a report, and the MLflow UI."""

import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from fedpgp.core.errors import FedPGPError

ADDRESS = re.compile(r"https?://\S+")


@dataclass(frozen=True)
class Taken:
    """Seconds that a command took."""

    wall: float
    cpu: float
    """in user and system mode, with the processes that it started and waited for"""


def run(*arguments: str) -> Taken:
    """Run `fedpgp ARGUMENTS` to its end; raise `FedPGPError` with its last line if it fails."""
    with tempfile.TemporaryFile() as output:
        start = time.perf_counter()
        process = subprocess.Popen(_command(*arguments), stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        _, status, used = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            last = output.read().decode(errors="replace").strip().rpartition("\n")[2]
            raise FedPGPError(f"fedpgp {arguments[0]}: exit code {process.returncode}: {last}")
    return Taken(wall, used.ru_utime + used.ru_stime)


def until_page(root: Path) -> float:
    """Seconds from the start of `fedpgp ui ROOT` until the page at the address that it prints answers."""
    start = time.perf_counter()
    with subprocess.Popen(
        _command("ui", str(root), "--no-browser"), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    ) as process:  # fmt: skip
        try:
            lines = list[str]()
            for line in process.stdout or ():
                lines.append(line.strip())
                if found := ADDRESS.search(line):
                    with urllib.request.urlopen(found.group(), timeout=60):
                        return time.perf_counter() - start
            raise FedPGPError(f"fedpgp ui ended without an address: {''.join(lines[-1:])}")
        finally:
            process.terminate()
            process.communicate()


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "fedpgp", *arguments]

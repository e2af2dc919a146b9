"""A run that is killed again and again, at random moments, against the same run left alone."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import safetensors.numpy

from fedpgp import config
from fedpgp.bench.outcome import Outcome
from fedpgp.config import Experiment
from fedpgp.core.callbacks import RunCallback
from fedpgp.core.errors import FedPGPError
from fedpgp.core.seeding import derive_seed
from fedpgp.experiments import launch
from fedpgp.storage.run_folder import RunFolder
from fedpgp.tracking import MLflowTracker

KINDS = {"actor": "ray::_Client", "driver": "ray::_Driver", "run": ""}
"""What is killed, and how its processes are called; a run is the command with everything that it started."""
ROUNDS_PER_KILL = 12
PATIENCE = 300.0
"""Seconds without a new round after which the bench gives up."""


def experiment(root: Path, rounds: int, backend: str) -> Experiment:
    """A small FedPGP run with many short rounds."""
    return config.parse(
        {
            "name": "faults",
            "data": {"name": "shapes"},
            "backbone": {"name": "tiny", "weights": "random"},
            "protocol": {"shots": 4},
            "method": {"name": "fedpgp", "n_ctx": 4, "rank": 2},
            "federation": {"rounds": rounds, "block_size": 2, "participation": 0.5, "eval_every": 4, "lr": 0.05},
            "resources": {"backend": backend, "actors": 2, "cpus_per_actor": 0.5},
            "tracking": {"mlflow": False},
            "storage": {"root": str(root)},
        }
    )


def measure(kills: int, progress: Callable[[str], None]) -> Outcome:
    """Kill `kills` times, resume each time, and compare with the run left alone, bit for bit."""
    with tempfile.TemporaryDirectory() as folder:
        rounds = ROUNDS_PER_KILL * kills
        progress(f"{rounds} rounds without a kill, serially")
        alone = launch.run(experiment(Path(folder) / "alone", rounds, "serial"), False, RunCallback(), MLflowTracker())
        victim = _Victim(experiment(Path(folder) / "killed", rounds, "ray"), Path(folder))
        chance, done = random.Random(derive_seed(1, "faults")), dict.fromkeys(KINDS, 0)
        while sum(done.values()) < kills:
            kind = chance.choice(list(KINDS))
            if victim.kill(kind, after=chance.uniform(0.2, 2.0)):
                done[kind] += 1
                progress(f"kill {sum(done.values())}: {kind}, after {victim.committed()} rounds")
        killed = victim.finish()
        figures = {
            "kills": sum(done.values()),
            "rounds_lost": len(victim.seen - {row.round for row in RunFolder.open(killed).rounds()}),
            "rows_doubled": _doubled(RunFolder.open(killed).clients()),
            "final_equal": int(_numbers(killed) == _numbers(alone)),
        }
    rows = [[name, str(value)] for name, value in figures.items()]
    kinds = ", ".join(f"{count} x {kind}" for kind, count in done.items())
    return Outcome("faults", figures, ("figure", "value"), rows, (f"killed: {kinds}; {rounds} rounds of 10 clients",))


class _Victim:
    """The command under test, started again whenever it is down."""

    def __init__(self, wanted: Experiment, folder: Path) -> None:
        self._root = wanted.storage.root
        self._rounds = wanted.federation.rounds
        file = folder / "killed.yaml"
        file.write_text(config.dump(wanted), encoding="utf-8")
        self._command = [sys.executable, "-m", "fedpgp", "run", str(file), "--resume"]
        self._process: subprocess.Popen[bytes] | None = None
        self.seen: set[int] = set()
        """rounds that were committed at some time"""

    def kill(self, kind: str, after: float) -> bool:
        """Kill something of a run that is making progress, so many seconds after it does; whether it was there."""
        self._await_progress()
        time.sleep(after)
        self.committed()
        process = self._up()
        below = descendants(process.pid)
        named = [pid for pid, command in below.items() if command.startswith(KINDS[kind])]
        if kind == "run":
            victims = [process.pid, *below]
        elif named:
            victims = named[:1]
        else:
            return False
        for pid in victims:
            _kill(pid)
        if kind == "run":
            process.wait()
        return True

    def committed(self) -> int:
        """The number of rounds on disk now."""
        found = {int(path.stem) for path in self._root.glob("runs/*/rounds/[0-9]*.arrow")}
        self.seen |= found
        return len(found)

    def finish(self) -> Path:
        """Let it run to its end; the run's folder."""
        while self._up().wait() != 0:
            self._await_progress()
        (store,) = RunFolder.find(self._root)
        return store.path

    def _up(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() not in (None, 0):
            self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return self._process

    def _await_progress(self) -> None:
        before, patience = self.committed(), time.monotonic() + PATIENCE
        while self.committed() == before and before < self._rounds:
            self._up()
            if time.monotonic() > patience:
                raise FedPGPError(f"bench faults: no progress for {PATIENCE:g} s after {before} rounds")
            time.sleep(0.02)


def descendants(pid: int) -> dict[int, str]:
    """All processes below `pid`, with their command lines (Linux)."""
    parents: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        try:
            stat = Path("/proc", entry, "stat").read_text() if entry.isdigit() else ""
        except OSError:
            continue
        if stat:
            parents[int(entry)] = int(stat.rpartition(")")[2].split()[1])
    below: dict[int, str] = {}
    wave = {pid}
    while wave := {child for child, parent in parents.items() if parent in wave}:
        below |= {child: _command_line(child) for child in wave}
    return below


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _doubled(clients: pa.Table) -> int:
    keys = clients.select(["round", "client", "split", "metric", "domain"])
    return int(keys.num_rows - keys.group_by(keys.column_names).aggregate([]).num_rows)


def _numbers(path: Path) -> tuple[object, ...]:
    """All that a run says but its times, and its last parameters."""
    store = RunFolder.open(path)
    rounds = [(row.round, dict(row.metrics), row.participants) for row in store.rounds()]
    state = store.state_at(rounds[-1][0])
    tensors = {**state.shared, **state.personal}
    return rounds, store.clients().to_pydict(), safetensors.numpy.save({k: v.numpy() for k, v in tensors.items()})

"""Kill a run repeatedly at random moments, resume it, and compare it with the same run without kills."""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import safetensors.numpy

from fedpgp import config
from fedpgp.bench.measurement import Measurement, Report, descendants
from fedpgp.config import Experiment
from fedpgp.core.callbacks import RunCallback
from fedpgp.core.errors import FedPGPError
from fedpgp.core.seeding import derive_seed
from fedpgp.experiments import launch
from fedpgp.storage.run_folder import RunFolder
from fedpgp.tracking import MLflowTracker

KINDS = {"actor": "ray::_Client", "driver": "ray::_Driver", "run": ""}
"""What is killed, and how its processes are named; a run is the command with all processes that it started."""
ROUNDS_PER_KILL = 12
PATIENCE = 300.0
"""Seconds without a new round after which the bench fails."""


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


def measure(kills: int, report: Report) -> Measurement:
    """Kill `kills` times, resume each time, and compare the run bit for bit with one that was not killed."""
    with tempfile.TemporaryDirectory() as folder:
        rounds = ROUNDS_PER_KILL * kills
        report(f"{rounds} rounds without a kill, serially")
        expected = experiment(Path(folder) / "expected", rounds, "serial")
        undisturbed = launch.run(expected, False, RunCallback(), MLflowTracker())
        victim = _Victim(experiment(Path(folder) / "killed", rounds, "ray"), Path(folder))
        chance, done = random.Random(derive_seed(1, "faults")), dict.fromkeys(KINDS, 0)
        while sum(done.values()) < kills:
            kind = chance.choice(list(KINDS))
            if victim.kill(kind, after=chance.uniform(0.2, 2.0)):
                done[kind] += 1
                report(f"kill {sum(done.values())}: {kind}, after {victim.committed()} rounds")
        killed = victim.finish()
        figures = {
            "kills": sum(done.values()),
            "rounds_lost": len(victim.seen - {row.round for row in RunFolder.open(killed).rounds()}),
            "rows_doubled": _doubled(RunFolder.open(killed).clients()),
            "final_equal": int(_content(killed) == _content(undisturbed)),
        }
    rows = [[name, str(value)] for name, value in figures.items()]
    kinds = ", ".join(f"{count} x {kind}" for kind, count in done.items())
    note = f"killed: {kinds}; {rounds} rounds of 10 clients"
    return Measurement("faults", figures, ("figure", "value"), rows, (note,))


class _Victim:
    """The command under test. It is started again whenever it has ended with an error."""

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
        """Wait for a new round, then `after` seconds, and kill; returns False if there is no process of this kind."""
        self._await_progress()
        time.sleep(after)
        self.committed()
        process = self._ensure_running()
        below = descendants(process.pid)
        victims = [pid for pid, command in below.items() if command.startswith(KINDS[kind])]
        victims = [process.pid, *victims] if kind == "run" else victims[:1]
        for pid in victims:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if kind == "run":
            process.wait()
        return bool(victims)

    def committed(self) -> int:
        """The number of rounds on disk now."""
        found = {int(path.stem) for path in self._root.glob("runs/*/rounds/[0-9]*.arrow")}
        self.seen |= found
        return len(found)

    def finish(self) -> Path:
        """Let the command run to its end; returns the run's folder."""
        while self._ensure_running().wait() != 0:
            self._await_progress()
        (store,) = RunFolder.find(self._root)
        return store.path

    def _ensure_running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() not in (None, 0):
            self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return self._process

    def _await_progress(self) -> None:
        before, deadline = self.committed(), time.monotonic() + PATIENCE
        while self.committed() == before and before < self._rounds:
            self._ensure_running()
            if time.monotonic() > deadline:
                raise FedPGPError(f"bench faults: no new round for {PATIENCE:g} s after {before} rounds")
            time.sleep(0.02)


def _doubled(clients: pa.Table) -> int:
    keys = clients.select(["round", "client", "split", "metric", "domain"])
    return int(keys.num_rows - keys.group_by(keys.column_names).aggregate([]).num_rows)


def _content(path: Path) -> tuple[object, ...]:
    """All that a run has recorded, without times, and its last parameters."""
    store = RunFolder.open(path)
    rounds = [(row.round, dict(row.metrics), row.participants) for row in store.rounds()]
    state = store.state_at(rounds[-1][0])
    tensors = {**state.shared, **state.personal}
    return rounds, store.clients().to_pydict(), safetensors.numpy.save({k: v.numpy() for k, v in tensors.items()})

"""Test the reliability of runs: kill one repeatedly at random moments, and repeat runs and sweeps for a long time."""

import gc
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import fmean, linear_regression
from unittest.mock import patch

import safetensors.numpy

from fedpgp import config
from fedpgp.bench.measurement import MB, Measurement, Report, descendants, usage
from fedpgp.config import Experiment, ResourceSettings
from fedpgp.core.callbacks import RunCallback
from fedpgp.core.errors import FedPGPError
from fedpgp.core.seeding import derive_seed
from fedpgp.experiments import launch
from fedpgp.experiments.sweeps import sweep_runner, sweep_settings
from fedpgp.federation.backends import ray_cluster
from fedpgp.federation.backends.actors import stored_bytes
from fedpgp.storage.run_folder import RunFolder
from fedpgp.tracking import MLflowTracker

KINDS = ("actor", "driver", "run")
"""What is killed: an actor; the command, which drives the run; or it with all processes that it started."""
ROUNDS_PER_KILL = 12
PATIENCE = 300.0
"""Seconds without a new round after which the bench fails."""

ROUNDS = 5
"""Rounds of the run in each cycle."""
TRIALS = 2
"""Trials of the sweep in each cycle, one round each."""
WARM_UP = 1 / 3
"""Share of the cycles before growth counts: libraries are loaded, and the heap reaches its size."""
MIN_CYCLES = 3
REST = 3.0
"""Seconds after a cycle until idle processes have ended."""
TOLERANCE = 5.0
"""Percent of its mean that a value may grow by from the end of the warm-up to the end."""
RAY = {"RAY_LOG_MONITOR_MAX_OPEN_FILES": "20"}
"""The number of files that Ray's log monitor keeps open. It would reach its default, 200, only after the warm-up."""
JUDGED = {
    "memory_mb": "memory of all processes, MB",
    "handles": "open files and sockets",
    "threads": "threads",
    "processes": "processes",
    "objects_mb": "Ray's object store, MB",
    "written_mb": "store: written in a cycle, MB",
    "logged_mb": "Ray's logs: written in a cycle, MB",
}
"""Values that must not grow, with their labels."""
INFORMATIVE = {"driver_memory_mb": "of it this process's, MB", "cycle_seconds": "seconds of a cycle"}
"""Values that are shown but not judged."""


def small_experiment(root: Path, rounds: int, backend: str) -> Experiment:
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


def faults(kills: int, report: Report) -> Measurement:
    """Kill a run `kills` times, resume each time, and compare it bit for bit with one that was not killed."""
    with tempfile.TemporaryDirectory() as folder:
        rounds = ROUNDS_PER_KILL * kills
        report(f"{rounds} rounds without a kill, serially")
        expected = small_experiment(Path(folder) / "expected", rounds, "serial")
        undisturbed = RunFolder.open(launch.run(expected, False, RunCallback(), MLflowTracker()))
        victim = _Victim(small_experiment(Path(folder) / "killed", rounds, "ray"), Path(folder))
        chance, done = random.Random(derive_seed(1, "faults")), dict.fromkeys(KINDS, 0)
        while sum(done.values()) < kills:
            kind = chance.choice(KINDS)
            if victim.kill(kind, after=chance.uniform(0.2, 2.0)):
                done[kind] += 1
                report(f"kill {sum(done.values())}: {kind}, after {victim.committed()} rounds")
        killed = victim.finish()
        rows = killed.clients().select(["round", "client", "split", "metric", "domain"])
        figures = {
            "kills": sum(done.values()),
            "rounds_lost": len(victim.seen - {row.round for row in killed.rounds()}),
            "rows_doubled": rows.num_rows - rows.group_by(rows.column_names).aggregate([]).num_rows,
            "final_equal": int(_content(killed) == _content(undisturbed)),
        }
    table = [[name, str(value)] for name, value in figures.items()]
    kinds = ", ".join(f"{count} x {kind}" for kind, count in done.items())
    note = f"killed: {kinds}; {rounds} rounds of 10 clients"
    return Measurement("faults", figures, ("figure", "value"), table, (note,))


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
        actors = [pid for pid, command in below.items() if command.startswith("ray::_Client")]
        victims = {"actor": actors[:1], "driver": [process.pid], "run": [process.pid, *below]}[kind]
        for pid in victims:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if process.pid in victims:
            process.wait()
        return bool(victims)

    def committed(self) -> int:
        """The number of rounds on disk now."""
        found = {int(path.stem) for path in self._root.glob("runs/*/rounds/[0-9]*.arrow")}
        self.seen |= found
        return len(found)

    def finish(self) -> RunFolder:
        """Let the command run to its end; returns the run."""
        while self._ensure_running().wait() != 0:
            self._await_progress()
        (store,) = RunFolder.find(self._root)
        return store

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


def _content(store: RunFolder) -> tuple[object, ...]:
    """All that a run has recorded, without times, and its last parameters."""
    rounds = [(row.round, dict(row.metrics), row.participants) for row in store.rounds()]
    state = store.state_at(rounds[-1][0])
    tensors = {**state.shared, **state.personal}
    return rounds, store.clients().to_pydict(), safetensors.numpy.save({k: v.numpy() for k, v in tensors.items()})


def soak(minutes: float, report: Report) -> Measurement:
    """Run cycles of a FedPGP run and a small sweep on the icons, all in this process and one Ray.

    All resources are sampled after each cycle, while the process is idle.
    """
    samples: list[Mapping[str, float]] = []
    with (
        tempfile.TemporaryDirectory() as name,
        patch.dict(os.environ, RAY_TMPDIR=name, **RAY),
        ray_cluster.connected(ResourceSettings(actors=TRIALS)),
    ):
        root, start, before = Path(name) / "store", time.monotonic(), (0, 0)
        while time.monotonic() - start < 60 * minutes or len(samples) < MIN_CYCLES:
            began = time.monotonic()
            _cycle(root, len(samples))
            seconds = time.monotonic() - began
            time.sleep(REST)
            gc.collect()  # garbage that was not collected yet is not growth
            now = folder_size(root), folder_size(Path(name) / "ray")
            sample = {
                **usage([os.getpid(), *descendants(os.getpid())]),
                "driver_memory_mb": usage([os.getpid()])["memory_mb"],
                "objects_mb": stored_bytes() / MB,
                "written_mb": (now[0] - before[0]) / MB,
                "logged_mb": (now[1] - before[1]) / MB,
                "cycle_seconds": seconds,
            }
            before = now
            samples.append(sample)
            values = ", ".join(f"{name} {value:.1f}" for name, value in sample.items())
            report(f"{(time.monotonic() - start) / 60:.1f} min: {values}")
        runs = RunFolder.find(root)
        rounds = sum(len(run.rounds()) for run in runs)
    return evaluate(samples, f"{len(samples)} cycles, {len(runs)} runs, {rounds} rounds in {minutes:g} minutes")


def evaluate(samples: Sequence[Mapping[str, float]], summary: str) -> Measurement:
    """Compute the trends of all values, and whether those that are judged are flat."""
    found = {name: trend([sample[name] for sample in samples]) for name in samples[0]}
    growing = [label for name, label in JUDGED.items() if found[name][1] > TOLERANCE]
    labels, first, last = JUDGED | INFORMATIVE, samples[0], samples[-1]
    rows = [
        (labels[name], f"{first[name]:.1f}", f"{mean:.1f}", f"{last[name]:.1f}", f"{growth:+.1f}%")
        for name, (mean, growth) in found.items()
    ]
    figures = {name: mean for name, (mean, _) in found.items()}
    figures |= {f"{name}_growth_percent": growth for name, (_, growth) in found.items()}
    verdict = f"grows: {', '.join(growing)}" if growing else "flat: nothing grows"
    notes = (f"{verdict} by more than {TOLERANCE:g}%", summary)
    headings = ("what", "first", "mean", "last", "growth")
    return Measurement("soak", {**figures, "cycles": len(samples), "flat": int(not growing)}, headings, rows, notes)


def trend(values: Sequence[float]) -> tuple[float, float]:
    """Mean of the values after the warm-up, and their growth.

    The growth is in percent of the mean (at least 1, for values near 0), by the regression line through all of them.
    """
    kept = values[int(WARM_UP * len(values)) :]
    mean = fmean(kept)
    slope = linear_regression(range(len(kept)), kept).slope
    return mean, 100 * slope * (len(kept) - 1) / max(mean, 1.0)


def folder_size(folder: Path) -> int:
    """Bytes of all files in a folder and its subfolders."""
    total = 0
    for parent, _, files in os.walk(folder):
        for file in files:
            with suppress(FileNotFoundError):  # deleted in the meantime
                total += os.lstat(os.path.join(parent, file)).st_size
    return total


def _cycle(root: Path, number: int) -> None:
    """A run and a sweep whose settings no earlier cycle had, so that nothing is skipped as finished."""
    common = [f"storage.root='{root}'", "resources.actors=1", "federation.local_epochs=1"]
    rates = [round(0.1 + 0.001 * number + 0.0001 * trial, 4) for trial in range(TRIALS + 1)]
    run = config.load("icons", [*common, f"federation.rounds={ROUNDS}", f"federation.lr={rates[0]}"])
    launch.run(run, False, RunCallback(), MLflowTracker())
    short = ["federation.rounds=1", f"federation.lr={{grid_search: {rates[1:]}}}", f"tune.max_concurrent={TRIALS}"]
    sweep_runner.run(sweep_settings.load("icons", [*common, *short])[0], None, RunCallback(), MLflowTracker())

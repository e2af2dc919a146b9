"""Runs and sweeps for a long time in one process and one Ray: does anything grow that should stay as it is?"""

from __future__ import annotations

import gc
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, linear_regression

from fedpgp import config
from fedpgp.bench.faults import descendants
from fedpgp.bench.outcome import Outcome
from fedpgp.config import ResourceSettings
from fedpgp.core.callbacks import RunCallback
from fedpgp.core.errors import FedPGPError
from fedpgp.experiments import launch
from fedpgp.experiments.sweeps import sweep_runner, sweep_settings
from fedpgp.federation.backends import driver
from fedpgp.federation.backends.actors import stored_bytes
from fedpgp.storage.run_folder import RunFolder
from fedpgp.tracking import MLflowTracker

ROUNDS = 5
"""Of the run of each cycle."""
TRIALS = 2
"""Of the sweep of each cycle; a round each."""
WARM_UP = 1 / 3
"""Share of the cycles after which growth counts: until then libraries are loaded, and the heap finds its size."""
LEAST = 3
"""Cycles, however short the time."""
REST = 3.0
"""Seconds after a cycle until processes that have nothing to do are gone."""
TOLERATED = 5.0
"""Percent of its mean that a value may grow by, from the end of the warm-up to the end."""
MB = 2**20

HERE = ResourceSettings(actors=TRIALS)
RAY = {"RAY_LOG_MONITOR_MAX_OPEN_FILES": "20"}
"""Ray's log monitor keeps so many files open before it closes any; with its 200 that would come after the warm-up."""

JUDGED = {
    "memory_mb": "memory of all processes, MB",
    "handles": "open files and sockets",
    "threads": "threads",
    "processes": "processes",
    "objects_mb": "Ray's object store, MB",
    "written_mb": "store: written in a cycle, MB",
    "logged_mb": "Ray's logs: written in a cycle, MB",
}
"""What must not grow, and how it is called."""
BESIDES = {"driver_memory_mb": "of it this process's, MB", "cycle_seconds": "seconds of a cycle"}
"""What helps to read the rest."""


@dataclass(frozen=True)
class Trend:
    """How a value went after the warm-up."""

    mean: float
    growth: float
    """percent of the mean (at least 1, for what is nearly nothing), by the straight line through all values"""

    @property
    def flat(self) -> bool:
        """Whether it grew by no more than is tolerated."""
        return self.growth <= TOLERATED


def measure(minutes: float, progress: Callable[[str], None]) -> Outcome:
    """Cycles of a FedPGP run and a small sweep on the embedded world; everything is measured while nothing goes on."""
    samples: list[Mapping[str, float]] = []
    with tempfile.TemporaryDirectory() as name, _environment(RAY_TMPDIR=name, **RAY), driver.connected(HERE):
        root, start, before = Path(name) / "store", time.monotonic(), (0, 0)
        while time.monotonic() - start < 60 * minutes or len(samples) < LEAST:
            began = time.monotonic()
            _cycle(root, len(samples))
            seconds = time.monotonic() - began
            time.sleep(REST)
            gc.collect()  # what nothing refers to does not grow, whenever the collector would have come to it
            now = size(root), size(Path(name) / "ray")
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
            progress(f"{(time.monotonic() - start) / 60:.1f} min: " + _told(sample))
        runs = RunFolder.find(root)
        rounds = sum(len(run.rounds()) for run in runs)
    return outcome(samples, f"{len(samples)} cycles, {len(runs)} runs, {rounds} rounds in {minutes:g} minutes")


def outcome(samples: Sequence[Mapping[str, float]], done: str) -> Outcome:
    """The trends of all samples, and whether they are flat."""
    found = {name: trend([sample[name] for sample in samples]) for name in samples[0]}
    growing = [JUDGED[name] for name in JUDGED if not found[name].flat]
    rows = [
        ((JUDGED | BESIDES)[name], f"{samples[0][name]:.1f}", f"{one.mean:.1f}", f"{samples[-1][name]:.1f}",
         f"{one.growth:+.1f}%")
        for name, one in found.items()
    ]  # fmt: skip
    figures = {name: one.mean for name, one in found.items()}
    figures |= {f"{name}_growth_percent": one.growth for name, one in found.items()}
    verdict = f"grows: {', '.join(growing)}" if growing else "flat: nothing grows"
    notes = (f"{verdict} by more than {TOLERATED:g}%", done)
    headings = ("what", "first", "mean", "last", "growth")
    return Outcome("soak", {**figures, "cycles": len(samples), "flat": int(not growing)}, headings, rows, notes)


def trend(values: Sequence[float]) -> Trend:
    """Mean and growth of the values after the warm-up."""
    kept = values[int(WARM_UP * len(values)) :]
    mean = fmean(kept)
    slope = linear_regression(range(len(kept)), kept).slope
    return Trend(mean, 100 * slope * (len(kept) - 1) / max(mean, 1.0))


def usage(pids: Sequence[int]) -> dict[str, float]:
    """What these processes hold together (Linux); memory that they share counts once.

    Files that are mapped do not count as memory: the kernel drops their pages when it likes, and divides them among all
    processes that map them, so that they would seem to grow when somebody else's process ends.

    Raises:
        FedPGPError: this kernel does not tell them apart.
    """
    found = {"memory_mb": 0.0, "handles": 0.0, "threads": 0.0, "processes": 0.0}
    for pid in pids:
        folder = Path("/proc", str(pid))
        try:
            lines = (folder / "smaps_rollup").read_text().splitlines()
            own = [int(line.split()[1]) for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:"))]
            handles, threads = len(os.listdir(folder / "fd")), len(os.listdir(folder / "task"))
        except OSError:
            continue
        if not own:
            raise FedPGPError(f"{folder}/smaps_rollup: no Pss_Anon; the soak needs Linux 5.9 or later")
        found["memory_mb"] += sum(own) / 1024
        found["handles"] += handles
        found["threads"] += threads
        found["processes"] += 1
    return found


def size(folder: Path) -> int:
    """Bytes of all files below."""
    total = 0
    for place, _, files in os.walk(folder):
        for file in files:
            with suppress(FileNotFoundError):  # gone in the meantime
                total += os.lstat(os.path.join(place, file)).st_size
    return total


def _cycle(root: Path, number: int) -> None:
    """A run and a sweep of settings that no cycle before has had, so that nothing is left out as known."""
    where = [f"storage.root='{root}'", "resources.actors=1", "federation.local_epochs=1"]
    rates = [round(0.1 + 0.001 * number + 0.0001 * trial, 4) for trial in range(TRIALS + 1)]
    run = config.load("icons", [*where, f"federation.rounds={ROUNDS}", f"federation.lr={rates[0]}"])
    launch.run(run, False, RunCallback(), MLflowTracker())
    short = ["federation.rounds=1", f"federation.lr={{grid_search: {rates[1:]}}}", f"tune.max_concurrent={TRIALS}"]
    sweep_runner.run(sweep_settings.load("icons", [*where, *short])[0], None, RunCallback(), MLflowTracker())


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """These variables, for a while."""
    earlier = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in earlier.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _told(sample: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.1f}" for name, value in sample.items())

"""Run experiments and sweeps for a long time in one process and one Ray, and find resources that grow."""

import gc
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import fmean, linear_regression
from unittest.mock import patch

from fedpgp import config
from fedpgp.bench.measurement import MB, Measurement, Report, descendants, usage
from fedpgp.config import ResourceSettings
from fedpgp.core.callbacks import RunCallback
from fedpgp.experiments import launch
from fedpgp.experiments.sweeps import sweep_runner, sweep_settings
from fedpgp.federation.backends import driver
from fedpgp.federation.backends.actors import stored_bytes
from fedpgp.storage.run_folder import RunFolder
from fedpgp.tracking import MLflowTracker

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

LOCAL = ResourceSettings(actors=TRIALS)
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


def measure(minutes: float, report: Report) -> Measurement:
    """Run cycles of a FedPGP run and a small sweep on the icons; sample all resources while the process is idle."""
    samples: list[Mapping[str, float]] = []
    with (
        tempfile.TemporaryDirectory() as name,
        patch.dict(os.environ, RAY_TMPDIR=name, **RAY),
        driver.connected(LOCAL),
    ):
        root, start, before = Path(name) / "store", time.monotonic(), (0, 0)
        while time.monotonic() - start < 60 * minutes or len(samples) < MIN_CYCLES:
            began = time.monotonic()
            _cycle(root, len(samples))
            seconds = time.monotonic() - began
            time.sleep(REST)
            gc.collect()  # garbage that was not collected yet is not growth
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


def size(folder: Path) -> int:
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

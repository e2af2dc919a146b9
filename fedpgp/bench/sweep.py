"""Measure what a sweep costs: between trials, at their start, of MLflow, in memory, on disk, and until one sees it."""

import multiprocessing
import shutil
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

from fedpgp import config
from fedpgp.bench import commands
from fedpgp.bench.measurement import MB, Measurement, Report, resident
from fedpgp.config import Experiment, ResourceSettings
from fedpgp.core.callbacks import RunCallback
from fedpgp.experiments import launch, planning, runner
from fedpgp.experiments.planning import Library
from fedpgp.experiments.sweeps import sampling, sweep_runner, sweep_settings
from fedpgp.experiments.sweeps.sweep_settings import Sweep
from fedpgp.federation.backends import ray_cluster
from fedpgp.federation.backends.base import SerialBackend
from fedpgp.storage import checkpoint, round_files
from fedpgp.storage.run_folder import RunFolder
from fedpgp.storage.sweep_folder import SweepFolder
from fedpgp.tracking import MLflowTracker

CONCURRENT = 2
WARM_UP = 4
"""Rounds that are timed to choose the length of a trial."""
ROUND = "federation.local_epochs=4"
"""Makes a round take about a second; on real data, rounds are not shorter."""
LIBRARY = Library()
"""Data and model of the runs of a process."""


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    trials: int
    seconds: float
    """duration of a trial"""
    pairs: int
    """pairs of runs with and without MLflow"""
    tiny: int
    """trials while memory is measured"""


FULL = Size(trials=24, seconds=20.0, pairs=3, tiny=200)
QUICK = Size(trials=4, seconds=6.0, pairs=1, tiny=20)


@dataclass(frozen=True)
class Span:
    """When a run of a sweep began, committed its first row, and ended, in seconds since the epoch."""

    began: float
    first: float
    ended: float


def measure(size: Size, report: Report) -> Measurement:
    """Compare FedPGP on the icons in a sweep with the same runs alone; then measure MLflow, memory, and commands."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        with ray_cluster.connected(ResourceSettings(actors=CONCURRENT)):
            figures, notes = _of_sweep(root, size, report)
        report("commands: a run of one round, a report on the sweep, the MLflow UI")
        figures |= _of_commands(root, size.pairs)
    rows = [[name, f"{value:.2f}"] for name, value in figures.items()]
    return Measurement("sweep", figures, ("figure", "value"), rows, notes)


def _of_sweep(root: Path, size: Size, report: Report) -> tuple[dict[str, float], tuple[str, ...]]:
    """The figures of the sweep in `root`/swept and of the runs around it, and notes on them."""
    report("time of a round")
    length = _rounds(root / "bare", size.seconds)
    alone = sampling.draw(_sweep(root / "bare", length, size.trials))
    wanted = [trial.experiment for trial in alone.trials]
    half = size.trials // 2
    report(f"{half} runs of {length} rounds without a sweep, {CONCURRENT} at a time")
    bare = _bare(wanted[:half])
    report(f"these and {size.trials - half} more as trials of a sweep")
    shutil.copytree(root / "bare" / "features", root / "swept" / "features")
    sweep = _sweep(root / "swept", length, size.trials)
    folder = sweep_runner.run(sweep, None, RunCallback(), MLflowTracker())
    slots = occupied([_span(RunFolder.open(path)) for _, path in folder.labelled()])
    disk = _overhead_bytes(folder) / size.trials / MB
    report("the other runs without a sweep: a change of the machine's speed affects both halves")
    bare += _bare(wanted[half:])
    report(f"rounds with and without MLflow, {size.pairs} time(s)")
    tracking = _tracking(root / "tracked", root / "bare" / "features", length, size.pairs)
    report(f"memory over {size.tiny} tiny trials")
    growth = _growth(root / "tiny", size.tiny)
    first = median(one for _, one in bare)
    figures = {
        "overhead_percent": overhead(slots, sum(seconds for seconds, _ in bare), first),
        "warm_start_seconds": warm_start(slots, first),
        "tracking_percent": tracking,
        "driver_growth_percent": growth,
        "disk_per_trial_mb": disk,
    }
    notes = (
        f"{size.trials} trials of {length} rounds and {median(seconds for seconds, _ in bare):.1f} s without a sweep, "
        f"{len(slots)} at a time; half of the runs without a sweep before it, half after it",
        "overhead: of each trial process, from the first row of its first trial to the end of its last",
        f"report: of the {size.trials} trials; one round: of the icons, features cached; serial: without MLflow",
    )
    return figures, notes


def _of_commands(root: Path, repeats: int) -> dict[str, float]:
    """The seconds of commands in processes of their own, on the sweep in `root`/swept and on a new store."""
    one_round = ("run", "icons", "federation.rounds=1", f"storage.root='{root / 'one'}'")
    ways = {"": ("resources.backend=ray",), "_serial": ("resources.backend=serial", "tracking.mlflow=false")}
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(repeats + 1):
        for way, settings in ways.items():
            taken[way].append(commands.run(*one_round, *settings).wall)
    reported = commands.run("report", str(root / "swept"), "--out", str(root / "report"))
    return {
        **{f"run_one_round{way}_seconds": median(times[1:]) for way, times in taken.items()},  # the first extracts
        "report_seconds": reported.wall,
        "report_cpu_seconds": reported.cpu,
        "ui_ready_seconds": commands.until_page(root / "swept"),
    }


def occupied(spans: Sequence[Span]) -> list[list[Span]]:
    """Group runs by trial process: a run is assigned to the process that became free last, or to a new one."""
    slots: list[list[Span]] = []
    for span in sorted(spans, key=lambda span: span.began):
        free = [slot for slot in slots if slot[-1].ended <= span.began]
        if free:
            max(free, key=lambda slot: slot[-1].ended).append(span)
        else:
            slots.append([span])
    return slots


def overhead(slots: Sequence[Sequence[Span]], work: float, first: float) -> float:
    """Percent by which trial processes take longer than runs without a sweep, not counting their first start.

    Args:
        work: seconds of all runs without a sweep.
        first: seconds of such a run until its first row.
    """
    held = sum(slot[-1].ended - slot[0].first for slot in slots)
    return 100 * (held / (work - len(slots) * first) - 1)


def warm_start(slots: Sequence[Sequence[Span]], first: float) -> float:
    """Median seconds between the end of a trial and the first row of the next, minus `first`."""
    return median(later.first - before.ended - first for slot in slots for before, later in pairwise(slot))


def _sweep(root: Path, length: int, trials: int) -> Sweep:
    values = [round(0.5 + 0.01 * number, 2) for number in range(trials)]
    searched = [f"method.mu={{grid_search: {values}}}", f"tune.max_concurrent={CONCURRENT}"]
    return sweep_settings.load("icons", [*_overrides(root, length), *searched])[0]


def _experiment(root: Path, length: int, *more: str) -> Experiment:
    return config.load("icons", [*_overrides(root, length), *more])


def _overrides(root: Path, length: int) -> list[str]:
    return [ROUND, f"federation.rounds={length}", f"storage.root='{root}'"]


def _rounds(root: Path, seconds: float) -> int:
    """The number of rounds that take that many seconds."""
    for _ in range(2):  # the first run extracts the features and warms up the process
        taken, first = bare_run(_experiment(root, WARM_UP))
    return max(2, round(seconds * (WARM_UP - 1) / (taken - first)))


def _bare(wanted: Sequence[Experiment]) -> list[tuple[float, float]]:
    """Run each experiment in a warm process that does nothing else, as many at a time as in the sweep."""
    warm_up, spawn = _experiment(wanted[0].storage.root, 1), multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(CONCURRENT, spawn, initializer=bare_run, initargs=(warm_up,)) as pool:
        return list(pool.map(bare_run, wanted))


def bare_run(wanted: Experiment) -> tuple[float, float]:
    """Run on one thread with rows and checkpoints only; returns seconds until the end and until the first row."""
    plan = planning.plan(wanted, LIBRARY)
    backend = SerialBackend(threads=1)
    start = time.perf_counter()
    running = runner.advance(plan, None, RunCallback(), threading.Event(), backend)
    next(running)
    first = time.perf_counter() - start
    runner.run_to_end(running)
    return time.perf_counter() - start, first


def _span(store: RunFolder) -> Span:
    first, status = store.rounds()[0].timestamp_ms, store.status["timestamp_ms"]
    return Span(store.identity["created_ms"] / 1000, first / 1000, status / 1000)


def _overhead_bytes(folder: SweepFolder) -> int:
    """Bytes of a sweep's store, including MLflow, without the features and the best checkpoints."""
    everything = sum(path.stat().st_size for path in folder.root.rglob("*") if path.is_file())
    features = sum(path.stat().st_size for path in (folder.root / "features").iterdir())
    chosen = 0
    for _, path in folder.labelled():
        store = RunFolder.open(path)
        reference = round_files.reference(path / "rounds" / f"{store.best:06d}.arrow")
        chosen += sum((store.checkpoints / file).stat().st_size for file in checkpoint.files_of(reference))
    return everything - features - chosen


def _tracking(root: Path, features: Path, length: int, pairs: int) -> float:
    """Percent by which a round takes longer with MLflow: the median over pairs of alternated runs."""
    shutil.copytree(features, root / "features")
    tracked, untracked = (_experiment(root, length, f"tracking.mlflow={mlflow}") for mlflow in ("true", "false"))
    stop = threading.Event()
    backend = runner.make_backend(tracked.resources, stop)
    ratios = []
    for number in range(pairs + 1):
        taken = {}
        for one in (tracked, untracked) if number % 2 else (untracked, tracked):
            path = launch.run_tracked(one, False, MLflowTracker(), callback=RunCallback(), stop=stop, backend=backend)
            times = [row.timestamp_ms for row in RunFolder.open(path).rounds()]
            taken[one.tracking.mlflow] = median(later - before for before, later in pairwise(times))
        ratios.append(taken[True] / taken[False])
    backend.close()
    return 100 * (median(ratios[1:]) - 1)  # the first pair is the warm-up


def _growth(root: Path, trials: int) -> float:
    """Percent by which the memory of this process, which drives the sweep, grows after a tenth of the trials."""
    rates = [round(0.01 + 0.001 * number, 3) for number in range(trials)]
    tiny = ["federation.rounds=1", "federation.local_epochs=1", "protocol.shots=1", "method={name: promptfl, n_ctx: 1}"]
    where = [f"storage.root='{root}'", "resources.actors=1", f"tune.max_concurrent={CONCURRENT}"]
    sweep, _ = sweep_settings.load("shapes", [*tiny, *where, f"federation.lr={{grid_search: {rates}}}"])
    seen: dict[int, int] = {}

    class Watch(RunCallback):
        def on_trials(self, ended: int, total: int, summary: str) -> None:
            seen.setdefault(ended, resident())

    sweep_runner.run(sweep, None, Watch(), MLflowTracker())
    return 100 * (seen[trials] / seen[trials // 10] - 1)

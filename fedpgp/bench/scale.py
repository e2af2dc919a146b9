"""Measure rounds of FedPGP with up to a million clients, of whom a thousand train: time, memory, disk, and a kill."""

import multiprocessing
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

from fedpgp import config
from fedpgp.bench.engine import crowd
from fedpgp.bench.measurement import Measurement, Report, peak
from fedpgp.core.callbacks import RunCallback
from fedpgp.core.errors import FedPGPError
from fedpgp.core.text import memory_size
from fedpgp.experiments import planning, runner
from fedpgp.experiments.planning import Plan
from fedpgp.storage import round_files
from fedpgp.storage.run_folder import RunFolder

N_CTX, RANK = 16, 8
IMAGES = 2
"""Training images of a client; several clients may have the same one."""
BLOCK = 20
"""Clients of a block."""
TESTED = 100
"""Clients, or all, that are tested after each round, on the novel classes."""
WARM_UP, MEASURED = 1, 5
"""Rounds that are not counted, with the start of the run, and that are."""
KILL_AFTER = 2
"""Complete rounds of the run that is killed in the next one."""
PATIENCE = 3600.0
"""Seconds for a round."""


@dataclass(frozen=True)
class Setting:
    """A federation of the bench."""

    clients: int
    participants: int
    personal_memory: str  # as `resources.personal_memory`
    root: Path  # storage root

    def plan(self) -> Plan:
        """FedPGP on the icons, with clients that draw images with replacement."""
        share = min(1.0, (self.participants + 0.5) / self.clients)
        tree = {
            "name": "scale",
            "data": {"name": "icons"},
            "backbone": {"name": "icon-clip", "weights": None},
            "partition": {"scheme": "iid", "clients": 2},
            "method": {"name": "fedpgp", "n_ctx": N_CTX, "rank": RANK},
            "federation": {
                "rounds": WARM_UP + MEASURED,
                "participation": share,
                "local_epochs": 1,
                "block_size": BLOCK,
                "eval_clients": TESTED,
            },
            "resources": {"backend": "serial", "personal_memory": self.personal_memory},
            "storage": {"root": str(self.root)},
        }
        found = planning.plan(config.parse(tree))
        novel = tuple(one for one in found.data.evaluation_sets if one.split == "test" and one.kind == "novel")
        return replace(found, data=replace(crowd(found.data, self.clients, IMAGES), evaluation_sets=novel))


@dataclass(frozen=True)
class Round:
    """A round of a driver."""

    seconds: float  # with its rows and its checkpoint on disk
    training: float  # of these, local training and tests
    memory: int  # most resident bytes of the process so far
    file: int  # bytes of the file that holds the clients' parameters; 0: they are in memory


class Driver:
    """A run in a process of its own, which trains the clients, too; it goes on by a round when it is asked to."""

    def __init__(self, setting: Setting, resume: bool = False) -> None:
        context = multiprocessing.get_context("spawn")
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, setting, resume), daemon=True)
        self._process.start()
        theirs.close()

    def begin(self) -> None:
        """Let it run a round."""
        self._ours.send(None)

    def end(self) -> Round | None:
        """Wait for the round; None: the run is finished, and so is the process."""
        if not self._ours.poll(PATIENCE):
            raise FedPGPError(f"bench scale: no round in {PATIENCE:g} s")
        try:
            found: Round | None = self._ours.recv()
        except EOFError:
            raise FedPGPError("bench scale: the run failed; its output says why") from None
        if found is None:
            self._process.join()
        return found

    def finish(self) -> None:
        """Run it to its end."""
        while self.round() is not None:
            pass

    def round(self) -> Round | None:
        """Run a round and wait for it, see `end`."""
        self.begin()
        return self.end()

    def kill(self) -> None:
        """Kill the process (SIGKILL) if it has not ended."""
        self._process.kill()
        self._process.join()
        self._ours.close()


def _serve(pipe: Connection, setting: Setting, resume: bool) -> None:
    """Run the rounds of a driver, each when a message arrives."""
    plan = setting.plan()
    earlier = None
    if resume:
        earlier = RunFolder.find_resumable(setting.root, plan.experiment.name, plan.digest, None, plan.content)
    rounds = runner.advance(plan, earlier, RunCallback(), threading.Event())
    while True:
        pipe.recv()
        start = time.perf_counter()
        if (row := next(rounds, None)) is None:
            break
        taken = time.perf_counter() - start
        pipe.send(Round(taken, row.seconds["train"] + row.seconds["evaluate"], peak(), _unnamed_files(setting.root)))
    pipe.send(None)


def measure(
    clients: Sequence[int],
    participants: int,
    report: Report,
    personal_memory: str,
    kill: bool = False,
) -> Measurement:
    """Measure the rounds of federations of different sizes, which take turns, so that all see the same machine.

    Args:
        clients: numbers of clients, smallest first.
        participants: clients that train in a round; at most all.
        personal_memory: see `resources.personal_memory`.
        kill: also kill a run of the largest in a round, resume it, and compare it with the uninterrupted one.
    """
    found: dict[int, list[Round]] = {count: [] for count in clients}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        settings = {
            count: Setting(count, participants, personal_memory, Path(folder) / str(count)) for count in clients
        }
        drivers = {count: Driver(setting) for count, setting in settings.items()}
        for driver in drivers.values():
            stack.callback(driver.kill)
        for number in range(WARM_UP + MEASURED + 1):
            for count, driver in drivers.items():
                report(f"round {number + 1} of {count} clients" if number < WARM_UP + MEASURED else f"end of {count}")
                if (one := driver.round()) is not None:
                    found[count].append(one)
        rows, figures = [], dict[str, float]()
        for count, setting in settings.items():
            own = _figures(found[count], setting)
            figures |= {f"{name}_{count}": value for name, value in own.items()}
            rows.append(_row(count, own))
        notes = [
            f"FedPGP on the icons, rank {RANK}, {N_CTX} tokens, {IMAGES} images per client, {participants} clients or "
            f"all train in a round, in blocks of {BLOCK} in the driver's process, and {TESTED} are tested on the novel "
            f"classes; median of {MEASURED} rounds, with rows and checkpoint",
            f"in memory up to resources.personal_memory={personal_memory}; disk: run folder and that file",
        ]
        if len(clients) > 1:
            last, before = (figures[f"seconds_per_round_{count}"] for count in (clients[-1], clients[-2]))
            figures["seconds_ratio"] = last / before
            notes.append(f"time of a round with {clients[-1]:,} clients to {clients[-2]:,}: {last / before:.2f}")
        if kill:
            equal = _kill(settings[clients[-1]], Path(folder) / "killed", found[clients[-1]], report)
            figures["kill_bit_equal"] = float(equal)
            notes.append(f"killed in round {KILL_AFTER + 1} and resumed: {'equal bits' if equal else 'DIFFERENT'}")
    headings = (
        "clients", "seconds per round", "beside training", "driver memory", "parameters of all", "checkpoint", "disk",
    )  # fmt: skip
    return Measurement("scale", figures, headings, rows, tuple(notes))


def curves(found: Measurement) -> dict[str, dict[float, float]]:
    """The seconds of a round by number of clients, of the whole round and of what is not training."""
    names = {"seconds_per_round_": "a round", "seconds_beside_training_": "of that, beside training"}
    return {
        name: {float(key.removeprefix(prefix)): value for key, value in found.figures.items() if key.startswith(prefix)}
        for prefix, name in names.items()
    }


def _figures(rounds: Sequence[Round], setting: Setting) -> dict[str, float]:
    """The figures of one number of clients, by name."""
    counted, store = rounds[WARM_UP:], _store(setting)
    reference = _last_reference(store)
    newest = [one for one in reference["files"] if one["file"].startswith(f"{reference['round']:06d}")]
    files = sum(path.stat().st_size for path in store.path.rglob("*") if path.is_file())
    return {
        "seconds_per_round": median(one.seconds for one in counted),
        "seconds_beside_training": median(one.seconds - one.training for one in counted),
        "driver_memory_bytes": max(one.memory for one in rounds),
        "checkpoint_bytes": sum(one["bytes"] for one in newest),
        "disk_bytes": files + max(one.file for one in rounds),
        "held_in_file": float(rounds[-1].file > 0),
    }


def _row(count: int, figures: Mapping[str, float]) -> list[str]:
    sizes = [memory_size(figures[name]) for name in ("driver_memory_bytes", "checkpoint_bytes", "disk_bytes")]
    held = "in a file" if figures["held_in_file"] else "in memory"
    times = [f"{figures[name]:.2f}" for name in ("seconds_per_round", "seconds_beside_training")]
    return [f"{count:,}", *times, sizes[0], held, *sizes[1:]]


def _kill(setting: Setting, root: Path, whole: Sequence[Round], report: Report) -> bool:
    """Kill a run in a round and resume it; whether it has the rows, and files of the checkpoint, of the whole one."""
    killed = replace(setting, root=root)
    report(f"kill after {KILL_AFTER} rounds of {setting.clients} clients")
    driver = Driver(killed)
    try:
        for _ in range(KILL_AFTER):
            driver.round()
        driver.begin()
        time.sleep(median(one.seconds for one in whole) / 2)
    finally:
        driver.kill()
    if (done := len(_store(killed).rounds())) not in (KILL_AFTER, KILL_AFTER + 1):
        raise FedPGPError(f"bench scale: {done} rounds were committed before the kill, not {KILL_AFTER}")
    report("resume it")
    driver = Driver(killed, resume=True)
    try:
        driver.finish()
    finally:
        driver.kill()
    return _content(setting) == _content(killed)


def _content(setting: Setting) -> tuple[Any, ...]:
    """The checksums of the last checkpoint, and the rows without times."""
    store = _store(setting)
    rows = [(row.round, dict(row.metrics), row.participants) for row in store.rounds()]
    return _last_reference(store), rows, store.clients().to_pydict()


def _last_reference(store: RunFolder) -> dict[str, Any]:
    """What the last round says of its checkpoint."""
    return round_files.reference(sorted((store.path / "rounds").glob("*.arrow"))[-1])


def _store(setting: Setting) -> RunFolder:
    (store,) = RunFolder.find(setting.root)
    return store


def _unnamed_files(root: Path) -> int:
    """Bytes on disk of the files below `root` that this process has open and that have no name."""
    found = {}
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # the listing's own
            place, about = str(descriptor.readlink()), descriptor.stat()
            if place.startswith(str(root)) and place.endswith("(deleted)"):
                found[about.st_ino] = about.st_blocks * 512
    return sum(found.values())

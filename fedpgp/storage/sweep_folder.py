"""The folder of one sweep: the only code that knows its layout."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from fedpgp.core.errors import RunError
from fedpgp.core.files import TEMPORARY, locked, sync_folder, write_durably
from fedpgp.storage.run_folder import RunFolder
from fedpgp.storage.status_folder import StatusFolder, now_ms

State = Literal["finished", "failed", "stopped"]


@dataclass(frozen=True)
class Fold:
    """One run of a trial."""

    seed: int
    held_out: str | None = None

    @property
    def label(self) -> str:
        """`seed 1`, `seed 1, held out clipart`."""
        return f"seed {self.seed}" + (f", held out {self.held_out}" if self.held_out else "")


@dataclass(frozen=True)
class TrialSpec:
    """A trial as `trials.json` has it."""

    id: str
    label: str
    settings: Mapping[str, Any]
    folds: tuple[Fold, ...]


@dataclass(frozen=True)
class TrialRef:
    """Names a trial of a sweep on disk."""

    sweep: Path
    """folder of the sweep"""
    trial: str
    """its id"""


@dataclass(frozen=True)
class FoldRun:
    """A fold and the run that it became."""

    seed: int
    held_out: str | None
    run: str
    """name of its folder under `runs`"""


@dataclass(frozen=True)
class Result:
    """How a trial ended; written once, and replaced only when the trial is run again on request."""

    id: str
    state: State
    value: float | None
    """mean over folds of the sweep's metric after the last round; None: not measured"""
    folds: tuple[FoldRun, ...]
    reason: str | None = None


class _Trials(TypedDict):
    trials: list[TrialSpec]


class _Result(TypedDict):
    state: State
    value: float | None
    folds: list[FoldRun]
    reason: str | None


TRIALS, RESULT = TypeAdapter(_Trials), TypeAdapter(_Result)


class SweepFolder(StatusFolder):
    """One sweep on disk, `ROOT/sweeps/NAME-DIGEST`. Its folds are ordinary runs under `ROOT/runs`.

    * `sweep.yaml`: the settings, overrides applied
    * `trials.json`: id, name, metric and mode of the sweep, and its trials with their folds
    * `trials/ID.json`: how a trial ended; `trials/ID.txt`: the traceback of one that failed
    * `status.json`: as that of a run
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._results = path / "trials"

    @classmethod
    def create(
        cls, root: Path, name: str, digest: str, spec_yaml: str, metric: str, mode: str, trials: Sequence[TrialSpec]
    ) -> SweepFolder:
        """A new sweep under `root`, or the one of this name and digest that is there; the folder appears whole."""
        sweeps = root.absolute() / "sweeps"
        path = sweeps / f"{name}-{digest}"
        sweeps.mkdir(parents=True, exist_ok=True)
        if path.exists():
            return cls.open(path)
        draft = cls(Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=sweeps)))
        draft.path.chmod(0o755)
        draft._results.mkdir()
        draft._put("sweep.yaml", spec_yaml.encode())
        head = {"id": digest, "name": name, "created_ms": now_ms(), "metric": metric, "mode": mode}
        draft._write_json("trials.json", {**head, "trials": [asdict(trial) for trial in trials]})
        draft.set_status("running")
        try:
            draft.path.rename(path)
        except OSError:  # another process was faster
            shutil.rmtree(draft.path)
            if not path.exists():
                raise
        sync_folder(sweeps)
        return cls.open(path)

    @classmethod
    def open(cls, path: Path) -> SweepFolder:
        """An existing sweep.

        Raises:
            RunError: `path` is not the folder of a sweep.
        """
        if not (path / "trials.json").is_file():
            raise RunError(f"{path}: not the folder of a sweep (no trials.json); they lie in ROOT/sweeps/NAME-DIGEST")
        return cls(path.absolute())

    @classmethod
    def find(cls, path: Path) -> list[SweepFolder]:
        """The sweep in this folder, or all sweeps of this storage root, by name; an empty list if there is none."""
        if (path / "trials.json").is_file():
            return [cls(path.absolute())]
        found = sorted(file.parent for file in path.glob("sweeps/*/trials.json"))
        return [cls(folder.absolute()) for folder in found if not folder.name.startswith(TEMPORARY)]

    @contextmanager
    def lock(self, tell: Callable[[str], None]) -> Iterator[None]:
        """Be the only process that runs this sweep; wait for another that does. What a killed one left is removed."""
        path = self.path / ".lock"
        with ExitStack() as stack:
            try:
                stack.enter_context(locked(path, wait=False))
            except BlockingIOError:
                tell(f"this sweep is being run by pid {path.read_text()}: waiting for it")
                stack.enter_context(locked(path))
            for folder in (self.path, self._results):
                for leftover in folder.glob(f"{TEMPORARY}*"):
                    shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
            self.set_status("running")
            yield

    @property
    def spec_yaml(self) -> str:
        """The settings, as `spec.load` reads them."""
        return (self.path / "sweep.yaml").read_text(encoding="utf-8")

    @property
    def head(self) -> dict[str, Any]:
        """`id`, `name`, `created_ms`, `metric` and `mode`."""
        return {key: value for key, value in self._read_json("trials.json").items() if key != "trials"}

    @property
    def trials(self) -> list[TrialSpec]:
        """All trials, in the order in which they were drawn."""
        return [
            TrialSpec(trial["id"], trial["label"], trial["settings"], tuple(Fold(**fold) for fold in trial["folds"]))
            for trial in self._read_json("trials.json", TRIALS)["trials"]
        ]

    def results(self) -> dict[str, Result]:
        """How trials ended, by id, in the order of the trials; one that has not ended is absent."""
        found = {trial.id: self.result(trial.id) for trial in self.trials}
        return {trial: result for trial, result in found.items() if result is not None}

    def result(self, trial: str) -> Result | None:
        """How a trial ended; None: it has not."""
        if not (self._results / f"{trial}.json").exists():
            return None
        tree = self._read_json(f"trials/{trial}.json", RESULT)
        folds = tuple(FoldRun(**fold) for fold in tree["folds"])
        return Result(trial, tree["state"], tree["value"], folds, tree["reason"])

    def traceback(self, trial: str) -> str | None:
        """Where a trial that failed did so; None: it did not."""
        path = self._results / f"{trial}.txt"
        return path.read_text(encoding="utf-8") if path.exists() else None

    def record(self, result: Result, traceback: str | None = None) -> None:
        """Write how a trial ended, durably."""
        trace = self._results / f"{result.id}.txt"
        if traceback is None:
            trace.unlink(missing_ok=True)
        else:
            write_durably(trace, traceback.encode())
        tree = asdict(replace(result, folds=tuple(result.folds)))
        self._write_json(f"trials/{result.id}.json", {key: value for key, value in tree.items() if key != "id"})

    def forget(self, trial: str) -> None:
        """The trial is to be run again."""
        (self._results / f"{trial}.json").unlink(missing_ok=True)

    def runs(self, result: Result) -> list[RunFolder]:
        """The runs of a trial that ended, by fold."""
        return [RunFolder.open(self.root / "runs" / fold.run) for fold in result.folds]

    def labelled(self) -> list[tuple[str, Path]]:
        """The label of its trial and the folder, of every run of a trial that finished."""
        finished = [(trial.label, self.result(trial.id)) for trial in self.trials]
        return [
            (label, store.path)
            for label, result in finished
            if result is not None and result.state == "finished"
            for store in self.runs(result)
        ]

    def set_status(self, state: str, reason: str | None = None) -> None:
        """`running`, or how the sweep ended."""
        self._set_status(state, reason)

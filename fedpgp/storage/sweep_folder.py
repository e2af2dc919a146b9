"""The folder of one sweep. No other module knows its layout."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NotRequired, Self

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from fedpgp.core.files import TEMPORARY, check_readable, folders_with, sync_folder
from fedpgp.storage.run_folder import RunFolder
from fedpgp.storage.status_folder import StatusFolder, Stretch, new_draft, now_ms

State = Literal["finished", "failed", "stopped"]
Repetition = int | tuple[int, int]
"""A seed, or a seed and the seed of a split."""


@dataclass(frozen=True)
class Fold:
    """What the runs of one trial or group differ by. As text: `seed 1`, `seed 1, split 2, held out clipart`."""

    seed: int
    held_out: str | None = None
    split: int | None = None  # the seed of the data's split; None: all runs have the same one

    def __str__(self) -> str:
        split = f", split {self.split}" if self.split is not None else ""
        return f"seed {self.seed}{split}" + (f", held out {self.held_out}" if self.held_out else "")

    @property
    def repetition(self) -> Repetition:
        """What the folds of different held-out domains have in common: the seed, or seed and split."""
        return self.seed if self.split is None else (self.seed, self.split)

    @property
    def tree(self) -> dict[str, Any]:
        """The fold as it is stored; `split` is left out if it is None, as in folders without it."""
        return {"seed": self.seed, "held_out": self.held_out, **({} if self.split is None else {"split": self.split})}


@dataclass(frozen=True)
class TrialSpec:
    """A planned trial, an entry of `trials.json`."""

    id: str
    label: str
    settings: Mapping[str, Any]
    folds: tuple[Fold, ...]


@dataclass(frozen=True)
class TrialRef:
    """Identifies a trial of a sweep on disk."""

    sweep: Path  # folder of the sweep
    trial: str  # its id


@dataclass(frozen=True)
class FoldRun:
    """A fold and its run."""

    seed: int
    held_out: str | None
    run: str  # name of its folder under `runs`
    split: int | None = None

    @classmethod
    def of(cls, fold: Fold, run: str) -> Self:
        """A fold with the name of its run."""
        return cls(fold.seed, fold.held_out, run, fold.split)

    @property
    def fold(self) -> Fold:
        """The fold without its run."""
        return Fold(self.seed, self.held_out, self.split)


@dataclass(frozen=True)
class Result:
    """Outcome of a trial. Written once; replaced only when the trial is rerun on request."""

    id: str
    state: State
    value: float | None  # mean over folds of the sweep's metric after the last round; None: not measured
    folds: tuple[FoldRun, ...]
    reason: str | None = None
    disk_full: bool = False  # whether it failed because a file could not be written for lack of disk space


class _TrialsFile(TypedDict):
    trials: list[TrialSpec]


class _ResultFile(TypedDict):
    state: State
    value: float | None
    folds: tuple[FoldRun, ...]
    reason: str | None
    disk_full: NotRequired[bool]


TRIALS, RESULT = TypeAdapter(_TrialsFile), TypeAdapter(_ResultFile)


class SweepFolder(StatusFolder):
    """One sweep on disk, `ROOT/sweeps/NAME-DIGEST`. Its folds are ordinary runs under `ROOT/runs`.

    * `sweep.yaml`: the settings, overrides applied
    * `trials.json`: id, name, metric and mode of the sweep, and its trials with their folds
    * `trials/ID.json`: result of a trial; `trials/ID.txt`: traceback of a failed one
    * `status.json`: as in a run folder
    """

    kind, marker = "sweep", "trials.json"

    @classmethod
    def exists(cls, root: Path, name: str, digest: str) -> bool:
        """Whether `create` would open an existing sweep."""
        return (root.absolute() / "sweeps" / f"{name}-{digest}").exists()

    @classmethod
    def create(
        cls, root: Path, name: str, digest: str, spec_yaml: str, metric: str, mode: str, trials: Sequence[TrialSpec]
    ) -> Self:
        """Create a sweep under `root` in one atomic step, or open the existing one of this name and digest."""
        sweeps = root.absolute() / "sweeps"
        path = sweeps / f"{name}-{digest}"
        if path.exists():
            return cls.open(path)
        draft = cls(new_draft(sweeps))
        (draft.path / "trials").mkdir()
        draft._put("sweep.yaml", spec_yaml.encode())
        head = {"id": digest, "name": name, "created_ms": now_ms(), "metric": metric, "mode": mode}
        planned = [{**asdict(trial), "folds": [fold.tree for fold in trial.folds]} for trial in trials]
        draft._write_json("trials.json", {**head, "trials": planned})
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
    def find(cls, path: Path) -> list[Self]:
        """List the sweep in this folder, or all sweeps of this storage root, by name; may be empty."""
        check_readable(path)
        if (path / cls.marker).is_file():
            return [cls(path.absolute())]
        found = folders_with(cls.marker, path / "sweeps")
        return [cls(folder.absolute()) for folder in found if not folder.name.startswith(TEMPORARY)]

    def lock(self, on_message: Callable[[str], None]) -> AbstractContextManager[None]:
        """Become the only process that runs this sweep; waits for another, and cleans up after a killed one."""
        return self._exclusive(lambda pid: on_message(f"this sweep is being run by pid {pid}: waiting for it"))

    @property
    def spec_yaml(self) -> str:
        """The settings as YAML, for `sweep_settings.load`."""
        return self._read_text("sweep.yaml")

    @property
    def head(self) -> dict[str, Any]:
        """`id`, `name`, `created_ms`, `metric` and `mode`."""
        return {key: value for key, value in self._read_json("trials.json").items() if key != "trials"}

    @property
    def trials(self) -> list[TrialSpec]:
        """All trials, in the order in which they were sampled."""
        return self._parse("trials.json", TRIALS)["trials"]

    def results(self) -> dict[str, Result]:
        """Results of the trials that ended, by id, in the order of the trials."""
        found = {trial.id: self.result(trial.id) for trial in self.trials}
        return {trial: result for trial, result in found.items() if result is not None}

    def result(self, trial: str) -> Result | None:
        """Result of a trial; None: it has not ended."""
        check_readable(self.path / f"trials/{trial}.json")
        if not (self.path / f"trials/{trial}.json").exists():
            return None
        return Result(trial, **self._parse(f"trials/{trial}.json", RESULT))

    def traceback(self, trial: str) -> str | None:
        """Traceback of a failed trial; None: it did not fail."""
        name = f"trials/{trial}.txt"
        return self._read_text(name) if (self.path / name).exists() else None

    def record(self, result: Result, traceback: str | None = None) -> None:
        """Write the result of a trial, durably."""
        trace = f"trials/{result.id}.txt"
        if traceback is None:
            (self.path / trace).unlink(missing_ok=True)
        else:
            self._put(trace, traceback.encode())
        content = {key: value for key, value in asdict(result).items() if key != "id"}
        content["folds"] = [{**one.fold.tree, "run": one.run} for one in result.folds]
        if not result.disk_full:
            del content["disk_full"]
        self._write_json(f"trials/{result.id}.json", content)

    def forget(self, trial: str) -> None:
        """Remove the result of a trial, so that it runs again."""
        (self.path / f"trials/{trial}.json").unlink(missing_ok=True)

    def runs(self, result: Result) -> list[RunFolder]:
        """The runs of a trial, by fold."""
        return [RunFolder.open(self.root / "runs" / fold.run) for fold in result.folds]

    def made_with(self) -> list[Stretch]:
        """The versions and the hardware that made the finished trials, for `provenance.differing`."""
        finished = [result for result in self.results().values() if result.state == "finished"]
        paths = [self.root / "runs" / fold.run for result in finished for fold in result.folds]
        return [one for path in paths if path.is_dir() for one in RunFolder.open(path).stretches]

    def labelled(self) -> list[tuple[str, Path]]:
        """The trial's label and the folder of every run of a finished trial."""
        results = self.results()
        finished = [trial for trial in self.trials if trial.id in results and results[trial.id].state == "finished"]
        return [(trial.label, store.path) for trial in finished for store in self.runs(results[trial.id])]

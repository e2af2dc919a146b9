"""The folder of one sweep. No other module knows its layout."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NotRequired, Self

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from fedpgp.core.files import TEMPORARY, check_readable, folders_with, make_folder, sync_folder
from fedpgp.storage.objectives import Objectives
from fedpgp.storage.run_folder import RunFolder
from fedpgp.storage.status_folder import StatusFolder, Stretch, fetch, new_draft, now_ms, remote_of

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

    @property
    def tree(self) -> dict[str, Any]:
        """As it is stored."""
        return {**asdict(self), "folds": [fold.tree for fold in self.folds]}


@dataclass(frozen=True)
class Suggestion:
    """What a sampler suggested, an entry of `trials.json`. Several may be the same trial."""

    trial: str  # its id
    variant: str  # label; empty: the sweep has no variants
    point: Mapping[str, Any]  # values by key of the space


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
    value: float | None  # what it is ranked by, from means over folds after the last round; None: not measured
    folds: tuple[FoldRun, ...]
    reason: str | None = None
    disk_full: bool = False  # whether it failed because a file could not be written for lack of disk space
    values: tuple[float | None, ...] = ()  # of both metrics, if the sweep has two

    @property
    def measured(self) -> tuple[float | None, ...]:
        """Values of the sweep's metrics, one or two."""
        return self.values or (self.value,)


class _TrialsFile(TypedDict):
    trials: list[TrialSpec]
    suggestions: NotRequired[list[Suggestion]]


class _ResultFile(TypedDict):
    state: State
    value: float | None
    folds: tuple[FoldRun, ...]
    reason: str | None
    disk_full: NotRequired[bool]
    values: NotRequired[tuple[float | None, ...]]


TRIALS, RESULT = TypeAdapter(_TrialsFile), TypeAdapter(_ResultFile)


class SweepFolder(StatusFolder):
    """One sweep on disk, `ROOT/sweeps/NAME-DIGEST`. Its folds are ordinary runs under `ROOT/runs`.

    * `sweep.yaml`: the settings, overrides applied
    * `trials.json`: id, name, metric and mode of the sweep, and its trials with their folds; with an adaptive search
      also how many trials it will have, and the suggestions so far
    * `trials/ID.json`: result of a trial; `trials/ID.txt`: traceback of a failed one
    * `status.json`: as in a run folder
    """

    kind, marker = "sweep", "trials.json"

    @classmethod
    def exists(cls, root: Path, name: str, digest: str, uri: str | None = None) -> bool:
        """Whether `create` would open an existing sweep."""
        path = root.absolute() / "sweeps" / f"{name}-{digest}"
        remote = remote_of(path, uri)
        return path.exists() or (remote is not None and cls.marker in remote.names())

    @classmethod
    def create(
        cls,
        root: Path,
        name: str,
        digest: str,
        spec_yaml: str,
        objectives: Objectives,
        trials: Sequence[TrialSpec],
        planned: int | None = None,
        uri: str | None = None,
    ) -> Self:
        """Create a sweep under `root` in one atomic step, or open the existing one of this name and digest.

        Args:
            trials: all of them; none if a search is going to suggest `planned` trials.
            uri: the sweep is the one in the storage root there, which replaces the local copy. A local one that is not
                there yet is sent.
        """
        sweeps = root.absolute() / "sweeps"
        path = sweeps / f"{name}-{digest}"
        remote = remote_of(path, uri)
        if remote is not None and cls.marker in remote.names():
            fetch(path, remote)
            make_folder(path / "trials")  # object stores have no empty folders
            return cls.open(path, uri)
        if not path.exists():
            draft = cls(new_draft(sweeps))
            make_folder(draft.path / "trials")
            draft._put("sweep.yaml", spec_yaml.encode())
            head = {"id": digest, "name": name, "created_ms": now_ms(), **objectives.head}
            search = {} if planned is None else {"planned": planned, "suggestions": []}
            draft._write_json(cls.marker, {**head, **search, "trials": [trial.tree for trial in trials]})
            draft.set_status("running")
            draft._place(path)
        folder = cls.open(path, uri)
        for file in (path / "sweep.yaml", path / "status.json", *path.glob("trials/[!.]*"), path / cls.marker):
            folder._send(folder._name(file), file.read_bytes())
        return folder

    def _place(self, path: Path) -> None:
        """Rename a draft, unless another process was faster."""
        try:
            self.path.rename(path)
        except OSError:
            shutil.rmtree(self.path)
            if not path.exists():
                raise
        sync_folder(path.parent)

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
        content = self._read_json("trials.json")
        return {key: value for key, value in content.items() if key not in ("trials", "suggestions", "planned")}

    @property
    def objectives(self) -> Objectives:
        """What it optimizes."""
        return Objectives.of_head(self._read_json("trials.json"))

    @property
    def planned(self) -> int:
        """The number of trials that it will have; more than there are while a search suggests them."""
        content = self._read_json("trials.json")
        return int(content.get("planned", len(content["trials"])))

    @property
    def suggestions(self) -> list[Suggestion]:
        """What the sampler of an adaptive search suggested, in order."""
        return self._parse("trials.json", TRIALS).get("suggestions", [])

    def suggest(self, suggestion: Suggestion, trial: TrialSpec | None) -> None:
        """Record a suggestion and its trial, durably; None: it is one of the trials already."""
        content = self._read_json("trials.json")
        content["suggestions"].append(asdict(suggestion))
        content["trials"] += [trial.tree] if trial is not None else []
        self._write_json("trials.json", content)

    def end_search(self) -> None:
        """Record that no more trials will be suggested."""
        content = self._read_json("trials.json")
        self._write_json("trials.json", {**content, "planned": len(content["trials"])})

    def restart_search(self, planned: int) -> None:
        """Forget all suggestions, trials and results."""
        for trial in self.trials:
            self.forget(trial.id)
        self._write_json(
            "trials.json", {**self._read_json("trials.json"), "planned": planned, "suggestions": [], "trials": []}
        )

    @property
    def trials(self) -> list[TrialSpec]:
        """All trials, in the order in which they were sampled."""
        return self._parse("trials.json", TRIALS)["trials"]

    def results(self) -> dict[str, Result]:
        """Results of the trials that ended, by id, in the order of the trials."""
        found = {trial.id: self.result(trial.id) for trial in self.trials}
        return {trial: result for trial, result in found.items() if result is not None}

    def front(self) -> list[TrialSpec]:
        """Finished trials that no other dominates, from the best by the first of two metrics; empty with one."""
        objectives, results = self.objectives, self.results()
        finished = [one for one in self.trials if one.id in results and results[one.id].state == "finished"]
        if len(objectives.metrics) < 2:
            return []
        return [finished[number] for number in objectives.front([results[one.id].measured for one in finished])]

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
        if traceback is not None:
            self._put(trace, traceback.encode())
        elif (self.path / trace).exists():
            self._remove(self.path / trace)
        content = {key: value for key, value in asdict(result).items() if key != "id"}
        content["folds"] = [{**one.fold.tree, "run": one.run} for one in result.folds]
        for key in ("disk_full", "values"):
            if not content[key]:
                del content[key]
        self._write_json(f"trials/{result.id}.json", content)

    def forget(self, trial: str) -> None:
        """Remove the result of a trial, so that it runs again."""
        if (path := self.path / f"trials/{trial}.json").exists():
            self._remove(path)

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

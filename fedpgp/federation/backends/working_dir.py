"""List the files that `ray job submit --working-dir FOLDER` uploads, by the documented rules of Ray.

Ray leaves out what `.gitignore` and `.rayignore` name, in any folder, and a few names by default. It does not publish
these rules as an API, so they are implemented here; a test compares the result with a package that Ray makes.
"""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from glob import escape
from pathlib import Path

from fedpgp.core.errors import UserError
from fedpgp.core.text import MIB

LIMIT = 90 * MIB  # the head of a cluster rejects 100 MiB without naming a file
LARGEST_SHOWN = 8
DEFAULT_EXCLUDES = ".git,.venv,venv,__pycache__"  # unless `RAY_OVERRIDE_RUNTIME_ENV_DEFAULT_EXCLUDES` is set


@dataclass(frozen=True)
class Upload:
    """The files that are sent. Ray packs them without compression."""

    files: tuple[tuple[Path, int], ...]  # paths relative to the folder, with their sizes in bytes; largest first

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(size for _, size in self.files)

    @property
    def largest(self) -> str:
        """The largest files, one per line."""
        return "\n".join(f"{size / MIB:8.1f} MiB  {path}" for path, size in self.files[:LARGEST_SHOWN])

    def check(self) -> None:
        """Raise `UserError`, which lists the largest files, if the size is over the limit."""
        if self.size > LIMIT:
            raise UserError(
                f"{self.size / MIB:.1f} MiB in {len(self.files)} files; a cluster accepts {LIMIT // MIB} MiB. "
                f"Exclude what it does not need in .rayignore. The largest:\n{self.largest}"
            )


@dataclass(frozen=True)
class _Pattern:
    segments: tuple[str, ...]
    excludes: bool

    def matches(self, names: Sequence[str], start: int = 0) -> bool:
        """Whether the names of a path match the segments from `start` on; `**` stands for any number of names."""
        rest = self.segments[start:]
        if rest == ("**",):
            return bool(names)
        if not rest:  # a pattern that excludes a folder also excludes what is in it
            return not names or (self.excludes and self.segments[-1] != "*")
        if rest[0] == "**":
            return any(self.matches(names[skipped:], start + 1) for skipped in range(len(names) + 1))
        return bool(names) and fnmatchcase(names[0], rest[0]) and self.matches(names[1:], start + 1)


def scan(folder: Path) -> Upload:
    """List the files of a working directory that Ray would upload; raise `UserError` if it is not a folder."""
    if not folder.is_dir():
        raise UserError(f"{folder}: not a folder")
    folder = folder.absolute()
    excludes = os.environ.get("RAY_OVERRIDE_RUNTIME_ENV_DEFAULT_EXCLUDES", DEFAULT_EXCLUDES)
    use_gitignore = os.environ.get("RAY_RUNTIME_ENV_IGNORE_GITIGNORE", "0") != "1"
    ignore_files = (".gitignore", ".rayignore") if use_gitignore else (".rayignore",)
    files = _walk(folder, ((folder, _patterns(excludes.split(","))),), ignore_files)
    sizes = [(path.relative_to(folder), path.stat().st_size) for path in files]
    return Upload(tuple(sorted(sizes, key=lambda item: (-item[1], item[0]))))


def _walk(path: Path, rules: tuple[tuple[Path, list[_Pattern]], ...], ignore_files: Sequence[str]) -> Iterator[Path]:
    """The files in `path` that are sent; the patterns of a rule apply to all below its folder."""
    for file in (path / name for name in ignore_files):
        if file.is_file():
            rules += ((path, _patterns(file.read_text(encoding="utf-8").splitlines())),)
    for folder, patterns in rules:
        names = path.relative_to(folder).as_posix().split("/")
        if next((one.excludes for one in reversed(patterns) if one.matches(names)), False):  # the last match decides
            return
    if path.is_dir():
        for child in path.iterdir():
            yield from _walk(child, rules, ignore_files)
    elif path.is_file():
        yield path


def _patterns(lines: Iterable[str]) -> list[_Pattern]:
    """The patterns of an ignore file, in gitignore syntax."""
    stripped = [line.strip() for line in lines]
    return [_pattern(line) for line in stripped if line.strip("/") and line[0] != "#"]


def _pattern(line: str) -> _Pattern:
    segments = line.removeprefix("!").removeprefix("\\").split("/")
    if not segments[0]:  # anchored to the folder by a slash in front
        del segments[0]
    elif not any(segments[1:]):  # no slash but at the end: matches at any depth
        segments.insert(0, "**")
    if not segments[-1]:
        segments[-1] = "**"
    unescaped = (re.sub(r"\\(.)", lambda match: escape(match[1]), segment) for segment in segments)
    return _Pattern(tuple(unescaped), excludes=not line.startswith("!"))

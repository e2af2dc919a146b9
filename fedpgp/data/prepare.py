"""Downloads a data set if torchvision supports it, and checks it; else prints the manual steps."""

import shutil
from collections.abc import Callable
from pathlib import Path

from fedpgp.config import DataSettings
from fedpgp.core.errors import DataError
from fedpgp.core.files import in_the_way, is_full, locked
from fedpgp.core.text import one_line
from fedpgp.data import manifest, transfers
from fedpgp.data.manifest import Manifest
from fedpgp.data.sources import SOURCES
from fedpgp.data.sources.base import Source

LOCK, UNPACKED = "lock", "unpacked"
"""A file and a folder in the hidden folder of a download, beside its archives."""


def prepare(name: str, root: Path, say: Callable[[str], None]) -> Manifest:
    """Download a data set to `root`, unless `root` has a usable copy.

    Archives are transferred to a hidden folder of `root`, unpacked there and then moved. After an interruption the
    next call continues with what has arrived; damaged archives are removed. Raise `DataError`, with the manual steps,
    if the data set is unknown, there is no network, or the download is unusable.
    """
    source = SOURCES.get(name)
    if source is None or not source.steps:
        known = ", ".join(one.name for one in SOURCES.values() if one.steps)
        raise DataError(f"{name}: nothing to prepare; known data sets: {known}")
    settings = DataSettings(name=name, root=root)
    if root.is_dir():
        try:
            return manifest.build(settings)
        except DataError as error:
            say(f"not usable yet: {error}")
    if source.download is Source.download:
        raise DataError(_by_hand(source, root, "cannot be downloaded automatically; by hand"))
    unusable = [str(root / own) for own in source.names_in_root() if (root / own).exists()]
    if unusable:
        raise DataError(f"{name}: {', '.join(unusable)} is there already but not usable; complete it or move it away")
    if (obstacle := in_the_way(root)) is not None:
        raise DataError(f"{name}: {obstacle} is not a folder that you may write to; give another --root")
    say(f"downloading {name} to {root}")
    _download(source, root)
    return manifest.build(settings)


def _download(source: type[Source], root: Path) -> None:
    new = [folder for folder in (root, *root.parents) if not folder.exists()]
    hidden = root / f".download-{source.name}"
    try:
        hidden.mkdir(parents=True, exist_ok=True)
        with locked(hidden / LOCK, wait=False):
            try:
                _fill(source, hidden, root)
            finally:
                shutil.rmtree(hidden / UNPACKED, ignore_errors=True)
                if not any(path.name != LOCK for path in hidden.iterdir()):
                    shutil.rmtree(hidden)
    except Exception as error:  # torchvision raises anything
        for folder in new:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        raise DataError(_failure(source, root, error)) from error


def _fill(source: type[Source], hidden: Path, root: Path) -> None:
    """Unpack in the hidden folder, and move to the root what came out."""
    unpacked = hidden / UNPACKED
    shutil.rmtree(unpacked, ignore_errors=True)  # of a killed process
    unpacked.mkdir()
    try:
        with transfers.resumable(hidden):
            source.download(unpacked)
    except transfers.DamagedError:
        _remove_archives(hidden)
        raise
    for entry in sorted(unpacked.iterdir()):
        entry.replace(root / entry.name)
    _remove_archives(hidden)


def _remove_archives(hidden: Path) -> None:
    for path in hidden.iterdir():
        if path.is_file() and path.name != LOCK:
            path.unlink()


def _failure(source: type[Source], root: Path, error: Exception) -> str:
    if isinstance(error, BlockingIOError):
        return f"{source.name}: another process is downloading it to {root}; wait for that one"
    if isinstance(error, OSError) and is_full(error):
        return f"{source.name}: no space left in {root}; free some and run this again, which continues"
    again = "run this again, which continues" if isinstance(error, transfers.TransferError) else "run this again"
    return _by_hand(source, root, f"could not be downloaded ({one_line(error)}); {again}, or by hand")


def _by_hand(source: type[Source], root: Path, what: str) -> str:
    steps = "".join(f"\n  {step.replace('ROOT', str(root))}" for step in source.steps)
    return f"{source.name}: {what}:{steps}\nthen: fedpgp data check {source.name} --root {root}"

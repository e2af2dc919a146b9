"""Local copies of the runs and sweeps at a URI, for reading: rows and small files, and checkpoints on request."""

import logging
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from fedpgp.core.errors import RunError
from fedpgp.core.files import locked, make_folder, write_durably
from fedpgp.core.text import redacted, without_user
from fedpgp.core.uris import CACHE, above, below, cache_name, is_uri
from fedpgp.storage import claims
from fedpgp.storage.object_store import Object, ObjectStore, before_work
from fedpgp.storage.run_folder import RunFolder
from fedpgp.storage.status_folder import LOCK
from fedpgp.storage.sweep_folder import SweepFolder

log = logging.getLogger(__name__)

FOLDER = CACHE / "read"
"""Below the home folder: the copies, one folder for each URI. They can be removed at any time."""
SOURCE = ".uri"
"""File in a copy with the URI of what it is a copy of, without credentials."""
MARKERS = (RunFolder.marker, SweepFolder.marker)


def local(place: str | Path, checkpoints: bool = False) -> Path:
    """Return a local path as it is, and for a URI the path of a copy, which is made or brought up to date.

    The URI may be that of a storage root, its `runs`, a run, or a sweep, which is copied with its runs. Only what has
    changed is copied again.

    Args:
        checkpoints: copy the checkpoints, too; without them a learned prompt cannot be read.

    Raises:
        RunError: the URI cannot be read, or there is neither a run nor a sweep.
    """
    if not is_uri(place):
        return Path(place)
    uri = place.rstrip("/")
    with before_work():
        store = ObjectStore.at(uri)
        names = store.once().names()
        root = root_of(place)
        make_folder(root)
        with locked(root / LOCK):
            return _copied(uri, store, names, root, lambda name: checkpoints or "checkpoints" not in name.split("/"))


def root_of(uri: str) -> Path:
    """The storage root on this machine in which the copy of what is at a URI lies."""
    return Path.home() / FOLDER / cache_name(uri.rstrip("/"))


def with_checkpoints(path: Path) -> Path:
    """The folder of a run, or a copy with its checkpoints of the one at a URI of which it is a copy without them."""
    source = source_of(path)
    return local(without_user(source), checkpoints=True) if is_uri(source) else path


def source_of(path: Path) -> str:
    """The URI, without credentials, of which a path is a copy, else the path: for what is printed."""
    place = path.absolute()
    for parent in (place, *place.parents):
        if (parent / SOURCE).is_file():
            uri, rest = (parent / SOURCE).read_text(encoding="utf-8"), place.relative_to(parent).parts
            return below(uri, *rest) if rest else uri
    return str(path)


def _copied(uri: str, store: ObjectStore, names: list[str], root: Path, wanted: Callable[[str], bool]) -> Path:
    """Copy what is at a URI into `root`, laid out as a storage root; return the path of what the URI names."""
    name = PurePosixPath(uri.partition("?")[0]).name
    if RunFolder.marker in names:
        return _copy(uri, store, root / "runs" / name, wanted)
    if SweepFolder.marker in names:
        path = _copy(uri, store, root / "sweeps" / name, wanted)
        of_sweep = {fold.run for result in SweepFolder.open(path).results().values() for fold in result.folds}
        every = below(above(uri, 2), "runs")
        _copy(every, ObjectStore.at(every), root / "runs", lambda one: one.split("/")[0] in of_sweep and wanted(one))
        return path
    if name == "runs":
        return _copy(uri, store, root / name, wanted)
    if not {"runs", "sweeps"} & set(names):
        what = "no run, no sweep and no storage root with runs here" if names else "no such folder, or an empty one"
        raise RunError(f"{store}: {what}; give a storage root, a run, or a sweep")
    return _copy(uri, store, root, lambda one: one.split("/")[0] in ("runs", "sweeps") and wanted(one))


def _copy(uri: str, store: ObjectStore, folder: Path, wanted: Callable[[str], bool]) -> Path:
    """Copy what is below a folder in the store, and mark the runs and sweeps whose processes were killed."""
    make_folder(folder)
    write_durably(folder / SOURCE, redacted(uri).encode())
    found = store.fetch(folder, wanted)
    claimed = defaultdict[str, list[Object]](list)
    for name, item in found.items():
        place, mark, _ = f"/{name}".partition(f"/{claims.FOLDER}/")
        if mark:
            claimed[place].append(item)
    newest, here = max((item.time_ns or 0 for item in found.values()), default=0), time.time_ns()
    if newest - here > claims.STALE_SECONDS * 1e9:
        log.warning(
            "the clock of this machine is at least %d s slow: a run that was killed lately may be listed as running; "
            "set the clock",
            (newest - here) / 1e9,
        )
    for name in found:
        place, _, last = f"/{name}".rpartition("/")
        if last in MARKERS and wanted(name):
            lock = folder / place.lstrip("/") / LOCK
            if claims.any_alive(claimed[place], max(here, newest)):
                lock.unlink(missing_ok=True)
            else:
                lock.touch()
    return folder

"""Downloads a data set if torchvision supports it, and checks it; else prints the manual steps."""

import tarfile
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from fedpgp.config import DataSettings
from fedpgp.core.errors import DataError
from fedpgp.core.text import one_line
from fedpgp.data import manifest
from fedpgp.data.manifest import Manifest
from fedpgp.data.sources import SOURCES
from fedpgp.data.sources.base import Source


def prepare(name: str, root: Path, say: Callable[[str], None]) -> Manifest:
    """Download a data set to `root`, unless `root` has a usable copy.

    A download is unpacked in a hidden folder of `root`, which is removed on failure, and then moved. Raise `DataError`,
    with the manual steps, if the data set is unknown, there is no network, or the download is unusable.
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
        raise DataError(_by_hand(source, root, "cannot be downloaded automatically"))
    in_the_way = [str(root / folder) for folder in source.folders if (root / folder).exists()]
    if in_the_way:
        raise DataError(f"{name}: {', '.join(in_the_way)} is there already but not usable; complete it or move it away")
    say(f"downloading {name} to {root}")
    _download(source, root)
    return manifest.build(settings)


def _download(source: type[Source], root: Path) -> None:
    new = [folder for folder in (root, *root.parents) if not folder.exists()]
    extraction_filter = tarfile.TarFile.extraction_filter
    tarfile.TarFile.extraction_filter = staticmethod(tarfile.data_filter)  # reject members outside the target folder
    try:
        root.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".download-", dir=root) as fresh:
            source.download(Path(fresh))
            for entry in sorted(Path(fresh).iterdir()):
                entry.replace(root / entry.name)
    except Exception as error:  # torchvision raises anything from URLError to RuntimeError
        for folder in new:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        raise DataError(_by_hand(source, root, f"could not be downloaded ({one_line(error)})")) from error
    finally:
        tarfile.TarFile.extraction_filter = extraction_filter


def _by_hand(source: type[Source], root: Path, what: str) -> str:
    steps = "".join(f"\n  {step.replace('ROOT', str(root))}" for step in source.steps)
    return f"{source.name}: {what}; by hand:{steps}\nthen: fedpgp data check {source.name} --root {root}"

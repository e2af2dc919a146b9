"""Downloads a data set where torchvision knows how, and checks that it is usable; else says how to do it by hand."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from fedpgp.config import DataSettings
from fedpgp.core.errors import DataError
from fedpgp.core.files import write_durably
from fedpgp.data import manifest
from fedpgp.data.manifest import Manifest
from fedpgp.data.sources.downloads import ORIGINS


def prepare(name: str, root: Path, say: Callable[[str], None]) -> Manifest:
    """Make `root` hold a data set; one that is usable already is left as it is.

    A download arrives whole or not at all: it is unpacked in a hidden folder of `root`, which a failure takes away.

    Raises:
        DataError: no such data set, no network, or what came is not usable; with the steps to do it by hand.
    """
    if name not in ORIGINS:
        raise DataError(f"{name}: nothing to prepare; known data sets: {', '.join(ORIGINS)}")
    settings = DataSettings(name=name, root=root)
    if root.is_dir():
        try:
            return manifest.build(settings)
        except DataError as error:
            say(f"not usable yet: {error}")
    if name not in DOWNLOADERS:
        raise DataError(_by_hand(name, root, "has no download of its own"))
    in_the_way = [str(root / folder) for folder in ORIGINS[name].folders if (root / folder).exists()]
    if in_the_way:
        raise DataError(f"{name}: {', '.join(in_the_way)} is there already but not usable; complete it or move it away")
    say(f"downloading {name} to {root}")
    _download(name, root)
    return manifest.build(settings)


def _download(name: str, root: Path) -> None:
    new = [folder for folder in (root, *root.parents) if not folder.exists()]
    try:
        root.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".download-", dir=root) as fresh, _contained():
            DOWNLOADERS[name](Path(fresh))
            for entry in sorted(Path(fresh).iterdir()):
                entry.replace(root / entry.name)
    except Exception as error:  # torchvision raises anything from URLError to RuntimeError
        for folder in new:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(_by_hand(name, root, f"could not be downloaded ({reason})")) from error


@contextmanager
def _contained() -> Iterator[None]:
    """Nothing in a tar archive leaves the folder that it is unpacked in; torchvision does not ask for that itself."""
    before = tarfile.TarFile.extraction_filter
    tarfile.TarFile.extraction_filter = staticmethod(tarfile.data_filter)
    try:
        yield
    finally:
        tarfile.TarFile.extraction_filter = before


def _by_hand(name: str, root: Path, what: str) -> str:
    steps = "".join(f"\n  {step.replace('ROOT', str(root))}" for step in ORIGINS[name].steps)
    return f"{name}: {what}; by hand:{steps}\nthen: fedpgp data check {name} --root {root}"


def _pets(root: Path) -> None:
    from torchvision.datasets import OxfordIIITPet

    for split in ("trainval", "test"):
        OxfordIIITPet(root, split=split, download=True)


def _flowers(root: Path) -> None:
    from torchvision.datasets import Flowers102

    Flowers102(root, download=True)
    names = getattr(Flowers102, "classes", None)
    path = root / "flowers-102" / "cat_to_name.json"
    if names and not path.exists():
        write_durably(path, json.dumps({str(number): name for number, name in enumerate(names, start=1)}).encode())


def _dtd(root: Path) -> None:
    from torchvision.datasets import DTD

    DTD(root, download=True)


def _caltech(root: Path) -> None:
    from torchvision.datasets import Caltech101

    Caltech101(root, download=True)


def _food(root: Path) -> None:
    from torchvision.datasets import Food101

    Food101(root, download=True)


def _cifar10(root: Path) -> None:
    from torchvision.datasets.utils import download_and_extract_archive

    _archive(root, "cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a", download_and_extract_archive)


def _cifar100(root: Path) -> None:
    from torchvision.datasets.utils import download_and_extract_archive

    _archive(root, "cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85", download_and_extract_archive)


def _archive(root: Path, file: str, md5: str, download: Callable[..., None]) -> None:
    """Without torchvision's own class, which would unpickle the batches."""
    download(f"https://www.cs.toronto.edu/~kriz/{file}", str(root), filename=file, md5=md5)


DOWNLOADERS: Mapping[str, Callable[[Path], None]] = {
    "oxford_pets": _pets,
    "flowers102": _flowers,
    "dtd": _dtd,
    "caltech101": _caltech,
    "food101": _food,
    "cifar10": _cifar10,
    "cifar100": _cifar100,
}

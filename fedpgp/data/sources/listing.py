"""Lists folders: which entries are images, which are folders, and what is left out."""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from fedpgp.core.errors import DataError
from fedpgp.data.sources import decoding

SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".gif",
    ".ppm", ".pgm", ".pbm", ".pnm", ".tif", ".tiff",
)  # fmt: skip
"""Endings, in small letters, of the files that `decoding.FORMATS` reads."""
JUNK = frozenset(
    {
        "__macosx", "icon\r", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "recycler",
        "system volume information", "lost+found", "@eadir", "#recycle", "@recycle", "@tmp", "#snapshot", "@__thumb",
    }
)  # fmt: skip
"""What operating systems and network drives leave in folders, in small letters; hidden entries are ignored as well."""
FOLDERS = "folders"
"""The kind of folders that are left out."""


def is_junk(name: str) -> bool:
    """Whether an entry of a folder is hidden, or left there by an operating system."""
    return name.startswith(".") or name.casefold() in JUNK


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """List a folder, sorted, without junk; raise `DataError` if it is unreadable or a name is not UTF-8."""
    try:
        with os.scandir(folder) as found:
            kept = sorted((entry for entry in found if not is_junk(entry.name)), key=lambda entry: entry.name)
    except OSError as error:
        raise _unreadable(error, folder) from error
    wrong = [entry.name for entry in kept if entry.name != entry.name.encode(errors="replace").decode()]
    if wrong:
        raise DataError(f"{folder}: a file name is not UTF-8 ({wrong[0]!r}); rename it")
    return kept


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or a link to one; raise `DataError` for a link that leads nowhere."""
    try:
        if entry.is_symlink() and not is_image(entry.name):
            entry.stat()
        return entry.is_dir()
    except OSError as error:
        raise _unreadable(error, Path(entry.path)) from error


def is_image(name: str) -> bool:
    """Whether a file has the ending of an image."""
    return name.lower().endswith(SUFFIXES)


def is_image_file(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is an image: a file with the ending of one or, without an ending, with the content of one."""
    if is_image(entry.name):
        return not is_folder(entry)
    return "." not in entry.name and not is_folder(entry) and decoding.is_known(Path(entry.path))


def state(file: os.DirEntry[str] | Path) -> tuple[int, int, int]:
    """Return `size`, `modified` and `changed` of a file, see `ROW_SCHEMA`; raise `DataError` if it is unreadable."""
    try:
        stat = file.stat()
    except OSError as error:
        raise _unreadable(error, Path(file)) from error
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def kind(name: str) -> str:
    """What a message calls a file that is left out: its ending, in small letters."""
    return os.path.splitext(name)[1].lower() or "without an ending"


def counted(left_out: Iterable[str] | Mapping[str, int]) -> str:
    """Count what is left out by kind, the most frequent first: `4 .heic, 1 without an ending`."""
    kinds = sorted(Counter(left_out).items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(
        f"{count} {name.removesuffix('s') if (count, name) == (1, FOLDERS) else name}" for name, count in kinds
    )


def files_below(root: Path, suffix: str = "") -> Iterator[str]:
    """Yield the unhidden files with an ending, relative to `root`; follows links, into each folder once."""

    def refuse(error: OSError) -> None:
        raise _unreadable(error, root)

    seen = {os.path.realpath(root)}
    for folder, folders, files in os.walk(root, onerror=refuse, followlinks=True):
        kept = [name for name in sorted(folders) if not is_junk(name)]
        targets = [os.path.realpath(os.path.join(folder, name)) for name in kept]
        folders[:] = [name for name, target in zip(kept, targets, strict=True) if target not in seen]
        seen.update(targets)
        for name in files:
            if not is_junk(name) and name.lower().endswith(suffix):
                yield (Path(folder) / name).relative_to(root).as_posix()


def check_name(path: Path) -> None:
    """Raise `DataError` if a missing `path` is a link that leads nowhere, or is there in other capitals."""
    if path.exists():
        return
    if (link := broken_link(path)) is not None:
        raise DataError(f"{link}: a link to {os.readlink(link)}, which leads nowhere; correct the link")
    near = [name for name in _names(path.parent) if composed(name).casefold() == composed(path.name).casefold()]
    if near:
        raise DataError(f"{path.parent / near[0]}: rename it to {path.name}, the name that is expected")


def broken_link(path: Path) -> Path | None:
    """The part of a path that is a link which leads nowhere; None: there is none."""
    return next((one for one in (path, *path.parents) if one.is_symlink() and not one.exists()), None)


def composed(name: str) -> str:
    """The name in Unicode's composed form: names that look the same are equal then."""
    return unicodedata.normalize("NFC", name)


def _names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder)) if folder.is_dir() else []


def _unreadable(error: OSError, path: Path) -> DataError:
    path = Path(error.filename or path)
    link = broken_link(path)
    target = "" if link is None else f", {link} is a link to {os.readlink(link)}"
    return DataError(f"{path}: cannot be read ({error.strerror}{target}); repair or remove it")

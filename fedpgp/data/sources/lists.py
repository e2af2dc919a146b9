"""Lists of images: reads them, and finds the files that they name."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

import pyarrow as pa

from fedpgp.core.errors import DataError
from fedpgp.core.text import first_of
from fedpgp.data.sources.base import STATE, image_rows
from fedpgp.data.sources.listing import FOLDERS, broken_link, composed, is_image, is_junk, kind, state

Image = tuple[str, int, int, str | None]
"""File, label, domain and split."""


def listed(root: Path, images: Sequence[Image], source: str, folder: str = "") -> tuple[pa.Table, Counter[str]]:
    """Build the rows of listed images, and count the files and folders beside them that are not listed, by kind.

    A name may have backslashes as separators, and another Unicode form than the file.

    Args:
        images: their files are relative to `folder` and must exist.
        source: the list, for messages.
        folder: relative to `root`.

    Raises:
        DataError: names that could lead out of the root, duplicate names, or missing files; starts with `source`.
    """
    files, labels, domains, splits = zip(*images, strict=True) if images else ((), (), (), ())
    names = [_without_dots(f"{folder}/{file}" if folder else file) for file in files]
    for wrong, what in ((_is_absolute, "have an absolute path"), (_leads_up, "have .. in their name")):
        refused = [file for file in files if wrong(file)]
        _refuse(source, what, refused, "use a list whose names are relative to the images")
    _refuse(source, "have a NUL character in their name", [file for file in files if "\0" in file], "fetch it again")
    found, folders = _found(root, names)
    disk = _Disk(root)
    names = [name if name in found else disk.meant(name) or name for name in names]
    if renamed := [name for name in names if name not in found]:
        more, inner = _found(root, renamed)
        found, folders = found | more, folders | inner
    missing = [disk.with_near_miss(name) for name in names if name not in found]
    _refuse(source, "are not in data.root", missing, f"unpack all images under {root}, or remove a list of other data")
    twice = [name for name, count in Counter(names).items() if count > 1]
    _refuse(source, "are listed twice", twice, "remove one of each, or fetch the list again")
    states = dict(zip(STATE, zip(*(found[name] for name in names), strict=True), strict=False))  # none without names
    table = image_rows(len(names), file=names, label=labels, domain=domains, split=splits, **states)
    files_beside = [name for path in found.keys() - set(names) if not is_junk(name := path.rpartition("/")[2])]
    left_out = Counter(f"not in {source}" if is_image(name) else kind(name) for name in files_beside)
    folders_beside = [path for path in folders - _folders(names) if not is_junk(path.rpartition("/")[2])]
    return table, left_out + Counter({FOLDERS: len(folders_beside)})


def read_lines(path: Path) -> list[str]:
    """Read the lines of a list without empty ones and # comments; raise `DataError` if it is missing or not UTF-8."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); see `fedpgp data prepare`") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8; save it as UTF-8") from None
    stripped = (line.strip() for line in lines)
    return [line for line in stripped if line and not line.startswith("#")]


def with_slashes(name: str) -> str:
    """A listed path with / as separator, as some lists were written on Windows, and without ./ and //."""
    return _without_dots(name.replace("\\", "/"))


def _refuse(source: str, what: str, files: Sequence[str], advice: str) -> None:
    if files:
        raise DataError(f"{source}: {len(files)} images {what}: {first_of(files)}; {advice}")


def _is_absolute(file: str) -> bool:
    return with_slashes(file).startswith("/") or PureWindowsPath(file).is_absolute()


def _leads_up(file: str) -> bool:
    return ".." in PurePosixPath(with_slashes(file)).parts


def _without_dots(name: str) -> str:
    first, *others = name.split("/")
    return "/".join([*([] if first == "." else [first]), *(part for part in others if part not in ("", "."))])


def _folders(files: Iterable[str]) -> set[str]:
    """The folders of files, and those around them below the root."""
    own = {file.rpartition("/")[0] for file in files}
    return own | {str(around) for folder in own for around in PurePosixPath(folder).parents if around.name}


def _found(root: Path, files: Iterable[str]) -> tuple[dict[str, tuple[int, int, int]], set[str]]:
    """All files, with their `state`, and all folders in the `_folders` of `files`, each of which is listed once."""
    found: dict[str, tuple[int, int, int]] = {}
    inner: set[str] = set()
    for folder in sorted(_folders(files)):
        try:
            with os.scandir(root / folder) as entries:
                for entry in entries:
                    path = f"{folder}/{entry.name}" if folder else entry.name
                    if entry.is_file():
                        found[path] = state(entry)
                    elif folder and entry.is_dir():
                        inner.add(path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise DataError(f"{error.filename}: cannot be read ({error.strerror}); repair or remove it") from error
    return found, inner


class _Disk:
    """Finds files whose names differ from listed ones in form only; lists each folder once."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._names: dict[tuple[Callable[[str], str], str], dict[str, list[str]]] = {}

    def meant(self, name: str) -> str | None:
        """The file, if backslashes are separators or the Unicode form does not count; None: there is none."""
        return self._matching(name, composed) or self._matching(with_slashes(name), composed)

    def with_near_miss(self, name: str) -> str:
        """The name and, if there is one, the link that leads nowhere, or the file whose name differs in capitals."""
        if (link := broken_link(self._root / name)) is not None:
            return f"{name} (a link to {os.readlink(link)}, which leads nowhere)"
        near = self._matching(with_slashes(name), _small)
        return f"{name} (there is {near}, with other capitals)" if near else name

    def _matching(self, name: str, form: Callable[[str], str]) -> str | None:
        """The only path below the root that equals `name` in a `form`; None if there is none, or several."""
        path = ""
        for part in name.split("/"):
            alike = self._by_form(form, path).get(form(part), [])
            if part not in alike and len(alike) != 1:
                return None
            path = os.path.join(path, part if part in alike else alike[0])
        return path

    def _by_form(self, form: Callable[[str], str], folder: str) -> dict[str, list[str]]:
        """The names in a folder by their form; empty if it cannot be listed."""
        if (form, folder) not in self._names:
            names = self._names[form, folder] = {}
            try:
                for name in os.listdir(self._root / folder):
                    names.setdefault(form(name), []).append(name)
            except OSError:
                pass
        return self._names[form, folder]


def _small(name: str) -> str:
    return composed(name).casefold()

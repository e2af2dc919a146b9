"""Classes from outside the package, named MODULE:CLASS or installed as entry points, and their source code.

The code travels to other processes as text: unpickling a `Code` makes its module importable there, wherever they run.
"""

import hashlib
import importlib
import importlib.util
import logging
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.abc import MetaPathFinder, SourceLoader
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from fedpgp.core.errors import ConfigError
from fedpgp.core.text import did_you_mean, first_of

log = logging.getLogger(__name__)
log.setLevel(logging.INFO)

METHODS, SOURCES, SERVER_RULES = "fedpgp.methods", "fedpgp.sources", "fedpgp.server_rules"
"""Groups of entry points."""


@dataclass(frozen=True)
class Code:
    """The Python files of one top-level module or package."""

    module: str
    folder: str
    """the folder that has the module in it"""
    files: Mapping[str, bytes] = field(repr=False)
    """by path relative to the folder"""
    received: bool = False
    """sent by another process"""

    @property
    def digest(self) -> str:
        """16 hex digits over the names and the contents of the files."""
        digest = hashlib.sha256()
        for name, content in sorted(self.files.items()):
            digest.update(f"{name}\0{len(content)}\0".encode() + content)
        return digest.hexdigest()[:16]

    @property
    def path(self) -> Path:
        """The file of the module, or the folder of the package."""
        file = f"{self.module}.py"
        return Path(self.folder, file if file in self.files else self.module)

    @property
    def installed(self) -> bool:
        """Part of an environment, which every machine has: imported as usual and never sent."""
        return self.module == "fedpgp" or not {"site-packages", "dist-packages"}.isdisjoint(Path(self.folder).parts)

    def __reduce__(self) -> tuple[Any, ...]:
        return _receive, (self.module, self.folder, dict(self.files))


@dataclass(frozen=True)
class Plugin:
    """A class from outside the package."""

    target: str
    """MODULE:CLASS"""
    kind: type[Any]
    code: Code

    @property
    def identity(self) -> dict[str, str]:
        """What a run records of it."""
        return {"name": self.target, "digest": self.code.digest}


_loaded: dict[str, Code] = {}
"""The code that each top-level module was imported from."""
_announced: set[tuple[str, str]] = set()


def find(setting: str, group: str, name: str) -> Plugin | None:
    """The plug-in of that name, imported afresh if its files have changed; None: neither MODULE:CLASS nor installed.

    A module in the working folder is preferred to one of the environment; `sys.path` stays as it is. Raises
    `ConfigError` if the module cannot be found or imported, or has no such class.
    """
    installed = _installed(group).get(name)
    if installed is None and ":" not in name:
        return None
    target = name if installed is None else installed.value
    path, _, attribute = target.partition(":")
    if path.endswith(".py") or "/" in path:
        dotted = path.removesuffix(".py").strip("./").replace("/", ".")
        raise ConfigError(f"{setting}: {name}: give a module instead of a file: {dotted}:{attribute}")
    if not all(part.isidentifier() for part in (*path.split("."), attribute)):
        raise ConfigError(f"{setting}: {name}: write it as MODULE:CLASS, for example my_module:MyClass")
    code = _locate(setting, path.partition(".")[0])
    module = _imported(setting, path, code)
    kind = getattr(module, attribute, None)
    if not isinstance(kind, type):
        classes = [key for key, value in vars(module).items() if isinstance(value, type)]
        raise ConfigError(f"{setting}: {path} has no class {attribute}; {_nearest(attribute, classes, 'it has')}")
    if not code.received and (target, code.digest) not in _announced:
        _announced.add((target, code.digest))
        log.info("loading %s %s from %s", setting.removesuffix(".name"), target, module.__file__)
    return Plugin(target, kind, code)


def unknown(setting: str, what: str, group: str, name: str, built_in: Iterable[str]) -> ConfigError:
    """The error for a name that is neither built in nor a plug-in."""
    known = [*built_in, *_installed(group)]
    hint = did_you_mean(name, known, "for a class of your own give MODULE:CLASS")
    return ConfigError(f"{setting}: unknown {what} {name!r}; {hint} (known: {', '.join(known)})")


def installed(group: str) -> Iterator[tuple[str, str]]:
    """Name and distribution of each entry point."""
    for name, entry in _installed(group).items():
        yield name, entry.dist.name if entry.dist else "unknown"


def code_keys(plugins: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Digests of code by dotted keys such as `method.code`, from what a run records of its plug-ins by section."""
    return {f"{section}.code": plugin["digest"] for section, plugin in plugins.items()}


def forget(*modules: str) -> None:
    """Let modules be imported again, with all that is in their packages."""
    for name in [name for name in sys.modules if name.partition(".")[0] in modules]:
        del sys.modules[name]
    for name in modules:
        _loaded.pop(name, None)


def to_send() -> tuple[Code, ...]:
    """The code that other processes need: all that this process has loaded and that no environment has."""
    return tuple(_loaded.values())


def reason(error: Exception) -> str:
    """What an error in a plug-in says, with the last line of code from outside the package, in one line."""
    what = f"{type(error).__name__}: {' '.join(str(error).split())}"
    if isinstance(error, SyntaxError):
        return f"{what} in {error.filename}"
    own = tuple(f"{code.folder}/{code.module}" for code in _loaded.values())
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(own)]
    return f"{what} ({frames[-1].filename}, line {frames[-1].lineno})" if frames else what


def _installed(group: str) -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=group)}


def _locate(setting: str, module: str) -> Code:
    """The code of a top-level module as it is now."""
    known = _loaded.get(module)
    if known is not None and known.received:
        return known
    here = Path.cwd()
    importlib.invalidate_caches()
    others = (finder for finder in sys.meta_path if not isinstance(finder, _Finder))
    specs = (PathFinder.find_spec(module, [str(here)]), *(finder.find_spec(module, None) for finder in others))
    origin = next((Path(spec.origin) for spec in specs if spec and spec.origin and spec.has_location), None)
    if origin is None:
        names = [path.stem for path in here.glob("*.py")] + [path.parent.name for path in here.glob("*/__init__.py")]
        hint = _nearest(module, names, "modules in that folder:")
        hint = f"add {module}/__init__.py" if (here / module).is_dir() else hint
        raise ConfigError(f"{setting}: no module {module} in {here} or in the environment; {hint}")
    folder, paths = origin.parent, [origin]
    if origin.name == "__init__.py":
        folder, paths = origin.parent.parent, list(origin.parent.rglob("*.py"))
    return Code(module, str(folder), {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths})


def _imported(setting: str, path: str, code: Code) -> ModuleType:
    """Import a module from exactly this code."""
    if not code.installed:
        _use(setting, code)
    try:
        return importlib.import_module(path)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == path:
            inside = [name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in code.files]
            hint = _nearest(path, inside, "there is")
            raise ConfigError(f"{setting}: no module {path} in {code.folder}; {hint}") from None
        hint = "; only its own file or package is sent to workers" if isinstance(error, ModuleNotFoundError) else ""
        raise ConfigError(f"{setting}: {path} cannot be imported: {reason(error)}{hint}") from None


def _use(setting: str, code: Code) -> None:
    """Let imports of the module find this code, and forget what was imported from other code."""
    known = _loaded.get(code.module)
    if known is not None and known.digest == code.digest and known.folder == code.folder:
        return
    current = sys.modules.get(code.module)
    origin = getattr(current, "__file__", None)
    if current is not None and known is None and not (origin and Path(origin).is_relative_to(code.folder)):
        raise ConfigError(
            f"{setting}: another module {code.module} is imported already ({origin or 'built in'}); rename your file"
        )
    forget(code.module)
    _loaded[code.module] = code
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def _receive(module: str, folder: str, files: dict[str, bytes]) -> Code:
    """Unpickle code that another process has sent."""
    code = Code(module, folder, files, received=True)
    known = _loaded.get(module)
    if known is not None and known.digest == code.digest:
        return known
    _use("plug-in", code)
    return code


def _nearest(name: str, known: Sequence[str], otherwise: str) -> str:
    return did_you_mean(name, known, f"{otherwise} {first_of(sorted(known)) or 'none'}")


class _Finder(MetaPathFinder):
    """Finds the modules of `_loaded`, and no others."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """See `MetaPathFinder`."""
        code = _loaded.get(fullname.partition(".")[0])
        if code is None:
            return None
        base = fullname.replace(".", "/")
        for file in (f"{base}/__init__.py", f"{base}.py"):
            if file in code.files:
                location = str(Path(code.folder, file))
                loader = _Loader(location, code.files[file])
                return importlib.util.spec_from_file_location(fullname, location, loader=loader)
        return None


class _Loader(SourceLoader):
    """Loads a module from its text, and neither reads nor writes bytecode, which may be of an earlier text."""

    def __init__(self, path: str, content: bytes) -> None:
        self._path, self._content = path, content

    def get_filename(self, fullname: str) -> str:
        """See `SourceLoader`."""
        return self._path

    def get_data(self, path: str) -> bytes:
        """See `SourceLoader`."""
        return self._content

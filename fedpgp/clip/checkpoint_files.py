"""Reads checkpoint files of any training program without running code from them."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

from fedpgp.core.errors import BackboneError
from fedpgp.core.text import first_of, one_line

if TYPE_CHECKING:
    from torch import Tensor

ZIP_START = b"PK\x03\x04"
INDEX = ".index.json"
"""End of the name of the file that lists the tensors of a checkpoint in several files, as Hugging Face writes it."""
PART = re.compile(r"(.+)-\d{5}-of-\d{5}(\.\w+)")
"""Name of one of those files."""
REBUILDS = ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_parameter")
"""Functions of `torch._utils` that make a tensor of its stored values."""


class Skipped:
    """Stands for a Python object of a checkpoint, which is neither imported nor created."""

    def __new__(cls, *_: Any, **__: Any) -> Skipped:
        """Accept the arguments of any class or function."""
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        """Keep nothing."""

    def _ignore(self, *_: Any) -> None:
        pass

    def __call__(self, *_: Any, **__: Any) -> Skipped:
        """Stand for what an object returns."""
        return self

    __setitem__ = append = extend = add = _ignore


def open_tensors(path: Path) -> Any:
    """Return what a checkpoint contains: tensors in mappings, as the training program saved them.

    The index of a checkpoint in several files stands for all of them. Python objects beside the tensors (arguments,
    metrics, dates) become instances of `Skipped`, whose type has the name and module of the object's.

    Raises:
        BackboneError: the file is damaged or of another format, one of several, or a TorchScript archive (which is a
            program) that OpenAI did not publish.
    """
    from safetensors.torch import load_file

    if is_archive(path):
        return _open_archive(path)
    if path.name.endswith(INDEX):
        return {name: tensor for part in _parts(path) for name, tensor in open_tensors(part).items()}
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other pickle protocols than torch's own
            return _load(path)
    except Exception as error:  # parsers raise anything for foreign or damaged files
        with path.open("rb") as file:
            start = file.read(40).decode(errors="replace")
        text = start.replace("\n", " ").isprintable() and start
        raise BackboneError(
            f"{path}: not a checkpoint, or damaged ({f'text: {text!r}' if text else one_line(error)[:200]}); save the "
            "model's state_dict() with torch.save or safetensors, or fetch the file again"
        ) from error


def _parts(index: Path) -> list[Path]:
    """The files that an index lists."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        paths = [index.with_name(Path(name).name) for name in names]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise BackboneError(f"{index}: not an index of weights ({one_line(error)}); fetch it again") from None
    if missing := [path.name for path in paths if not path.is_file()]:
        raise BackboneError(f"{index}: {first_of(missing, 3)} missing beside it; fetch all files that it lists")
    return paths


def _load(path: Path) -> Any:
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        with path.open("rb") as file:
            zipped = file.read(len(ZIP_START)) == ZIP_START
        if zipped:
            with suppress(pickle.UnpicklingError):  # of another pickle protocol
                torch.serialization.get_unsafe_globals_in_checkpoint(path)  # raises for a TorchScript archive
        return torch.load(path, map_location="cpu", weights_only=False, pickle_module=SKIPPING)


def is_archive(path: Path) -> bool:
    """Return whether a file is a TorchScript archive, by its list of contents."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        return False
    return any(name.endswith("/constants.pkl") or "/code/" in name for name in names)


def published_digests() -> frozenset[str]:
    """Return the SHA-256 digests of the archives that OpenAI published, which are part of their URLs."""
    from open_clip import pretrained

    urls = (pretrained.get_pretrained_url(*entry) for entry in pretrained.list_pretrained())
    return frozenset(url.split("/")[-2] for url in urls if "openaipublic" in url)


def _open_archive(path: Path) -> Mapping[str, Tensor]:
    import torch

    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest not in published_digests():
            raise BackboneError(
                f"{path}: a TorchScript archive is a program, and this one (SHA-256 {digest}) is not among those that "
                "OpenAI published; save its state_dict() where you trust it and give that file"
            )
        file.seek(0)
        state: Mapping[str, Tensor] = torch.jit.load(file, map_location="cpu").state_dict()
    return state


class _SkippingUnpickler(pickle._Unpickler):
    """Python's implementation, with `Skipped` for everything that is not part of a tensor or a mapping."""

    stack: list[Any]
    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        """Return a stand-in for any class or function; torch's storages are resolved by `torch.load` itself."""
        import torch

        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch._utils" and name in REBUILDS:
            rebuild: Callable[..., Any] = getattr(torch._utils, name)
            return lambda *arguments: rebuild(*arguments)  # a function of its own, which no pickle can change
        if module == "torch" and isinstance(found := getattr(torch, name, None), torch.dtype):
            return found
        return type(name, (Skipped,), {"__module__": module})

    def load_build(self) -> None:
        """Drop the state of any object: stand-ins have none, and that of a mapping or a tensor does not matter."""
        self.stack.pop()

    dispatch[pickle.BUILD[0]] = load_build


def _unpickle(file: Any, **options: Any) -> Any:
    return _SkippingUnpickler(file, **options).load()


SKIPPING = SimpleNamespace(__name__="skipping", Unpickler=_SkippingUnpickler, load=_unpickle)
"""A replacement of the module `pickle` for `torch.load`."""

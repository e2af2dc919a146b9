"""Reads pickles of plain data: arrays, strings, numbers, lists and dicts. Nothing that a pickle names is imported."""

import io
import pickle
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from fedpgp.core.errors import DataError
from fedpgp.core.text import one_line

MAX_BYTES = 1 << 30
OPCODES = (
    "PROTO FRAME STOP MARK POP DUP PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET NONE NEWTRUE NEWFALSE "
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE "
    "SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8 EMPTY_LIST LIST APPEND APPENDS "
    "EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_DICT DICT SETITEM SETITEMS GLOBAL STACK_GLOBAL REDUCE BUILD"
)
"""The opcodes that build data; all others are refused."""


class Refused(ValueError):
    """The pickle contains more than data."""


def read(path: Path) -> Any:
    """Read a pickle file of any protocol, Python 2 strings as latin-1; raise `DataError` if it is not plain data."""
    try:
        if (size := path.stat().st_size) > MAX_BYTES:
            raise DataError(f"{path}: {size} bytes, more than {MAX_BYTES}; not a list or a batch of images")
        return loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except Refused as error:
        raise DataError(f"{path}: rejected: {error}; nothing was executed") from None
    except Exception as error:  # a damaged pickle can fail anywhere
        raise DataError(f"{path}: not a complete pickle ({one_line(error)}); fetch it again") from error


def loads(content: bytes) -> Any:
    """Build the data in a pickle; raise `Refused` if it needs more than numpy arrays do, anything if it is damaged."""
    try:
        value = _Unpickler(content).load()
    except (AttributeError, TypeError) as error:
        raise Refused(f"it is not plain data ({error})") from error
    _check_plain(value, {})
    return value


class _DType:
    """A dtype whose byte order is set after its creation."""

    def __init__(self, code: Any, *_: Any) -> None:
        self.value: np.dtype[Any] = np.dtype(code.decode("ascii") if isinstance(code, bytes) else _expect(code, str))
        if self.value.kind not in "biufSUO" or not self.value.itemsize:
            raise Refused(f"an array of {code}")


class _Unpickler(pickle._Unpickler):
    """Python's implementation, as its opcodes can be restricted and its memo cannot outgrow the file."""

    stack: list[Any]
    read: Callable[[int], bytes]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content), encoding="latin1")
        self._unbuilt: dict[int, np.ndarray] = {}
        self._budget = 2 * len(content)  # each byte at most encoded once and put into an array once

    def find_class(self, module: str, name: str) -> Any:
        """Return a safe replacement of a known function, without importing anything."""
        functions: dict[tuple[str, str], Callable[..., Any]] = {
            ("numpy", "ndarray"): self._refuse,
            ("numpy", "dtype"): _DType,
            ("numpy.core.multiarray", "_reconstruct"): self._reconstruct,
            ("numpy.core.multiarray", "scalar"): self._scalar,
            ("numpy.core.numeric", "_frombuffer"): self._from_buffer,
            ("_codecs", "encode"): self._encode,
        }
        function = functions.get((module.replace("numpy._core.", "numpy.core."), name))  # numpy 2 and 1
        if function is None:
            raise Refused(f"it refers to {module}.{name}, which is code, not data")
        return function

    def _refuse(self, *_: Any) -> Any:
        raise Refused("an opcode or a call that does not build data")

    def _reconstruct(self, *_: Any) -> np.ndarray:
        array = np.empty(0)
        self._unbuilt[id(array)] = array
        return array

    def _scalar(self, dtype: Any, data: Any) -> Any:
        return np.frombuffer(self._bytes(data), _expect(dtype, _DType).value, 1)[0].item()

    def _from_buffer(self, data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
        return np.frombuffer(self._bytes(data), _expect(dtype, _DType).value).reshape(shape, order=order)

    def _encode(self, text: Any, encoding: Any) -> bytes:
        if encoding not in ("latin1", "latin-1"):
            raise Refused(f"text encoded as {encoding!r}")
        return self._bytes(_expect(text, str))

    def _bytes(self, data: Any) -> bytes:
        self._budget -= len(_expect(data, str | bytes | bytearray))
        if self._budget < 0:
            raise Refused("it repeats its bytes too often")
        return data.encode("latin1") if isinstance(data, str) else bytes(data)

    def load_build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, _DType):
            target.value = target.value.newbyteorder(">" if state[1] in (">", b">") else "=")
        elif self._unbuilt.pop(id(target), None) is not None:
            self._set_array(target, *state)
        else:
            raise Refused("it sets the state of something other than an array")

    def _set_array(self, array: np.ndarray, _: Any, shape: Any, dtype: Any, fortran: Any, data: Any) -> None:
        kind, count = _expect(dtype, _DType).value, prod(_expect(size, int) for size in shape)
        if kind.kind == "O":
            data = [_expect(item, str | bytes | int | float) for item in _expect(data, list)]
        else:
            data, count = self._bytes(data), count * kind.itemsize
        if min(shape, default=0) < 0 or len(data) != count:
            raise ValueError(f"{len(data)} bytes or objects for an array of shape {shape}")
        state: Any = (1, shape, kind, bool(fortran), data)
        array.__setstate__(state)

    def load_bytearray8(self) -> None:
        self.stack.append(bytearray(self.read(int.from_bytes(self.read(8), "little"))))

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.stack.append({})
        self._update(items)

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._update([key, value])

    def load_setitems(self) -> None:
        self._update(self.pop_mark())

    def _update(self, items: Sequence[Any]) -> None:
        for key, value in zip(items[::2], items[1::2], strict=True):
            _expect(self.stack[-1], dict)[_expect(key, str | bytes | int)] = value  # a nested key may take forever


_ALLOWED = {getattr(pickle, name)[0] for name in OPCODES.split()}
_HANDLERS: dict[int, Any] = {
    code: getattr(_Unpickler, load.__name__) if code in _ALLOWED else _Unpickler._refuse
    for code, load in pickle._Unpickler.dispatch.items()
}
_Unpickler.dispatch = _HANDLERS


def _expect(value: Any, kind: Any) -> Any:
    if not isinstance(value, kind):
        raise Refused(f"{type(value).__name__} where {getattr(kind, '__name__', kind)} belongs")
    return value


def _check_plain(value: Any, done: dict[int, bool]) -> None:
    """Refuse leftover functions, and lists that contain themselves. `done`: false while a part is being checked."""
    if not isinstance(value, list | tuple | dict):
        _expect(value, str | bytes | bytearray | int | float | np.ndarray | None)
    elif not done.setdefault(id(value), False):
        for part in value.values() if isinstance(value, dict) else value:
            if done.get(id(part)) is False:
                raise Refused("it contains itself")
            _check_plain(part, done)
        done[id(value)] = True

"""Python pickles as data: arrays, strings, numbers, lists and dicts are built, nothing is ever called or imported."""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedpgp.core.errors import DataError

MAX_BYTES = 1 << 30


@dataclass(frozen=True)
class _Global:
    """A name that a pickle mentions; never looked up."""

    module: str
    name: str


@dataclass
class _Pending:
    """What a call of a known name stands for until its state comes."""

    kind: str  # dtype | array
    value: Any = None


_MARK = object()
_RECONSTRUCT = {("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct")}
_SCALAR = {("numpy.core.multiarray", "scalar"), ("numpy._core.multiarray", "scalar")}
_FROM_BUFFER = {("numpy.core.numeric", "_frombuffer"), ("numpy._core.numeric", "_frombuffer")}
_ENCODE = ("_codecs", "encode")
_NDARRAY = ("numpy", "ndarray")
_DTYPE = ("numpy", "dtype")
_ALLOWED = {*_RECONSTRUCT, *_SCALAR, *_FROM_BUFFER, _ENCODE, _NDARRAY, _DTYPE}


class Refused(ValueError):
    """The pickle wants more than data."""


def read(path: Path) -> Any:
    """The data in a pickle file of any protocol; bytes of Python 2 strings become characters (latin-1).

    Raises:
        DataError: it holds anything but data (code is named, and not run), is torn, or cannot be read.
    """
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise DataError(f"{path}: {size} bytes, more than {MAX_BYTES}; not a list or a batch of images")
        return loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except Refused as error:
        raise DataError(f"{path}: refused: {error}; nothing of it was run") from None
    except Exception as error:  # a torn pickle can break anywhere
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: not a complete pickle ({reason}); fetch it again") from error


def loads(content: bytes) -> Any:
    """The data in a pickle.

    Raises:
        Refused: it would import or call something that is not part of a numpy array.
        Exception: it is torn.
    """
    machine = _Machine()
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name == "STOP":
            return _finished(machine.stack.pop())
        machine.step(opcode.name, argument)
    raise ValueError("no end")


class _Machine:
    """The stack of a pickle, with those opcodes alone that make data."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        if name in _LITERALS:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name]())
        elif name in _MEMO_PUT:
            self.memo[len(self.memo) if argument is None else int(argument)] = self.stack[-1]
        elif name in _MEMO_GET:
            self.stack.append(self.memo[int(argument)])
        elif name in _ACTIONS:
            _ACTIONS[name](self, argument)
        elif name not in ("PROTO", "FRAME"):
            raise Refused(f"opcode {name} is not data")

    def drop(self) -> None:
        self.stack.pop()

    def since_mark(self) -> list[Any]:
        at = max(index for index, value in enumerate(self.stack) if value is _MARK)
        items = self.stack[at + 1 :]
        del self.stack[at:]
        return items

    def tuple_of(self, count: int) -> None:
        items = tuple(self.stack[len(self.stack) - count :])
        del self.stack[len(self.stack) - count :]
        self.stack.append(items)

    def mention(self, module: str, name: str) -> None:
        if (module, name) not in _ALLOWED:
            raise Refused(f"it mentions {module}.{name}, which is code and not data")
        self.stack.append(_Global(module, name))

    def call(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, _Global) or not isinstance(arguments, tuple):
            raise Refused("it calls what is not a name")
        self.stack.append(_called((function.module, function.name), arguments))

    def build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if not isinstance(target, _Pending):
            raise Refused("it sets the state of what is not an array")
        target.value = _dtype_state(target.value, state) if target.kind == "dtype" else _array(state)

    def append(self, items: list[Any]) -> None:
        _expect(self.stack[-1], list).extend(items)

    def set_items(self, items: list[Any]) -> None:
        _expect(self.stack[-1], dict).update(_pairs(items))


def _pairs(items: list[Any]) -> list[tuple[Any, Any]]:
    """Keys and values of a dict; a key that holds others could take forever to hash."""
    return [(_expect(key, str | bytes | int), value) for key, value in zip(items[::2], items[1::2], strict=True)]


def _called(function: tuple[str, str], arguments: tuple[Any, ...]) -> Any:
    if function == _ENCODE:
        text, encoding = arguments
        if encoding not in ("latin1", "latin-1"):
            raise Refused(f"text encoded as {encoding!r}")
        return _expect(text, str).encode("latin1")
    if function == _DTYPE:
        return _Pending("dtype", _plain_dtype(arguments[0]))
    if function in _RECONSTRUCT:
        return _Pending("array")
    if function in _SCALAR:
        kind, data = arguments
        return np.frombuffer(_bytes(data), _dtype(kind), 1)[0].item()
    if function in _FROM_BUFFER:
        data, kind, shape, order = arguments
        return np.frombuffer(_bytes(data), _dtype(kind)).reshape(shape, order=order)
    raise Refused(f"it calls {'.'.join(function)}")


def _plain_dtype(code: Any) -> np.dtype[Any]:
    code = code.decode("ascii") if isinstance(code, bytes) else _expect(code, str)
    dtype: np.dtype[Any] = np.dtype(code)
    if dtype.kind not in "biufSUO" or dtype.fields or dtype.shape:
        raise Refused(f"an array of {code}")
    return dtype


def _dtype_state(dtype: np.dtype[Any], state: Any) -> np.dtype[Any]:
    big: np.dtype[Any] = dtype.newbyteorder(">")
    return big if state[1] in (">", b">") else dtype


def _array(state: Any) -> np.ndarray:
    """An array from numpy's state: (version, shape, dtype, is_fortran, bytes or list)."""
    _, shape, kind, fortran, data = state
    dtype = _dtype(kind)
    if dtype.kind == "O":
        if not all(isinstance(item, str | bytes | int | float) for item in _expect(data, list)):
            raise Refused("an array of objects that are not text or numbers")
        array = np.empty(len(data), object)
        array[:] = data
    else:
        array = np.frombuffer(_bytes(data), dtype)
    return array.reshape(shape, order="F" if fortran else "C")


def _dtype(value: Any) -> np.dtype[Any]:
    if not (isinstance(value, _Pending) and isinstance(value.value, np.dtype)):
        raise Refused("an array without a dtype")
    dtype: np.dtype[Any] = value.value
    return dtype


def _bytes(value: Any) -> bytes:
    return value.encode("latin1") if isinstance(value, str) else bytes(_expect(value, bytes | bytearray))


def _expect(value: Any, kind: Any) -> Any:
    if not isinstance(value, kind):
        raise Refused(f"{type(value).__name__} where {getattr(kind, '__name__', kind)} belongs")
    return value


def _finished(value: Any, done: dict[int, Any] | None = None) -> Any:
    """The value with arrays in place of what stood for them. `done` keeps shared parts shared."""
    done = {} if done is None else done
    if isinstance(value, _Pending):
        return value.value
    if isinstance(value, _Global):
        raise Refused(f"it holds {value.module}.{value.name}, which is not data")
    if not isinstance(value, list | tuple | dict):
        return value
    if id(value) in done:
        if done[id(value)] is _MARK:
            raise Refused("it contains itself")
        return done[id(value)]
    done[id(value)] = _MARK
    if isinstance(value, dict):
        whole: Any = {_finished(key, done): _finished(item, done) for key, item in value.items()}
    else:
        whole = type(value)(_finished(item, done) for item in value)
    done[id(value)] = whole
    return whole


_LITERALS = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
    "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
}  # fmt: skip
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False,
    "EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple, "MARK": lambda: _MARK,
}  # fmt: skip
_MEMO_PUT = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}
_MEMO_GET = {"GET", "BINGET", "LONG_BINGET"}


def _append_one(machine: _Machine, _: Any) -> None:
    item = machine.stack.pop()
    machine.append([item])


def _set_one(machine: _Machine, _: Any) -> None:
    value, key = machine.stack.pop(), machine.stack.pop()
    machine.set_items([key, value])


def _stack_global(machine: _Machine, _: Any) -> None:
    name, module = machine.stack.pop(), machine.stack.pop()
    machine.mention(_expect(module, str), _expect(name, str))


def _dict(machine: _Machine, _: Any) -> None:
    items = machine.since_mark()
    machine.stack.append(dict(_pairs(items)))


_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "APPEND": _append_one,
    "APPENDS": lambda machine, _: machine.append(machine.since_mark()),
    "SETITEM": _set_one,
    "SETITEMS": lambda machine, _: machine.set_items(machine.since_mark()),
    "LIST": lambda machine, _: machine.stack.append(machine.since_mark()),
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.since_mark())),
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "DICT": _dict,
    "POP": lambda machine, _: machine.drop(),
    "DUP": lambda machine, _: machine.stack.append(machine.stack[-1]),
    "GLOBAL": lambda machine, argument: machine.mention(*argument.split(" ", 1)),
    "STACK_GLOBAL": _stack_global,
    "REDUCE": lambda machine, _: machine.call(),
    "BUILD": lambda machine, _: machine.build(),
}

"""Read the pickles of old data archives without running what they ask for.

CIFAR and ImageNet32 were published as pickled dictionaries. A pickle is a program: this reader admits
the few callables that numpy arrays and byte strings need, and replaces even those by stand-ins which
only record their arguments, so that no constructor or ``__setstate__`` of numpy sees untrusted state.
The pure-Python unpickler is used on purpose: its memo is a dictionary, whereas the one in C allocates
whatever memo index a file names.
"""

from __future__ import annotations

import math
import os
import pickle
import re
import struct
from pathlib import Path
from typing import IO, Any

import numpy as np

from smash_base.errors import InvalidInputError

_DTYPE = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248])")


class _Dtype:
    """Stands in for ``numpy.dtype``: a number type and its byte order."""

    def __init__(self, text: Any = None, *_flags: Any) -> None:
        text = text.decode("ascii") if isinstance(text, bytes) else text
        if not isinstance(text, str) or not _DTYPE.fullmatch(text):
            raise pickle.UnpicklingError(f"an array of type {str(text)[:40]!r}, not of plain numbers")
        self.kind = text.lstrip("<>|=")
        self.order = "<"

    def set_state(self, state: Any) -> None:
        order = state[1]
        order = order.decode("ascii") if isinstance(order, bytes) else order
        if order not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError("an array of unknown byte order")
        self.order = order

    def numpy(self) -> np.dtype[Any]:
        return np.dtype(self.order.replace("|", "<") + self.kind)


class _Array:
    """Stands in for ``numpy.ndarray``: shape, type and bytes, checked against each other."""

    def __init__(self) -> None:
        self.values: np.ndarray = np.empty(0, dtype=np.uint8)

    def set_state(self, state: Any) -> None:
        _version, shape, dtype, fortran, data = state
        if not isinstance(dtype, _Dtype) or not isinstance(shape, tuple):
            raise pickle.UnpicklingError("an array that is not of plain numbers")
        if isinstance(data, str):
            data = data.encode("latin1")
        wanted = dtype.numpy()
        if not all(type(axis) is int and axis >= 0 for axis in shape) or not isinstance(data, bytes):
            raise pickle.UnpicklingError("an array of a strange shape")
        if math.prod(shape) * wanted.itemsize != len(data):
            raise pickle.UnpicklingError(f"an array of shape {shape} in {len(data)} bytes")
        flat = np.frombuffer(data, dtype=wanted)
        self.values = flat.reshape(shape, order="F" if fortran else "C")


class _Scalar:
    """Stands in for one numpy number."""

    def __init__(self, dtype: Any, data: Any) -> None:
        if not isinstance(dtype, _Dtype) or not isinstance(data, bytes | str):
            raise pickle.UnpicklingError("a number that is not plain")
        data = data.encode("latin1") if isinstance(data, str) else data
        self.value = np.frombuffer(data, dtype=dtype.numpy())[0].item()


class _Callable:
    """Wraps a function, so that nothing a pickle can reach has attributes worth overwriting."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, *arguments: Any) -> Any:
        if self._name == "dtype":
            return _Dtype(*arguments)
        if self._name == "array":
            return _Array()
        if self._name == "scalar":
            return _Scalar(*arguments)
        if self._name == "bytes" and not arguments:
            return b""
        if self._name == "encode" and len(arguments) == 2 and arguments[1] in ("latin1", b"latin1"):
            return str(arguments[0]).encode("latin1")
        raise pickle.UnpicklingError("a value that is neither an array nor built in")


_ADMITTED = {
    ("numpy", "dtype"): "dtype",
    ("numpy", "ndarray"): "type",  # an argument of _reconstruct, never called
    ("numpy.core.multiarray", "_reconstruct"): "array",
    ("numpy._core.multiarray", "_reconstruct"): "array",
    ("numpy.core.multiarray", "scalar"): "scalar",
    ("numpy._core.multiarray", "scalar"): "scalar",
    ("_codecs", "encode"): "encode",  # how Python 3 writes bytes in protocol 2
    ("__builtin__", "bytes"): "bytes",
    ("builtins", "bytes"): "bytes",
}


class _Unpickler(pickle._Unpickler):
    dispatch = dict(pickle._Unpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        kind = _ADMITTED.get((module, name))
        if kind is None:
            raise pickle.UnpicklingError(f"asks for {module}.{name}, which is refused as unsafe")
        return _Callable(kind)

    def persistent_load(self, _identity: Any) -> Any:
        raise pickle.UnpicklingError("refers to objects outside the file")

    def load_build(self) -> None:
        state = self.stack.pop()  # type: ignore[attr-defined]
        target = self.stack[-1]  # type: ignore[attr-defined]
        if not isinstance(target, _Array | _Dtype):
            raise pickle.UnpicklingError("sets the state of something that is not an array")
        target.set_state(state)

    dispatch[pickle.BUILD[0]] = load_build  # type: ignore[assignment]


class _Bounded:
    """A stream that never asks for more than the file has left: a length in a pickle may be anything."""

    def __init__(self, stream: IO[bytes], size: int) -> None:
        self._stream = stream
        self._left = size

    def read(self, count: int) -> bytes:
        if count > self._left:
            raise EOFError("ends too early")
        data = self._stream.read(count)
        self._left -= len(data)
        return data

    def readline(self) -> bytes:
        line = self._stream.readline(2**16)
        self._left -= len(line)
        return line


def load(stream: IO[bytes], size: int, name: str) -> dict[str, Any]:
    """Read one pickled dictionary of arrays, numbers, strings and lists.

    Args:
        stream: positioned at the start of the pickle.
        size: bytes of the pickle, which no length inside may exceed.
        name: for messages.

    Returns:
        The dictionary; keys as text, arrays as numpy arrays (read-only).

    Raises:
        InvalidInputError: not a pickle, truncated, not a dictionary, or it asks for anything else.
    """
    try:
        # "latin1" is what numpy documents for arrays that Python 2 pickled, "bytes" saves a copy of each.
        value = _Unpickler(_Bounded(stream, size), encoding="bytes").load()
    except (
        pickle.UnpicklingError, EOFError, KeyError, IndexError, AttributeError, TypeError, ValueError,
        OverflowError, MemoryError, struct.error, RecursionError,
    ) as error:  # fmt: skip
        raise InvalidInputError(
            f"{name} is not a whole and safe pickle of arrays",
            expected="a dictionary of arrays, numbers, strings and lists",
            received=error if str(error) else type(error).__name__,
        ) from None
    if not isinstance(value, dict):
        raise InvalidInputError(f"{name}", expected="a pickled dictionary", received=type(value).__name__)
    return {
        key.decode("latin1") if isinstance(key, bytes) else str(key): _plain(item)
        for key, item in value.items()
    }


def load_file(path: Path) -> dict[str, Any]:
    """:func:`load` of a file."""
    with open(path, "rb") as stream:
        return load(stream, os.fstat(stream.fileno()).st_size, str(path))


def _plain(value: Any) -> Any:
    if isinstance(value, _Array):
        return value.values
    if isinstance(value, _Scalar):
        return value.value
    if isinstance(value, list):
        return [
            item.value if isinstance(item, _Scalar) else item.decode("latin1") if isinstance(item, bytes)
            else item
            for item in value
        ]  # fmt: skip
    return value


def labels_of(values: Any, name: str) -> np.ndarray:
    """A pickled list or array of whole numbers as int64 [N]."""
    try:
        labels = np.asarray(values)
    except (ValueError, TypeError, OverflowError):
        labels = np.empty(0, dtype=object)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise InvalidInputError(f"{name}: labels", expected="whole numbers [N]", received=labels.dtype)
    return labels.astype(np.int64)

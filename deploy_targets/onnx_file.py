"""What an ONNX file holds, read from its protobuf fields without the ``onnx`` package.

Edge devices have a runtime but not ``onnx``; still, a file whose weights lie elsewhere must be refused
before a runtime follows its paths. Field numbers are those of onnx.proto3; strings and weights are
skipped over, not interpreted, and a graph of any depth is walked without recursion.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from smash_base.errors import InvalidInputError

MAX_BYTES = 2 * 2**30  # a protobuf message cannot be larger
MAX_ITEMS = 2_000_000  # nodes and tensors; a real classifier has thousands

QUANTISING = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"}
QUANTISING |= {"QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger"}
_TYPES = {1: "fp32", 10: "fp16", 16: "bf16"}  # TensorProto.DataType of weights
# Which fields of which message lead on: {message: {field: message}}.
_INTO = {
    "model": {7: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}


@dataclass(frozen=True)
class OnnxFacts:
    """Attributes:
    operators: operator types used, of every domain.
    weight_types: Which of "fp32", "fp16" and "bf16" weights are stored in.
    """

    operators: frozenset[str]
    weight_types: frozenset[str]

    @property
    def precision(self) -> str:
        """ "int8" when values are quantised, else the smallest type that weights are stored in."""
        if self.operators & QUANTISING:
            return "int8"
        return next((name for name in ("fp16", "bf16") if name in self.weight_types), "fp32")


def read_onnx_facts(path: Path) -> OnnxFacts:
    """Walk the file once.

    Raises:
        InvalidInputError: missing, empty, too large, not ONNX, or with weights in other files.
    """
    if not path.is_file():
        raise InvalidInputError(f"ONNX file {path} does not exist")
    size = path.stat().st_size
    if not 0 < size < MAX_BYTES:
        raise InvalidInputError(
            f"{path} cannot be ONNX", expected="1 byte to 2 GiB", received=f"{size} bytes"
        )
    data = path.read_bytes()
    operators: set[str] = set()
    types: set[str] = set()
    graphs = items = 0
    todo = [("model", 0, size)]
    while todo:
        message, start, end = todo.pop()
        items += 1
        graphs += message == "graph"
        if items > MAX_ITEMS:
            raise InvalidInputError(f"{path} is too large a graph", expected=f"at most {MAX_ITEMS} items")
        for number, value, stop in fields_of(data, start, end, path):
            inner = _INTO.get(message, {}).get(number)
            if inner and stop >= 0:
                todo.append((inner, value, stop))
            elif message == "node" and number == 4 and stop >= 0:
                operators.add(data[value:stop].decode(errors="replace"))
            elif message == "tensor" and number == 2:
                types.add(_TYPES.get(value, "other"))
            elif message == "tensor" and (number == 13 or (number == 14 and value)):
                raise InvalidInputError(
                    f"{path} keeps weights in other files",
                    expected="one ONNX file that holds its weights",
                    hint="Save it as one file: onnx.save(onnx.load(PATH), PATH, save_as_external_data=False)",
                )
    if not graphs:
        raise InvalidInputError(f"{path} is not an ONNX file", expected="a model with a graph")
    return OnnxFacts(frozenset(operators), frozenset(types & set(_TYPES.values())))


def fields_of(data: bytes | memoryview, start: int, end: int, path: Path) -> Iterator[tuple[int, int, int]]:
    """The fields of one protobuf message: (number, value, -1) for integers, (number, start, end) for bytes.

    Raises:
        InvalidInputError: a field is torn or of an unknown type.
    """
    while start < end:
        key, start = _varint(data, start, end, path)
        kind = key & 7
        if kind == 0:
            value, start = _varint(data, start, end, path)
            yield key >> 3, value, -1
            continue
        if kind == 2:
            length, start = _varint(data, start, end, path)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise _damaged(path, f"wire type {kind}")
        if start + length > end:
            raise _damaged(path, "a field beyond the end")
        if kind == 2:
            yield key >> 3, start, start + length
        start += length


def _varint(data: bytes | memoryview, at: int, end: int, path: Path) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
    raise _damaged(path, "a torn field")


def _damaged(path: Path, received: str) -> InvalidInputError:
    return InvalidInputError(
        f"{path} is damaged or not an ONNX file",
        received=received,
        hint="Check what it is: smash-export inspect FILE",
    )

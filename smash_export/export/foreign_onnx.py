"""Reading an ONNX file that somebody else made: limits before parsing, rules before running.

    before parsing    size of the file, number of nodes, bytes of structure: walked in the raw protobuf
    before reading    external data only from plain files in the model's own folder, within their length
    before running    operators of ONNX itself, one flat graph, ONNX's full checker, one image input and
                      one [B, K] output, no tensor of absurd size

What is left after that is one self-contained model with named, dynamic or fixed batch axis. Its operators are
those of the file; :mod:`smash_export.export.foreign_rewriting` makes them newer.
https://onnx.ai/onnx/repo-docs/ExternalDataSecurity.html
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from smash_base.errors import InvalidInputError
from smash_export.bundle.inspection import MAX_ONNX_NODES
from smash_export.bundle.stored_cost import MAX_ONNX_BYTES
from smash_targets.onnx_file import fields_of

if TYPE_CHECKING:
    import onnx

MAX_STRUCTURE_BYTES = 64 * 2**20  # of a graph without its weights
MAX_TENSOR_ELEMENTS = 2**28  # of one intermediate tensor for one image
_DOMAINS = ("", "ai.onnx")
_GRAPH, _NODE, _INITIALIZER = 7, 1, 5  # field numbers of onnx.proto3
_KEYS = {"location", "offset", "length", "checksum"}


def read_foreign_onnx(path: Path) -> onnx.ModelProto:
    """Read and check a classifier; its weights are inside afterwards.

    Raises:
        InvalidInputError: whatever a file can be that is not one flat, self-contained, valid image
            classifier of sensible size; the message says which rule.
    """
    model = _parsed(path)
    import onnx

    _check_operators(model, path)
    _drop_unused_imports(model)
    _load_external(model, path)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as error:
        raise InvalidInputError(f"{path} is not valid ONNX", received=error) from None
    return model


def external_files(path: Path) -> list[Path]:
    """The files beside a model that hold weights of it, in the order of their names.

    Raises:
        InvalidInputError: no ONNX file, or one that names what is not safe to read.
    """
    named = set()
    for tensor in filter(_is_external, _tensors(_parsed(path).graph)):
        facts = {entry.key: entry.value for entry in tensor.external_data}
        named.add(_external_file(path, tensor, facts.get("location", ""))[0])
    return sorted(named)


def _parsed(path: Path) -> onnx.ModelProto:
    """A model as its file has it, of a sensible structure."""
    data = _read(path)
    _check_structure(data, path)
    import onnx
    from google.protobuf.message import DecodeError

    try:
        return onnx.load_model_from_string(data)
    except (DecodeError, ValueError) as error:
        raise InvalidInputError(f"{path} is not an ONNX file, or is damaged", received=error) from None


def image_and_answers(
    model: onnx.ModelProto, path: Path
) -> tuple[onnx.ValueInfoProto, list[int | None], onnx.ValueInfoProto]:
    """The one input with its shape (None: any size; empty: not said) and the one output.

    Raises:
        InvalidInputError: other inputs or outputs than floating-point [B, C, H, W] or [B, C, D, H, W], or
            the same with channels last, and [B, K], [B, K, 1, 1] or, of one answer, [B].
    """
    import onnx

    weights = {tensor.name for tensor in model.graph.initializer}
    weights |= {tensor.values.name for tensor in model.graph.sparse_initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    if len(inputs) != 1 or len(model.graph.output) != 1:
        raise InvalidInputError(
            f"{path} is not an image classifier",
            expected="one input and one output",
            received=f"{len(inputs)} inputs and {len(model.graph.output)} outputs",
        )
    source, output = inputs[0], model.graph.output[0]
    images = len(shape_of(source)) in (0, 4, 5)
    answers = len(shape_of(output)) in (0, 2) or all(size == 1 for size in shape_of(output)[2:])
    for value, fits, words in (
        (source, images, "float32 [B, C, H, W] or [B, C, D, H, W], channels first"),
        (output, answers, "float32 [B, K]"),
    ):
        tensor = value.type.tensor_type
        if tensor.elem_type not in floating_types() or not fits:
            kind = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
            raise InvalidInputError(
                f"{path}: {value.name[:100]} has another type or shape",
                expected=words,
                received=f"{kind} {shape_of(value)}",
                hint="Export the network again with images of floats and its last pooling flattened.",
            )
    return source, shape_of(source), output


def fix_image_size(
    model: onnx.ModelProto, source: onnx.ValueInfoProto, image: tuple[int, ...], path: Path
) -> onnx.ModelProto:
    """Write the image size into the input's shape, infer all shapes and check them against the limits.

    A batch axis that is not a positive number (a name, nothing, 0, -1: all mean any) is called "batch".
    Shapes that the file notes of its inner tensors are left out: they are what somebody once inferred.

    Raises:
        InvalidInputError: the graph does not take this size, or makes tensors of absurd size from it.
    """
    import onnx

    batch = next(iter(shape_of(source)), None) or "batch"
    output = model.graph.output[0]
    answers = next(iter(shape_of(output)[1:]), None)
    for value, sizes in ((source, image), (output, (answers,))):
        tensor = onnx.helper.make_tensor_value_info(value.name, onnx.TensorProto.FLOAT, [batch, *sizes])
        value.type.CopyFrom(tensor.type)
    del model.graph.value_info[:]
    try:
        inferred: onnx.ModelProto = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except (onnx.shape_inference.InferenceError, ValueError) as error:
        raise InvalidInputError(f"{path} does not take images of {image}", received=error) from None
    for value in inferred.graph.value_info:
        elements = math.prod(size or 1 for size in shape_of(value)[1:])
        if elements > MAX_TENSOR_ELEMENTS:
            raise InvalidInputError(
                f"{path}: tensor {value.name[:100]} is too large",
                expected=f"at most {MAX_TENSOR_ELEMENTS} numbers for one image",
                received=shape_of(value),
            )
    return model


def floating_types() -> tuple[int, ...]:
    """Types of numbers that images and answers may have in a file."""
    from onnx import TensorProto

    return (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)


def _read(path: Path) -> bytes:
    try:
        state = path.stat()
    except FileNotFoundError:
        raise InvalidInputError(f"{path} does not exist", expected="an ONNX file") from None
    if not stat.S_ISREG(state.st_mode):
        raise InvalidInputError(f"{path} is not a file", expected="an ONNX file")
    if not 0 < state.st_size <= MAX_ONNX_BYTES:
        raise InvalidInputError(
            f"{path} has no size for an ONNX file",
            expected=f"1 to {MAX_ONNX_BYTES} bytes",
            received=state.st_size,
        )
    return path.read_bytes()


def _check_structure(data: bytes, path: Path) -> None:
    """Count nodes and bytes in the raw message: a parser would build millions of objects first."""
    nodes = structure = 0
    for number, start, end in _messages(memoryview(data), 0, len(data), path):
        if number != _GRAPH:
            structure += end - start
            continue
        for inner, first, last in _messages(memoryview(data), start, end, path):
            nodes += inner == _NODE
            structure += 0 if inner == _INITIALIZER else last - first
            if nodes > MAX_ONNX_NODES:
                raise InvalidInputError(
                    f"{path} has too many nodes",
                    expected=f"at most {MAX_ONNX_NODES}",
                    received=f"more than {MAX_ONNX_NODES}",
                )
    if structure > MAX_STRUCTURE_BYTES:
        raise InvalidInputError(
            f"{path} has too large a graph",
            expected=f"at most {MAX_STRUCTURE_BYTES} bytes beside the weights",
            received=structure,
        )


def _messages(data: memoryview, start: int, end: int, path: Path) -> Iterator[tuple[int, int, int]]:
    """(field, start, end) of the length-delimited fields of one protobuf message."""
    return (field for field in fields_of(data, start, end, path) if field[2] >= 0)


def _check_operators(model: onnx.ModelProto, path: Path) -> None:
    import onnx

    if not model.graph.node or not model.graph.output:
        raise InvalidInputError(
            f"{path} is not an ONNX file, or is damaged", received="a graph without nodes"
        )
    # tf2onnx and ONNX Runtime import domains that no node of the graph is of: nodes count, imports do not.
    unknown = sorted({node.domain for node in model.graph.node} - set(_DOMAINS))
    if unknown or model.functions:
        raise InvalidInputError(
            f"{path} uses operators that are not ONNX's own",
            expected="the domain ai.onnx",
            received=", ".join(unknown) or "functions defined in the file",
            hint="Export it again without custom operators and with functions inlined.",
        )
    graphs = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
    opset = max((item.version for item in model.opset_import if item.domain in _DOMAINS), default=0)
    for node in model.graph.node:
        if node.op_type == "GroupNormalization" and opset >= 21:
            raise InvalidInputError(
                f"{path} holds GroupNormalization, whose shapes ONNX does not infer",
                expected="InstanceNormalization between two Reshape",
                received=f"{node.op_type} of opset {opset}",
                hint="Export it again at opset 20: torch.onnx.export(..., opset_version=20)",
            )
        if any(item.type in graphs or item.HasField("g") or item.graphs for item in node.attribute):
            raise InvalidInputError(
                f"{path} has control flow", expected="one flat graph", received=node.op_type[:100]
            )


def _drop_unused_imports(model: onnx.ModelProto) -> None:
    kept = [item for item in model.opset_import if item.domain in _DOMAINS]
    del model.opset_import[:]
    model.opset_import.extend(kept)


def _load_external(model: onnx.ModelProto, path: Path) -> None:
    """Bring external weights in, from plain files beside the model only."""
    import onnx

    external = [tensor for tensor in _tensors(model.graph) if _is_external(tensor)]
    if not external:
        return
    total = 0
    for tensor in external:
        facts = {entry.key: entry.value for entry in tensor.external_data}
        unknown = set(facts) - _KEYS
        if unknown or len(facts) != len(tensor.external_data) or "location" not in facts:
            raise _unsafe(path, tensor, f"keys {sorted(facts)}")
        data, length = _external_file(path, tensor, facts["location"])
        try:
            offset = int(facts.get("offset", "0"))
            wanted = int(facts.get("length", str(length - offset)))
        except ValueError:
            raise _unsafe(path, tensor, f"offset {facts.get('offset')!r}, {facts.get('length')!r}") from None
        if offset < 0 or wanted < 0 or offset + wanted > length:
            raise _unsafe(path, tensor, f"bytes {offset} to {offset + wanted} of a file of {length}")
        total += wanted
        if total > MAX_ONNX_BYTES:
            raise _unsafe(path, tensor, f"more than {MAX_ONNX_BYTES} bytes")
        handle = os.open(data, os.O_RDONLY | os.O_NOFOLLOW)
        with os.fdopen(handle, "rb") as stream:
            stream.seek(offset)
            tensor.raw_data = stream.read(wanted)
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]


def _external_file(path: Path, tensor: onnx.TensorProto, location: str) -> tuple[Path, int]:
    """The file and its size; no link on the way, none to it, nothing outside the model's folder."""
    relative = PurePosixPath(location)
    parts = relative.parts
    if not parts or relative.is_absolute() or ".." in parts or "\\" in location or "\0" in location:
        raise _unsafe(path, tensor, f"location {location!r}")
    folder = path.resolve().parent
    place = folder
    for part in parts:
        place = place / part
        try:
            state = place.lstat()
        except OSError:
            raise InvalidInputError(
                f"{path} needs a file that is not there", expected=str(place), received="no such file"
            ) from None
        if stat.S_ISLNK(state.st_mode):
            raise _unsafe(path, tensor, f"a link: {location!r}")
    if not stat.S_ISREG(state.st_mode) or state.st_nlink != 1:
        raise _unsafe(path, tensor, f"no plain file of its own: {location!r}")
    return place, state.st_size


def _unsafe(path: Path, tensor: onnx.TensorProto, what: str) -> InvalidInputError:
    return InvalidInputError(
        f"{path}: external data of {tensor.name[:100]!r} is not safe to read",
        expected="a plain file in the folder of the model, within its length",
        received=what,
        hint="Save the model as one file: onnx.save(model, PATH, save_as_external_data=False)",
    )


def _is_external(tensor: onnx.TensorProto) -> bool:
    import onnx

    return bool(tensor.external_data) or tensor.data_location == onnx.TensorProto.EXTERNAL


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Weights, and tensors in attributes; sparse ones included."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)


def shape_of(value: Any) -> list[int | None]:
    """Sizes of the axes that a ValueInfoProto declares, None for any; empty where it declares none."""
    return [
        axis.dim_value if axis.HasField("dim_value") and axis.dim_value > 0 else None
        for axis in value.type.tensor_type.shape.dim
    ]

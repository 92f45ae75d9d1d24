"""Open Inference Protocol v2: tensors in, tensors out, as JSON, binary or class labels.

Follows the KServe predict protocol (rest_predict_v2) with Triton's two extensions:

    binary_tensor_data   the JSON is followed by raw little-endian tensors; the header
                         Inference-Header-Content-Length says where they begin
    classification       an output is asked for as its k best classes: BYTES "value:index:label"

The input is FP32 as the network takes it, or UINT8: images of any size, channels last or first, for which the
server does the preprocessing.

Pure functions from bytes to values and back. Everything a client can get wrong raises
InvalidInputError, whose sentence goes into the answer. Sizes are checked against the bytes that are
there before anything is allocated from what a client claims.
"""

from __future__ import annotations

import functools
import json
import math
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import orjson

from smash_base.errors import InvalidInputError
from smash_targets.base import ModelSignature

HEADER_LENGTH = "Inference-Header-Content-Length"
DATATYPE = "FP32"
IMAGES = "UINT8"
DATATYPES = (
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64",
    "FP16", "FP32", "FP64", "BF16", "BYTES",
)  # fmt: skip
MAX_ID = 200
_FEW = 2**13  # numbers; of more the linear algebra library would wake its threads
_BYTE, _FLOAT = np.dtype("u1"), np.dtype("<f4")
_DIGITS = re.compile(r"[0-9]{1,15}", re.ASCII)


SLOW_BYTES = 2**16  # JSON beyond this is parsed beside the event loop
_NUMBER_BYTES = 26  # the longest number that Python prints, a comma and a space
_SLICE_BYTES = 2**16  # of numbers that are parsed in one go: no other thread runs meanwhile


class TooLargeError(InvalidInputError):
    """More JSON than the largest tensor of the model needs; HTTP 413."""


def json_limit(signature: ModelSignature, max_images: int) -> int:
    """Bytes of JSON that the largest request of a model can need."""
    return SLOW_BYTES + _NUMBER_BYTES * max_images * math.prod(signature.input_shape)


def is_slow(size: int, header_length: str | None) -> bool:
    """Whether a body holds so much JSON that the event loop should not parse it."""
    if header_length is not None and _DIGITS.fullmatch(header_length):
        size = min(size, int(header_length))
    return size > SLOW_BYTES


@dataclass(frozen=True)
class Wanted:
    """One output as the client wants it.

    Attributes:
        binary: raw bytes after the JSON.
        classes: the k best classes instead of the logits; 0 is the logits.
    """

    binary: bool = False
    classes: int = 0


class InferRequest(NamedTuple):
    """A checked request.

    Attributes:
        tensor: float32 [B, *input_shape], finite; or images that are still to be preprocessed, uint8
            [B, height, width, channels].
        id: echoed in the answer.
        outputs: how the one output is wanted; more than once if asked so.
    """

    tensor: np.ndarray
    id: str = ""
    outputs: tuple[Wanted, ...] = (Wanted(),)


def parse_infer(
    body: bytes, header_length: str | None, signature: ModelSignature, max_images: int
) -> InferRequest:
    """Read the body of an infer request.

    Args:
        body: the whole body.
        header_length: value of the header ``Inference-Header-Content-Length``, None without it.
        signature: what the model takes.
        max_images: largest B.

    Raises:
        InvalidInputError: anything that does not follow the protocol or does not fit the model.
    """
    if header_length == "0":  # Triton's raw request: the body is the one tensor
        return InferRequest(check_finite(_whole_body(body, signature, max_images)))
    if header_length is None:
        text, raw = body, memoryview(b"")
    else:
        if not _DIGITS.fullmatch(header_length) or int(header_length) > len(body):
            raise InvalidInputError(
                f"header {HEADER_LENGTH}",
                expected=f"the length of the JSON, 0 to {len(body)}",
                received=header_length,
            )
        text, raw = body[: int(header_length)], memoryview(body)[int(header_length) :]
    if len(text) > (limit := json_limit(signature, max_images)):
        raise TooLargeError(
            "the JSON is longer than the model's largest input needs",
            expected=f"at most {limit} bytes",
            received=f"{len(text)} bytes",
        )
    read = _head if len(text) > _REMEMBERED_BYTES else _remembered_head
    head = read(text, signature, max_images)
    return InferRequest(check_values(_tensor(head, raw), signature), head.id, head.outputs)


def _tensor(head: _Head, raw: memoryview) -> np.ndarray:
    """The input from the JSON, or from the bytes that follow it."""
    if head.size is None:
        if len(raw):
            raise InvalidInputError(
                f"{len(raw)} bytes follow the JSON and no input claims them",
                expected="the parameter binary_data_size in the input",
            )
        values = _from_json(head.data, head.shape)
        return _as_bytes(values) if head.datatype == IMAGES else values
    if type(head.size) is not int or head.size != len(raw):
        raise InvalidInputError(
            "parameter binary_data_size",
            expected=f"{len(raw)}, the bytes that follow the JSON",
            received=repr(head.size),
        )
    return from_raw(raw, head.shape, head.datatype)


def _whole_body(body: bytes, signature: ModelSignature, max_images: int) -> np.ndarray:
    each = 4 * math.prod(signature.input_shape)
    images, left = divmod(len(body), each)
    if left or not 1 <= images <= max_images:
        raise InvalidInputError(
            "the raw body has the wrong length",
            expected=f"1 to {max_images} times {each} bytes: {DATATYPE} {list(signature.input_shape)}",
            received=f"{len(body)} bytes",
        )
    return from_raw(body, (images, *signature.input_shape))


class _Head(NamedTuple):
    """The JSON of a request, checked as far as that goes without the raw tensor."""

    datatype: str
    shape: tuple[int, ...]
    size: Any
    data: Any
    id: str
    outputs: tuple[Wanted, ...]


def _head(text: bytes, signature: ModelSignature, max_images: int) -> _Head:
    text, numbers = _split_numbers(text)
    request = parse_object(text, "the request")
    entry = _list(request, "inputs", 1)[0]
    name = entry.get("name")
    if name != signature.input_name:
        raise InvalidInputError("unknown input", expected=repr(signature.input_name), received=repr(name))
    shape = check_shape(entry.get("datatype"), entry.get("shape"), signature, max_images)
    size = _object(entry, "parameters").get("binary_data_size")
    if size is not None and "data" in entry:
        raise InvalidInputError("an input has both data and binary_data_size", expected="one of them")
    data = entry.get("data")
    if numbers is not None:
        if data != []:
            raise InvalidInputError("data of the input", expected="one list of numbers", received="another")
        data = _parse_numbers(numbers, shape)
    return _Head(entry["datatype"], shape, size, data, _id(request), _outputs(request, signature))


# "data" as a key of an object, not as the end of a text, and the begin of a list.
_DATA = re.compile(rb'(?<!\\)"data"\s*:\s*\[')
_SPACES = np.zeros(256, bool)
_SPACES[list(b" \t\n\r\f\v")] = True
_OPEN, _CLOSE, _COMMA = b"[],"
_PUNCTUATION = bytes(set(range(256)) - set(b"[],"))


def _split_numbers(text: bytes) -> tuple[bytes, bytes | None]:
    """Cut the one long list of numbers out of a request: the JSON with ``[]`` in its place, and the list.

    The general parser makes an object of each number before anything can be checked, and no other thread
    runs meanwhile; the list is parsed by slices instead. A request in which it cannot be told is left whole.

    Raises:
        TooLargeError: what is not numbers is long.
    """
    found = _DATA.search(text, 0, SLOW_BYTES) if len(text) > _REMEMBERED_BYTES else None
    if found is not None:
        start = found.end() - 1
        ends = [end for end in (text.find(b"}", start), text.find(b'"', start)) if end >= 0]
        end = text.rfind(b"]", start, min(ends, default=len(text)))
        rest = len(text) - (end - start)
        if end > start and rest <= SLOW_BYTES and _DATA.search(text, end) is None:
            return text[:start] + b"[]" + text[end + 1 :], text[start : end + 1]
    if len(text) > SLOW_BYTES:
        raise TooLargeError(
            "the JSON beside the numbers of the input is too long", expected=f"at most {SLOW_BYTES} bytes"
        )
    return text, None


def _parse_numbers(text: bytes, shape: tuple[int, ...]) -> np.ndarray:
    """A list of numbers, flat or nested as ``shape`` -> float32 of ``shape``."""
    count, found = math.prod(shape), text.count(b",") + 1
    if found != count or not _nested_as(text, shape):
        raise InvalidInputError(
            "data of the input",
            expected=f"{count} numbers, flat or of shape {list(shape)}",
            received="a ragged list" if found == count else f"{found} numbers",
        )
    values = np.empty(count, np.float32)
    start = filled = 0
    while start < len(text):
        end = text.find(b",", start + _SLICE_BYTES)
        end = len(text) if end < 0 else end
        numbers = _numbers(text[start:end])
        with np.errstate(over="ignore"):  # a number beyond FP32 becomes infinity, which is refused next
            values[filled : filled + len(numbers)] = numbers
        filled += len(numbers)
        start = end + 1
    return values.reshape(shape)


def _nested_as(text: bytes, shape: tuple[int, ...]) -> bool:
    marks = b"".join(
        text[start : start + _SLICE_BYTES].translate(None, _PUNCTUATION)
        for start in range(0, len(text), _SLICE_BYTES)
    )
    return marks in (_marks((math.prod(shape),)), _marks(shape))


def _marks(shape: tuple[int, ...]) -> bytes:
    """Brackets and commas of a nested list of that shape."""
    text = b""
    for size in reversed(shape):
        text = b"[" + b",".join([text] * size) + b"]"
    return text


def _numbers(text: bytes) -> np.ndarray:
    """At least one number, separated by commas; brackets only where numbers do not touch them wrongly."""
    try:
        if _misplaced(text):
            raise ValueError
        values = np.array(orjson.loads(b"[" + text.translate(None, b"[]") + b"]"))
        if not len(values) or values.dtype.kind not in "iuf":
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise InvalidInputError(
            "data of the input", expected="numbers only", received="something that is no number"
        ) from None
    return values


def _misplaced(text: bytes) -> bool:
    """Whether a bracket touches a number where a comma belongs. Array by array: a regular expression over all
    of the text took seven times what orjson does."""
    if b"[" not in text and b"]" not in text:
        return False
    codes = np.frombuffer(text, np.uint8)
    solid = codes[~_SPACES[codes]]
    opened, closed = np.flatnonzero(solid[1:] == _OPEN), np.flatnonzero(solid[:-1] == _CLOSE) + 1
    before, after = solid[opened], solid[closed]
    return not (
        ((before == _OPEN) | (before == _COMMA)).all() and ((after == _CLOSE) | (after == _COMMA)).all()
    )


# A client sends the same short JSON before each of its binary tensors; it need not be parsed every time.
_REMEMBERED_BYTES = 1024
_remembered_head = functools.lru_cache(256)(_head)


def encode_infer(
    request: InferRequest,
    logits: np.ndarray,
    labels: Sequence[str],
    *,
    output_name: str,
    model: str,
    version: str,
) -> tuple[bytes, int | None]:
    """The body of the answer, and the length of its JSON when raw tensors follow it."""
    if not request.id and all(wanted.binary and not wanted.classes for wanted in request.outputs):
        text = _logits_head(request.outputs, logits.shape, output_name, model, version)
        return b"".join([text, *[little_endian(logits)] * len(request.outputs)]), len(text)
    outputs: list[dict[str, Any]] = []
    chunks: list[bytes] = []
    for wanted in request.outputs:
        flat: list[Any] = []
        if wanted.classes:
            texts = classify(logits, labels, wanted.classes)
            flat = [text for row in texts for text in row]
            raw = bytes_tensor(flat) if wanted.binary else b""
            entry = _output(output_name, "BYTES", (len(texts), len(texts[0])))
        else:
            raw = little_endian(logits) if wanted.binary else b""
            entry = _output(output_name, DATATYPE, logits.shape)
        if wanted.binary:
            entry["parameters"] = {"binary_data_size": len(raw)}
            chunks.append(raw)
        else:
            entry["data"] = flat if wanted.classes else np.ascontiguousarray(logits, np.float32).ravel()
        outputs.append(entry)
    text = _answer_head(outputs, model, version, request.id)
    return b"".join([text, *chunks]), (len(text) if chunks else None)


def _output(name: str, datatype: str, shape: tuple[int, ...]) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": list(shape)}


def _answer_head(outputs: list[dict[str, Any]], model: str, version: str, identity: str) -> bytes:
    answer: dict[str, Any] = {"model_name": model, "model_version": version}
    if identity:
        answer["id"] = identity
    answer["outputs"] = outputs
    return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)


@functools.lru_cache(256)
def _logits_head(
    wanted: tuple[Wanted, ...], shape: tuple[int, ...], output_name: str, model: str, version: str
) -> bytes:
    """The JSON of the most usual answer, raw logits: the same for every request of that many images."""
    entry = _output(output_name, DATATYPE, shape)
    entry["parameters"] = {"binary_data_size": 4 * math.prod(shape)}
    return _answer_head([entry] * len(wanted), model, version, "")


def parse_object(text: bytes, what: str) -> dict[str, Any]:
    """Parse a JSON object: UTF-8, no NaN, not deeper than the parser goes.

    Raises:
        InvalidInputError: anything else.
    """
    try:
        value = json.loads(text.decode(), parse_constant=_no_constant)
    except UnicodeDecodeError:
        raise InvalidInputError(f"{what} is not UTF-8 text") from None
    except RecursionError:
        raise InvalidInputError(f"{what} is nested too deeply") from None
    except ValueError as error:
        raise InvalidInputError(f"{what} is not valid JSON", received=error) from None
    if not isinstance(value, dict):
        raise InvalidInputError(f"{what} is not a JSON object", received=type(value).__name__)
    return value


def check_shape(datatype: Any, shape: Any, signature: ModelSignature, max_images: int) -> tuple[int, ...]:
    """Check type and shape of the input tensor against the model: FP32 [B, *input_shape], or UINT8 images.

    Raises:
        InvalidInputError: another type, not a list of whole numbers, or another shape.
    """
    if datatype == IMAGES:
        return _check_image_shape(shape, signature, max_images)
    if datatype != DATATYPE:
        known = isinstance(datatype, str) and datatype in DATATYPES
        raise InvalidInputError(
            "the input has another datatype than the model" if known else "unknown datatype",
            expected=f"{DATATYPE}, or {IMAGES} for images",
            received=repr(datatype),
        )
    text = f"[B, {', '.join(map(str, signature.input_shape))}] with B from 1 to {max_images}"
    if not isinstance(shape, list) or len(shape) > 16 or not all(type(size) is int for size in shape):
        raise InvalidInputError("shape of the input", expected=text, received=repr(shape)[:200])
    if tuple(shape[1:]) != signature.input_shape or not 1 <= shape[0] <= max_images:
        raise InvalidInputError("shape of the input", expected=text, received=shape)
    return tuple(shape)


def _check_image_shape(shape: Any, signature: ModelSignature, max_images: int) -> tuple[int, ...]:
    """[B, H, W, C] or [B, C, H, W]; H and W as they come where image files could be given as well."""
    channels, *sides = signature.input_shape
    free = channels in (1, 3) and len(sides) == 2
    names = ["H", "W"] if free else [str(side) for side in sides]
    layouts = (", ".join([*names, str(channels)]), ", ".join([str(channels), *names]))
    inner = shape[1:] if isinstance(shape, list) and all(type(size) is int for size in shape) else []
    fits = len(inner) == len(sides) + 1 and min(inner) > 0 and channels in (inner[0], inner[-1])
    if fits and not free:
        fits = inner in ([*sides, channels], [channels, *sides])
    if not fits or not 1 <= shape[0] <= max_images:
        raise InvalidInputError(
            "shape of the images",
            expected=f"[B, {layouts[0]}] or [B, {layouts[1]}] with B from 1 to {max_images}",
            received=repr(shape)[:200],
        )
    return tuple(shape)


def from_raw(raw: memoryview | bytes, shape: tuple[int, ...], datatype: str = DATATYPE) -> np.ndarray:
    """Little-endian FP32 or UINT8 bytes -> a view of them of ``shape``.

    Raises:
        InvalidInputError: another number of bytes.
    """
    kind = _BYTE if datatype == IMAGES else _FLOAT
    needed = kind.itemsize * math.prod(shape)
    if len(raw) != needed:
        raise InvalidInputError(
            "the binary tensor has the wrong length",
            expected=f"{needed} bytes for {datatype} {list(shape)}",
            received=f"{len(raw)} bytes",
        )
    return np.frombuffer(raw, dtype=kind).reshape(shape)


def check_values(tensor: np.ndarray, signature: ModelSignature) -> np.ndarray:
    """FP32: finite, or :func:`check_finite` raises. Images: channels last."""
    if tensor.dtype.kind == "f":
        return check_finite(tensor)
    return tensor if tensor.shape[-1] == signature.input_shape[0] else np.moveaxis(tensor, 1, -1)


def _as_bytes(values: np.ndarray) -> np.ndarray:
    images = values.astype(np.uint8) if ((values >= 0) & (values <= 255)).all() else None
    if images is None or not np.array_equal(images, values):
        raise InvalidInputError(
            "data of the input", expected=f"whole numbers from 0 to 255 for {IMAGES}", received="others"
        )
    return images


def check_finite(tensor: np.ndarray) -> np.ndarray:
    """Refuse NaN and infinities: no image holds them, and one would spoil what is counted and logged."""
    flat = tensor.ravel()
    # A sum of squares is finite only if all numbers are, and of few numbers it is there four times sooner.
    if flat.size <= _FEW and math.isfinite(np.dot(flat, flat)):
        return tensor
    if not np.isfinite(flat).all():
        raise InvalidInputError("the input holds NaN or infinity", expected="finite numbers")
    return tensor


def classify(logits: np.ndarray, labels: Sequence[str], count: int) -> list[list[str]]:
    """The ``count`` best classes of each row as Triton writes them: "value:index:label"."""
    count = min(count, logits.shape[1])
    best = np.argsort(-logits, axis=1, kind="stable")[:, :count]
    return [
        [f"{row[index]:f}:{index}:{labels[index]}" for index in indices]
        for row, indices in zip(logits, best, strict=True)
    ]


def bytes_tensor(texts: Sequence[str]) -> bytes:
    """A BYTES tensor: each element a little-endian u32 length and its bytes."""
    parts = []
    for text in texts:
        data = text.encode()
        parts.append(struct.pack("<I", len(data)))
        parts.append(data)
    return b"".join(parts)


def little_endian(values: np.ndarray) -> bytes:
    """Raw FP32 bytes of an array, whatever the byte order of this machine."""
    return values.astype("<f4", copy=False).tobytes()


def check_class_count(value: Any, signature: ModelSignature) -> int:
    """The parameter ``classification`` of an output."""
    if type(value) is not int or not 1 <= value <= 2**31:
        raise InvalidInputError(
            "parameter classification", expected=f"1 to {signature.classes}", received=repr(value)
        )
    return min(value, signature.classes)


def _from_json(data: Any, shape: tuple[int, ...]) -> np.ndarray:
    if isinstance(data, np.ndarray):  # parsed by slices already
        return data
    if not isinstance(data, list):
        raise InvalidInputError("data of the input", expected="a list of numbers", received=repr(data)[:200])
    try:
        # A ragged list raises ValueError, texts become another kind, None raises TypeError.
        values = np.array(data)
    except (TypeError, ValueError, OverflowError):
        raise InvalidInputError(
            "data of the input", expected=f"numbers of shape {list(shape)}", received="a ragged list"
        ) from None
    if values.dtype.kind not in "iuf":
        raise InvalidInputError(
            "data of the input", expected="numbers only", received="something that is no number"
        )
    if values.size != math.prod(shape) or values.ndim not in (1, len(shape)):
        raise InvalidInputError(
            "data of the input",
            expected=f"{math.prod(shape)} numbers, flat or of shape {list(shape)}",
            received=f"shape {list(values.shape)}",
        )
    if values.ndim > 1 and values.shape != shape:
        raise InvalidInputError("data of the input", expected=list(shape), received=list(values.shape))
    with np.errstate(over="ignore"):  # a number beyond FP32 becomes infinity, which is refused next
        return values.astype(np.float32).reshape(shape)


def _id(request: dict[str, Any]) -> str:
    value = request.get("id")
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > MAX_ID:
        raise InvalidInputError(
            "id of the request", expected=f"a text of at most {MAX_ID} characters", received=repr(value)[:80]
        )
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidInputError("id of the request", expected="text", received="half a character") from None
    return value


def _outputs(request: dict[str, Any], signature: ModelSignature) -> tuple[Wanted, ...]:
    binary = _flag(_object(request, "parameters"), "binary_data_output")
    if request.get("outputs") in (None, []):
        return (Wanted(binary=binary),)
    found = []
    for entry in _list(request, "outputs", 4):
        name = entry.get("name")
        if name != signature.output_name:
            raise InvalidInputError(
                "unknown output", expected=repr(signature.output_name), received=repr(name)[:80]
            )
        parameters = _object(entry, "parameters")
        count = 0
        if parameters.get("classification") is not None:
            count = check_class_count(parameters["classification"], signature)
        found.append(Wanted(_flag(parameters, "binary_data", binary), count))
    return tuple(found)


def _list(request: dict[str, Any], key: str, most: int) -> list[dict[str, Any]]:
    value = request.get(key)
    expected = "a list of one object" if most == 1 else f"a list of 1 to {most} objects"
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise InvalidInputError(key, expected=expected, received=repr(value)[:80])
    if not 1 <= len(value) <= most:
        raise InvalidInputError(key, expected=expected, received=f"{len(value)} of them")
    return value


def _object(entry: dict[str, Any], key: str) -> dict[str, Any]:
    value = entry.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidInputError(key, expected="an object", received=repr(value)[:80])
    return value


def _flag(parameters: dict[str, Any], key: str, default: bool = False) -> bool:
    value = parameters.get(key, default)
    if not isinstance(value, bool):
        raise InvalidInputError(f"parameter {key}", expected="true or false", received=repr(value)[:80])
    return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")

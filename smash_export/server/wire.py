"""What a protobuf message would become, told from its bytes before anything is made of them.

A message of empty sub-messages takes two bytes each on the wire and a hundred in memory. So everything in a
request that is no tensor must be small; this walks over the top of the wire format (protobuf.dev, "Encoding")
and stops at the first byte too many. Tensor values take as much memory as they take bytes.
"""

from __future__ import annotations

from collections.abc import Mapping

from smash_base.errors import InvalidInputError

SMALL_BYTES = 2**14
# Field numbers that lead to tensor values, of ModelInferRequest: raw_input_contents, and
# inputs.contents.fp32_contents and uint_contents.
_INNER: Mapping[int, object] = {4: None, 6: None}
INFER_TENSORS: Mapping[int, object] = {7: None, 5: {5: _INNER}}
_VARINT, _EIGHT, _LENGTH, _FOUR = 0, 1, 2, 5


def check_small(data: bytes, tensors: Mapping[int, object]) -> None:
    """Refuse a message whose bytes beside ``tensors`` are many.

    Args:
        data: the message.
        tensors: field -> None for values that may be long, or the same for a sub-message.

    Raises:
        InvalidInputError: more than 16 KiB beside the tensors, or no protobuf message.
    """
    try:
        _walk(data, 0, len(data), tensors, SMALL_BYTES)
    except IndexError:
        raise _unreadable() from None


def _walk(data: bytes, start: int, end: int, tensors: Mapping[int, object], left: int) -> int:
    """Bytes that are still allowed after ``data[start:end]``."""
    while start < end:
        begin = start
        key, start = _varint(data, start)
        kind = key & 7
        rule: object = ()
        if kind == _LENGTH:
            size, start = _varint(data, start)
            if size > end - start:
                raise _unreadable()
            rule = tensors.get(key >> 3, ())
            left -= start - begin if rule != () else start - begin + size
            if isinstance(rule, Mapping):
                left = _walk(data, start, start + size, rule, left)
            start += size
        else:
            start = _skip(data, start, kind)
            left -= start - begin
        if left < 0:
            raise InvalidInputError(
                "the message holds too much beside its tensor", expected=f"at most {SMALL_BYTES} bytes"
            )
    return left


def _skip(data: bytes, start: int, kind: int) -> int:
    if kind == _VARINT:
        return _varint(data, start)[1]
    if kind == _EIGHT:
        return start + 8
    if kind == _FOUR:
        return start + 4
    raise _unreadable()  # groups: no message of the protocol has them


def _varint(data: bytes, start: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[start]
        start += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, start
        shift += 7
        if shift > 63:
            raise _unreadable()


def _unreadable() -> InvalidInputError:
    return InvalidInputError("the message cannot be read", expected="a protobuf message of the protocol")

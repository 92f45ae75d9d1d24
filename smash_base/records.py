"""Records as types: a parsed JSON value becomes a dataclass, or an error that names the field.

Pydantic does the checking. It is imported when the first record is read: predicting reads none. Types are
strict (no text for a number, no number for a flag); keys that the dataclass does not have are ignored, so
that files of later versions are read as well.
"""

from __future__ import annotations

from typing import Any, TypeVar

from smash_base.errors import InvalidInputError

Record = TypeVar("Record")


def read_record(kind: type[Record], value: object, what: str) -> Record:
    """A value that was parsed from JSON as a dataclass.

    Args:
        kind: Dataclass with annotations that say what JSON holds: other dataclasses, tuples, options.
        value: What a parser gave.
        what: Name of the record for the error, such as the path of its file.

    Raises:
        InvalidInputError: a field is missing or of another type.
    """
    from pydantic import ValidationError
    from pydantic_core import PydanticSerializationError, to_json

    try:
        # As text once more: only there does strict reading take lists where records have tuples.
        record: Record = _adapter(kind).validate_json(to_json(value), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise InvalidInputError(
            f"{what} {place}".rstrip(), expected=first["msg"], received=first["input"]
        ) from None
    except PydanticSerializationError as error:
        raise InvalidInputError(what, expected="what JSON can hold", received=error) from None
    return record


_ADAPTERS: dict[type, Any] = {}  # made once each: that takes longer than reading


def _adapter(kind: type) -> Any:
    from pydantic import TypeAdapter

    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind)
    return _ADAPTERS[kind]

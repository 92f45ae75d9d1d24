"""Checks of parsed JSON that comes from anywhere; each names the field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from smash_base.errors import InvalidInputError


def check_int(where: str, value: Any, low: int, high: int) -> None:
    """Refuse what is not a whole number from ``low`` to ``high``."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InvalidInputError(where, expected=f"a whole number from {low} to {high}", received=value)


def check_object(
    where: str, value: Any, required: set[str], optional: set[str] | None = None
) -> Mapping[str, Any]:
    """An object with all required keys and no unknown ones."""
    if not isinstance(value, Mapping):
        raise InvalidInputError(where, expected="an object", received=value)
    known = required | (optional or set())
    for name in value:
        if name not in known:
            raise InvalidInputError(
                f"{where} has an unknown key", expected=", ".join(sorted(known)), received=name
            )
    missing = sorted(required - set(value))
    if missing:
        raise InvalidInputError(
            f"{where} lacks a key", expected=missing[0], received=", ".join(sorted(value)) or "{}"
        )
    return value


def check_list(where: str, value: Any, limit: int) -> Sequence[Any]:
    """A list of at most ``limit`` entries."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise InvalidInputError(where, expected="a list", received=value)
    if len(value) > limit:
        raise InvalidInputError(where, expected=f"at most {limit} entries", received=len(value))
    return value


def check_integers(where: str, value: Any, limit: int) -> tuple[int, ...]:
    """A list of whole numbers as a tuple."""
    entries = check_list(where, value, limit)
    for entry in entries:
        if isinstance(entry, bool) or not isinstance(entry, int):
            raise InvalidInputError(where, expected="whole numbers", received=entry)
    return tuple(entries)

"""What JSON can hold, as types: what ``to_json`` gives and files hold, for the type checker to look into; and
the same as prose, for people.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

JsonValue: TypeAlias = "bool | int | float | str | Sequence[JsonValue] | Mapping[str, JsonValue] | None"
JsonObject: TypeAlias = "dict[str, JsonValue]"


def in_words(value: Any) -> str:
    """Nested facts as prose: ``{"seed": 0, "data": {"spec": "x"}}`` -> ``seed 0, data (spec x)``."""
    if isinstance(value, Mapping):
        parts = [
            f"{name} ({in_words(item)})" if isinstance(item, Mapping) else f"{name} {in_words(item)}"
            for name, item in value.items()
            if item not in (None, [], {})
        ]
        return ", ".join(parts)
    if isinstance(value, list):
        words = [f"({in_words(item)})" if isinstance(item, Mapping) else in_words(item) for item in value]
        return " ".join(words)
    return f"{value:.6g}" if isinstance(value, float) else str(value)

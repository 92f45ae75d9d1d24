"""JSON-lines files of a search: written as results come, in a fixed order once all have come."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

from smash_base import files


def close_torn_line(path: Path) -> None:
    """Remove what a kill left of a line at the end of a file."""
    if path.exists():
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if whole != data:
            files.write_bytes(path, whole)


def settle(path: Path, name: Callable[[dict[str, Any]], Hashable], order: Sequence[Hashable]) -> None:
    """Put the lines of a file into the order in which one worker alone would have written them.

    Args:
        path: the file; may be missing.
        name: what a record is about, as ``order`` has it.
        order: of the names; a name that occurs again counts at its first place, others go to the end.
    """
    places: dict[Hashable, int] = {}
    for entry in order:
        places.setdefault(entry, len(places))
    records = files.read_jsonl(path)
    settled = sorted(records, key=lambda record: places.get(name(record), len(places)))
    if settled != records:
        lines = [json.dumps(record, ensure_ascii=False, allow_nan=False) for record in settled]
        files.write_text(path, "".join(line + "\n" for line in lines))

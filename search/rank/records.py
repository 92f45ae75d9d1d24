"""JSON-lines files of a search: written as results come, in a fixed order once all have come."""

from __future__ import annotations

import json
from collections.abc import Hashable, Sequence
from pathlib import Path

from smash_base import files


def close_torn_line(path: Path) -> None:
    """Remove what a kill left of a line at the end of a file."""
    if path.exists():
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if whole != data:
            files.write_bytes(path, whole)


def settle(path: Path, keys: Sequence[str], order: Sequence[tuple[Hashable, ...]]) -> None:
    """Put the lines of a file into the order in which one worker alone would have written them.

    Args:
        path: File of records; may be missing.
        keys: Keys of a record that together name it.
        order: Names in their order; one that occurs again counts at its first place, others go to the end.
    """
    places: dict[tuple[Hashable, ...], int] = {}
    for entry in order:
        places.setdefault(entry, len(places))
    records = files.read_jsonl(path)
    settled = sorted(records, key=lambda record: places.get(tuple(record[key] for key in keys), len(places)))
    if settled != records:
        lines = [json.dumps(record, ensure_ascii=False, allow_nan=False) for record in settled]
        files.write_text(path, "".join(line + "\n" for line in lines))

"""Memory-mapped files: which this process has mapped, and what they were when it did.

A file may be written anew under the same name while a map of the earlier one is in use. Whoever maps it by
its name then gets other images; size and time of the file tell.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import weakref
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

State = tuple[int, int]
"""Size in bytes and time of the last change in nanoseconds."""

_known: weakref.WeakKeyDictionary[mmap.mmap, tuple[Path, State]] = weakref.WeakKeyDictionary()


def state(facts: os.stat_result) -> State:
    """What tells a file from a later one of its name."""
    return facts.st_size, facts.st_mtime_ns


def remember(array: np.memmap, path: Path, found: State) -> None:
    """Keep the state that a file had when it was mapped, as long as the map or a part of it is in use."""
    _known[array._mmap] = path.resolve(), found  # type: ignore[attr-defined]


def state_of(array: np.memmap) -> State | None:
    """State of the file of a map, or of a part of one, when it was mapped.

    That of today where a map was not remembered; None where its file is gone as well.
    """
    known = _known.get(array._mmap)  # type: ignore[attr-defined]
    if known is not None:
        return known[1]
    with contextlib.suppress(OSError):
        return state(os.stat(str(array.filename)))
    return None


def mapped_files() -> set[Path]:
    """Resolved paths of the remembered maps that are in use."""
    return {path for path, _ in list(_known.values())}


def told(found: State) -> str:
    """A state in words."""
    size, time = found
    return f"{size:,} bytes of {datetime.fromtimestamp(time / 1e9, UTC):%Y-%m-%d %H:%M:%S.%f} UTC"

"""Memory-mapped files: which this process has mapped, and what they were when it did.

A file may be written anew under the same name while a map of the earlier one is in use. Whoever maps it by
its name then gets other images; size and time of the file tell. Who removes files asks first whether one is
held: the workers of another process may still map it.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import weakref
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from smash_base import files

State = tuple[int, int]
"""Size in bytes and time of the last change in nanoseconds."""

_known: weakref.WeakKeyDictionary[mmap.mmap, tuple[Path, State]] = weakref.WeakKeyDictionary()


def state(facts: os.stat_result) -> State:
    """What tells a file from a later one of its name."""
    return facts.st_size, facts.st_mtime_ns


def remember(array: np.memmap, path: Path, found: State) -> None:
    """Keep the state that a file had when it was mapped, as long as the map or a part of it is in use."""
    _known[array._mmap] = path.resolve(), found  # type: ignore[attr-defined]


def hold(array: np.memmap, path: Path) -> None:
    """Lock a mapped file against :func:`unmapped`, as long as the map or a part of it is in use.

    Raises:
        OSError: the file is gone.
    """
    stream = open(path, "rb")  # noqa: SIM115 - closed with the map
    weakref.finalize(array._mmap, stream.close)  # type: ignore[attr-defined]
    files.lock(stream.fileno(), shared=True, wait=True)


@contextlib.contextmanager
def unmapped(path: Path) -> Iterator[bool]:
    """Whether no process of this machine holds a map of a file; none begins to in the block."""
    if path.resolve() in {mapped for mapped, _ in list(_known.values())}:
        yield False  # where the file system has no locks, at least this process knows
        return
    try:
        stream = open(path, "r+b")  # noqa: SIM115 - for writing, since NFS locks nothing else alone
    except OSError:
        yield False
        return
    with stream:
        yield files.lock(stream.fileno())


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


def told(found: State) -> str:
    """A state in words."""
    size, time = found
    return f"{size:,} bytes of {datetime.fromtimestamp(time / 1e9, UTC):%Y-%m-%d %H:%M:%S.%f} UTC"

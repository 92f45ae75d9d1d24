"""A converted copy of data beside the original, made once and memory-mapped afterwards.

The copy is one uncompressed ``images.npy`` that every process maps instead of loading. It records place, size
and modification time of its sources; when one of them changes, another copy is made beside it. Who needs one
that another process makes waits for it. Copies that were not used for longest go when all of them together
take more than :data:`MOST_BYTES`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from smash_base import files
from smash_base.errors import InvalidInputError, UsageError
from smash_base.json_values import JsonObject
from smash_search.data import maps

FOLDER = ".smash-export-cache"
SCHEMA = 3
RECORD = "source.json"
IMAGES = "images.npy"
HEAD_BYTES = 2**16
MOST_BYTES = 8 * 2**30  # of all copies of one folder; those in use stay, however large
UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)


class Incomplete(Exception):
    """Raised by ``fill``: the copy is not to be kept."""


def mapped(
    folder: Path,
    key: str,
    sources: Sequence[Path],
    shape: tuple[int, ...],
    fill: Callable[[np.ndarray], list[int] | None],
) -> tuple[np.ndarray, list[int] | None]:
    """uint8 array of ``shape``, mapped copy-on-write (changes stay in memory, the file stays as it is).

    Args:
        folder: where the cache is kept, normally the folder of the data.
        key: name of this array, with every option that changes its content.
        sources: the files that it is made from.
        fill: writes the whole array; called only when there is no valid copy. Numbers that it returns are
            kept with the copy.

    Returns:
        The array, and what ``fill`` returned when the copy was made.

    Raises:
        UsageError: the folder cannot be written, or its disk is full; the hint names the ``cache=`` option.
    """
    content = stamp_of(folder, sources)
    stamp: JsonObject = {"schema": SCHEMA, "shape": list(shape), "sources": content}
    place = folder / FOLDER / _name(key, content)
    found = _held(place, stamp, shape)
    if found is None:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with files.claimed(place.with_name(f"{place.name}.making"), wait=True):
                found = _held(place, stamp, shape)  # from whoever was waited for
                if found is None:
                    _make(place, stamp, shape, fill)
                    found = _held(place, stamp, shape)
        except OSError as error:
            if error.errno not in UNWRITABLE:
                raise
            raise UsageError(
                f"no converted copy of the data can be written to {place.parent}",
                received=error,
                hint="Name a folder for it: add ?cache=FOLDER to the data set.",
            ) from None
    if found is None:
        raise UsageError(
            f"the converted copy {place} was removed as soon as it was made",
            hint="Begin again, or name a folder of its own for it: add ?cache=FOLDER to the data set.",
        )
    with contextlib.suppress(OSError):  # a copy that others made and this user may only read
        os.utime(place / RECORD)
    return found


def _name(key: str, content: str) -> str:
    """Several data sets in one folder, and one before and after a change, have copies beside each other."""
    return f"{key}-{content[:16]}"


def _make(
    place: Path, stamp: JsonObject, shape: tuple[int, ...], fill: Callable[[np.ndarray], list[int] | None]
) -> None:
    """Write a converted copy, which appears whole or not at all, and remove what takes its room."""
    files.remove_left(place.parent)
    with files.new_folder(place, replace=True) as temporary:
        array = np.lib.format.open_memmap(temporary / IMAGES, mode="w+", dtype=np.uint8, shape=shape)
        _reserve(temporary / IMAGES)
        rows = fill(array)
        array.flush()
        del array
        if rows is not None:
            with open(temporary / "rows.npy", "wb") as stream:
                np.save(stream, np.array(rows, dtype=np.int64))
                stream.flush()
                files.sync(stream.fileno())
        files.write_json(temporary / RECORD, stamp)
    _make_room(place)


def _reserve(path: Path) -> None:
    """Take the room of a whole file on the disk: a map that is written where none is left ends the process
    by a bus error.

    Raises:
        OSError: the disk is full.
    """
    with open(path, "r+b") as stream:
        try:
            os.posix_fallocate(stream.fileno(), 0, path.stat().st_size)
        except OSError as error:
            if error.errno in UNWRITABLE:
                raise


def remembered(
    folder: Path, key: str, sources: Sequence[Path], find: Callable[[], JsonObject | None]
) -> JsonObject | None:
    """What ``find`` returned for these sources, asked once; None is not kept, and asked for again.

    Where nothing can be written, ``find`` is called each time.
    """
    content = stamp_of(folder, sources)
    path = folder / FOLDER / f"{_name(key, content)}.json"
    stamp = {"schema": SCHEMA, "sources": content}
    with contextlib.suppress(InvalidInputError, OSError):
        held = files.read_json(path, what="cache record")
        if isinstance(held, dict) and held.get("stamp") == stamp:
            value: JsonObject = held["value"]
            return value
    found = find()
    if found is not None:
        with contextlib.suppress(OSError):
            files.write_json(path, {"stamp": stamp, "value": found})
    return found


def stamp_of(folder: Path, sources: Sequence[Path]) -> str:
    """Place, size and time of every file, and the head of the last one of each folder, as one hash.

    Two folders that swapped their names differ in the heads alone where all files have one size and time.
    Links are followed. Places in ``folder``, that of the cache, are relative to it, so that data which are
    moved with their copy keep it. A file that is not there has no size and no time.
    """
    digest = hashlib.sha256()
    root = folder.resolve()
    places: dict[str, str] = {}
    last: dict[str, str] = {}
    for path in map(os.fspath, sources):
        file = os.path.realpath(path) if os.path.islink(path) else path
        above, name = os.path.split(file)
        if above not in places:
            here = Path(above).resolve()
            places[above] = str(here.relative_to(root) if here.is_relative_to(root) else here)
        size: int | str = ""
        time: int | str = ""
        with contextlib.suppress(OSError):  # who reads it says that it is missing
            facts = os.stat(file)
            size, time = facts.st_size, facts.st_mtime_ns
            last[above] = file
        digest.update(f"{places[above]}/{name}\0{size}\0{time}\0".encode(errors="surrogateescape"))
    for file in last.values():
        with contextlib.suppress(OSError), open(file, "rb") as stream:
            digest.update(stream.read(HEAD_BYTES))
    return digest.hexdigest()


def _make_room(kept: Path) -> None:
    """Remove other copies beside this one, the longest unused first, until all take at most MOST_BYTES.

    Those that a process of this machine has mapped stay: its workers map them, too. On another machine a
    process goes on with the pages that it has.
    """
    used: dict[Path, float] = {}
    sizes: dict[Path, int] = {}
    for record in kept.parent.glob(f"*/{RECORD}"):
        with contextlib.suppress(OSError):  # another process removes it just now
            sizes[record.parent] = sum(item.stat().st_size for item in record.parent.iterdir())
            used[record.parent] = record.stat().st_mtime
    total = sum(sizes[place] for place in used)
    for place in sorted(set(used) - {kept}, key=used.__getitem__):
        if total <= MOST_BYTES:
            break
        with maps.unmapped(place / IMAGES) as free, contextlib.suppress(OSError):
            if free:
                (place / RECORD).unlink(missing_ok=True)
                shutil.rmtree(place, ignore_errors=True)
                total -= sizes[place]


def _held(
    place: Path, stamp: JsonObject, shape: tuple[int, ...]
) -> tuple[np.ndarray, list[int] | None] | None:
    """A valid copy, mapped, and its numbers; None where there is none.

    The record is removed first, so what was read and locked before it is whole, and stays.
    """
    try:
        kept = place / "rows.npy"
        rows = np.load(kept, allow_pickle=False).tolist() if kept.exists() else None
        state = maps.state((place / IMAGES).stat())
        images: np.memmap = np.load(place / IMAGES, mmap_mode="c", allow_pickle=False)
        maps.remember(images, place / IMAGES, state)
        maps.hold(images, place / IMAGES)
        if files.read_json(place / RECORD, what="cache record") != stamp:
            return None
    except (InvalidInputError, OSError, ValueError, EOFError):  # the last of an empty file, after a power cut
        return None
    if images.shape != shape or images.dtype != np.uint8:
        return None
    return images, rows

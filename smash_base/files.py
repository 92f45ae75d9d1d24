"""Files appear whole or not at all.

The one implementation of atomic writes, hashing, strict JSON and append-only JSON lines. A write goes
to a temporary name in the same folder, is flushed to the disk, and takes its final name by
``os.replace``; a kill at any moment leaves the old file or the new one.

Network shares and FAT refuse to flush, to lock or to set modes. What they cannot do is left out there: the
write stays whole, only its durability and the exclusion of a second writer are then theirs to give. A full or
failing disk is an error as ever.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from smash_base.errors import InvalidInputError, UsageError
from smash_base.json_values import JsonObject

MAX_JSON_BYTES = 16 * 2**20
MAX_JSON_DEPTH = 32
TEMPORARY_PREFIX = ".partial-"
LOCK = ".lock"  # in a folder that is held by :func:`exclusive`
FULL_BYTES = 2**20  # a disk with less than this is full
LEFT_SECONDS = 24 * 3600  # since something was written, after which whoever made a folder was killed
_NOT_OFFERED = {  # what a file system answers that has no such operation, and none that means lost data
    errno.EINVAL,
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
    errno.ENOSYS,
    errno.ENOTTY,
    errno.ENOLCK,
    errno.EPERM,
    errno.EACCES,
    errno.EROFS,
    errno.EBADF,  # CIFS, of folders
}


def write_bytes(path: Path | str, data: bytes) -> None:
    """Write ``data`` to ``path`` atomically and durably."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=TEMPORARY_PREFIX, dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            set_mode(stream.fileno(), 0o644)
            stream.write(data)
            stream.flush()
            sync(stream.fileno())
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise
    _sync_folder(path.parent)


def write_text(path: Path | str, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path | str, value: Any) -> None:
    """Write JSON atomically, as :func:`json_text` has it."""
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """The JSON of a file: two-space indentation, keys in the given order, no NaN."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


@contextlib.contextmanager
def new_folder(path: Path | str, *, replace: bool = False, mark: str | None = None) -> Iterator[Path]:
    """Fill a temporary folder that takes the name ``path`` when the block ends without an error.

    Args:
        path: its name.
        replace, mark: see :func:`refuse_existing`.

    Raises:
        UsageError: ``path`` exists and is not to be replaced, or another process is making it.
    """
    path = Path(path)
    refuse_existing(path, replace=replace, mark=mark)
    path.parent.mkdir(parents=True, exist_ok=True)
    with claimed(path):
        temporary = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX, dir=path.parent))
        try:
            set_mode(temporary, 0o755)
            yield temporary
            refuse_existing(path, replace=replace, mark=mark)
            _give_name(temporary, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    _sync_folder(path.parent)


def remove_left(folder: Path) -> None:
    """Remove the temporary folders in ``folder`` in which nothing was written for a day: whoever filled them
    was killed. They may hold gigabytes.
    """
    for place in folder.glob(f"{TEMPORARY_PREFIX}*/"):
        with contextlib.suppress(OSError):  # another process removes it just now
            written = max(item.stat().st_mtime for item in (place, *place.rglob("*")))
            if time.time() - written > LEFT_SECONDS:
                shutil.rmtree(place, ignore_errors=True)


def refuse_existing(path: Path, *, replace: bool, mark: str | None = None) -> None:
    """Raise UsageError where ``path`` would take the place of something that nobody gave up.

    Args:
        path: name of the folder that is to be made.
        replace: whether an earlier one is replaced.
        mark: file that every folder of this kind holds; one without it, which may be somebody's pictures, is
            replaced only while it is empty.
    """
    if not os.path.lexists(path):
        return
    own = mark is None or (path.is_dir() and ((path / mark).exists() or not any(path.iterdir())))
    if not replace:
        either = ", or pass --force to replace it" if own else ""
        raise UsageError(f"{path} exists already", hint=f"Choose another name{either}.")
    if not own:
        raise UsageError(
            f"{path} is not replaced, not even with --force",
            expected=f"a folder that holds {mark}, or an empty one",
            received="another folder" if path.is_dir() else "a file",
            hint="Choose another name, or remove it yourself.",
        )


def _give_name(temporary: Path, path: Path) -> None:
    """Two renames where a folder is replaced, which no single step can do: the old one is kept until the
    new one has its name, so that a kill in between loses neither."""
    if path.exists():
        old = temporary.with_name(temporary.name + ".old")
        os.rename(path, old)
        os.rename(temporary, path)
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.rename(temporary, path)


@contextlib.contextmanager
def claimed(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold the name of something that is being made, by a lock file beside it that goes with the process.

    The file is removed at the end; whoever opened it meanwhile holds a file without a name and starts over.

    Args:
        path: its name.
        wait: until no other process holds it.

    Raises:
        UsageError: another process holds it, without ``wait``.
    """
    name = path.with_name(f"{TEMPORARY_PREFIX}{path.name}.lock")
    while True:
        stream = open(name, "a+")  # noqa: SIM115 - closed below, and kept open while the folder is made
        if not lock(stream.fileno(), wait=wait):
            stream.close()
            raise UsageError(
                f"{path} is being made by another process",
                hint="Wait for it, or give this one another name.",
            )
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(stream.fileno()), os.stat(name)):
                break
        stream.close()
    try:
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        stream.close()


def sync(handle: int) -> None:
    """Flush a file to the disk, where the file system can.

    Raises:
        OSError: the disk is full or fails.
    """
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NOT_OFFERED:
            raise


def set_mode(path: Path | str | int, mode: int) -> None:
    """Set the permissions of a file or folder, where the file system has any."""
    with contextlib.suppress(OSError):
        os.chmod(path, mode)


def lock(handle: int, *, shared: bool = False, wait: bool = False) -> bool:
    """Take the lock of an open file; it ends when the file is closed.

    Args:
        handle: the file's descriptor.
        shared: beside other shared ones.
        wait: until it is free.

    Returns:
        False when another process holds it; True also where the file system has no locks.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(handle, kind if wait else kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NOT_OFFERED:
            raise
    return True


def copy(source: Path, destination: Path) -> None:
    """Copy a file or a whole folder; contents only, as not every file system has modes and owners."""
    if not source.is_dir():
        shutil.copyfile(source, destination)
        return
    destination.mkdir(parents=True)
    for item in sorted(source.iterdir()):
        copy(item, destination / item.name)


@contextlib.contextmanager
def temporary_folder(prefix: str = "smash-export-") -> Iterator[Path]:
    """A folder that is removed at the end. What fails in it while its disk is full is told as that: native
    libraries stop writing in the middle, say nothing, and what reads their files finds them damaged.

    Raises:
        OSError: the disk is full.
    """
    with tempfile.TemporaryDirectory(prefix=prefix) as name:
        try:
            yield Path(name)
        except Exception as error:
            if shutil.disk_usage(name).free < FULL_BYTES:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), tempfile.gettempdir()) from error
            raise


def user_cache(name: str) -> Path:
    """A folder for what may be made again, ``$XDG_CACHE_HOME/smash-export/NAME``, or in ``~/.cache``.

    Raises:
        RuntimeError: the user has no home.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME") or "")
    if not base.is_absolute():  # as its specification asks
        base = Path.home() / ".cache"
    return base / "smash-export" / name


def sha256(path: Path | str) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_json(path: Path | str, *, what: str = "JSON file") -> Any:
    """Read a JSON file that may come from anywhere.

    Raises:
        InvalidInputError: missing, larger than 16 MiB, not UTF-8, not JSON, nested deeper than 32,
            a repeated key, or NaN and infinities (which JSON does not have).
    """
    return parse_json(read_text(path, what=what), what=f"{what} {path}")


def read_text(path: Path | str, *, what: str = "JSON file") -> str:
    """The text of a JSON file under the limits of :func:`read_json`, not parsed."""
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise InvalidInputError(
                f"{what} {path} is too large",
                expected=f"at most {MAX_JSON_BYTES} bytes",
                received=size,
            )
        return path.read_bytes().decode()
    except FileNotFoundError:
        raise InvalidInputError(f"{what} {path} does not exist") from None
    except IsADirectoryError:
        raise InvalidInputError(f"{path} is a folder", expected=f"a file: {what}") from None
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"{what} {path} is not UTF-8 text", received=error) from None


def parse_json(text: str, *, what: str = "JSON") -> Any:
    """Parse JSON under the limits of :func:`read_json`."""
    try:
        value = json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_no_constant)
        deepest = _depth(value)
    except RecursionError:
        deepest = MAX_JSON_DEPTH + 1
    except _JsonRuleError as error:
        raise InvalidInputError(f"{what} {error}") from None
    except (json.JSONDecodeError, ValueError) as error:
        raise InvalidInputError(f"{what} is not valid JSON", received=error) from None
    if deepest > MAX_JSON_DEPTH:
        raise InvalidInputError(
            f"{what} is nested too deeply",
            expected=f"at most {MAX_JSON_DEPTH}",
            received=f"more than {MAX_JSON_DEPTH}",
        )
    return value


def _depth(value: Any) -> int:
    """How many lists and objects lie in each other; looks no deeper than it has to."""
    level, depth = [value], 0
    while depth <= MAX_JSON_DEPTH:
        level = [item for item in level if isinstance(item, dict | list)]
        if not level:
            return depth
        level = [child for item in level for child in (item.values() if isinstance(item, dict) else item)]
        depth += 1
    return depth


class _JsonRuleError(Exception):
    pass


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise _JsonRuleError(f"has the key {repeated[:60]!r} twice")
    return result


def _no_constant(name: str) -> Any:
    raise _JsonRuleError(f"holds {name}, which is not a JSON number")


def append_jsonl(path: Path | str, record: JsonObject) -> None:
    """Append one record as one line with a single write, flushed to the disk.

    A torn line that a kill left at the end of the file is closed first, so it spoils itself only.
    """
    line = json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    with open(path, "ab+") as stream:
        lock(stream.fileno(), wait=True)
        end = stream.seek(0, os.SEEK_END)
        if end:
            stream.seek(end - 1)
            if stream.read(1) != b"\n":
                line = b"\n" + line
        stream.write(line)
        stream.flush()
        sync(stream.fileno())


def read_jsonl(path: Path | str) -> list[dict[str, Any]]:
    """The whole records of a JSON-lines file; a torn line is left out; a missing file is empty."""
    path = Path(path)
    if not path.exists():
        return []
    records = []
    for line in path.read_bytes().split(b"\n"):
        with contextlib.suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict):
                records.append(record)
    return records


@contextlib.contextmanager
def exclusive(folder: Path | str, *, purpose: str) -> Iterator[None]:
    """Hold a folder for one process; the lock ends with the process, however it ends.

    Raises:
        UsageError: another process holds the folder, or a file has its name.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise UsageError(
            f"{folder} is a file", expected="a folder", hint=f"Give this {purpose} another folder."
        ) from None
    with open(folder / LOCK, "a+") as stream:
        if not lock(stream.fileno()):
            stream.seek(0)
            holder = stream.read().strip() or "another process"
            raise UsageError(
                f"{folder} is in use by {holder}",
                hint=f"Wait for it, stop it, or give this {purpose} another folder.",
            )
        stream.truncate(0)
        stream.write(f"process {os.getpid()}")
        stream.flush()
        try:
            yield
        finally:
            stream.truncate(0)


def _sync_folder(folder: Path) -> None:
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # a folder that may be written but not read; its files are on the disk
        return
    try:
        sync(handle)
    finally:
        os.close(handle)

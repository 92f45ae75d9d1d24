"""Files appear whole or not at all.

The one implementation of atomic writes, hashing, strict JSON and append-only JSON lines. A write goes
to a temporary name in the same folder, is flushed to the disk, and takes its final name by
``os.replace``; a kill at any moment leaves the old file or the new one.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from smash_base.errors import InvalidInputError, UsageError

MAX_JSON_BYTES = 16 * 2**20
MAX_JSON_DEPTH = 32
TEMPORARY_PREFIX = ".partial-"


def write_bytes(path: Path | str, data: bytes) -> None:
    """Write ``data`` to ``path`` atomically and durably."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=TEMPORARY_PREFIX, dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            os.fchmod(stream.fileno(), 0o644)
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
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
    """Write JSON atomically: two-space indentation, keys in the given order, no NaN."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextlib.contextmanager
def new_folder(path: Path | str, *, replace: bool = False) -> Iterator[Path]:
    """Fill a temporary folder that takes the name ``path`` when the block ends without an error.

    Raises:
        UsageError: ``path`` exists and ``replace`` is false.
    """
    path = Path(path)
    if path.exists() and not replace:
        raise UsageError(f"{path} exists already", hint="Choose another name, or pass --force to replace it.")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX, dir=path.parent))
    try:
        temporary.chmod(0o755)
        yield temporary
        if path.exists():
            # Two renames: a folder cannot be replaced in one step. The old one is kept until the new
            # one has its name, so that a kill in between loses neither.
            old = temporary.with_name(temporary.name + ".old")
            os.rename(path, old)
            os.rename(temporary, path)
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.rename(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _sync_folder(path.parent)


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
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise InvalidInputError(
                f"{what} {path} is too large",
                expected=f"at most {MAX_JSON_BYTES} bytes",
                received=size,
            )
        text = path.read_bytes().decode()
    except FileNotFoundError:
        raise InvalidInputError(f"{what} {path} does not exist") from None
    except IsADirectoryError:
        raise InvalidInputError(f"{path} is a folder", expected=f"a {what}") from None
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"{what} {path} is not UTF-8 text", received=error) from None
    return parse_json(text, what=f"{what} {path}")


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


def append_jsonl(path: Path | str, record: dict[str, Any]) -> None:
    """Append one record as one line with a single write, flushed to the disk.

    A torn line that a kill left at the end of the file is closed first, so it spoils itself only.
    """
    line = json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    with open(path, "ab+") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        end = stream.seek(0, os.SEEK_END)
        if end:
            stream.seek(end - 1)
            if stream.read(1) != b"\n":
                line = b"\n" + line
        stream.write(line)
        stream.flush()
        os.fsync(stream.fileno())


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
        UsageError: another process holds the folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a+") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            holder = stream.read().strip() or "another process"
            raise UsageError(
                f"{folder} is in use by {holder}",
                hint=f"Wait for it, stop it, or give this {purpose} another folder.",
            ) from None
        stream.truncate(0)
        stream.write(f"process {os.getpid()}")
        stream.flush()
        try:
            yield
        finally:
            stream.truncate(0)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

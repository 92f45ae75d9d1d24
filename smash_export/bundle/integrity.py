"""Whether the files of a bundle are what its manifest says, while writers may be at work.

Every file of the manifest is compared by size and SHA-256; one that is missing, changed or linked refuses
the whole bundle. Files that the manifest does not name are never read: file managers, network shares and
volumes put their own into every folder (.DS_Store, Thumbs.db, .nfs0000, lost+found). ``verify`` names them
(:func:`unlisted`). Names that begin with ``.partial-`` and folders that end with ``.rejected`` under
``targets/<target>/`` are work in progress and evidence.

Not a defence against somebody who rewrites the manifest too: sign the manifest for that
(:mod:`smash_export.bundle.signature`).
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from smash_base import files
from smash_base.errors import InvalidInputError
from smash_base.json_values import JsonObject
from smash_export.bundle import manifest as layout
from smash_export.bundle.manifest import FileEntry, Manifest

LOCK_PATIENCE_S = 60.0
REJECTED = ".rejected"
LOCK = ".lock"  # of smash_base.files.exclusive
SIGNATURE_SUFFIXES = (".sig", ".sigstore", ".sigstore.json")
_MANY = 1000


class _ChangedError(Exception):
    """A check failed; wraps the error so that a concurrent writer can be told from damage."""

    def __init__(self, error: InvalidInputError) -> None:
        super().__init__(str(error))
        self.error = error


def read_checked(path: Path) -> Manifest:
    """Read the manifest and check the files; start over when a writer was at work meanwhile."""
    deadline = time.monotonic() + LOCK_PATIENCE_S
    while True:
        manifest = layout.read_manifest(path / layout.NAME)
        try:
            _check_files(path, manifest)
        except _ChangedError as failure:
            again = layout.read_manifest(path / layout.NAME)
            writer_at_work = manifest.pending is not None and _is_locked(path)
            if (again == manifest and not writer_at_work) or time.monotonic() > deadline:
                raise failure.error from None
            time.sleep(0.01)
            continue
        if manifest.pending is None:
            return manifest
        if _is_locked(path) and time.monotonic() < deadline:
            time.sleep(0.01)
            continue
        return settled(path, manifest)


def settled(path: Path, manifest: Manifest) -> Manifest:
    """What a manifest with a pending entry amounts to: the new folder, the old one, or neither."""
    pending = manifest.pending
    assert pending is not None
    others = tuple(item for item in manifest.compiled if item.folder != pending.folder)
    candidates = [pending, *(item for item in manifest.compiled if item.folder == pending.folder)]
    kept = next((item for item in candidates if _holds(path / item.folder, item.files)), None)
    compiled = others if kept is None else (*others, kept)
    return manifest.model_copy(update={"pending": None, "compiled": compiled})


def _holds(folder: Path, table: Mapping[str, FileEntry]) -> bool:
    try:
        for name, entry in table.items():
            _check_file(folder / name, name, entry)
    except _ChangedError:
        return False
    return True


def _check_files(path: Path, manifest: Manifest) -> None:
    """Compare every file that the manifest names with what it says."""
    for name, entry in _listed(manifest).items():
        _refuse_links(path, name)
        _check_file(path / name, name, entry)


def _listed(manifest: Manifest) -> dict[str, FileEntry]:
    """Files of the bundle by relative name, without those of a folder that is about to change."""
    listed: dict[str, FileEntry] = dict(manifest.files)
    pending = None if manifest.pending is None else manifest.pending.folder
    for item in manifest.compiled:
        if item.folder != pending:
            listed.update({f"{item.folder}/{name}": entry for name, entry in item.files.items()})
    return listed


def unlisted(path: Path, manifest: Manifest) -> list[str]:
    """Names in the bundle that its manifest does not list, sorted, at most a thousand of them; folders that
    may not be read and links end with a word about it."""
    listed = _listed(manifest)
    own = {layout.NAME, LOCK, *(f"{layout.NAME}{suffix}" for suffix in SIGNATURE_SUFFIXES)}
    names: list[str] = []
    todo = [""]
    while todo and len(names) < _MANY:
        prefix = todo.pop()
        try:
            entries = sorted(os.scandir(path / prefix), key=lambda entry: entry.name)
        except OSError:
            names.append(f"{prefix} (may not be read)")
            continue
        for entry in entries:
            name = prefix + entry.name
            if name in listed or name in own or _is_temporary(prefix, entry.name):
                continue
            if entry.is_symlink():
                names.append(f"{name} (a link)")
            elif not entry.is_dir(follow_symlinks=False):
                names.append(name)
            elif not (_in_targets(prefix) and name.endswith(REJECTED)):
                todo.append(name + "/")
    return sorted(names)


def _in_targets(prefix: str) -> bool:
    return prefix.startswith("targets/") and prefix.count("/") == 2  # targets/<target>/


def _is_temporary(prefix: str, name: str) -> bool:
    return name.startswith(files.TEMPORARY_PREFIX) and (not prefix or _in_targets(prefix))


def _refuse_links(root: Path, name: str) -> None:
    """Raise _ChangedError if the file or a folder on the way to it is a link."""
    place = root
    for part in name.split("/"):
        place = place / part
        if place.is_symlink():
            raise _ChangedError(
                InvalidInputError(
                    f"bundle {root} holds a link",
                    expected="files only",
                    received=str(place.relative_to(root)),
                    hint="Replace links by what they point to: cp -rL BUNDLE COPY",
                )
            )


def _walk(root: Path) -> Iterator[str]:
    """Relative names of all files of a folder that is to join a bundle.

    Raises:
        _ChangedError: a link; or far too many files.
    """
    pending, count = [""], 0
    while pending:
        prefix = pending.pop()
        with contextlib.suppress(FileNotFoundError), os.scandir(root / prefix) as entries:
            for entry in entries:
                name = prefix + entry.name
                if _is_temporary(prefix, entry.name):
                    continue
                count += 1
                if count > 4 * layout.MAX_FILES:
                    raise _ChangedError(InvalidInputError(f"bundle {root} holds too many files"))
                _refuse_links(root, name)
                if entry.is_dir(follow_symlinks=False):
                    pending.append(name + "/")
                else:
                    yield name


def _check_file(path: Path, name: str, entry: FileEntry) -> None:
    hint = "The file was changed or damaged. Copy the bundle again, or make it again."
    try:
        state = path.lstat()
        if not stat.S_ISREG(state.st_mode):
            raise _ChangedError(InvalidInputError(f"{path} is not a regular file"))
        if state.st_size != entry.size:
            raise _ChangedError(
                InvalidInputError(
                    f"{path} has another size than the manifest says",
                    expected=f"{entry.size} bytes",
                    received=state.st_size,
                    hint=hint,
                )
            )
        received = files.sha256(path)
    except (FileNotFoundError, NotADirectoryError):
        raise _ChangedError(
            InvalidInputError(
                f"the bundle is incomplete: {path} is missing",
                expected=name,
                received="no such file",
                hint="Copy the bundle again, or make it again with smash-export freeze.",
            )
        ) from None
    except PermissionError as error:
        raise InvalidInputError(f"{path} may not be read", received=error) from None
    if received != entry.sha256:
        raise _ChangedError(
            InvalidInputError(
                f"{path} has another SHA-256 than the manifest says",
                expected=entry.sha256,
                received=received,
                hint=hint,
            )
        )


def _is_locked(path: Path) -> bool:
    """Whether a writer holds the bundle (asked without writing, so read-only bundles can be read)."""
    try:
        with open(path / LOCK, "rb") as stream:
            return not files.lock(stream.fileno(), shared=True)
    except OSError:
        return False


def file_table(folder: Path) -> dict[str, JsonObject]:
    """Relative name -> size and SHA-256 of every file in a folder; raises InvalidInputError for links."""
    try:
        names = sorted(_walk(folder))
        return {name: file_entry(folder / name).model_dump() for name in names}
    except _ChangedError as failure:
        raise failure.error from None


def file_entry(path: Path) -> FileEntry:
    """Size and SHA-256 of one file."""
    return FileEntry(size=path.stat().st_size, sha256=files.sha256(path))

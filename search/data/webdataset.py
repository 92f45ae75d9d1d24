"""WebDataset: tar archives whose neighbours of one name are a sample, ``0001.jpg`` and ``0001.cls``.

The label is a number or a class name in ``.cls`` (or ``.txt``, ``.label``), or a key of ``.json``, which may
hold a list where classes do not exclude each other. Archives are read as streams, nothing is unpacked to the
disk; the names of numbered classes stand in ``classnames.txt`` beside them, if at all.
"""

from __future__ import annotations

import json
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from smash_base.errors import InvalidInputError
from smash_base.images import MAX_FILE_BYTES, SUFFIXES, LeftOut, shown
from smash_search.data import files, parts, several
from smash_search.data.dataset import Parts
from smash_search.data.shards import UNKNOWN, are_labelled, find_shards, numbered
from smash_search.data.spec import Spec

ARCHIVES = (".tar", ".tar.gz", ".tgz")
LABELS = ("cls", "label", "class", "target", "txt")
JSON_KEYS = ("label", "class", "cls", "target", "category")
NAMES = ("classnames.txt", "classes.txt", "labels.txt")
MAX_LABEL_BYTES = 2**20


def read(spec: Spec) -> Parts:
    """Read ``webdataset:PATH``, an archive or a folder of archives.

    Options: ``label``, the ending that holds the label, or a key of the JSON member; ``several``, what
        stands between the classes of a text (:mod:`smash_search.data.several`; a list in JSON needs no
        option), and ``none``, the word for no class; ``train``, ``validation`` and ``test``, beginnings of
        file names or folders; and those of :mod:`smash_search.data.files`.
    """
    spec.options_known("label", *several.OPTIONS, *parts.OPTIONS, *files.OPTIONS)
    path = spec.folder(hint="Give a .tar file, or the folder that holds them.")
    left_out = LeftOut()
    found = find_shards(spec, path, ARCHIVES, left_out)
    root = path if path.is_dir() else path.parent
    archives = {part: _Archives(tuple(shards)) for part, shards in found.items()}
    values = {part: archive.look(spec, left_out) for part, archive in archives.items()}
    values = {part: given for part, given in values.items() if given or part == "train"}
    archives = {part: archives[part] for part in values}
    labels = numbered(spec, values, _class_names(root))
    for part, archive in archives.items():
        archive.labels = labels.labels[part]
        archive.targets = labels.targets.get(part)
    return files.read_files(spec, archives, labels.classes, root, left_out)


@dataclass
class _Archives:
    """Samples of one part; see :class:`smash_search.data.files.EncodedImages`."""

    sources: Sequence[Path]
    labels: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    targets: np.ndarray | None = None
    _wanted: list[bool] = field(default_factory=list)  # of each sample; names may stand twice

    @property
    def selection(self) -> bytes:
        """The samples that have an image and a label."""
        return np.packbits(np.array(self._wanted, dtype=bool)).tobytes()

    def look(self, spec: Spec, left_out: LeftOut) -> list[object]:
        """Labels of the samples that have an image and a label, in order; the others are left out."""
        found: list[tuple[str, bool, object]] = []
        mark = several.mark_of(spec)
        for path in self.sources:
            for sample in _samples(path):
                label = sample.label(spec.options.get("label"), mark)
                found.append((f"{shown(path)}: {shown(sample.key)}", sample.image is not None, label))
        values: list[object] = []
        labelled = are_labelled(spec, [label for _, has_image, label in found if has_image])
        told = iter(labelled)
        for where, has_image, label in found:
            self._wanted.append(has_image and next(told))
            if not has_image:
                left_out.add("samples without an image", where)
            elif not self._wanted[-1]:
                left_out.add("samples without a label", where)
            else:
                values.append(label)
        return values

    def __iter__(self) -> Iterator[tuple[str, Path | bytes]]:
        wanted = iter(self._wanted)
        for path in self.sources:
            for sample in _samples(path):
                if next(wanted, False):
                    yield f"{shown(path)}: {shown(sample.key)}", sample.image or b""


@dataclass
class _Sample:
    """Members of one name: the image, and short ones by ending. Of several images it is the first whose
    ending has no further words: ``0.jpg`` and not ``0.depth.png``."""

    key: str
    image: bytes | None = None
    image_ending: str = ""
    texts: dict[str, bytes] = field(default_factory=dict)

    def label(self, wanted: str | None, mark: str | None) -> object:
        """A number, a name, a list of these, or None where there is none; ``mark`` parts a text."""
        for ending in (wanted,) if wanted else LABELS:
            if ending in self.texts:
                return _class(several.parted(self.texts[ending].decode("utf-8", "replace").strip(), mark))
        try:
            record = json.loads(self.texts["json"])
            found = next(record[key] for key in ((wanted,) if wanted else JSON_KEYS) if key in record)
        except (KeyError, StopIteration, ValueError, TypeError, RecursionError):
            return None
        if found in UNKNOWN:
            return None
        if isinstance(found, list):
            return found  # what it is a list of is checked with all others
        found = several.parted(found, mark) if isinstance(found, str) else found
        return found if isinstance(found, int | str | list) and not isinstance(found, bool) else None


def _class(value: object) -> object:
    """Texts as numbers where they are; None for an empty text."""
    if isinstance(value, list):
        return [_value(word) for word in value]
    return _value(str(value))


def _value(text: str) -> int | str | None:
    if text == "-1":  # no label, as in tables
        return None
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else text or None


def _samples(path: Path) -> Iterator[_Sample]:
    sample: _Sample | None = None
    _check_end(path)
    try:
        with tarfile.open(path, "r|*") as archive:
            for member in archive:
                folder, slash, base = member.name.rpartition("/")
                stem, dot, ending = base.partition(".")
                if not member.isfile() or not dot or not stem:
                    continue
                key = f"{folder}{slash}{stem}"
                if sample is None or sample.key != key:
                    if sample is not None:
                        yield sample
                    sample = _Sample(key)
                _add(sample, ending.lower(), member, archive)
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise InvalidInputError(
            f"{path} is damaged or no archive", expected="a whole .tar", received=error
        ) from None
    if sample is not None:
        yield sample


def _check_end(path: Path) -> None:
    """Raise InvalidInputError for a plain archive without its end, which tarfile reads as a shorter one."""
    if path.suffix != ".tar":
        return  # the end of a compressed one is checked by decompressing it
    with open(path, "rb") as stream:
        stream.seek(max(0, path.stat().st_size - tarfile.BLOCKSIZE))
        end = stream.read()
    if end != bytes(tarfile.BLOCKSIZE):
        raise InvalidInputError(
            f"{path} is truncated or no archive", expected="a whole .tar, two empty blocks last"
        )


def _add(sample: _Sample, ending: str, member: tarfile.TarInfo, archive: tarfile.TarFile) -> None:
    image = f".{ending}".endswith(SUFFIXES)
    if member.size > (MAX_FILE_BYTES if image else MAX_LABEL_BYTES):
        return
    if image and sample.image is not None and ("." in ending or "." not in sample.image_ending):
        return
    stream = archive.extractfile(member)
    content = stream.read() if stream else b""
    if image:
        sample.image, sample.image_ending = content, ending
    else:
        sample.texts[ending] = content


def _class_names(root: Path) -> tuple[str, ...] | None:
    for name in NAMES:
        if (root / name).is_file():
            lines = (root / name).read_text(encoding="utf-8-sig", errors="replace").splitlines()
            return tuple(line.strip() for line in lines if line.strip())
    return None

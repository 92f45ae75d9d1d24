"""CIFAR-10 and CIFAR-100, binary and Python version, as the archive or unpacked.

Format (https://www.cs.toronto.edu/~kriz/cifar.html): a record of the binary version is one label byte
(CIFAR-100: coarse, then fine) and 3,072 bytes, red, green and blue planes of 32x32. The Python version
is a pickled dictionary with the same bytes as an array [N, 3072]; see :mod:`smash_search.data.unpickle`.
"""

from __future__ import annotations

import io
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from smash_base.errors import InvalidInputError
from smash_search.data import unpickle
from smash_search.data.dataset import Parts, Split
from smash_search.data.spec import Spec

PIXELS = 3 * 32 * 32
MAX_FILE_BYTES = 2**28  # the largest real one, the training pickle of CIFAR-100, has 155 MB
CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
TEN = tuple(f"data_batch_{number}" for number in range(1, 6))


def read(spec: Spec) -> Parts:
    """Read ``cifar10:PATH`` or ``cifar100:PATH`` (option ``labels=fine|coarse``).

    PATH is the .tar.gz archive, the folder that it unpacks to, or the folder above that.
    """
    hundred = spec.name == "cifar100"
    spec.options_known(*(["labels"] if hundred else []))
    which = spec.choice("labels", ("fine", "coarse"), "fine")
    path = spec.folder(hint="Give the .tar.gz archive or the folder that it unpacks to.")
    train, test = (("train",), ("test",)) if hundred else (TEN, ("test_batch",))
    meta = "meta" if hundred else "batches.meta"
    stems = (*train, *test, meta)
    found = _archive(path, stems) if path.is_file() else _folder(path, stems, (*train, *test))
    binary = f"{test[0]}.bin" in found
    missing = [stem for stem in (*train, *test) if (f"{stem}.bin" if binary else stem) not in found]
    if missing:
        raise InvalidInputError(
            f"{path} is not {spec.name}",
            expected=", ".join(f"{stem}.bin" if binary else stem for stem in (*train, *test)),
            received=", ".join(sorted(found)) or "none of them",
        )
    if binary:
        column = (1 if which == "fine" else 0) if hundred else 0
        splits = [_binary(found, names, 2 if hundred else 1, column) for names in (train, test)]
    else:
        key = f"{which}_labels" if hundred else "labels"
        splits = [_pickled(found, names, key) for names in (train, test)]
    count = (100 if which == "fine" else 20) if hundred else 10
    return Parts(_classes(spec, found, meta, which, count), train=splits[0], test=splits[1])


def _folder(path: Path, stems: Sequence[str], deciding: Sequence[str]) -> dict[str, bytes]:
    """Content of the wanted files, from ``path`` or the folder in it with most of the files that decide.

    Lists of class names do not decide: CIFAR-10 and CIFAR-100 may lie side by side.
    """
    folders = (path, *sorted(item for item in path.iterdir() if item.is_dir()))
    images = [name for stem in deciding for name in (stem, f"{stem}.bin")]
    counts = [sum((folder / name).is_file() for name in images) for folder in folders]
    if not max(counts):
        return {}
    folder = folders[counts.index(max(counts))]
    found = {}
    for file in (folder / name for name in _wanted(stems) if (folder / name).is_file()):
        if file.stat().st_size > MAX_FILE_BYTES:
            raise InvalidInputError(f"{file} is too large", expected=f"at most {MAX_FILE_BYTES} bytes")
        found[file.name] = file.read_bytes()
    return found


def _archive(path: Path, stems: Sequence[str]) -> dict[str, bytes]:
    """Content of the wanted files of a tar archive; nothing is unpacked to the disk."""
    names, found = set(_wanted(stems)), {}
    try:
        with tarfile.open(path, "r|*") as archive:
            for member in archive:
                name = member.name.rpartition("/")[2]
                if name not in names or not member.isfile():
                    continue
                if member.size > MAX_FILE_BYTES:
                    raise InvalidInputError(
                        f"{path}: {member.name} is too large",
                        expected=f"at most {MAX_FILE_BYTES} bytes",
                        received=member.size,
                    )
                stream = archive.extractfile(member)
                found[name] = stream.read() if stream else b""
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise InvalidInputError(
            f"{path} is damaged or no archive", expected="a folder or a whole .tar.gz", received=error
        ) from None
    return found


def _wanted(stems: Sequence[str]) -> list[str]:
    texts = ("batches.meta.txt", "fine_label_names.txt", "coarse_label_names.txt")
    return [*(f"{stem}.bin" for stem in stems), *stems, *texts]


def _binary(found: dict[str, bytes], names: Sequence[str], label_bytes: int, column: int) -> Split:
    images, labels = [], []
    for name in names:
        data = found[f"{name}.bin"]
        record = label_bytes + PIXELS
        if not data or len(data) % record:
            raise InvalidInputError(
                f"{name}.bin is truncated or of another format",
                expected=f"a multiple of {record} bytes",
                received=len(data),
            )
        rows = np.frombuffer(data, dtype=np.uint8).reshape(-1, record)
        labels.append(rows[:, column])
        images.append(rows[:, label_bytes:])
    return _split(images, labels)


def _pickled(found: dict[str, bytes], names: Sequence[str], key: str) -> Split:
    images, labels = [], []
    for name in names:
        content = unpickle.load(io.BytesIO(found[name]), len(found[name]), name)
        data = content.get("data")
        if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape[1:] != (PIXELS,):
            raise InvalidInputError(
                f"{name}: 'data'",
                expected=f"uint8 [N, {PIXELS}]",
                received=f"{data.dtype} {data.shape}" if isinstance(data, np.ndarray) else type(data),
            )
        if key not in content:
            raise InvalidInputError(f"{name}", expected=f"the key {key!r}", received=", ".join(content))
        values = unpickle.labels_of(content[key], name)
        if len(values) != len(data):
            raise InvalidInputError(f"{name}: number of labels", expected=len(data), received=len(values))
        images.append(data)
        labels.append(values)
    return _split(images, labels)


def _split(images: list[np.ndarray], labels: list[np.ndarray]) -> Split:
    planes = np.concatenate(images).reshape(-1, 3, 32, 32)
    return Split(np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), np.concatenate(labels).astype(np.int64))


def _classes(spec: Spec, found: dict[str, bytes], meta: str, which: str, count: int) -> tuple[str, ...]:
    """Names from the archive's own list, or the published ones (CIFAR-10), or numbers."""
    text = found.get(f"{which}_label_names.txt" if spec.name == "cifar100" else "batches.meta.txt")
    if text is not None:
        names: list[str] = [line.strip() for line in text.decode("latin1").splitlines() if line.strip()]
    elif meta in found:
        content = unpickle.load(io.BytesIO(found[meta]), len(found[meta]), meta)
        values = content.get(f"{which}_label_names" if spec.name == "cifar100" else "label_names", [])
        names = [str(value) for value in values]
    else:
        return CIFAR10_CLASSES if spec.name == "cifar10" else tuple(str(label) for label in range(count))
    if len(names) != count:
        raise InvalidInputError(
            f"list of class names of {spec.text}", expected=f"{count} names", received=len(names)
        )
    return tuple(names)

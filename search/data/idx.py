"""IDX files, the format of MNIST, Fashion-MNIST, KMNIST and EMNIST; plain or gzip-compressed.

Format (http://yann.lecun.com/exdb/mnist): two zero bytes, a type byte (8 = unsigned byte), the number
of axes, each axis as a big-endian 32-bit number, then the values. The sizes in the header are compared
with the file before anything is allocated, and a gzip stream is never inflated beyond them.
"""

from __future__ import annotations

import glob
import gzip
import io
import math
import re
import struct
import zlib
from pathlib import Path

import numpy as np

from smash_base.errors import InvalidInputError
from smash_search.data.dataset import Parts, Split
from smash_search.data.spec import Spec

FASHION_MNIST = "/usr/share/datasets/fashion-mnist"  # Debian's package dataset-fashion-mnist
FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
EMNIST = re.compile(r"emnist-(byclass|bymerge|balanced|letters|digits|mnist)-")
_MERGED = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabdefghnqrt"
EMNIST_CHARACTERS = {  # by label; of "letters" see _emnist_names
    "byclass": "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz",
    "bymerge": _MERGED,
    "balanced": _MERGED,
    "digits": "0123456789",
    "mnist": "0123456789",
}
MAX_BYTES = 2**32
UNSIGNED_BYTE = 8


def read(spec: Spec) -> Parts:
    """Read a folder with the four files ``[*]train-images-idx3-ubyte[.gz]`` and so on, or one above it.

    ``mnist`` and ``fashion-mnist`` have ten classes; with ``idx`` the classes are the labels that occur.
    Options: ``set=letters`` where several sets lie in one folder, ``transpose=yes|no`` (default: yes for
    EMNIST, whose images lie on their side).
    """
    spec.options_known("set", "transpose")
    if spec.name == "fashion-mnist":
        folder = spec.folder(
            FASHION_MNIST,
            hint="On Debian and Ubuntu: apt install dataset-fashion-mnist; else fashion-mnist:FOLDER.",
        )
    else:
        folder = spec.folder(hint="Give the folder of the four *-ubyte or *-ubyte.gz files.")
    if not folder.is_dir():
        raise InvalidInputError(f"data path {folder}", expected="a folder of IDX files", received="a file")
    folder = _folder_with_files(folder)
    prefix = _set(spec, folder)
    train = _split(folder, prefix, "train")
    test = _split(folder, prefix, "t10k" if _find(folder, prefix, "t10k", "images") else "test")
    emnist = EMNIST.fullmatch(prefix)
    notes: tuple[str, ...] = ()
    if spec.flag("transpose", emnist is not None):
        train, test = (Split(split.images.swapaxes(1, 2).copy(), split.labels) for split in (train, test))
        notes = ("images of these files lie on their side and were transposed (?transpose=no leaves them)",)
    if spec.name == "fashion-mnist":
        return Parts(FASHION_CLASSES, train=train, test=test, notes=notes)
    if spec.name == "mnist":
        return Parts(tuple("0123456789"), train=train, test=test, notes=notes)
    present = np.unique(train.labels)
    names = _emnist_names(emnist[1]) if emnist else {}
    classes = tuple(names.get(label, str(label)) for label in present.tolist())
    train, test = (_numbered(spec, split, present) for split in (train, test))
    return Parts(classes, train=train, test=test, notes=notes)


def _folder_with_files(folder: Path) -> Path:
    """``folder``, or the only folder below it with IDX files: torchvision writes NAME/raw."""
    patterns = ("*-ubyte", "*-ubyte.gz")
    if any(any(folder.glob(pattern)) for pattern in patterns):
        return folder
    below = sorted({path.parent for pattern in patterns for path in folder.rglob(pattern)})
    if len(below) > 1:
        raise InvalidInputError(
            f"{folder} has several folders of IDX files",
            expected="one of them",
            received=", ".join(map(str, below)),
        )
    return below[0] if below else folder


def _set(spec: Spec, folder: Path) -> str:
    """What the names of the wanted files begin with, such as "emnist-letters-".

    Raises:
        InvalidInputError: several sets, and no option says which.
    """
    images = _find(folder, "", "train", "images")
    prefixes = sorted({path.name.partition("train-images")[0] for path in images})
    names = {_set_name(prefix): prefix for prefix in prefixes}
    wanted = spec.options.get("set")
    if wanted is not None:
        if wanted not in names:
            raise InvalidInputError(
                f"{folder} has no set {wanted!r}", expected=", ".join(names), received=wanted
            )
        return names[wanted]
    if len(prefixes) > 1:
        raise InvalidInputError(
            f"{folder} holds {len(prefixes)} sets of images",
            expected="the option set",
            received=", ".join(names),
            hint=f"For example {spec.name}:{spec.path}?set={next(iter(names))}",
        )
    return prefixes[0] if prefixes else ""


def _set_name(prefix: str) -> str:
    return prefix.strip("-_.").removeprefix("emnist-") or "unnamed"


def _emnist_names(name: str) -> dict[int, str]:
    """Class names of a set of EMNIST by label; the numbers of letters begin with 1."""
    if name == "letters":
        return {number: chr(96 + number) for number in range(1, 27)}
    return dict(enumerate(EMNIST_CHARACTERS.get(name, "")))


def _numbered(spec: Spec, split: Split, present: np.ndarray) -> Split:
    """Labels as positions in ``present``, the sorted labels of the training images."""
    places = np.searchsorted(present, split.labels)
    known = present[np.minimum(places, len(present) - 1)] == split.labels
    if not known.all():
        raise InvalidInputError(
            f"test images of {spec.text} have labels that training has not",
            expected=", ".join(map(str, present[:20])),
            received=", ".join(map(str, np.unique(split.labels[~known])[:20])),
        )
    return Split(split.images, places.astype(np.int64))


def _split(folder: Path, prefix: str, part: str) -> Split:
    paths = {}
    for kind in ("images", "labels"):
        found = _find(folder, prefix, part, kind)
        if len(found) != 1:
            raise InvalidInputError(
                f"IDX folder {folder}",
                expected=f"one file {prefix or '*'}{part}-{kind}-idx*-ubyte, plain or .gz",
                received=", ".join(path.name for path in found) or "none",
            )
        paths[kind] = found[0]
    images, labels = read_idx(paths["images"], axes=(3, 4)), read_idx(paths["labels"], axes=(1,))
    if len(images) != len(labels):
        raise InvalidInputError(
            f"{paths['labels']}: number of labels",
            expected=f"{len(images)} as in {paths['images'].name}",
            received=len(labels),
        )
    if not len(labels):
        raise InvalidInputError(f"{paths['labels']}: number of labels", expected="at least 1", received=0)
    return Split(images if images.ndim == 4 else images[..., None], labels.astype(np.int64))


def _find(folder: Path, prefix: str, part: str, kind: str) -> list[Path]:
    """Files of one part and kind, of any set without a prefix; of a file and its own .gz only the file."""
    start = f"{glob.escape(prefix) or '*'}{part}-{kind}"
    found = _files(folder, f"{start}[-.]idx*-ubyte")
    plain = {path.name for path in found}
    packed = _files(folder, f"{start}[-.]idx*-ubyte.gz")
    return sorted(found + [path for path in packed if path.name[:-3] not in plain])


def _files(folder: Path, pattern: str) -> list[Path]:
    """Files by a pattern; one that lies in a folder of its own name, as archives of Kaggle have it, too."""
    found = [path / path.name if path.is_dir() else path for path in folder.glob(pattern)]
    return [path for path in found if path.is_file()]


def read_idx(path: Path, *, axes: tuple[int, ...]) -> np.ndarray:
    """One IDX file of unsigned bytes -> uint8 array of the shape in its header.

    Args:
        axes: the numbers of axes that are acceptable.

    Raises:
        InvalidInputError: not IDX, another type or number of axes, truncated, or longer than it says.
    """
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as stream:
            return _parse(path, stream, axes)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InvalidInputError(
            f"{path} is damaged or truncated", expected="a whole gzip file", received=error
        ) from None
    except OSError as error:
        raise InvalidInputError(f"{path} cannot be read", received=error) from None


def _parse(path: Path, stream: io.BufferedIOBase, axes: tuple[int, ...]) -> np.ndarray:
    magic = stream.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0":
        raise InvalidInputError(
            f"{path} is not an IDX file", expected="00 00 08 and the number of axes", received=magic.hex(" ")
        )
    if magic[2] != UNSIGNED_BYTE:
        raise InvalidInputError(
            f"{path}: type of the values", expected="8 (unsigned byte)", received=magic[2]
        )
    if magic[3] not in axes:
        raise InvalidInputError(
            f"{path}: number of axes", expected=" or ".join(map(str, axes)), received=magic[3]
        )
    header = stream.read(4 * magic[3])
    if len(header) < 4 * magic[3]:
        raise InvalidInputError(f"{path} is truncated", expected="a whole header", received=len(header) + 4)
    shape = struct.unpack(f">{magic[3]}I", header)
    size = math.prod(shape)
    if size > MAX_BYTES:
        raise InvalidInputError(f"{path} is too large", expected=f"at most {MAX_BYTES} bytes", received=size)
    values = np.empty(size, dtype=np.uint8)
    filled = 0
    while filled < size and (count := stream.readinto(values[filled:].data)):
        filled += count
    if filled < size or stream.read(1):
        raise InvalidInputError(
            f"{path} does not hold what its header says",
            expected=f"{size} bytes for shape {shape}",
            received=filled if filled < size else "more",
        )
    return values.reshape(shape)

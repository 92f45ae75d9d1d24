"""IDX files, the format of MNIST, Fashion-MNIST, KMNIST and EMNIST; plain or gzip-compressed.

Format (http://yann.lecun.com/exdb/mnist): two zero bytes, a type byte (8 = unsigned byte), the number
of axes, each axis as a big-endian 32-bit number, then the values. The sizes in the header are compared
with the file before anything is allocated, and a gzip stream is never inflated beyond them.
"""

from __future__ import annotations

import gzip
import io
import math
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
MAX_BYTES = 2**32
UNSIGNED_BYTE = 8


def read(spec: Spec) -> Parts:
    """Read a folder with the four files ``[*]train-images-idx3-ubyte[.gz]`` and so on.

    ``mnist`` and ``fashion-mnist`` have ten classes; with ``idx`` the classes are 0 to the largest label.
    """
    spec.options_known()
    if spec.name == "fashion-mnist":
        folder = spec.folder(
            FASHION_MNIST,
            hint="On Debian and Ubuntu: apt install dataset-fashion-mnist; else fashion-mnist:FOLDER.",
        )
    else:
        folder = spec.folder(hint="Give the folder of the four *-ubyte or *-ubyte.gz files.")
    if not folder.is_dir():
        raise InvalidInputError(f"data path {folder}", expected="a folder of IDX files", received="a file")
    train = _split(folder, "train")
    test = _split(folder, "t10k" if _find(folder, "t10k", "images") else "test")
    classes: tuple[str, ...]
    if spec.name == "fashion-mnist":
        classes = FASHION_CLASSES
    else:
        count = 10 if spec.name == "mnist" else int(train.labels.max(initial=0)) + 1
        classes = tuple(str(label) for label in range(count))
    return Parts(classes, train=train, test=test)


def _split(folder: Path, part: str) -> Split:
    paths = {}
    for kind in ("images", "labels"):
        found = _find(folder, part, kind)
        if len(found) != 1:
            raise InvalidInputError(
                f"IDX folder {folder}",
                expected=f"one file *{part}-{kind}-idx*-ubyte, plain or .gz",
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
    return Split(images if images.ndim == 4 else images[..., None], labels.astype(np.int64))


def _find(folder: Path, part: str, kind: str) -> list[Path]:
    """Files of one part and kind; of a plain file and its own .gz only the plain one."""
    found = [path for mark in "-." for path in folder.glob(f"*{part}-{kind}{mark}idx*-ubyte")]
    plain = {path.name for path in found}
    packed = [path for mark in "-." for path in folder.glob(f"*{part}-{kind}{mark}idx*-ubyte.gz")]
    return sorted(found + [path for path in packed if path.name[:-3] not in plain])


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

"""STL-10, the binary version: 96x96 colour images with the ten training folds of its protocol.

Format (https://cs.stanford.edu/~acoates/stl10): images are 3x96x96 bytes, planes in column-major order;
labels are bytes 1 to 10; ``fold_indices.txt`` holds ten lines of 1,000 zero-based indices.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from smash_base.errors import InvalidInputError
from smash_search.data.dataset import Parts, Split
from smash_search.data.spec import Spec

SIDE = 96
BYTES = 3 * SIDE * SIDE
FOLDS = 10
CLASSES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")


def read(spec: Spec) -> Parts:
    """Read ``stl10:FOLDER`` (option ``fold=0..9``: the 1,000 training images of one fold).

    The unlabelled images are not used.
    """
    spec.options_known("fold")
    fold = spec.integer("fold", 0, FOLDS - 1)
    folder = spec.folder(hint="Give the folder with train_X.bin, train_y.bin, test_X.bin and test_y.bin.")
    if not (folder / "train_X.bin").exists() and (folder / "stl10_binary").is_dir():
        folder = folder / "stl10_binary"
    train, test = _split(folder, "train"), _split(folder, "test")
    if fold is not None:
        chosen = _fold(folder / "fold_indices.txt", fold, len(train))
        train = Split(train.images[chosen], train.labels[chosen])
    return Parts(_classes(folder / "class_names.txt"), train=train, test=test)


def _split(folder: Path, part: str) -> Split:
    data, labels = _bytes(folder / f"{part}_X.bin"), _bytes(folder / f"{part}_y.bin")
    if not len(data) or len(data) % BYTES:
        raise InvalidInputError(
            f"{folder / part}_X.bin is truncated or of another format",
            expected=f"a multiple of {BYTES} bytes",
            received=len(data),
        )
    count = len(data) // BYTES
    if len(labels) != count:
        raise InvalidInputError(f"{folder / part}_y.bin", expected=f"{count} labels", received=len(labels))
    if labels.min() < 1 or labels.max() > len(CLASSES):
        raise InvalidInputError(
            f"{folder / part}_y.bin: labels", expected="1 to 10", received=f"{labels.min()} to {labels.max()}"
        )
    images = data.reshape(count, 3, SIDE, SIDE).transpose(0, 3, 2, 1)  # [N, C, W, H] -> [N, H, W, C]
    return Split(np.ascontiguousarray(images), labels.astype(np.int64) - 1)


def _bytes(path: Path) -> np.ndarray:
    if not path.is_file():
        raise InvalidInputError(f"{path} does not exist", expected="a file of the STL-10 binary archive")
    return np.fromfile(path, dtype=np.uint8)


def _fold(path: Path, fold: int, count: int) -> np.ndarray:
    try:
        lines = path.read_text(encoding="ascii").splitlines()
        chosen = np.array(lines[fold].split(), dtype=np.int64)
    except (OSError, ValueError, IndexError) as error:
        raise InvalidInputError(
            f"{path}: line {fold + 1}", expected="indices of training images", received=error
        ) from None
    if (
        not len(chosen)
        or chosen.min() < 0
        or chosen.max() >= count
        or len(set(chosen.tolist())) != len(chosen)
    ):
        raise InvalidInputError(
            f"{path}: line {fold + 1}",
            expected=f"different indices 0 to {count - 1}",
            received=f"{len(chosen)} indices" + (f" up to {chosen.max()}" if len(chosen) else ""),
        )
    return chosen


def _classes(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        return CLASSES
    names = tuple(path.read_text(encoding="utf-8", errors="replace").split())
    if len(names) != len(CLASSES):
        raise InvalidInputError(f"{path}", expected=f"{len(CLASSES)} names", received=len(names))
    return names

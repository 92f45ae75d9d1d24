"""ImageNet32x32 (Chrabaszcz et al. 2017): 1,281,167 images of 1,000 classes, npz or batch files.

Format (https://image-net.org/download-images, "downsampled"): ``train_data_batch_1`` to ``_10`` and
``val_data``, pickled dictionaries or ``.npz`` of the same keys: ``data`` uint8 [N, 3072] in planes,
``labels`` 1 to 1000. One batch is read at a time into a converted, memory-mapped copy
(:mod:`smash_search.data.cache`), because the whole is 4 GB. The published validation images are the test
split here; validation is taken from the training images.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from smash_base.errors import InvalidInputError
from smash_search.data import arrays, cache, unpickle
from smash_search.data.dataset import Parts, Split
from smash_search.data.spec import Spec

SIDE = 32
PIXELS = 3 * SIDE * SIDE


def read(spec: Spec) -> Parts:
    """Read ``imagenet32:FOLDER`` (options ``classes=1000``, ``cache=FOLDER``)."""
    spec.options_known("classes", "cache")
    classes = spec.integer("classes", 2, 100_000, default=1000) or 1000
    folder = spec.folder(hint="Give the folder with train_data_batch_1 ... and val_data.")
    if not folder.is_dir():
        raise InvalidInputError(f"data path {folder}", expected="a folder of batch files", received="a file")
    place = Path(spec.options.get("cache", folder)).expanduser()
    train = _files(folder, r"train_data(_batch_\d+)?(\.npz)?")
    test = _files(folder, r"val_data(\.npz)?")
    names = tuple(str(label) for label in range(1, classes + 1))
    return Parts(
        names,
        train=_convert(place, "imagenet32-train", train, classes),
        test=_convert(place, "imagenet32-val", test, classes),
    )


def _files(folder: Path, pattern: str) -> list[Path]:
    found = [path for path in folder.iterdir() if path.is_file() and re.fullmatch(pattern, path.name)]
    stems = [path.name.removesuffix(".npz") for path in found]
    if not found or len(set(stems)) != len(stems):
        raise InvalidInputError(
            f"{folder}",
            expected="files train_data_batch_1 ... and val_data, either pickled or .npz",
            received=", ".join(sorted(path.name for path in found)) or "none of them",
        )
    return sorted(found, key=lambda path: int("0" + "".join(re.findall(r"_(\d+)", path.name))))


def _convert(place: Path, key: str, sources: list[Path], classes: int) -> Split:
    """Labels first (small, and they give the number of images), then the pixels, batch by batch."""
    if all(path.suffix == ".npz" for path in sources):
        labels: list[object] = [arrays.read_member(path, "labels") for path in sources]
    else:
        labels = [labels for _, labels in map(_batch, sources)]
    checked = [_labels(path, values, classes) for path, values in zip(sources, labels, strict=True)]
    shape = (sum(map(len, checked)), SIDE, SIDE, 3)

    def fill(target: np.ndarray) -> None:
        start = 0
        for pixels in _pixels(sources, checked):
            target[start : start + len(pixels)] = pixels.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
            start += len(pixels)

    return Split(cache.mapped(place, key, sources, shape, fill)[0], np.concatenate(checked))


def _batch(path: Path) -> tuple[object, object]:
    """``data`` and ``labels`` of one file."""
    if path.suffix == ".npz":
        return arrays.read_member(path, "data"), arrays.read_member(path, "labels")
    content = unpickle.load_file(path)
    for key in ("data", "labels"):
        if key not in content:
            raise InvalidInputError(f"{path}", expected=f"the key {key!r}", received=", ".join(content))
    return content["data"], content["labels"]


def _pixels(sources: list[Path], labels: list[np.ndarray]) -> Iterator[np.ndarray]:
    for path, known in zip(sources, labels, strict=True):
        data, _ = _batch(path)
        if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape != (len(known), PIXELS):
            raise InvalidInputError(
                f"{path}: 'data'",
                expected=f"uint8 [{len(known)}, {PIXELS}]",
                received=f"{data.dtype} {data.shape}" if isinstance(data, np.ndarray) else type(data),
            )
        yield data


def _labels(path: Path, values: object, classes: int) -> np.ndarray:
    labels = unpickle.labels_of(values, str(path))
    if not len(labels) or labels.min() < 1 or labels.max() > classes:
        raise InvalidInputError(
            f"{path}: labels",
            expected=f"1 to {classes}",
            received=f"{labels.min()} to {labels.max()}" if len(labels) else "none",
        )
    return labels - 1

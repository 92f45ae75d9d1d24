"""Image folders: ``PATH/CLASS/*.png``, or ``PATH/train/CLASS``, ``PATH/val/CLASS`` and ``PATH/test/CLASS``.

Every file goes through :meth:`Preprocessing.decode`, the same function that prediction uses, so that a
network never sees an image in training that it would not see in use.
"""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from smash_base.errors import InvalidInputError, UsageError
from smash_base.preprocess import Preprocessing, open_image
from smash_search.data import cache
from smash_search.data.dataset import Parts, Split
from smash_search.data.spec import Spec

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
PARTS = {"train": ("train",), "validation": ("validation", "valid", "val"), "test": ("test",)}
MAPPED_ABOVE = 2**29  # bytes of pixels above which a converted copy is mapped instead of held in memory
THREADS = 4


def read(spec: Spec) -> Parts:
    """Read ``folder:PATH``.

    Options: ``size=32`` or ``size=HEIGHTxWIDTH`` (needed when the images are of different sizes),
    ``channels=1|3`` (default: 1 if every image is grey), ``resize=bilinear|bicubic|nearest|box``,
    ``cache=FOLDER`` for the converted copy of large data.
    """
    spec.options_known("size", "channels", "resize", "cache")
    root = spec.folder(hint="Give the folder that holds one folder per class.")
    if not root.is_dir():
        raise InvalidInputError(f"data path {root}", expected="a folder of class folders", received="a file")
    places = {
        part: next((root / name for name in names if (root / name).is_dir()), None)
        for part, names in PARTS.items()
    }
    if places["train"] is None:
        places = {"train": root, "validation": None, "test": None}
    classes = _folders(places["train"] or root)
    listed = {part: _list(place, classes) for part, place in places.items() if place is not None}
    preprocessing = _target(spec, [path for files, _ in listed.values() for path in files])
    place = Path(spec.options.get("cache", root)).expanduser()
    splits = {
        part: Split(_pixels(files, preprocessing, place, part), np.array(labels, dtype=np.int64))
        for part, (files, labels) in listed.items()
    }
    return Parts(
        classes,
        train=splits["train"],
        validation=splits.get("validation"),
        test=splits.get("test"),
        resize=preprocessing.resize,
    )


def _folders(place: Path) -> tuple[str, ...]:
    classes = tuple(
        sorted(item.name for item in place.iterdir() if item.is_dir() and not item.name.startswith("."))
    )
    if len(classes) < 2:
        raise InvalidInputError(
            f"{place} holds {len(classes)} class folders",
            expected="at least 2 folders, each named after its class",
            received=", ".join(classes) or "none",
        )
    return classes


def _list(place: Path, classes: tuple[str, ...]) -> tuple[list[Path], list[int]]:
    """All images below the class folders, sorted, with their labels."""
    unknown = [name for name in _folders(place) if name not in classes]
    if unknown:
        raise InvalidInputError(
            f"{place} has a class that training has not",
            expected=", ".join(classes),
            received=", ".join(unknown),
        )
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        if not (place / name).is_dir():
            continue
        found = sorted(
            path
            for path in (place / name).rglob("*")
            if path.suffix.lower() in SUFFIXES and path.is_file() and not path.name.startswith(".")
        )
        if not found:
            raise InvalidInputError(
                f"class folder {place / name} holds no image", expected=", ".join(SUFFIXES)
            )
        paths += found
        labels += [label] * len(found)
    return paths, labels


def _target(spec: Spec, paths: list[Path]) -> Preprocessing:
    """Size and channels that the images are decoded to; files are opened only where an option is missing."""
    size, channels = spec.options.get("size"), spec.integer("channels", 1, 3)
    if channels == 2:
        raise UsageError("option channels of an image folder", expected="1 or 3", received=2)
    resize = spec.choice("resize", ("bilinear", "bicubic", "nearest", "box"), "bilinear")
    if size is None or channels is None:
        known: dict[tuple[int, int], Path] = {}
        grey = True
        for path in paths:
            picture = open_image(path)
            known.setdefault(picture.size, path)
            grey = grey and picture.mode in ("1", "L", "LA")
            if size is None and len(known) > 1:
                (one, one_path), (two, two_path) = list(known.items())[:2]
                raise InvalidInputError(
                    f"images of different sizes, {one_path} and {two_path}",
                    expected=f"{one[0]}x{one[1]} pixels each, or the option size",
                    received=f"{two[0]}x{two[1]}",
                    hint=f"Name the size that all are scaled to, for example {spec.name}:{spec.path}?size=32",
                )
        channels = channels or (1 if grey else 3)
        width, height = next(iter(known))
    if size is not None:
        found = re.fullmatch(r"(\d{1,4})(?:x(\d{1,4}))?", size)
        if not found or not all(1 <= int(side) <= 4096 for side in found.groups() if side is not None):
            raise UsageError("option size of an image folder", expected="32 or 32x48", received=size)
        height, width = int(found[1]), int(found[2] or found[1])
    return Preprocessing(height, width, channels, (0.0,) * channels, (1.0,) * channels, resize)  # type: ignore[arg-type]


def _pixels(paths: list[Path], preprocessing: Preprocessing, place: Path, part: str) -> np.ndarray:
    shape = (len(paths), *preprocessing.sample_shape)

    def fill(target: np.ndarray) -> None:
        with ThreadPoolExecutor(THREADS) as pool:  # Pillow decodes without Python's lock
            for index, pixels in enumerate(pool.map(preprocessing.decode, paths)):
                target[index] = pixels

    if int(np.prod(shape, dtype=np.int64)) > MAPPED_ABOVE:
        sides = "x".join(map(str, preprocessing.sample_shape))
        return cache.mapped(place, f"{part}-{sides}-{preprocessing.resize}", paths, shape, fill)
    images = np.empty(shape, dtype=np.uint8)
    fill(images)
    return images

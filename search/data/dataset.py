"""What every reader returns and every user of data gets; checking, splitting and fingerprinting once for all.

A reader returns :class:`Parts`: what the files hold, unsplit where the files are. :func:`assemble`
checks it, makes the splits that the files do not have, computes the normalisation from the training
split alone, and fingerprints the result. No torch: training moves arrays to its device itself.

Glossary of shapes: N samples, D planes of a volume, H, W, C channels, K classes.
Images are uint8 [N, H, W, C], volumes uint8 [N, D, H, W, C]; labels int64 [N], 0 to K-1.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np

from smash_base.errors import InvalidInputError, UsageError
from smash_base.images import Omission
from smash_base.preprocess import LABEL_LENGTH, NO_CLASS, Preprocessing, is_label
from smash_search.data.several import NONE

CHUNK_BYTES = 2**24  # what one step of a pass over the images touches; keeps mapped arrays out of memory
COPY_LIMIT = 2**29  # a mapped array above this many bytes is split by slicing, never copied
SHARES = {"test": 0.2, "validation": 0.1}  # of a part that the data lack, each of what the one before left
MAX_CLASSES = 100_000


@dataclass(frozen=True)
class Split:
    """Images and their labels, in a fixed order.

    Attributes:
        images: uint8 [N, H, W, C] or [N, D, H, W, C]; may be a read-only memory map.
        labels: int64 [N].
        targets: uint8 [N, K], 1 where a class is there, for classes that do not exclude each other
            (:mod:`smash_search.data.several`); None where each image has one. The label of an image of no
            class is K.
    """

    images: np.ndarray
    labels: np.ndarray
    targets: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def of_no_class(self) -> np.ndarray:
        """Which images are of no class, bool [N]."""
        if self.targets is None:
            return np.zeros(len(self), bool)
        none: np.ndarray = self.targets.max(1) == 0
        return none

    def images_of_each(self, classes: int) -> np.ndarray:
        """Images of each class, int64 [K].

        Where an image may be of several classes it counts for each: one may be the rarest of no image.
        """
        if self.targets is None:
            return np.bincount(self.labels, minlength=classes)
        there: np.ndarray = self.targets.sum(0, dtype=np.int64)
        return there

    @classmethod
    def joined(cls, *splits: Split) -> Split:
        """Several splits of one data set as one, in their order; slices of a mapped array that follow one
        another are not copied.
        """
        targets = [split.targets for split in splits if split.targets is not None]
        return cls(
            _joined_images([split.images for split in splits]),
            np.concatenate([split.labels for split in splits]),
            np.concatenate(targets) if targets else None,
        )

    def take(self, rows: slice | np.ndarray) -> Split:
        """Some of the images, in the order of the rows; a slice copies nothing."""
        targets = None if self.targets is None else self.targets[rows]
        return Split(self.images[rows], np.ascontiguousarray(self.labels[rows], dtype=np.int64), targets)

    def some(self, count: int, random: np.random.Generator, views: int = 1) -> Split:
        """So many of the images by lot, in their order; ``views`` consecutive ones stay together."""
        objects = random.permutation(len(self) // views)[: max(1, count // views)]
        return self.take((np.sort(objects)[:, None] * views + np.arange(views)).reshape(-1))


def _joined_images(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Images of several arrays, as a view where they lie one after another in the same mapped file."""
    for before, after in pairwise(parts):
        is_next = (
            isinstance(before, np.memmap)
            and before.base is after.base
            and before.shape[1:] == after.shape[1:]
            and before.flags.c_contiguous
            and after.flags.c_contiguous
            and before.ctypes.data + before.nbytes == after.ctypes.data
        )
        if not is_next:
            return np.concatenate(parts)
    first, shape = parts[0], (sum(map(len, parts)), *parts[0].shape[1:])
    return np.lib.stride_tricks.as_strided(first, shape, first.strides, subok=True)


@dataclass(frozen=True)
class Parts:
    """What a reader found.

    Attributes:
        classes: label names in the order of the label numbers.
        train: all training images; they are divided when there is no ``validation`` or ``test``.
        validation, test: parts that came with the data, or None.
        views: consecutive samples that show the same object (rotations of a volume); a split never
            separates them.
        resize, exif, short_side: Treatment of images of another form, see :class:`Preprocessing`.
        left_out: what the reader did not use, by reason.
        notes: sentences on how the files were understood, for people.
    """

    classes: tuple[str, ...]
    train: Split
    validation: Split | None = None
    test: Split | None = None
    views: int = 1
    resize: Literal["bilinear", "bicubic", "nearest", "box"] = "bilinear"
    exif: bool = True
    short_side: int | None = None
    left_out: tuple[Omission, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Dataset:
    """Labelled images in three fixed splits, with the preprocessing that belongs to them.

    Attributes:
        name: the registered name, or ``package.module:function``.
        spec: what :func:`smash_search.data.load_dataset` was called with.
        classes: label names; index = label.
        preprocessing: size, channels, and mean and std of the training split.
        train, validation, test: disjoint splits; see :class:`Split`.
        fingerprint: SHA-256 (hexadecimal) over all images, labels, class names and split indices.
        seed: Random seed of the splits.
        views: consecutive samples that show the same object; average predictions over them.
        left_out, notes: see :class:`Parts`; :func:`smash_search.data.summarise` shows them.
    """

    name: str
    spec: str
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    train: Split
    validation: Split
    test: Split
    fingerprint: str
    seed: int
    views: int = 1
    left_out: tuple[Omission, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def several(self) -> bool:
        """Whether an image may be of several classes; every split then has targets."""
        return self.train.targets is not None

    @functools.cached_property
    def first_equal(self) -> np.ndarray:
        """:func:`first_equal` of the objects of training and, behind them, validation."""
        return first_equal(Split.joined(self.train, self.validation).images, self.views)

    @functools.cached_property
    def images_sha256(self) -> str:
        """SHA-256 over classes, images and labels, the same however they are divided and ordered.

        The sum of a digest per image: two seconds for a million small images.
        """
        total = 0
        for split in (self.train, self.validation, self.test):
            labels = split.labels.astype("<i8") if split.targets is None else split.targets
            for image, label in zip(split.images, labels, strict=True):
                digest = hashlib.sha256(np.ascontiguousarray(image).data)
                digest.update(label.tobytes())
                total += int.from_bytes(digest.digest(), "little")
        shape = np.shape(self.train.images)[1:]
        return hashlib.sha256(repr((self.classes, self.views, shape, total)).encode()).hexdigest()


def _check_share(spec: str, parts: Parts, validation: float | None) -> None:
    if validation is not None and not 0 < validation <= 0.5:
        raise UsageError(
            "share of validation images", expected="more than 0, at most 0.5", received=validation
        )
    if validation is not None and parts.validation is not None:
        raise UsageError(
            f"data set {spec} has its own validation images",
            expected="no share of validation images",
            received=validation,
        )


def _fingerprint(parts: Parts, indices: Sequence[np.ndarray | None], splits: Sequence[Split]) -> str:
    """SHA-256 of images, labels and how they were divided; None stands for a part that came with the data."""
    shape = np.shape(parts.train.images)[1:]
    digest = hashlib.sha256(repr((parts.classes, parts.views, shape)).encode())
    for index in indices:
        digest.update(b"as given" if index is None else np.ascontiguousarray(index, dtype="<i8").tobytes())
    for split in splits:
        digest.update(f"{len(split)}".encode())
        for chunk in chunks(split.images):
            digest.update(np.ascontiguousarray(chunk).data)
        digest.update(np.ascontiguousarray(split.labels, dtype="<i8").data)
        if split.targets is not None:
            digest.update(np.ascontiguousarray(split.targets).data)
    return digest.hexdigest()


def _divided(
    spec: str, parts: Parts, seed: int, validation: float | None
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Numbers of the images that stay for training, and those of each missing part."""
    objects = parts.train.take(slice(None, None, parts.views))
    labels = objects.labels
    shares = {part: share for part, share in SHARES.items() if getattr(parts, part) is None}
    if "validation" in shares and validation is not None:
        shares["validation"] = validation
    counts = objects.images_of_each(len(parts.classes))
    _check_enough(spec, counts, parts.classes, needed=1 + len(shares))
    if not (isinstance(parts.train.images, np.memmap) and parts.train.images.nbytes > COPY_LIMIT):
        return _copies_together(
            *stratified_parts(labels, shares, seed), labels, first_equal(parts.train.images, parts.views)
        )
    rest, indices = np.arange(len(labels)), dict[str, np.ndarray]()
    for part, share in shares.items():
        count = len(rest) - max(round(share * len(rest)), _tail_of_all(labels[rest], len(parts.classes)))
        rest, indices[part] = rest[:count], rest[count:]
        lacking = np.setdiff1d(labels, labels[indices[part]])
        _check_tail(spec, part, lacking[lacking < len(parts.classes)], parts.classes)
    return rest, indices


def digest_of(image: np.ndarray) -> bytes:
    """What tells an image from others, pixel by pixel."""
    return hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest()


def first_equal(images: np.ndarray, views: int = 1) -> np.ndarray:
    """Number of the first object that equals each, pixel by pixel: int64 [N / views]."""
    firsts: dict[bytes, int] = {}
    numbers = range(len(images) // views)
    found = (digest_of(images[number * views : (number + 1) * views]) for number in numbers)
    return np.fromiter((firsts.setdefault(digest, number) for number, digest in enumerate(found)), np.int64)


def _copies_together(
    rest: np.ndarray, parts: dict[str, np.ndarray], labels: np.ndarray, first: np.ndarray
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """What :func:`stratified_parts` found, with equal images where the first of them is: how a network
    answers for a copy of an image that it was trained on is memory, not skill.

    They stay for training where a class would have no image there.

    Args:
        rest, parts: Indices of what stays, and of each part.
        labels: int64 [N].
        first: see :func:`first_equal`.
    """
    if len(np.unique(first)) in (1, len(first)):  # 1: one picture, which others refuse in better words
        return rest, parts
    part_of = np.zeros(len(labels), np.int64)
    for number, index in enumerate(parts.values(), start=1):
        part_of[index] = number
    part_of = part_of[first]
    lacking = np.isin(labels, np.setdiff1d(labels, labels[part_of == 0]))
    part_of[np.isin(first, first[lacking])] = 0
    moved = {name: np.flatnonzero(part_of == number) for number, name in enumerate(parts, start=1)}
    return np.flatnonzero(part_of == 0), moved


def _tail_of_all(labels: np.ndarray, classes: int) -> int:
    """Number of the last images that hold one of every class; 1 where they are more than half, or all of one.
    Images of no class may be anywhere.

    Classes of a few images are in the last tenth by chance.
    """
    held, from_last = np.unique(labels[::-1], return_index=True)
    from_last = from_last[held < classes]
    tail = int(from_last.max()) + 1
    left = np.unique(labels[: len(labels) - tail])
    return tail if 2 * tail <= len(labels) and (left < classes).sum() == len(from_last) else 1


def assemble(
    parts: Parts, *, name: str, spec: str, seed: int, validation: float | None, whole: bool = False
) -> Dataset:
    """Check ``parts``, make the missing splits and fingerprint the result.

    Args:
        validation: share of the training images; None means the part that came with the data, or 10 %.
        whole: leave all images in ``train``; the other splits are empty.

    Raises:
        InvalidInputError: wrong shapes or types, labels out of range, a class without training image,
            or too few images of a class to have one in every split.
        UsageError: a share outside (0, 0.5], or one given although the data have a validation part.
    """
    _check_share(spec, parts, validation)
    _check_classes(spec, parts.classes)
    if parts.views < 1:
        raise InvalidInputError(f"data set {spec}: views", expected="at least 1", received=parts.views)
    shape = np.shape(parts.train.images)[1:]
    given = {"training": parts.train, "validation": parts.validation, "test": parts.test}
    for part, split in given.items():
        if split is not None:
            _check_split(f"{part} images of {spec}", split, shape, len(parts.classes), parts.views)
            _check_none(f"{part} images of {spec}", split, parts.classes)
    parts = _undivided(parts) if whole else parts
    _check_every_class(spec, parts)

    rest, indices = _divided(spec, parts, seed, validation)
    train = _take(parts.train, rest, parts.views)
    _check_every_class(spec, replace(parts, train=train))
    validation_split, test_split = (
        part if part is not None else _take(parts.train, indices[name_of], parts.views)
        for name_of, part in (("validation", parts.validation), ("test", parts.test))
    )
    splits = [train, validation_split, test_split]

    return Dataset(
        name=name,
        spec=spec,
        classes=parts.classes,
        preprocessing=_preprocessing(spec, train.images, parts),
        train=train,
        validation=validation_split,
        test=test_split,
        fingerprint=_fingerprint(parts, [rest, indices.get("validation"), indices.get("test")], splits),
        seed=seed,
        views=parts.views,
        left_out=parts.left_out,
        notes=parts.notes,
    )


def _undivided(parts: Parts) -> Parts:
    """The same with all images for training, and none in the other parts."""
    given = [part for part in (parts.train, parts.validation, parts.test) if part is not None]
    train = Split.joined(*given)
    return replace(parts, train=train, validation=train.take(slice(0)), test=train.take(slice(0)))


def stratified_parts(
    labels: np.ndarray, shares: Mapping[str, float], seed: int
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Sorted indices of the samples that stay, and of each part: a share of what the one before left."""
    rest, parts = np.arange(len(labels)), dict[str, np.ndarray]()
    for stream, (part, share) in enumerate(shares.items()):
        parts[part] = rest[stratified(labels[rest], share, np.random.default_rng([seed, stream]))]
        rest = np.setdiff1d(rest, parts[part], assume_unique=True)
    return rest, parts


def stratified(labels: np.ndarray, share: float, random: np.random.Generator) -> np.ndarray:
    """Sorted indices of about ``share`` of the samples, the same share of every class, at least one each and
    never all of them.

    Largest remainders decide where a class has no whole number, so that the total is exact to one.
    """
    present, counts = np.unique(labels, return_counts=True)
    wanted = counts * share
    take = np.maximum(1, np.floor(wanted).astype(np.int64))
    missing = round(share * len(labels)) - int(take.sum())
    for position in np.argsort(-(wanted - take), kind="stable")[: max(0, missing)]:
        take[position] += 1
    chosen = []
    for label, number, count in zip(present, take, counts, strict=True):
        members = np.flatnonzero(labels == label)
        chosen.append(random.permutation(members)[: min(number, count - 1)])
    return np.sort(np.concatenate(chosen))


def mean_and_std(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Per channel mean and standard deviation of values in [0, 1]; exact integer sums, one pass in chunks.

    A channel that is constant gets std 1, which leaves it at zero after normalisation.
    """
    channels = images.shape[-1]
    total = np.zeros(channels, dtype=np.int64)
    squares = np.zeros(channels, dtype=np.int64)
    count = 0
    for chunk in chunks(images):
        values = chunk.reshape(-1, channels)
        count += len(values)
        for channel in range(channels):
            column = values[:, channel]
            total[channel] += int(column.sum(dtype=np.int64))
            squares[channel] += int(np.square(column, dtype=np.uint16).sum(dtype=np.int64))
    mean = total / (255.0 * count)
    variance = squares / (255.0**2 * count) - mean**2
    std = [
        # Exact in Python's integers, where the variance in floating point may miss zero.
        1.0 if int(square) * count == int(first) ** 2 else float(np.sqrt(spread))
        for first, square, spread in zip(total, squares, variance, strict=True)
    ]
    return tuple(map(float, mean)), tuple(std)


def average_views(logits: np.ndarray, views: int) -> np.ndarray:
    """Average the predictions for the same object: float [N, K] -> [N / views, K].

    Averaged are probabilities' logarithms (logits), as Brock et al. 2016 do for rotated volumes.

    Raises:
        InvalidInputError: N is not a multiple of ``views``.
    """
    if views < 1 or logits.ndim != 2 or len(logits) % views:
        raise InvalidInputError(
            "predictions to average", expected=f"[a multiple of {views}, K]", received=logits.shape
        )
    mean: np.ndarray = logits.reshape(-1, views, logits.shape[1]).mean(axis=1)
    return mean


def _preprocessing(spec: str, images: np.ndarray, parts: Parts) -> Preprocessing:
    mean, std = mean_and_std(images)
    if all(value == 1.0 for value in std) and images.size:
        raise InvalidInputError(
            f"all training images of {spec} are the same plain colour", expected="images that differ"
        )
    *depth, height, width, channels = images.shape[1:]
    return Preprocessing(
        height=height,
        width=width,
        channels=channels,
        mean=mean,
        std=std,
        resize=parts.resize,
        depth=depth[0] if depth else None,
        exif=parts.exif,
        short_side=parts.short_side,
    )


def _check_classes(spec: str, classes: tuple[str, ...]) -> None:
    if not 2 <= len(classes) <= MAX_CLASSES:
        raise InvalidInputError(
            f"classes of {spec}", expected=f"2 to {MAX_CLASSES} classes", received=len(classes)
        )
    if len(set(classes)) != len(classes):
        repeated = next(name for name in classes if classes.count(name) > 1)
        raise InvalidInputError(f"classes of {spec}", expected="unique names", received=f"{repeated!r} twice")
    wrong = next((name for name in classes if not is_label(name)), None)
    if wrong is not None:  # said before hours of training: a manifest takes no such name
        raise InvalidInputError(
            f"a class name of {spec}",
            expected=f"1 to {LABEL_LENGTH} printable characters",
            received=repr(wrong),
            hint="Rename the class: line breaks, tabs and invisible characters break tables of answers.",
        )


def _check_split(where: str, split: Split, shape: tuple[int, ...], classes: int, views: int) -> None:
    images, labels = split.images, split.labels
    if images.dtype != np.uint8:
        raise InvalidInputError(f"{where}: type", expected="uint8", received=images.dtype)
    if images.ndim not in (4, 5) or 0 in images.shape[1:]:
        raise InvalidInputError(
            f"{where}: shape", expected="[N, height, width, channels]", received=images.shape
        )
    if images.shape[1:] != shape:
        raise InvalidInputError(
            f"{where}: shape of one image", expected=f"{shape} as in training", received=images.shape[1:]
        )
    if not len(images):
        raise InvalidInputError(f"{where}: number of images", expected="at least 1", received=0)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise InvalidInputError(
            f"{where}: labels", expected="integers [N]", received=f"{labels.dtype} {labels.shape}"
        )
    if len(labels) != len(images):
        raise InvalidInputError(f"{where}: number of labels", expected=len(images), received=len(labels))
    if split.targets is not None and np.shape(split.targets) != (len(images), classes):
        raise InvalidInputError(
            f"{where}: shape of the targets",
            expected=f"{(len(images), classes)}",
            received=np.shape(split.targets),
        )
    wrong = np.flatnonzero((labels < 0) | (labels >= classes + split.of_no_class))
    if len(wrong):
        raise InvalidInputError(
            f"{where}: label of image {wrong[0]}",
            expected=f"0 to {classes - 1}",
            received=labels[wrong[0]],
        )
    if len(images) % views:
        raise InvalidInputError(
            f"{where}: number of images", expected=f"a multiple of {views} views", received=len(images)
        )
    grouped = labels.reshape(-1, views)
    mixed = np.flatnonzero((grouped != grouped[:, :1]).any(axis=1))
    if len(mixed):
        raise InvalidInputError(
            f"{where}: labels of the {views} views of object {mixed[0]}",
            expected="one label",
            received=sorted(set(grouped[mixed[0]].tolist())),
        )


def _check_none(where: str, split: Split, classes: tuple[str, ...]) -> None:
    """Refuse a part that is of no class as a whole, and a class with the name that such images have."""
    none = split.of_no_class
    if not none.any():
        return
    if none.all():
        raise InvalidInputError(
            f"{where} are of no class",
            expected="some of a class, without which there are no figures of classes",
            received=f"{len(split)} images of none",
        )
    if NO_CLASS in classes:
        raise InvalidInputError(
            f"{where}: a class is called {NO_CLASS!r}, as images of none are",
            expected="another name, or that it stands for none",
            hint=f"If it does: {NONE}={NO_CLASS}",
        )


def _check_every_class(spec: str, parts: Parts) -> None:
    missing = np.flatnonzero(parts.train.images_of_each(len(parts.classes)) == 0)
    if len(missing):
        names = ", ".join(repr(parts.classes[label]) for label in missing[:5])
        raise InvalidInputError(
            f"{len(missing)} classes of {spec} have no training image",
            expected="at least one image of every class",
            received=names + (", ..." if len(missing) > 5 else ""),
            hint="Add images, or remove the class.",
        )


def _check_enough(spec: str, counts: np.ndarray, classes: tuple[str, ...], needed: int) -> None:
    if counts.min() < needed:
        scarce = int(counts.argmin())
        raise InvalidInputError(
            f"class {classes[scarce]!r} of {spec} has too few images to split",
            expected=f"at least {needed}, one for each of the splits that are made",
            received=int(counts[scarce]),
            hint="Add images, or give the data their own validation and test parts.",
        )


def _check_tail(spec: str, part: str, lacking: np.ndarray, classes: tuple[str, ...]) -> None:
    if len(lacking):
        raise InvalidInputError(
            f"the last images of {spec}, which become the {part} split, lack class {classes[lacking[0]]!r}",
            expected="images in random order, as mapped data this large are split without copying",
            hint=f"Shuffle the rows once, or give the data their own {part} part.",
        )


def _take(split: Split, objects: np.ndarray, views: int) -> Split:
    """The samples of ``objects`` (sorted); a slice where they are consecutive, else a copy."""
    if len(objects) == 0:
        raise InvalidInputError("a split of the data is empty", expected="more different images")
    first, last = int(objects[0]), int(objects[-1])
    if last - first + 1 == len(objects):
        rows: slice | np.ndarray = slice(first * views, (last + 1) * views)
    else:
        rows = (objects[:, None] * views + np.arange(views)).reshape(-1)
    return split.take(rows)


def chunks(images: np.ndarray) -> Iterator[np.ndarray]:
    """Images in parts that keep mapped arrays out of memory."""
    step = max(1, CHUNK_BYTES // max(1, int(np.prod(images.shape[1:]))))
    for start in range(0, len(images), step):
        yield images[start : start + step]

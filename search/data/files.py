"""Image files become arrays: what folders, tables and archives of images have in common.

Options: ``size=32`` or ``size=HEIGHTxWIDTH`` (needed when the images are of different sizes),
``short-side=36`` to resize the shorter side to that and cut the centre out, ``channels=1|3`` (default: 1 if
every image is grey), ``resize=bilinear|bicubic|nearest|box``, ``exif=no`` for images as they lie in their
files, ``skip-bad=yes`` to go on without files that cannot be read, ``cache=FOLDER`` for the decoded copy.

Many files, and large ones, are decoded once: their pixels are kept (:mod:`smash_search.data.cache`) where
the folder can be written, and read back as long as no file changes.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import re
import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from smash_base.errors import InvalidInputError, SmashError, UsageError
from smash_base.images import MAX_PIXELS, Header, LeftOut, pixel_limit, read_header, shown
from smash_base.json_values import JsonObject
from smash_base.preprocess import Preprocessing
from smash_search.data import cache
from smash_search.data.dataset import SHARES, Parts, Split, stratified_parts
from smash_search.data.spec import Spec, with_option

OPTIONS = ("size", "short-side", "channels", "resize", "exif", "skip-bad", "cache")
MAPPED_ABOVE = 2**29  # bytes of pixels above which a converted copy is mapped instead of held in memory
KEPT_FROM = 1000  # files whose pixels are kept; fewer small ones are decoded in a second
KEPT_BYTES = 2**24  # of files whose pixels are kept, however few; JPEGs of so many are decoded in a second
LARGEST_SIDE = 4096  # of an image
LARGE_SIDE = 512  # from which it is said that images could be scaled
DISTORTED = 1.2  # widest over narrowest image, as width over height, from which one size distorts some
MOST_NAMED = 50  # bad files in one message
THREADS = 4
AHEAD = 256  # images in memory, encoded
QUICK = 0.0005  # seconds of an image below which one thread is faster; PNGs of 96x96 take as long to decode
FEW = 4  # of those in memory, whose time tells
BAD = "files that cannot be read"
Item = TypeVar("Item")
Result = TypeVar("Result")


class EncodedImages(Protocol):
    """Image files of one part, wherever they lie.

    Attributes:
        labels: int64 [N].
        sources: files that they come from; a converted copy is made again when one of them changes.
        targets: see :class:`smash_search.data.dataset.Split`.
        selection: which images of the sources these are, as bytes that differ where they do; empty where
            each source is one image.
    """

    @property
    def labels(self) -> np.ndarray: ...

    @property
    def sources(self) -> Sequence[Path]: ...

    @property
    def targets(self) -> np.ndarray | None: ...

    @property
    def selection(self) -> bytes: ...

    def __iter__(self) -> Iterator[tuple[str, Path | bytes]]:
        """Name and file, or its content, of each image in the order of the labels."""


@dataclass(frozen=True)
class Listed:
    """Image files by their paths; see :class:`EncodedImages`."""

    sources: Sequence[Path]
    labels: np.ndarray
    targets: np.ndarray | None = None
    selection: bytes = b""

    def __iter__(self) -> Iterator[tuple[str, Path | bytes]]:
        return ((shown(path), path) for path in self.sources)


def read_files(
    spec: Spec, parts: Mapping[str, EncodedImages], classes: tuple[str, ...], root: Path, left_out: LeftOut
) -> Parts:
    """Decode every image of every part.

    Args:
        spec: whose options are those of this module.
        parts: "train" is needed, "validation" and "test" are not.
        root: where the converted copy of large data is kept unless ``cache`` says otherwise.

    Raises:
        InvalidInputError: images of different sizes without ``size``; images that cannot be read, all in one
            message, without ``skip-bad=yes``.
    """
    bad = Bad(spec)
    place = Path(spec.options.get("cache", root)).expanduser()
    preprocessing, notes = _form(spec, parts, place, bad)
    splits = {}
    missing = [part for part in SHARES if part not in parts]
    for name, images in parts.items():
        pixels, kept = _pixels(images, preprocessing, place, name, bad, missing if name == "train" else ())
        targets = None if images.targets is None else images.targets[kept]
        splits[name] = Split(pixels, images.labels[kept], targets)
    bad.settle(left_out, sum(len(images.labels) for images in parts.values()))
    return Parts(
        classes,
        train=splits["train"],
        validation=splits.get("validation"),
        test=splits.get("test"),
        resize=preprocessing.resize,
        exif=preprocessing.exif,
        short_side=preprocessing.short_side,
        left_out=left_out.omissions(),
        notes=notes,
    )


def _form(
    spec: Spec, parts: Mapping[str, EncodedImages], place: Path, bad: Bad
) -> tuple[Preprocessing, tuple[str, ...]]:
    """What images are decoded to, and a sentence on their sizes; of many files it is found once."""

    found: JsonObject = {}

    def look() -> JsonObject | None:
        headers = _headers(spec, parts.values(), bad)
        form = target_of(spec, headers)
        found["size"], found["channels"] = f"{form.height}x{form.width}", str(form.channels)
        found["notes"] = list(_sizes(headers, form))
        return None if len(bad) else found  # bad files are looked at again, so that they are named again

    if not _takes_long(*parts.values()):
        look()
    else:
        options = [spec.options.get(name) for name in ("size", "channels", "exif", "short-side")]
        asked = repr((options, [images.selection for images in parts.values()]))
        key = f"form-{hashlib.sha256(asked.encode()).hexdigest()[:16]}"
        sources = [path for images in parts.values() for path in images.sources]
        found = cache.remembered(place, key, sources, look) or found
    decided = {**spec.options, "size": str(found["size"]), "channels": str(found["channels"])}
    notes = found["notes"]
    assert isinstance(notes, list)
    return target_of(replace(spec, options=decided), []), tuple(map(str, notes))


def _takes_long(*parts: EncodedImages) -> bool:
    """Whether images take so long to decode that their pixels are worth keeping."""
    if sum(len(images.labels) for images in parts) >= KEPT_FROM:
        return True
    total = 0
    for path in {path for images in parts for path in images.sources}:
        with contextlib.suppress(OSError):  # whoever reads it says so
            total += path.stat().st_size
    return total >= KEPT_BYTES


class Bad:
    """Images that cannot be used: collected, so that one message names them all."""

    def __init__(self, spec: Spec) -> None:
        self.skip = spec.flag("skip-bad", False)
        self._spec = spec
        self._errors: dict[str, SmashError] = {}

    def add(self, name: str, error: SmashError) -> None:
        """One more, under the name that it is known by."""
        self._errors.setdefault(name, error)

    def __len__(self) -> int:
        return len(self._errors)

    def settle(self, left_out: LeftOut, total: int) -> None:
        """Leave them out, or refuse.

        Raises:
            InvalidInputError: there are some and ``skip-bad`` is not given, or all are bad.
        """
        for name in self._errors:
            left_out.add(BAD, name)
        if self._errors and (not self.skip or len(self._errors) == total):
            reasons = [_briefly(*item) for item in list(self._errors.items())[:MOST_NAMED]]
            more = len(self._errors) - len(reasons)
            without = shlex.quote(with_option(self._spec.text, "skip-bad", "yes"))
            raise InvalidInputError(
                f"{len(self._errors)} of {total} images of {self._spec.text} cannot be used: "
                + "; ".join([*reasons, *([f"and {more} more"] if more else [])]),
                hint=None if self.skip else f"Go on without them: --data {without}",
            )


def _briefly(name: str, error: SmashError) -> str:
    text = error.what if name in error.what else f"{name}: {error.what}"
    return text if error.received is None else f"{text} ({error.received})"


def in_threads(work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Results in order, at most ``AHEAD`` items in memory.

    Pillow decodes without Python's lock, but opens files with it. So small images are decoded in this thread:
    several would wait for each other (0.41 ms in place of 0.24 for a PNG of 32x32, by four threads on two
    cores).
    """
    waiting = iter(items)
    with ThreadPoolExecutor(THREADS) as pool:
        while chunk := list(itertools.islice(waiting, AHEAD)):
            times: list[float] = []
            for item in chunk[:FEW]:
                begin = time.perf_counter()
                result = work(item)
                times.append(time.perf_counter() - begin)
                yield result
            is_quick = min(times) < QUICK
            yield from map(work, chunk[FEW:]) if is_quick else pool.map(work, chunk[FEW:])


def _headers(spec: Spec, parts: Iterable[EncodedImages], bad: Bad) -> list[tuple[str, Header]]:
    """Size and kind of every image that has a readable head."""
    exif = spec.flag("exif", True)

    def head(item: tuple[str, Path | bytes]) -> tuple[str, Header | SmashError]:
        try:
            return item[0], read_header(item[1], exif=exif, is_file=True)
        except InvalidInputError as error:
            return item[0], error

    headers = []
    for name, header in in_threads(head, itertools.chain.from_iterable(parts)):
        if isinstance(header, SmashError):
            bad.add(name, header)
        else:
            headers.append((name, header))
    return headers


def target_of(spec: Spec, headers: Sequence[tuple[str, Header]]) -> Preprocessing:
    """What the images are decoded to: the options, and for those that are missing the images themselves.

    Args:
        headers: name and header of every image; none are looked at where ``size`` and ``channels`` are given.

    Raises:
        UsageError: an option that is none.
        InvalidInputError: images of different sizes without the option ``size``.
    """
    size, channels = spec.options.get("size"), spec.integer("channels", 1, 3)
    if channels == 2:
        raise UsageError("option channels of images", expected="1 or 3", received=2)
    resize = spec.choice("resize", ("bilinear", "bicubic", "nearest", "box"), "bilinear")
    exif = spec.flag("exif", True)
    if channels is None:
        channels = 1 if headers and all(header.grey for _, header in headers) else 3
    height, width = _sides(size) if size is not None else _one_size(spec, headers)
    plain = (0.0,) * channels, (1.0,) * channels
    short = spec.integer("short-side", 1, 4096)
    return Preprocessing(
        height,
        width,
        channels,
        *plain,
        resize,  # type: ignore[arg-type]
        short_side=short,
        exif=exif,
    )


def _sides(size: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,4})(?:x(\d{1,4}))?", size)
    if not found or not all(1 <= int(side) <= LARGEST_SIDE for side in found.groups() if side is not None):
        raise UsageError("option size of images", expected="32 or 32x48", received=size)
    return int(found[1]), int(found[2] or found[1])


def _one_size(spec: Spec, headers: Sequence[tuple[str, Header]]) -> tuple[int, int]:
    """Height and width that all images have."""
    first: dict[tuple[int, int], str] = {}
    for name, header in headers:
        first.setdefault((header.width, header.height), name)
    if len(first) > 1:
        (one, one_name), (two, two_name) = list(first.items())[:2]
        raise InvalidInputError(
            f"images of different sizes, {one_name} and {two_name}",
            expected=f"{one[0]}x{one[1]} pixels each, or the option size",
            received=f"{two[0]}x{two[1]}",
            hint=_scaled(spec, 64),
        )
    if not first:
        return 1, 1  # every image is bad, which is said with their names
    ((width, height),) = first
    if max(width, height) > LARGEST_SIDE:
        raise InvalidInputError(
            "images of a camera as they are",
            expected=f"at most {LARGEST_SIDE} pixels a side, or the option size",
            received=f"{width}x{height}",
            hint=_scaled(spec, 224),
        )
    return height, width


def _scaled(spec: Spec, side: int) -> str:
    """The advice to scale images."""
    data = shlex.quote(with_option(spec.text, "size", str(side)))
    return f"Name the size that all are scaled to, for example --data {data}"


def _sizes(headers: Sequence[tuple[str, Header]], form: Preprocessing) -> tuple[str, ...]:
    """A sentence on the sizes of the images in their files, where there are several."""
    sizes = sorted(
        {(header.width, header.height) for _, header in headers}, key=lambda size: size[0] * size[1]
    )
    if len(sizes) < 2:
        if max(form.height, form.width) <= LARGE_SIDE:
            return ()
        what = f"images are used in their whole size, {form.width}x{form.height} pixels"
        return (f"{what}; the option size=224 scales them, for less memory and time",)
    (left, top), (right, bottom) = sizes[0], sizes[-1]
    note = f"images of {len(sizes)} sizes, {left}x{top} to {right}x{bottom} pixels, are scaled to one"
    shapes = [width / height for width, height in sizes]
    if form.short_side is None and max(shapes) > DISTORTED * min(shapes):
        side = min(form.height, form.width)
        note += f", which distorts some; short-side={side} cuts the centre out instead"
    return (note,)


def _fill(
    target: np.ndarray,
    images: EncodedImages,
    preprocessing: Preprocessing,
    bad: Bad,
    places: np.ndarray | None = None,
) -> list[int]:
    """Decode images into the first rows of ``target``; bad ones go to ``bad`` and take no row.

    Args:
        places: row of each image, int64 [N]; where one is bad the last row takes its place. The order of the
            images without.

    Returns:
        Index of the image of each row.
    """
    kept: list[int] = []
    target = np.asarray(target)  # a map makes a map of each row, which takes as long as to open a file

    def decode(item: tuple[str, Path | bytes]) -> tuple[str, np.ndarray | SmashError]:
        try:
            return item[0], preprocessing.decode(item[1], is_file=True)
        except InvalidInputError as error:
            return item[0], error

    for index, (name, pixels) in enumerate(in_threads(decode, images)):
        if isinstance(pixels, SmashError):
            bad.add(name, pixels)
        else:
            target[len(kept) if places is None else places[index]] = pixels
            kept.append(index)
    return kept if places is None else _closed(target, dict(zip(places[kept].tolist(), kept, strict=True)))


def _closed(target: np.ndarray, images: dict[int, int]) -> list[int]:
    """Move the last rows of ``target`` into those that have no image; index of the image of each row.

    Args:
        images: index of the image by its row.
    """
    empty = [row for row in range(len(images)) if row not in images]
    beyond = [row for row in images if row >= len(images)]
    for row, last in zip(empty, beyond, strict=True):
        target[row] = target[last]
        images[row] = images.pop(last)
    return [images[row] for row in range(len(images))]


def places_of_parts(labels: np.ndarray, missing: Sequence[str]) -> np.ndarray:
    """Row of each image in an order whose last rows are the parts that the data lack: int64 [N].

    Mapped data are divided by slicing (:func:`smash_search.data.dataset.assemble`), and folders are read
    class by class. The parts are those that the same images have where they are small enough to be copied, by
    seed 0: a network that takes another size is not judged on images of its training.

    Args:
        labels: int64 [N].
        missing: "validation", "test" or both.
    """
    shares = {part: share for part, share in SHARES.items() if part in missing}
    rest, parts = stratified_parts(labels, shares, seed=0)
    random = np.random.default_rng(0)
    last = [random.permutation(taken) for taken in parts.values()]
    places = np.empty(len(labels), np.int64)
    places[np.concatenate([random.permutation(rest), *reversed(last)])] = np.arange(len(labels))
    return places


def _decoded(
    shape: tuple[int, ...], encoded: EncodedImages, preprocessing: Preprocessing, bad: Bad
) -> tuple[np.ndarray, list[int]]:
    """:func:`_pixels` without a copy on the disk."""
    images = np.empty(shape, dtype=np.uint8)
    kept = _fill(images, encoded, preprocessing, bad)
    return images[: len(kept)], kept


def _pixels(
    encoded: EncodedImages,
    preprocessing: Preprocessing,
    place: Path,
    part: str,
    bad: Bad,
    missing: Sequence[str] = (),
) -> tuple[np.ndarray, list[int]]:
    """Pixels of the images that can be read, and their indices.

    Args:
        missing: parts that images of a mapped copy will become (:func:`places_of_parts`).
    """
    shape = (len(encoded.labels), *preprocessing.sample_shape)
    small = int(np.prod(shape, dtype=np.int64)) <= MAPPED_ABOVE
    if small and not _takes_long(encoded):
        return _decoded(shape, encoded, preprocessing, bad)
    sides = "x".join(map(str, preprocessing.sample_shape))
    key = f"{part}-{sides}-{preprocessing.resize}" + ("-upright" if preprocessing.exif else "")
    key += f"-short-{preprocessing.short_side}" if preprocessing.short_side else ""
    key += f"-{limit}-pixels" if (limit := pixel_limit()) != MAX_PIXELS else ""  # which files are bad, too
    places = places_of_parts(encoded.labels, missing) if missing and not small else None
    if places is not None:
        key += f"-mixed-{hashlib.sha256(places.tobytes()).hexdigest()[:16]}"
    if encoded.selection:
        key += f"-{hashlib.sha256(encoded.selection).hexdigest()[:16]}"

    def make(target: np.ndarray) -> list[int]:
        known = len(bad)
        rows = _fill(target, encoded, preprocessing, bad, places)
        if len(bad) > known and not bad.skip:
            raise cache.Incomplete  # the other parts are looked through before all bad files are named
        return rows

    try:
        images, rows = cache.mapped(place, key, encoded.sources, shape, make)
    except cache.Incomplete:
        return np.empty((0, *shape[1:]), np.uint8), []
    except (UsageError, OSError):  # nothing can be written there
        if not small:
            raise
        return _decoded(shape, encoded, preprocessing, bad)
    images = np.array(images) if small else images
    kept = rows or []
    if len(kept) < len(encoded.labels):  # known to be bad since the copy was made
        whole = set(kept)
        for index, (name, _) in enumerate(encoded):
            if index not in whole:
                bad.add(name, InvalidInputError(f"{name} cannot be read", expected="an image"))
    return images[: len(kept)], kept

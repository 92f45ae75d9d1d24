"""Images that stand in the data more than once: equal pixel by pixel, or nearly so in training and test.

Nearly equal are copies that were encoded again, resized by a pixel or brightened on the way. Small grey
pictures are correlated, as perceptual hashes compare them, and the best match of each image is judged once
more on a larger picture in colour. All pairs are compared, by matrix products: hashes in buckets miss what
differs in a few bits. What is found, what is missed and false alarms: ``python -m benchmarks.duplicates``.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from smash_search.data.dataset import CHUNK_BYTES, Split, digest_of

MOST_PAIRS = 2**30  # of images that are compared: some seconds
SMALL, LARGE = 8, 16  # sides of the pictures that are compared; smaller images show too little
ALIKE_SMALL, ALIKE_LARGE = 0.97, 0.95  # correlations from which two pictures show the same
CLOSER = 0.4  # of the usual distance to the most similar image, within which it is a copy
SAMPLE = 500  # images by which that distance is estimated
FLAT = 4.0  # standard deviation of the greys, of 255, below which a picture shows too little to be compared
BLOCK = 2048  # images that are compared with as many others at a time


@dataclass(frozen=True)
class Duplicates:
    """What stands in the data more than once, after decoding and scaling.

    Attributes:
        images: Number of images that equal an earlier one pixel by pixel.
        across_splits: images of validation and test that stand in training (or test, in validation) as well;
            what is measured on them is memory, not skill.
        other_class: images that equal one of another class.
        class_pairs: labels of the classes that share such an image, most frequent first.
        near: images of validation and test that equal none and look like one of training; None where
            nobody looked.
    """

    images: int
    across_splits: int
    other_class: int
    near: int | None
    class_pairs: tuple[tuple[int, int], ...] = ()

    def __str__(self) -> str:
        equal = "none"
        if self.images:
            across = f"{self.across_splits:,} across splits"
            equal = f"{self.images:,}, {across}, {self.other_class:,} in another class"
        if self.near is None:
            return f"{equal}; near copies not looked for"
        return equal + (f"; near copies across splits: {self.near:,}" if self.near else "")


def duplicates_of(splits: Mapping[str, Split]) -> Duplicates:
    """Duplicates within and across "train", "validation" and "test", in this order."""
    seen: dict[bytes, list[tuple[str, int]]] = defaultdict(list)
    repeated = across = other = 0
    pairs: Counter[tuple[int, int]] = Counter()
    unseen: dict[str, list[int]] = {name: [] for name in splits}
    for name, split in splits.items():
        for index, (image, label) in enumerate(zip(split.images, split.labels.tolist(), strict=True)):
            digest = digest_of(image)
            before = seen[digest]
            elsewhere = any(split_name != name for split_name, _ in before)
            repeated, across = repeated + bool(before), across + elsewhere
            others = {known for _, known in before} - {label}
            other += bool(others)
            pairs.update((min(label, known), max(label, known)) for known in others)
            if not elsewhere:
                unseen[name].append(index)
            if (name, label) not in before:
                before.append((name, label))
    shared = tuple(pair for pair, _ in pairs.most_common())
    return Duplicates(repeated, across, other, _near(splits, unseen), shared)


def _near(splits: Mapping[str, Split], unseen: Mapping[str, list[int]]) -> int | None:
    """Images of validation and test that look like one of training, among those that equal none."""
    known = splits["train"].images
    judged = {name: np.array(rows) for name, rows in unseen.items() if name != "train"}
    pairs = len(known) * sum(map(len, judged.values()))
    if known.ndim != 4 or min(known.shape[1:3]) < LARGE or pairs > MOST_PAIRS:
        return None
    pictures = Pictures(known)
    return sum(int(pictures.holds(splits[name].images, rows).sum()) for name, rows in judged.items())


class Pictures:
    """Images in which others are looked for.

    Args:
        images: uint8 [M, H, W, C], at least 16 pixels high and wide.
    """

    def __init__(self, images: np.ndarray) -> None:
        self._images = images
        self._small = _in_blocks(_grey, images, np.arange(len(images)))
        some = np.random.default_rng(0).permutation(len(images))[:SAMPLE]
        _, likeness = self._most_like(self._small[some], itself=some)
        usual = float(np.quantile(likeness, 0.25))  # most may have copies among the others
        self._least = max(ALIKE_SMALL, 1 - (1 - usual) * CLOSER**2)

    def holds(self, images: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
        """Which of some images look like one of these, bool [N].

        Where all images are much alike, such as digits, a copy has to be more so: its distance is small
        beside that of others.

        Args:
            images: uint8 [N, H, W, C].
            rows: numbers of those that are looked for; all without.
        """
        rows = np.arange(len(images)) if rows is None else rows
        match, likeness = self._most_like(_in_blocks(_grey, images, rows))
        found: np.ndarray = likeness >= self._least
        places = np.flatnonzero(found)
        mine = _in_blocks(_coloured, images, rows[places])
        theirs = _in_blocks(_coloured, self._images, match[places])
        found[places] = (mine * theirs).sum(1) >= ALIKE_LARGE
        return found

    def _most_like(
        self, small: np.ndarray, itself: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Number of the image that each is most like, int64 [N], and their correlation, float32 [N].

        Args:
            small: vectors of the images, float32 [N, 64].
            itself: numbers of these images where they are some of the known ones, int64 [N].
        """
        match, likeness = np.zeros(len(small), np.int64), np.full(len(small), -1, np.float32)
        for row in range(0, len(small), BLOCK):
            mine = slice(row, row + BLOCK)
            for start in range(0, len(self._small), BLOCK):
                correlations = small[mine] @ self._small[start : start + BLOCK].T  # [BLOCK, BLOCK]
                if itself is not None:
                    own = itself[mine] - start
                    here = np.flatnonzero((own >= 0) & (own < correlations.shape[1]))
                    correlations[here, own[here]] = -1
                best = correlations.argmax(1)
                value = correlations[np.arange(len(best)), best]
                better = value > likeness[mine]
                match[mine][better], likeness[mine][better] = best[better] + start, value[better]
        return match, likeness


def _in_blocks(
    pictures: Callable[[np.ndarray], np.ndarray], images: np.ndarray, rows: np.ndarray
) -> np.ndarray:
    """Vectors [N, F] of some images; few are held in floating point at a time."""
    step = max(1, CHUNK_BYTES // max(1, int(np.prod(images.shape[1:]))))
    parts = [pictures(images[rows[start : start + step]]) for start in range(0, len(rows), step)]
    return np.concatenate(parts) if parts else np.zeros((0, 1), np.float32)


def _grey(images: np.ndarray) -> np.ndarray:
    """Small grey pictures as vectors of length 1, float32 [N, 64]; zeros, like nothing, where one is flat."""
    grey = _shrunk(images, SMALL).mean(3).reshape(len(images), -1)
    return _unit(grey, FLAT)


def _coloured(images: np.ndarray) -> np.ndarray:
    """Larger pictures in colour as vectors of length 1, float32 [N, 256 C]."""
    return _unit(_shrunk(images, LARGE).reshape(len(images), -1), 0.0)


def _unit(values: np.ndarray, least: float) -> np.ndarray:
    """Vectors [N, F] less their mean, of length 1; zeros where they hardly deviate from it."""
    values = values - values.mean(1, keepdims=True)
    length = np.linalg.norm(values, axis=1, keepdims=True)
    short = length <= max(1e-6, least * values.shape[1] ** 0.5)
    return np.where(short, 0, values / np.where(short, 1, length)).astype(np.float32)


def _shrunk(images: np.ndarray, side: int) -> np.ndarray:
    """Means over parts of images, uint8 [N, H, W, C] -> float32 [N, side, side, C]."""
    values: np.ndarray = images.astype(np.float32)
    for axis in (1, 2):
        size = values.shape[axis]
        edges = np.arange(side) * size // side
        widths = np.diff(np.append(edges, size)).astype(np.float32)
        widths = widths.reshape(-1, *[1] * (3 - axis))
        values = np.add.reduceat(values, edges, axis) / widths
    return values

"""Classes that do not exclude each other: an image of a cat and a dog is of both.

Where a cell names several classes or holds a list of them, a split has ``targets`` beside its labels: uint8
[N, K], 1 where a class is there. ``labels`` then hold one class of each image, the rarest, which is what
splits are balanced by; K is that of an image of no class, such as a part without a defect. How good answers
are is told by the average precision of each class (the mean precision at the places of its images, sorted by
answer; equal answers are one place), which needs no threshold; thresholds are those with the highest F1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from smash_base import files
from smash_base.errors import InvalidInputError, UsageError
from smash_search.data.spec import Spec

MARKS = {"comma": ",", "semicolon": ";", "bar": "|", "space": " "}
OPTION, NONE = "several", "none"
OPTIONS = (OPTION, NONE)


def mark_of(spec: Spec) -> str | None:
    """What stands between the classes of one cell; None where each image has one class.

    Raises:
        UsageError: a mark of several characters that is none of the words.
    """
    text = spec.options.get(OPTION)
    if text is None or text in MARKS:
        return MARKS.get(text or "")
    if len(text) != 1:
        raise UsageError(
            f"option {OPTION} of data set {spec.text}",
            expected=f"one character, or {', '.join(MARKS)}",
            received=text,
        )
    return text


def parted(value: object, mark: str | None) -> object:
    """The classes of a cell: parts of a text where there is a mark, anything else as it is."""
    if mark is None or not isinstance(value, str):
        return value
    return [word.strip() for word in value.split(mark) if word.strip()]


def alone(spec: Spec) -> UsageError:
    """The error of an option ``none`` where each image has one class."""
    return UsageError(
        f"option {NONE} of data set {spec.text}",
        expected="images that may be of several classes",
        hint=f"Say what stands between the classes, {OPTION}=semicolon; of folders {OPTION}=yes.",
    )


def without_none(
    spec: Spec, targets: dict[str, np.ndarray], classes: tuple[str, ...]
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Targets [N, K] by part, and the classes, without the one that the option ``none`` names.

    Raises:
        UsageError: it names none of the classes.
        InvalidInputError: an image is of that class and of another, or no training image is of another.
    """
    if NONE not in spec.options:
        return targets, classes
    word = spec.choice(NONE, classes, "")
    kept = [number for number, name in enumerate(classes) if name != word]
    others = {part: found[:, kept] for part, found in targets.items()}
    for part, found in targets.items():
        both = int((found[:, classes.index(word)] & others[part].any(1)).sum())
        if both:
            raise InvalidInputError(
                f"{part} images of {spec.text}",
                expected=f"{word}, which stands for no class, or other classes",
                received=f"both for {both} of {len(found)} images",
            )
    if not others["train"].any():
        raise InvalidInputError(
            f"training images of {spec.text}", expected="classes", received=f"{word} for each, no class"
        )
    return others, tuple(classes[number] for number in kept)


def targets_of(members: Sequence[np.ndarray], classes: int) -> np.ndarray:
    """Targets uint8 [N, K] of the class numbers of each image."""
    targets = np.zeros((len(members), classes), np.uint8)
    for row, numbers in zip(targets, members, strict=True):
        row[numbers] = 1
    return targets


def equal_files(paths: Sequence[Path]) -> list[list[int]]:
    """Places of files with the same bytes, together, in the order of the first of them."""
    groups: dict[object, list[int]] = {}
    sizes = [path.stat().st_size for path in paths]
    usual = Counter(sizes)
    for place, (path, size) in enumerate(zip(paths, sizes, strict=True)):
        content = files.sha256(path) if usual[size] > 1 else None
        groups.setdefault((size, content), []).append(place)
    return list(groups.values())


def rarest(targets: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """For each image the one of its classes with the fewest images, int64 [N]; K where it has none."""
    rank = np.where(targets > 0, counts, np.iinfo(np.int64).max)
    return _or_none(rank.argmin(1), targets)


def likeliest(targets: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """For each image the one of its classes with the highest score, int64 [N]; K where it has none."""
    return _or_none(np.where(targets > 0, scores, -np.inf).argmax(1), targets)


def labels_of(targets: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """One label for each image of each part, the :func:`rarest` by the training images: int64 [N]."""
    counts = targets["train"].sum(0, dtype=np.int64)
    return {part: rarest(found, counts) for part, found in targets.items()}


def _or_none(labels: np.ndarray, targets: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.where(targets.any(1), labels, targets.shape[1])
    return found


def average_precisions(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Average precision of each class, float64 [K]; NaN for a class without images.

    Args:
        scores: [N, K], the higher the likelier; what is not finite is the least likely.
        targets: [N, K], 1 where a class is there.
    """
    _, there, _, _, precision = _sorted(scores, targets)
    counts = there.sum(0)
    found: np.ndarray = np.divide(
        (precision * there).sum(0), counts, out=np.full(len(counts), np.nan), where=counts > 0
    )
    return found


def mean_average_precision(scores: np.ndarray, targets: np.ndarray) -> float:
    """Over the classes that have images; 0 where none has."""
    found = average_precisions(scores, targets)
    known = found[~np.isnan(found)]
    return float(known.mean()) if len(known) else 0.0


def shares_of_error(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """1 - :func:`mean_average_precision` as a mean over images: the share of each, float64 [N].

    Precision at an image depends on those above it, so a share is what a little more weight of the image
    would change (the infinitesimal jackknife, Jaeckel 1972). Means over resamples or parts of the images are
    to first order the figures of these images by themselves.
    """
    found = _sorted(scores, targets)
    known = (targets > 0).any(0)
    if not known.any():
        return np.ones(len(scores))
    order, there, first, last, precision = (array[:, known] for array in found)
    counts = there.sum(0)
    average = (precision * there).sum(0) / counts
    weights = there / (last + 1)  # of an image at and above each place

    def from_below(values: np.ndarray) -> np.ndarray:
        return np.take_along_axis(values[::-1].cumsum(0)[::-1], first, 0)

    change = there * (precision - average + from_below(weights)) - from_below(weights * precision)
    of_images = np.empty_like(change)
    np.put_along_axis(of_images, order, change / counts, 0)
    shares: np.ndarray = 1 - average.mean() - len(scores) * of_images.mean(1)
    return shares


def _sorted(
    scores: np.ndarray, targets: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """For each class images in falling order, whether it is there, the first and the last place of those with
    an equal score, and precision at the last of these, so that no order within them counts: each [N, K]."""
    finite = np.where(np.isfinite(scores), scores, -np.inf)
    order = np.argsort(-finite, axis=0, kind="stable")
    there = np.take_along_axis(targets, order, 0) > 0
    falling = np.take_along_axis(finite, order, 0)
    places = np.arange(len(scores))[:, None]
    whole = np.ones((1, scores.shape[1]), bool)
    steps = falling[:-1] != falling[1:]
    first = np.maximum.accumulate(np.where(np.concatenate([whole, steps]), places, 0), 0)
    ends = np.where(np.concatenate([steps, whole]), places, len(scores))
    last = np.minimum.accumulate(ends[::-1], 0)[::-1]
    return order, there, first, last, np.take_along_axis(there.cumsum(0), last, 0) / (last + 1)


def moved_by(thresholds: np.ndarray) -> np.ndarray:
    """What is taken off the logits so that thresholds stand at one half, float32 [K]."""
    moved: np.ndarray = np.log(thresholds / (1 - thresholds)).astype(np.float32)
    return moved


def thresholds_of(probabilities: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The probability of each class from which on its F1 is highest, float64 [K]; 0.5 where no image tells.

    Thresholds lie in the middle between two answers.
    """
    found = np.full(probabilities.shape[1], 0.5)
    for label in np.flatnonzero(targets.sum(0)):
        order = np.argsort(-probabilities[:, label], kind="stable")
        sorted_answers = probabilities[order, label].astype(np.float64)
        hits = (targets[order, label] > 0).cumsum()
        f1 = 2 * hits / (np.arange(1, len(order) + 1) + hits[-1])
        steps = np.append(sorted_answers[:-1] > sorted_answers[1:], True)  # equal answers stay together
        best = int(np.where(steps, f1, -1.0).argmax())
        below = sorted_answers[best + 1] if best + 1 < len(order) else 0.0
        found[label] = (sorted_answers[best] + below) / 2
    clipped: np.ndarray = np.clip(found, 0.01, 0.99)
    return clipped

"""How good is the classifier, on labelled images, through the file that predicts?

Accuracy with Wilson's score interval (Wilson 1927), precision and recall per class, the confusion matrix,
the expected calibration error (Guo et al. 2017, section 2: 15 bins of equal width on the probability of the
answer), and the errors that the classifier was surest of.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from smash_base import files
from smash_base.json_values import JsonObject
from smash_base.preprocess import NO_CLASS, PRESENT, probabilities_of, with_none
from smash_export.bundle.bundle import Bundle
from smash_export.measure.labelled import Labelled, bundled, from_data
from smash_export.prediction.classifier import Classifier, load
from smash_search.data.several import average_precisions, likeliest, mean_average_precision

BINS = 15
SHOWN_ERRORS = 36
_CHUNK = 256


@dataclass(frozen=True)
class ClassRow:
    """One class.

    Attributes:
        label: its name.
        images: how many images of it there are.
        recall: share of them that was recognised; None without images.
        precision: share of the answers of this class that were right; None when it was never answered.
        f1: harmonic mean of both; None when either is missing.
        confused_with: the class most often answered instead, "" when there was no error.
    """

    label: str
    images: int
    recall: float | None
    precision: float | None
    f1: float | None
    confused_with: str


@dataclass(frozen=True)
class Mistake:
    """A wrong answer: index of the image, its class, the answer, and the answer's probability."""

    image: int
    label: str
    answer: str
    probability: float


@dataclass(frozen=True)
class Presence:
    """One class of several that an image may be of.

    Attributes:
        label: its name.
        images: how many images of it there are.
        average_precision: mean precision at the places of its images, sorted by probability; None without.
        precision, recall: Those of a probability of one half and more; None where there are no images.
    """

    label: str
    images: int
    average_precision: float | None
    precision: float | None
    recall: float | None


@dataclass(frozen=True)
class Evaluation:
    """Result of :func:`evaluate` on N images and K classes.

    Attributes:
        data: name of the images.
        images: N.
        accuracy: share of right first answers.
        low, high: 95 % interval of the accuracy (Wilson).
        balanced_accuracy: mean recall of the classes that have images; a class of ten images counts as much
            as one of a thousand.
        macro_f1: mean F1 of the same classes; 0 for one that was never answered.
        top5: share of images whose class is among the five most probable; None for K <= 5.
        calibration_error: expected calibration error; 0 is best.
        confidence: mean probability of the answer; above the accuracy means overconfident.
        images_per_second: throughput of normalising and running, without decoding.
        classes: per class, in the order of the labels.
        confusion: int [K, K], rows true, columns answered.
        mistakes: the wrong answers with the highest probability first, at most 36.
        mistake_count: how many there are.
        warnings: what the reader must know about the images.
        mean_average_precision, presence: Figures of networks whose classes do not exclude each other, on
            images whose classes are all known; None and empty for all others. An answer is right where it is
            one of the image's classes, and ``labels`` are those that were answered, or the likeliest. Where
            some images are of no class, that is an answer too, in ``classes`` and ``confusion`` the last.
    """

    data: str
    images: int
    accuracy: float
    low: float
    high: float
    balanced_accuracy: float
    macro_f1: float
    top5: float | None
    calibration_error: float
    confidence: float
    images_per_second: float
    classes: tuple[ClassRow, ...]
    confusion: np.ndarray
    mistakes: tuple[Mistake, ...]
    mistake_count: int
    warnings: tuple[str, ...] = ()
    mean_average_precision: float | None = None
    presence: tuple[Presence, ...] = ()

    def to_json(self) -> JsonObject:
        """JSON values."""
        return {**asdict(self), "confusion": self.confusion.tolist()}

    @property
    def none(self) -> tuple[ClassRow, ...]:
        """The row of images of no class, where there are some."""
        return self.classes[len(self.presence) :] if self.presence else ()

    def facts(self) -> JsonObject:
        """What a manifest keeps of it: the figures, and recall and precision of each class."""
        return {
            "images": self.images,
            "top1": self.accuracy,
            "interval": [self.low, self.high],
            "balanced": self.balanced_accuracy,
            "macro_f1": self.macro_f1,
            "calibration_error": self.calibration_error,
            **(
                {"mean_average_precision": self.mean_average_precision}
                if self.mean_average_precision is not None
                else {}
            ),
            "classes": {
                row.label: {"images": row.images, "recall": row.recall, "precision": row.precision}
                for row in (*self.none, *(self.presence or self.classes))
            },
        }


def evaluate(
    model: Classifier | Bundle | Path | str,
    data: Labelled | str | None = None,
    *,
    split: str = "test",
    seed: int | None = None,
) -> Evaluation:
    """Classify every image and compare with its class.

    Args:
        model: a classifier, or a bundle, whose recommended file is then used.
        data: images with their classes, a data set (NAME or NAME:PATH), or None for the bundled images.
        split, seed: Split and seed of a data set, see :func:`smash_export.measure.labelled.from_data`.

    Raises:
        InvalidInputError: data with other classes, or a damaged bundle.
        MissingRuntimeError: no runtime is here that opens a file of the bundle.
        VerificationError: the file answers an image with NaN or infinity.
    """
    if not isinstance(model, Classifier):
        with load(model) as classifier:
            return evaluate(classifier, data, split=split, seed=seed)
    if data is None:
        data = bundled(model.bundle)
    elif isinstance(data, str):
        data = from_data(model.bundle, data, split, seed)
    return _evaluate(model, data)


def _evaluate(classifier: Classifier, data: Labelled) -> Evaluation:
    started = time.perf_counter()
    logits = logits_of_all(classifier, data.images)
    probabilities = probabilities_of(logits, classifier.bundle.signature.outputs)
    seconds = time.perf_counter() - started
    return score(
        probabilities,
        np.asarray(data.labels),
        classifier.labels,
        targets=data.targets,
        data=data.name,
        images_per_second=len(data) / seconds,
        warnings=data.warnings,
    )


def logits_of_all(classifier: Classifier, images: np.ndarray) -> np.ndarray:
    """Logits float32 [N, K] of images uint8 [N, *S, C], some of them at a time.

    Raises:
        VerificationError: NaN or infinity among them.
    """
    logits = np.concatenate(
        [
            classifier.logits(classifier.preprocessing.normalise(np.asarray(images[start : start + _CHUNK])))
            for start in range(0, len(images), _CHUNK)
        ]
    )
    classifier.check_finite(logits, [f"image {index}" for index in range(len(logits))])
    return logits


def score(
    probabilities: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    *,
    targets: np.ndarray | None = None,
    data: str = "",
    images_per_second: float = math.nan,
    warnings: tuple[str, ...] = (),
) -> Evaluation:
    """Every figure from probabilities [N, K] and true classes int [N]; no network needed.

    With targets [N, K], of images that may be of several classes, the labels are not looked at.
    """
    count, classes = probabilities.shape
    if targets is not None:
        labels = likeliest(targets, probabilities)
    asked = with_none(probabilities, labels)
    if asked.shape[1] > classes:
        names = [*names, NO_CLASS]
    answers, likely, shown = asked.argmax(axis=1), probabilities.max(axis=1), len(names)
    sureness = np.where(answers < classes, likely, 1 - likely)
    right = answers == labels
    confusion = np.bincount(labels * shown + answers, minlength=shown**2).reshape(shown, shown)
    low, high = wilson_interval(int(right.sum()), count)
    wrong = np.flatnonzero(~right)
    worst = wrong[np.argsort(-sureness[wrong], kind="stable")][:SHOWN_ERRORS]
    mistakes = tuple(Mistake(int(i), names[labels[i]], names[answers[i]], float(sureness[i])) for i in worst)
    rows = tuple(_class_row(index, names, confusion) for index in range(shown))
    presence = () if targets is None else presence_of(probabilities, targets, names[:classes])
    recall, f1 = _means(presence or rows)
    return Evaluation(
        data=data,
        images=count,
        accuracy=float(right.mean()),
        low=low,
        high=high,
        balanced_accuracy=recall,
        macro_f1=f1,
        top5=_among_five(probabilities, labels, right) if classes > 5 else None,
        calibration_error=calibration_error(sureness, right),
        confidence=float(sureness.mean()),
        images_per_second=images_per_second,
        classes=rows,
        confusion=confusion,
        mistakes=mistakes,
        mistake_count=len(wrong),
        warnings=warnings,
        mean_average_precision=None if targets is None else mean_average_precision(probabilities, targets),
        presence=presence,
    )


def _among_five(probabilities: np.ndarray, labels: np.ndarray, right: np.ndarray) -> float:
    """Share of images whose class is among the five most probable, or that are right otherwise."""
    among = (np.argsort(-probabilities, axis=1)[:, :5] == labels[:, None]).any(axis=1)
    return float((among | right).mean())


def _means(rows: Sequence[ClassRow | Presence]) -> tuple[float, float]:
    """Mean recall and mean F1 of the classes that have images."""
    present = [(row.recall or 0.0, row.precision or 0.0) for row in rows if row.images]
    f1 = [2 * recall * precision / (recall + precision or 1.0) for recall, precision in present]
    return float(np.mean([recall for recall, _ in present])), float(np.mean(f1))


def presence_of(probabilities: np.ndarray, targets: np.ndarray, names: Sequence[str]) -> tuple[Presence, ...]:
    """Figures of each class where an image may be of several: probabilities and targets [N, K]."""
    said, there = probabilities >= PRESENT, targets > 0
    hits, answered, images = ((said & there).sum(0), said.sum(0), there.sum(0))
    average = average_precisions(probabilities, targets)
    return tuple(
        Presence(
            name,
            int(images[k]),
            float(average[k]) if images[k] else None,
            float(hits[k] / answered[k]) if answered[k] else None,
            float(hits[k] / images[k]) if images[k] else None,
        )
        for k, name in enumerate(names)
    )


def wilson_interval(right: int, count: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson's score interval of a share; 95 % by default. Stays inside [0, 1], unlike the normal one."""
    share = right / count
    centre = share + z * z / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def calibration_error(sureness: np.ndarray, right: np.ndarray, bins: int = BINS) -> float:
    """Expected calibration error: |accuracy - mean probability| per bin, weighted by the bin's share.

    Args:
        sureness: float [N], probability of each answer.
        right: bool [N].
    """
    place = np.minimum((sureness * bins).astype(np.int64), bins - 1)
    counts = np.bincount(place, minlength=bins)
    gap = np.abs(
        np.bincount(place, weights=right, minlength=bins) - np.bincount(place, sureness, minlength=bins)
    )
    return float(gap[counts > 0].sum() / len(sureness))


def write_report(folder: Path, evaluation: Evaluation, data: Labelled) -> list[Path]:
    """Write ``evaluation.json``, ``confusion.png`` and ``errors.png`` (worst errors; only if there are)."""
    from smash_export.prediction.pictures import (
        BAD,
        captioned,
        confusion_picture,
        contact_sheet,
        save_png,
        to_picture,
    )

    written = [folder / "evaluation.json", folder / "confusion.png"]
    files.write_json(written[0], _without_nan(evaluation.to_json()))
    labels = [row.label for row in evaluation.classes]
    save_png(written[1], confusion_picture(evaluation.confusion, labels))
    if evaluation.mistakes:
        cells = [
            captioned(
                to_picture(np.asarray(data.images[mistake.image]), 96),
                [
                    f"#{mistake.image} {mistake.label}",
                    f"answer {mistake.answer} {mistake.probability:.1%}",
                ],
                BAD,
            )
            for mistake in evaluation.mistakes
        ]
        title = f"{evaluation.mistake_count} errors in {evaluation.images} images, the surest first"
        written.append(folder / "errors.png")
        save_png(written[2], contact_sheet(cells, 6, title))
    return written


def _class_row(index: int, names: Sequence[str], confusion: np.ndarray) -> ClassRow:
    images, answered = int(confusion[index].sum()), int(confusion[:, index].sum())
    hits = int(confusion[index, index])
    recall = hits / images if images else None
    precision = hits / answered if answered else None
    f1 = 2 * hits / (images + answered) if images and answered else None
    others = confusion[index].copy()
    others[index] = 0
    return ClassRow(
        names[index], images, recall, precision, f1, names[int(others.argmax())] if others.any() else ""
    )


def _without_nan(document: JsonObject) -> JsonObject:
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in document.items()
    }

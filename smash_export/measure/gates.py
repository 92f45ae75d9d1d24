"""What a file must reach, and how sure the images make us of it.

fp32, tf32, bf16 and fp16 files compute the same network more or less exactly: a difference beyond rounding
is a defect, so the logits have a bound, and more changed labels than rounding explains are refused. An int8
file is another network by design: what counts is the accuracy that it loses. Its question is judged twice.

* By the labels: images that were right and became wrong, against those that were wrong and became right.
  The two files answer the same images, so only changed answers carry noise (McNemar); the interval is that
  of Agresti and Min, "Simple improved confidence intervals for comparing matched proportions" (2005).
* By the margins: a changed label costs as much accuracy as the network itself thought its first answer more
  probable than the second. A near-tie costs almost nothing whichever way it falls, and luck with its label no
  longer counts. The network's probabilities are calibrated by a temperature first (Guo et al., 2017).

The labels decide where their interval lies on one side of the limit. Where it does not, which is usual below
a few thousand images, the margins decide. The file is refused when neither shows that the limit is kept.

Where classes do not exclude each other, a first label says nothing of a class that is always there beside a
likelier one. So the mean F1 of the classes is judged as well; the interval of its loss is that of 200 paired
resamples of the images (Efron, 1979). A file that loses more than the limit, and not by chance, is refused.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from smash_base.preprocess import PRESENT

Z = 1.96  # two-sided 95 %
RESAMPLES = 200
CERTAIN = 0.01  # a file is refused for changed labels that exact files have by chance this rarely
_TEMPERATURES = np.geomspace(0.25, 8.0, 41)


@dataclass(frozen=True)
class Gate:
    """What a file of one precision must reach.

    Attributes:
        max_difference: largest absolute difference of any logit, None where rounding makes it moot.
        agreement: share of images that keep their first label. Files whose precision is bounded by
            ``relative_error`` must not be significantly below it; scripts on devices, which have no labels,
            take it as it is.
        drop: largest loss of accuracy in percentage points.
        relative_error: largest error of the logits over their spread (both root mean squares), None when a
            loss of accuracy is judged instead.
    """

    max_difference: float | None
    agreement: float
    drop: float
    relative_error: float | None = None


GATES: dict[str, Gate] = {
    "fp32": Gate(1e-4, 1.0, 0.0),
    "tf32": Gate(None, 0.999, 0.1, 0.02),
    "bf16": Gate(None, 0.999, 0.1, 0.05),
    "fp16": Gate(None, 0.999, 0.1, 0.02),
    "int8": Gate(None, 0.97, 0.5),
}


def relative_error(expected: np.ndarray, received: np.ndarray) -> float:
    """Error of logits over the spread of each image's, root mean squares; both finite float64 [N, K]."""
    spread = float(np.sqrt(np.square(expected - expected.mean(axis=1, keepdims=True)).mean()))
    error = float(np.sqrt(np.square(received - expected).mean()))
    return error / spread if spread > 0 else (0.0 if error == 0 else math.inf)


@dataclass(frozen=True)
class Loss:
    """Accuracy that a file loses against its reference, in percentage points; negative: it gains.

    Attributes:
        lost, gained: images that were right and became wrong, and the other way round.
        points: their difference over all images.
        low, high: 95 % interval of it.
        expected: the loss by the margins of all changed labels.
        expected_high: end of its one-sided 97.5 % interval.
    """

    lost: int
    gained: int
    points: float
    low: float
    high: float
    expected: float
    expected_high: float

    def keeps(self, limit: float) -> bool:
        """Whether the images show that no more than ``limit`` points are lost.

        Files that change no label at all keep every limit: more images could tell, these say nothing else.
        """
        if self.high <= limit or self.expected == 0:
            return True
        return self.low <= limit and self.expected_high <= limit

    @property
    def at_most(self) -> float:
        """End of the interval that the verdict stands on: by the labels or by the margins."""
        return min(self.high, self.expected_high)

    def text(self, images: int, changed: int) -> str:
        """Both judgements in words."""
        return (
            f"{self.points:.2f} points lost, 95 % interval {self.low:.2f} to {self.high:.2f}, on {images} "
            f"labelled images; {changed} labels changed, which by their margins costs {self.expected:.2f} "
            f"points, at most {self.expected_high:.2f}"
        )


@dataclass(frozen=True)
class PresenceLoss:
    """Mean F1 of classes that do not exclude each other, and what a file loses of it in percentage points.

    Attributes:
        reference, found: Mean F1 of the reference and of the file, over the classes that have images.
        points: their difference.
        low, high: 95 % interval of it.
    """

    reference: float
    found: float
    points: float
    low: float
    high: float

    def keeps(self, limit: float) -> bool:
        """Whether no more than ``limit`` points are lost, but for chance."""
        return self.points <= limit or self.low <= 0

    def text(self, images: int) -> str:
        """In words."""
        return (
            f"{self.points:.2f} points lost ({self.reference:.2%} became {self.found:.2%}), 95 % interval "
            f"{self.low:.2f} to {self.high:.2f}, on {images} images"
        )


def presence_loss(expected: np.ndarray, received: np.ndarray, targets: np.ndarray) -> PresenceLoss:
    """Judge probabilities ``received`` against ``expected`` by the classes that are there, all [N, K].

    A class is taken to be there from a probability of one half on.
    """
    there = targets > 0
    known = there.any(0)
    there = there[:, known].astype(np.float32)
    drawn = np.random.default_rng(0).multinomial(len(there), np.full(len(there), 1 / len(there)), RESAMPLES)
    weights = np.concatenate([np.ones((1, len(there))), drawn]).astype(np.float32)
    images = weights @ there

    def mean_f1(answers: np.ndarray) -> np.ndarray:
        said = (answers[:, known] >= PRESENT).astype(np.float32)
        both, either = weights @ (said * there), weights @ said + images
        f1 = np.divide(2 * both, either, out=np.ones_like(images), where=either > 0)
        mean: np.ndarray = f1.mean(1, dtype=np.float64)
        return mean

    reference, found = mean_f1(expected), mean_f1(received)
    points = 100 * (reference - found)
    low, high = np.percentile(points[1:], [2.5, 97.5])
    return PresenceLoss(float(reference[0]), float(found[0]), float(points[0]), float(low), float(high))


def accuracy_loss(expected: np.ndarray, received: np.ndarray, labels: np.ndarray) -> Loss:
    """Judge logits ``received`` against ``expected``, both float64 [N, K], by the true labels int [N]."""
    first, second = expected.argmax(axis=1), received.argmax(axis=1)
    lost = int(((first == labels) & (second != labels)).sum())
    gained = int(((first != labels) & (second == labels)).sum())
    low, high = paired_interval(lost, gained, len(labels))
    costs = margin_costs(expected, second, temperature(expected, labels))
    mean, spread = margin_interval(costs)
    points = 100 * (lost - gained) / len(labels)
    return Loss(lost, gained, points, low, high, 100 * mean, 100 * (mean + spread))


def paired_interval(lost: int, gained: int, images: int) -> tuple[float, float]:
    """95 % interval in percentage points of the loss between two paired proportions (Agresti-Min)."""
    count, b, c = images + 2, lost + 0.5, gained + 0.5
    middle = (b - c) / count
    width = Z * math.sqrt(max(0.0, b + c - (b - c) ** 2 / count)) / count
    return 100 * (middle - width), 100 * (middle + width)


def margin_costs(expected: np.ndarray, answers: np.ndarray, scale: float) -> np.ndarray:
    """What each image costs: probability of the reference's answer minus that of ``answers``, float [N]."""
    shares = _probabilities(expected, scale)
    rows = np.arange(len(shares))
    costs: np.ndarray = shares.max(axis=1) - shares[rows, answers]
    return costs


def margin_interval(costs: np.ndarray) -> tuple[float, float]:
    """Mean, and what one-sided 97.5 % adds to it.

    One image more is counted, with the largest cost seen or a small one, so that images without a single
    change do not claim certainty.
    """
    more = np.append(costs, max(0.1, float(costs.max(initial=0.0))))
    return float(costs.mean()), float(Z * more.std() / math.sqrt(len(more)))


def temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The divisor of logits under which the true labels are most probable."""
    rows = np.arange(len(labels))
    logs = _logs(logits)
    losses = []
    for scale in _TEMPERATURES:
        scaled = logs / scale
        losses.append(float((np.logaddexp.reduce(scaled, axis=1) - scaled[rows, labels]).mean()))
    return float(_TEMPERATURES[int(np.argmin(losses))])


def _logs(values: np.ndarray) -> np.ndarray:
    """Logits; the logarithm of outputs that are probabilities already."""
    shares = (values >= 0).all() and np.allclose(values.sum(axis=1), 1, atol=1e-3)
    return np.log(np.maximum(values, 1e-12)) if shares else values


def _probabilities(values: np.ndarray, scale: float) -> np.ndarray:
    scaled = _logs(values) / scale
    result: np.ndarray = np.exp(scaled - np.logaddexp.reduce(scaled, axis=1)[:, None])
    return result


def too_many(changed: int, images: int, share: float) -> bool:
    """Whether so many changed labels are rarer than :data:`CERTAIN` where ``share`` of them may change."""
    below = sum(_binomial(count, images, share) for count in range(changed))
    return changed > 0 and 1 - below < CERTAIN


def _binomial(count: int, images: int, share: float) -> float:
    """Probability of exactly ``count`` of ``images``."""
    if share <= 0:
        return float(count == 0)
    ways = math.lgamma(images + 1) - math.lgamma(count + 1) - math.lgamma(images - count + 1)
    return math.exp(ways + count * math.log(share) + (images - count) * math.log1p(-share))

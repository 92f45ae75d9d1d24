"""Probabilities that mean what they say: a temperature fitted on validation images (Guo et al. 2017).

Also a hint for images of no class: the top probability that all but a share of validation images reach.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from smash_base.preprocess import softmax
from smash_export.measure.evaluate import calibration_error
from smash_search.train.compute import DivergedError
from smash_search.train.judging import fit_temperature

FALSE_ALARM = 0.05


@dataclass(frozen=True)
class Calibration:
    """What validation images said.

    Attributes:
        temperature: Number that logits are divided by.
        images: validation images, which were not trained on.
        error_before, error_after: expected calibration error on them, 0 to 1.
        threshold: top probability below which an image is likely of no class.
        false_alarm: share of validation images below the threshold.
    """

    temperature: float
    images: int
    error_before: float
    error_after: float
    threshold: float
    false_alarm: float


def fit_calibration(logits: np.ndarray, labels: np.ndarray, false_alarm: float = FALSE_ALARM) -> Calibration:
    """Fit on images that were not trained on.

    N images do not say that there are no other errors than theirs: one more in N + 2 is reckoned with
    (Laplace's rule of succession, as Platt 1999 fits his sigmoid). Else the temperature of a handful would be
    the lowest, and every answer certain. Nor do images without an error say that the network is too sure: the
    temperature is at most 1 then.

    Args:
        logits: float32 [N, K].
        labels: int64 [N].
        false_alarm: share of such images that may be taken for images of no class.

    Raises:
        DivergedError: some answers are NaN or infinity.
    """
    if not np.isfinite(logits).all():
        raise DivergedError(
            "the trained network answers some validation images with NaN or infinity",
            hint="Lower the learning rate, clip the gradient, or look at the images' mean and deviation.",
        )
    right = logits.argmax(1) == labels
    temperature = fit_temperature(logits, labels, doubt=1 / (len(labels) + 2))
    if right.all():
        temperature = min(1.0, temperature)
    before, after = softmax(logits).max(1), softmax(logits / temperature).max(1)
    return Calibration(
        temperature,
        len(labels),
        calibration_error(before, right),
        calibration_error(after, right),
        float(np.quantile(after, false_alarm)),
        false_alarm,
    )

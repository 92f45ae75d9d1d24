"""Probabilities that mean what they say: a temperature fitted on validation images (Guo et al. 2017).

Also a hint for images of no class: the top probability that all but a share of validation images reach.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from smash_base.preprocess import softmax
from smash_export.measure.evaluate import calibration_error

FALSE_ALARM = 0.05
RANGE = (-3.0, 3.0)  # of the logarithm of the temperature
ROUNDS = 60


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

    Args:
        logits: float32 [N, K].
        labels: int64 [N].
        false_alarm: share of such images that may be taken for images of no class.
    """
    temperature = fit_temperature(logits, labels)
    right = logits.argmax(1) == labels
    before, after = softmax(logits).max(1), softmax(logits / temperature).max(1)
    return Calibration(
        temperature,
        len(labels),
        calibration_error(before, right),
        calibration_error(after, right),
        float(np.quantile(after, false_alarm)),
        false_alarm,
    )


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature with the lowest cross-entropy; unimodal in its logarithm, found by ternary search."""

    def loss(logarithm: float) -> float:
        scaled = logits.astype(np.float64) / np.exp(logarithm)
        scaled -= scaled.max(1, keepdims=True)
        chosen = scaled[np.arange(len(labels)), labels]
        return float((np.log(np.exp(scaled).sum(1)) - chosen).mean())

    low, high = RANGE
    for _ in range(ROUNDS):
        first, second = low + (high - low) / 3, high - (high - low) / 3
        if loss(first) < loss(second):
            high = second
        else:
            low = first
    return float(np.exp((low + high) / 2))

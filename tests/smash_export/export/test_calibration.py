"""Calibration: probabilities that are as often right as they say."""

from __future__ import annotations

import numpy as np
import pytest

from smash_base.preprocess import softmax
from smash_export.export.calibration import fit_calibration, fit_temperature
from smash_search.train.compute import DivergedError


def _answers(count: int, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are too sure by a factor, and labels drawn from what they should say."""
    random = np.random.default_rng(0)
    honest = random.normal(0, 2, (count, 5))
    labels = np.array([random.choice(5, p=row / row.sum()) for row in softmax(honest).astype(np.float64)])
    return (honest * temperature).astype(np.float32), labels


@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_the_temperature_that_logits_were_multiplied_by_is_found(temperature: float) -> None:
    logits, labels = _answers(4000, temperature)
    assert fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.1)


def test_calibration_lowers_the_error_and_bounds_false_alarms() -> None:
    logits, labels = _answers(2000, 4.0)
    calibration = fit_calibration(logits, labels, 0.1)
    assert calibration.error_before > 0.1
    assert calibration.error_after < 0.04
    below = softmax(logits / calibration.temperature).max(1) < calibration.threshold
    assert below.mean() == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize("count", [4, 40, 400])
def test_a_few_images_without_an_error_do_not_make_every_answer_certain(count: int) -> None:
    random = np.random.default_rng(0)
    labels = np.arange(count) % 5
    logits = random.normal(0, 0.3, (count, 5)).astype(np.float32)
    logits[np.arange(count), labels] += 3
    calibration = fit_calibration(logits, labels)
    top = softmax(logits / calibration.temperature).max(1)
    assert 1 - top.mean() == pytest.approx(1 / (count + 2), rel=0.3)
    assert calibration.threshold < 1


def test_images_without_an_error_do_not_make_a_sure_network_less_sure() -> None:
    logits = np.eye(3, dtype=np.float32) * 20
    assert fit_calibration(logits, np.arange(3)).temperature == 1


def test_a_handful_of_images_with_one_near_error_does_not_make_every_answer_certain() -> None:
    logits = np.array([[2.0, 0.0]] * 7 + [[0.001, 0.0]], np.float32)
    labels = np.array([0] * 7 + [1])
    assert fit_temperature(logits, labels) < 0.35
    assert fit_calibration(logits, labels).temperature > 0.5


def test_answers_that_are_no_numbers_end_as_a_training_that_diverged() -> None:
    with pytest.raises(DivergedError, match="NaN or infinity"):
        fit_calibration(np.array([[np.nan, 0.0], [1.0, 0.0]], np.float32), np.array([0, 0]))

"""The calibration benchmark: what it calls known, foreign and doubtful."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.calibration import energy, told_apart, top_probability


def test_scores_are_high_for_sure_answers() -> None:
    logits = np.float32([[9, 0, 0], [1, 1, 1]])
    assert top_probability(logits).argmax() == 0
    assert energy(logits).argmax() == 0
    assert energy(logits)[1] == pytest.approx(1 + np.log(3))


def test_thresholds_come_from_validation_images_alone() -> None:
    validation = np.arange(100) / 100
    found = told_apart(validation, known=validation + 0.5, foreign=validation - 0.5)
    at = {row["asked"]: (row["false_alarms"], row["foreign_doubtful"]) for row in found["at"]}
    assert at[0.2] == pytest.approx((0.0, 0.7), abs=0.011)
    assert found["area"] == 1
    assert told_apart(validation, validation, validation)["area"] == pytest.approx(0.5)

"""Intervals of what a few seeds differ by."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import t as student


def interval(differences: Sequence[float]) -> tuple[float, float, float]:
    """Mean and 95 % interval (Student's t) of paired differences; without bounds of a single one."""
    mean = float(np.mean(differences))
    if len(differences) == 1:
        return mean, -np.inf, np.inf
    error = float(np.std(differences, ddof=1)) / len(differences) ** 0.5
    reach = float(student.ppf(0.975, len(differences) - 1)) * error
    return mean, mean - reach, mean + reach

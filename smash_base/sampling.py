"""Some of many."""

from __future__ import annotations

import numpy as np


def evenly(values: np.ndarray, count: int) -> np.ndarray:
    """At most ``count`` rows, evenly over all of them: they may be sorted by class."""
    if len(values) <= count:
        return values
    return values[np.arange(count) * len(values) // count]


def spread(count: int, wanted: int, seed: int = 0) -> np.ndarray:
    """At most ``wanted`` of so many indices, ascending: a fixed choice of chance."""
    order = np.random.default_rng((seed, count)).permutation(count)
    return np.sort(order[:wanted])

"""How far a score can be trusted: the statistics of every experiment and report, in one place.

A *signal* is a number per network known before training (the SMASH score, parameters, ...), the *truth* its
error after training; in both, less is better unless a docstring says otherwise. Every correlation comes with
a bootstrap interval over networks, for one without is no finding. The resamples are drawn as weights per
network, so that all of them are a few matrix products. Deterministic by seed. No torch.

    n  networks    R  resamples    I  images
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from smash_base.errors import InvalidInputError
from smash_base.json_values import JsonObject

RESAMPLES = 2000
CONFIDENCE = 0.95
NORMAL_95 = 1.959963984540054  # half width of a 95 % interval in standard deviations


@dataclass(frozen=True)
class Estimate:
    """A statistic and its 95 % bootstrap interval; None where it is undefined (all values tied).

    Attributes:
        value: on the sample.
        low, high: percentiles of the resamples; None for fewer than three networks too, which have none.
        count: networks.
    """

    value: float | None
    low: float | None
    high: float | None
    count: int

    def to_json(self) -> JsonObject:
        """Plain numbers."""
        return asdict(self)

    def __str__(self) -> str:
        if self.value is None:
            return "undefined"
        if self.low is None:
            return f"{self.value:.2f}"
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"


# ------------------------------------------------------------------------------------- correlations


def kendall(first: ArrayLike, second: ArrayLike, *, seed: int = 0, resamples: int = RESAMPLES) -> Estimate:
    """Kendall's tau-b of two lists of n numbers.

    Raises:
        InvalidInputError: unequal lengths, or NaN or infinity.
    """
    from scipy.stats import kendalltau

    x, y = _pair(first, second)
    value = _number(kendalltau(x, y).statistic) if len(x) > 1 else None
    return _interval(value, len(x), lambda weights: kendall_of_weights(x, y, weights), seed, resamples)


def kendall_gain(
    first: ArrayLike, second: ArrayLike, truth: ArrayLike, *, seed: int = 0, resamples: int = RESAMPLES
) -> Estimate:
    """How much better a signal agrees with the truth than another: tau of the first minus that of the second.

    Both are of the same networks in every resample: their taus rise and fall together, so that two intervals
    that overlap say little.

    Raises:
        InvalidInputError: unequal lengths, or NaN or infinity.
    """
    x, truths = _pair(first, truth)
    y, _ = _pair(second, truth)

    def gain(weights: np.ndarray) -> np.ndarray:
        found: np.ndarray = kendall_of_weights(x, truths, weights) - kendall_of_weights(y, truths, weights)
        return found

    value = _number(gain(np.ones((1, len(x))))[0]) if len(x) > 1 else None
    return _interval(value, len(x), gain, seed, resamples)


def spearman(first: ArrayLike, second: ArrayLike, *, seed: int = 0, resamples: int = RESAMPLES) -> Estimate:
    """Spearman's rank correlation of two lists of n numbers.

    Raises:
        InvalidInputError: unequal lengths, or NaN or infinity.
    """
    x, y = _pair(first, second)
    value = _number(spearman_of_weights(x, y, np.ones((1, len(x))))[0]) if len(x) > 1 else None
    return _interval(value, len(x), lambda weights: spearman_of_weights(x, y, weights), seed, resamples)


def kendall_of_weights(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """tau-b of resamples in which network i occurs ``weights[:, i]`` times: [R, n] -> [R].

    A pair of copies of one network is a tie in both lists, as it is in a resample written out.
    """
    signs_x = np.sign(x[:, None] - x[None, :])  # [n, n]
    signs_y = np.sign(y[:, None] - y[None, :])

    def pairs(matrix: np.ndarray) -> np.ndarray:
        sums: np.ndarray = np.einsum("rn,rn->r", weights @ matrix, weights)
        return sums

    with np.errstate(invalid="ignore", divide="ignore"):
        result: np.ndarray = pairs(signs_x * signs_y) / np.sqrt(pairs(signs_x**2) * pairs(signs_y**2))
    return result


def spearman_of_weights(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Spearman's correlation of resamples given as in :func:`kendall_of_weights`: [R, n] -> [R]."""

    def ranks(values: np.ndarray) -> np.ndarray:  # mean ranks within each resample, [R, n]
        below = (values[:, None] < values[None, :]) + 0.5 * (values[:, None] == values[None, :])
        means: np.ndarray = weights @ below
        return means

    total = weights.sum(1, keepdims=True)
    a, b = (ranks(values) for values in (x, y))
    a = a - (weights * a).sum(1, keepdims=True) / total
    b = b - (weights * b).sum(1, keepdims=True) / total
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = np.sqrt((weights * a * a).sum(1) * (weights * b * b).sum(1))
        result: np.ndarray = np.where(spread > 1e-9, (weights * a * b).sum(1) / spread, np.nan)
    return result


def best_share(truth: ArrayLike, share: float) -> np.ndarray:
    """Indices of the best ``share`` of the networks by truth, best first; at least one."""
    values = np.asarray(truth, np.float64)
    return np.argsort(values, kind="stable")[: max(1, math.ceil(share * len(values)))]


# ---------------------------------------------------------------------------------- what a pick is worth


def precision_at(signal: ArrayLike, truth: ArrayLike, k: int) -> float:
    """Share of the k best by signal that are among the k best by truth."""
    x, y = _pair(signal, truth)
    k = min(k, len(x))
    chosen = np.argsort(x, kind="stable")[:k]
    return float(np.isin(chosen, np.argsort(y, kind="stable")[:k]).mean())


def regret_at(signal: ArrayLike, truth: ArrayLike, k: int) -> float:
    """How much worse the best of the k best by signal is than the best of all, in units of truth."""
    x, y = _pair(signal, truth)
    return float(y[np.argsort(x, kind="stable")[:k]].min() - y.min())


# -------------------------------------------------------------------------------------- reliability


def split_half(wrong: ArrayLike) -> float | None:
    """Reliability of a ranking by error: Spearman correlation of the errors on two halves of the images.

    None when there are fewer than three networks or one half cannot tell any apart.

    Args:
        wrong: which images each network got wrong, bool [n, I], or the error of each image.
    """
    table = np.asarray(wrong, np.float64)
    if len(table) < 3:
        return None
    x, y = (table[:, part::2].mean(1) for part in (0, 1))
    return _number(spearman_of_weights(x, y, np.ones((1, len(x))))[0])


def stepped_up(half: float | None) -> float | None:
    """Reliability of all images from that of a half of them (Spearman 1910, Brown 1910).

    None where the halves do not agree: the formula means nothing then, and gives -18 for -0.9.
    """
    return None if half is None or half <= 0 else 2 * half / (1 + half)


def ceiling(first: ArrayLike, second: ArrayLike, *, seed: int = 0) -> Estimate:
    """Kendall's tau of the errors of the same networks trained with two seeds.

    A score cannot agree better with one training than another training does, but by chance.
    """
    return kendall(first, second, seed=seed)


def seed_noise(first: ArrayLike, second: ArrayLike) -> float:
    """Standard deviation of the error of one network over seeds, from two seeds of each."""
    x, y = _pair(first, second)
    return float(np.sqrt(np.mean((x - y) ** 2) / 2))


def wilson(error: float, count: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927)."""
    z2 = NORMAL_95**2
    middle = (error + z2 / (2 * count)) / (1 + z2 / count)
    half = NORMAL_95 / (1 + z2 / count) * math.sqrt(error * (1 - error) / count + z2 / (4 * count**2))
    return max(0.0, middle - half), min(1.0, middle + half)


# ------------------------------------------------------------------------------------- comparisons


@dataclass(frozen=True)
class Paired:
    """Two treatments of the same networks.

    Attributes:
        difference: mean of second - first, with its bootstrap interval.
        p: two-sided, Wilcoxon's signed-rank test; 1 when nothing differs.
        better: share of the networks for which the first is lower (ties count half).
    """

    difference: Estimate
    p: float
    better: float

    def to_json(self) -> JsonObject:
        """Plain numbers."""
        return asdict(self)


def paired(first: ArrayLike, second: ArrayLike, *, seed: int = 0, resamples: int = RESAMPLES) -> Paired:
    """Compare two numbers per network, for example the score with the right and with another encoding."""
    from scipy.stats import wilcoxon

    x, y = _pair(first, second)
    gap = y - x
    p = float(wilcoxon(gap).pvalue) if np.any(gap) else 1.0
    mean = _interval(
        float(gap.mean()), len(gap), lambda weights: weights @ gap / weights.sum(1), seed, resamples
    )
    return Paired(mean, p, float(((gap > 0) + 0.5 * (gap == 0)).mean()))


def signal_table(
    truth: ArrayLike, signals: Mapping[str, ArrayLike], *, seed: int = 0, resamples: int = RESAMPLES
) -> list[JsonObject]:
    """Everything about each signal as a predictor of the truth: one row per signal.

    The top half and top fifth are those by truth. Cheap baselines (parameters, MACs) belong in here with
    their sign turned, since larger networks are usually better.
    """
    known = np.asarray(truth, np.float64)
    few = max(1, len(known) // 5)
    rows = []
    for name, signal in signals.items():
        values = np.asarray(signal, np.float64)
        row: JsonObject = {"signal": name}
        for part, share in (("all", 1.0), ("top half", 0.5), ("top fifth", 0.2)):
            inside = best_share(known, share)
            options: dict[str, Any] = {"seed": seed, "resamples": resamples}
            row[part] = {
                "kendall": kendall(values[inside], known[inside], **options).to_json(),
                "spearman": spearman(values[inside], known[inside], **options).to_json(),
            }
        row["precision"] = {str(k): precision_at(values, known, k) for k in dict.fromkeys((5, few))}
        row["regret"] = {str(k): regret_at(values, known, k) for k in (1, 5, 10)}
        rows.append(row)
    return rows


# ------------------------------------------------------------------------------------------ private


def _interval(value: float | None, count: int, statistic: Any, seed: int, resamples: int) -> Estimate:
    if value is None or count < 3:
        return Estimate(value, None, None, count)
    random = np.random.default_rng((seed, count, resamples))
    weights = random.multinomial(count, np.full(count, 1 / count), size=resamples).astype(np.float64)
    drawn = statistic(weights)
    drawn = drawn[np.isfinite(drawn)]  # a resample may be one network over and over
    if not len(drawn):
        return Estimate(value, None, None, count)
    edge = (1 - CONFIDENCE) / 2
    low, high = np.quantile(drawn, [edge, 1 - edge])
    return Estimate(value, float(low), float(high), count)


def _pair(first: ArrayLike, second: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if x.ndim != 1 or x.shape != y.shape or not len(x):
        raise InvalidInputError(
            "two lists of numbers", expected="equal lengths of 1 and more", received=(x.shape, y.shape)
        )
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise InvalidInputError("numbers to compare", expected="finite ones", received="NaN or infinity")
    return x, y


def _number(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None

"""The statistics against scipy's, against resamples written out, and on data whose answer is known."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau, spearmanr, wilcoxon

from smash_base.errors import InvalidInputError
from smash_search.rank import statistics

few_values = st.lists(st.integers(0, 5), min_size=4, max_size=25)  # many ties


@settings(max_examples=60, deadline=None)
@given(few_values, st.randoms(use_true_random=False), st.integers(0, 1000))
def test_weights_are_resamples_written_out(values: list[int], random: Random, seed: int) -> None:
    x = np.asarray(values, float)
    y = np.asarray([random.randint(0, 5) for _ in values], float)
    weights = np.random.default_rng(seed).multinomial(len(x), np.full(len(x), 1 / len(x)), size=1)
    drawn = np.repeat(np.arange(len(x)), weights[0])
    tau = statistics.kendall_of_weights(x, y, weights.astype(float))[0]
    rho = statistics.spearman_of_weights(x, y, weights.astype(float))[0]
    if len(np.unique(x[drawn])) > 1 and len(np.unique(y[drawn])) > 1:
        assert tau == pytest.approx(kendalltau(x[drawn], y[drawn]).statistic, abs=1e-9)
        assert rho == pytest.approx(spearmanr(x[drawn], y[drawn]).statistic, abs=1e-9)
    else:
        assert np.isnan(tau)
        assert np.isnan(rho)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    rho = 0.6
    truth = 2 / np.pi * np.arcsin(rho)  # Kendall's tau of a normal pair
    covered = 0
    for trial in range(100):
        pair = random.multivariate_normal([0, 0], [[1, rho], [rho, 1]], size=60)
        found = statistics.kendall(pair[:, 0], pair[:, 1], seed=trial, resamples=300)
        covered += found.low <= truth <= found.high
    assert 85 <= covered <= 100


def test_results_depend_on_the_seed_alone() -> None:
    random = np.random.default_rng(1)
    x, y = random.normal(size=(2, 30))
    assert statistics.kendall(x, y, seed=3) == statistics.kendall(x, y, seed=3)
    assert statistics.spearman(x, y, seed=3) != statistics.spearman(x, y, seed=4)


def test_perfect_and_reversed_rankings() -> None:
    x = np.arange(20.0)
    assert statistics.kendall(x, x).value == pytest.approx(1)
    assert statistics.spearman(x, -x).value == pytest.approx(-1)
    assert statistics.ceiling(x, x).low == pytest.approx(1)


def test_a_constant_signal_has_no_correlation_rather_than_a_wrong_one() -> None:
    found = statistics.kendall(np.ones(10), np.arange(10.0))
    assert found.value is None
    assert str(found) == "undefined"
    assert statistics.spearman(np.ones(10), np.arange(10.0)).value is None


def test_two_networks_have_a_correlation_and_no_interval() -> None:
    found = statistics.kendall([1.0, 2.0], [3.0, 4.0])
    assert (found.value, found.low, found.high) == (1.0, None, None)
    assert str(found) == "1.00"


def test_the_gain_of_a_signal_over_another_is_judged_over_the_same_networks() -> None:
    """Both taus rise and fall together: their intervals overlap, that of the difference is above zero."""
    random = np.random.default_rng(0)
    truth = random.normal(size=60)
    worse = truth + random.normal(0, 1.0, 60)
    better = (truth + worse) / 2
    gain = statistics.kendall_gain(better, worse, truth)
    first, second = statistics.kendall(better, truth), statistics.kendall(worse, truth)
    assert gain.value == pytest.approx(first.value - second.value)
    assert gain.low > 0
    assert statistics.kendall_gain(worse, worse, truth).value == 0


@pytest.mark.parametrize(
    ("x", "y"),
    [([1.0, 2.0], [1.0]), ([1.0, float("nan")], [1.0, 2.0]), ([], []), ([[1.0]], [[1.0]])],
)
def test_bad_numbers_are_refused(x: list[float], y: list[float]) -> None:
    with pytest.raises(InvalidInputError):
        statistics.kendall(x, y)
    with pytest.raises(InvalidInputError):
        statistics.regret_at(x, y, 1)


def test_precision_and_regret_of_known_rankings() -> None:
    truth = np.asarray([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    signal = np.asarray([6, 5, 1, 2, 3, 4.0])  # picks the 3rd, then the 4th, ...
    assert statistics.precision_at(signal, truth, 3) == pytest.approx(1 / 3)
    assert statistics.precision_at(truth, truth, 3) == 1
    assert statistics.regret_at(signal, truth, 1) == pytest.approx(0.2)
    assert statistics.regret_at(signal, truth, 6) == 0


def test_the_best_share_is_by_truth() -> None:
    truth = [0.5, 0.1, 0.4, 0.2, 0.3]
    assert statistics.best_share(truth, 0.4).tolist() == [1, 3]
    assert statistics.best_share(truth, 0.01).tolist() == [1]


def test_split_half_tells_signal_from_noise() -> None:
    random = np.random.default_rng(0)
    differing = random.random((30, 1000)) < np.linspace(0.1, 0.9, 30)[:, None]
    alike = random.random((30, 1000)) < 0.3
    assert statistics.split_half(differing) > 0.95
    assert abs(statistics.split_half(alike)) < 0.5
    assert statistics.split_half(np.zeros((5, 10), bool)) is None
    assert statistics.split_half(differing[:2]) is None
    assert statistics.stepped_up(0.5) == pytest.approx(2 / 3)
    assert statistics.stepped_up(None) is None
    assert [statistics.stepped_up(half) for half in (-1.0, -0.9, 0.0)] == [None] * 3


def test_seed_noise_is_the_standard_deviation_over_seeds() -> None:
    random = np.random.default_rng(0)
    true = random.normal(size=4000)
    noisy = true + random.normal(scale=0.3, size=(2, 4000))
    assert statistics.seed_noise(noisy[0], noisy[1]) == pytest.approx(0.3, rel=0.05)


def test_paired_comparison_finds_a_small_shift_of_equal_networks() -> None:
    random = np.random.default_rng(0)
    right = random.random(30)
    wrong = right + 0.02 + random.normal(scale=0.01, size=30)
    found = statistics.paired(right, wrong)
    assert found.p == pytest.approx(wilcoxon(wrong - right).pvalue)
    assert found.p < 1e-4
    assert found.difference.low < 0.02 < found.difference.high
    assert found.better > 0.9
    assert statistics.paired(right, right).p == 1
    assert statistics.paired(right, right).better == 0.5


def test_the_table_has_every_signal_over_all_and_the_top() -> None:
    random = np.random.default_rng(0)
    truth = random.random(40)
    rows = statistics.signal_table(
        truth, {"good": truth + random.normal(scale=0.05, size=40), "none": random.random(40)}, resamples=200
    )
    assert [row["signal"] for row in rows] == ["good", "none"]
    good = rows[0]
    assert good["all"]["kendall"]["value"] > 0.7 > rows[1]["all"]["kendall"]["high"]
    assert [good[part]["kendall"]["count"] for part in ("all", "top half", "top fifth")] == [40, 20, 8]
    assert set(good["precision"]) == {"5", "8"}
    assert good["regret"]["10"] <= good["regret"]["1"]


def test_wilson_stays_inside_0_and_1() -> None:
    for count in (1, 10, 1000):
        low, high = statistics.wilson(0.0, count)
        assert low == pytest.approx(0, abs=1e-12)
        assert 0 < high < 1
    assert np.subtract(*statistics.wilson(0.3, 100)[::-1]) > np.subtract(*statistics.wilson(0.3, 1000)[::-1])

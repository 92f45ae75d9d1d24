"""Judging accuracy: right files pass, wrong ones do not, and what is said about them is true."""

from __future__ import annotations

import numpy as np
import pytest

from smash_export.measure.gates import GATES, accuracy_loss, paired_interval, temperature, too_many
from smash_export.measure.verify import Parity, compare_logits


def population(images: int, separation: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits [N, 10] and labels of a made network; its logits are not calibrated."""
    draws = np.random.default_rng(seed)
    labels = draws.integers(0, 10, images)
    logits = draws.normal(0, 1.6, (images, 10))
    logits[np.arange(images), labels] += separation
    return logits * draws.uniform(0.7, 1.8), labels


def shifted(logits: np.ndarray, noise: float, shift: float, seed: int) -> np.ndarray:
    """The same with noise as of rounding, and with one class preferred, as by a wrong range."""
    draws = np.random.default_rng(seed)
    received = logits + draws.normal(0, noise * logits.std(), logits.shape)
    received[:, 3] += shift * logits.std()
    return received


def test_of_200_made_files_right_ones_pass_and_wrong_ones_never_do() -> None:
    limit = GATES["int8"].drop
    right, refused, wrong, accepted = 0, 0, 0, 0
    for case in range(200):
        draws = np.random.default_rng([9, case])
        logits, labels = population(6_000, draws.uniform(2.5, 5), case)
        good = case % 2 == 0
        noise = draws.uniform(0.005, 0.05) if good else draws.uniform(0.05, 0.5)
        received = shifted(logits, noise, 0 if good else draws.uniform(0, 0.8), case)
        lost = 100 * ((logits.argmax(1) == labels).mean() - (received.argmax(1) == labels).mean())
        passed = accuracy_loss(logits[:512], received[:512], labels[:512]).keeps(limit)
        if lost <= limit / 2:
            right, refused = right + 1, refused + (not passed)
        elif lost >= 2 * limit:
            wrong, accepted = wrong + 1, accepted + passed
    assert right > 60
    assert wrong > 60
    assert refused <= 0.05 * right
    assert accepted == 0


def test_near_ties_cost_nothing_and_firm_answers_do() -> None:
    logits, labels = population(2000, 4, 0)
    order = np.argsort(logits, axis=1)
    margins = np.sort(logits, axis=1)[:, -1] - np.sort(logits, axis=1)[:, -2]
    costs = []
    for rows in (np.argsort(margins)[:20], np.argsort(-margins)[:20]):
        received = logits.copy()
        received[rows, order[rows, -2]] = received[rows, order[rows, -1]] + 0.1
        costs.append(accuracy_loss(logits, received, labels).expected)
    assert costs[0] < 0.02
    assert costs[1] == pytest.approx(1, abs=0.05)


def test_the_interval_is_that_of_agresti_and_min() -> None:
    low, high = paired_interval(150, 86, 1600)
    middle, width = (150 - 86) / 1602, 1.96 * np.sqrt(237 - 64**2 / 1602) / 1602
    assert (low, high) == pytest.approx((100 * (middle - width), 100 * (middle + width)))
    assert paired_interval(0, 0, 512)[1] == pytest.approx(100 * 1.96 / 514)


def test_temperature_finds_how_overconfident_a_network_is() -> None:
    draws = np.random.default_rng(0)
    logits = draws.normal(0, 2, (5000, 10))
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = np.array([draws.choice(10, p=share) for share in shares])
    assert temperature(3 * logits, labels) == pytest.approx(3, rel=0.12)
    assert temperature(shares, labels) == pytest.approx(1, rel=0.12)


def test_changed_labels_of_exact_files_are_held_against_chance() -> None:
    assert not too_many(0, 512, 0.001)
    assert not too_many(3, 512, 0.001)
    assert too_many(4, 512, 0.001)
    assert too_many(1, 10, 0.0)


def test_the_message_has_question_number_interval_and_verdict() -> None:
    logits, labels = population(512, 4, 1)
    received = shifted(logits, 0.4, 0.5, 1)
    parity = compare_logits(logits, received, labels)
    (problem,) = parity.problems("int8")
    assert problem.startswith("does it lose at most 0.5 points of accuracy? No: ")
    assert parity.loss is not None
    for number in (parity.loss.points, parity.loss.low, parity.loss.high, parity.loss.expected_high):
        assert f"{number:.2f}" in problem
    assert not parity.problems("int8", max_drop=50)
    assert Parity.from_json(parity.to_json()) == parity

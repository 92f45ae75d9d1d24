"""Judging accuracy: right files pass, wrong ones do not, and what is said about them is true."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.metrics import f1_score

from smash_export.measure.gates import (
    GATES,
    accuracy_loss,
    paired_interval,
    presence_loss,
    temperature,
    too_many,
)
from smash_export.measure.verify import Parity, compare_logits
from smash_search.data.several import likeliest


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


def of_several(images: int, classes: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities [N, K] of a made network, and what is there: the second class only beside the first."""
    draws = np.random.default_rng(seed)
    targets = (draws.random((images, classes)) < 0.3).astype(np.uint8)
    targets[:, 1] &= targets[:, 0]
    targets[~targets.any(1), 2] = 1
    found = np.clip(0.5 + (targets - 0.5) * 0.6 + draws.normal(0, 0.2, targets.shape), 0, 0.99)
    found[:, 0] = np.where(targets[:, 1] > 0, 0.995, found[:, 0])
    return found, targets


def test_mean_f1_is_that_of_scikit_learn() -> None:
    found, targets = of_several(300)
    received = np.clip(found - 0.1, 0, 1)
    loss = presence_loss(found, received, targets)
    assert loss.reference == pytest.approx(f1_score(targets, found >= 0.5, average="macro"))
    assert loss.found == pytest.approx(f1_score(targets, received >= 0.5, average="macro"))
    assert loss.low < loss.points < loss.high


def test_a_file_that_loses_a_class_beside_a_likelier_one_is_refused() -> None:
    """No first label changes, so that accuracy and margins say nothing."""
    found, targets = of_several(600)
    received = found.copy()
    received[:, 1] *= np.where(targets[:, 1] > 0, 0.3, 1)
    parity = compare_logits(found, received, likeliest(targets, found), targets=targets)
    assert parity.flip_count == 0
    (problem,) = parity.problems("int8")
    assert problem.startswith("does it lose at most 0.5 points of the mean F1 of the classes? No: ")
    assert not parity.problems("int8", max_drop=50)
    assert Parity.from_json(json.loads(json.dumps(parity.to_json()))) == parity
    assert compare_logits(found, received, likeliest(targets, found)).presence is None


def test_of_200_made_files_of_several_classes_those_that_only_round_pass() -> None:
    refused = accepted = 0
    for case in range(200):
        draws = np.random.default_rng([7, case])
        found, targets = of_several(int(draws.integers(80, 600)), seed=case)
        good = case % 2 == 0
        received = found + draws.normal(0, 0.01, found.shape)
        if not good:
            received[:, draws.integers(0, 6)] -= 0.4  # as by a wrong range
        kept = presence_loss(found, np.clip(received, 0, 1), targets).keeps(GATES["int8"].drop)
        refused, accepted = refused + (good and not kept), accepted + (not good and kept)
    assert refused <= 5
    assert accepted <= 10

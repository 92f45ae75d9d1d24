"""Classes of unequal size: what is done against it, and what networks and epochs are then compared by."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch import nn

from smash_search.data import Dataset, Split
from smash_search.rank.finalists import Finalist, FinalistsConfig, int8_accuracy, train_rung
from smash_search.space.architecture import InputSpec
from smash_search.train.compute import load_checkpoint
from smash_search.train.folds import cross_validated
from smash_search.train.network import (
    accuracy,
    answers_of,
    fit,
    mean_recall,
    new_network,
    weights_of_presence,
)
from smash_search.train.recipes import Recipe
from tests.search.small_data import small_architecture, small_digits


def flat(labels: np.ndarray, seed: int) -> Split:
    """Images of one brightness; that of class 1 is higher, by as much as both vary."""
    noise = np.random.default_rng(seed).normal(0, 30, len(labels))
    shown = np.clip(100 + 45 * labels + noise, 0, 255).astype(np.uint8)
    return Split(np.broadcast_to(shown[:, None, None, None], (len(labels), 8, 8, 1)).copy(), labels)


def unequal() -> Dataset:
    """Two classes, 95 of 100 training images of the first; validation images of both alike."""
    train, validation = flat(np.repeat([0, 1], [760, 40]), 0), flat(np.repeat([0, 1], [200, 200]), 1)
    return replace(small_digits(), classes=("a", "b"), train=train, validation=validation, test=validation)


def brightness() -> nn.Module:
    """One weight and one bias for each class."""
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2))
    with torch.no_grad():
        for value in network.parameters():
            value.zero_()
    return network


def trained(data: Dataset, balance: Literal["none", "loss", "sampling"]) -> nn.Module:
    network = brightness()
    fit(network, data, Recipe(epochs=20, batch=32, balance=balance, weight_decay=0.0), evaluate=False)
    return network


@pytest.mark.parametrize("balance", ["loss", "sampling"])
def test_balance_raises_the_recall_of_the_small_class(balance: Literal["loss", "sampling"]) -> None:
    data = unequal()
    plain, balanced = (
        mean_recall(trained(data, way), data.validation, data.preprocessing) for way in ("none", balance)
    )
    assert plain < 0.65, "the class with nearly all images is the answer nearly always"
    assert balanced > plain + 0.1


def test_a_class_that_few_images_have_is_found_where_several_may_be_there() -> None:
    data = unequal()
    several = [
        replace(part, targets=np.eye(2, dtype=np.uint8)[part.labels])
        for part in (data.train, data.validation)
    ]
    data = replace(data, train=several[0], validation=several[1])
    found = [
        (answers_of(trained(data, balance), data.validation, data.preprocessing)[200:, 1] > 0).mean()
        for balance in ("none", "loss")
    ]
    assert found[1] > found[0] + 0.3


def test_weights_of_presence_are_images_without_over_images_with() -> None:
    targets = torch.zeros(100, 4)
    targets[:25, 0] = 1
    targets[:99, 1] = 1
    targets[:1, 2] = 1
    assert weights_of_presence(targets).tolist() == [3, 1, 20, 20], "1 to 20"


def test_mean_recall_counts_every_class_alike() -> None:
    data = unequal()
    network = brightness()  # answers class 0 to everything
    split = flat(np.repeat([0, 1], [30, 10]), 2)
    assert accuracy(network, split, data.preprocessing) == 0.75
    assert mean_recall(network, split, data.preprocessing) == 0.5
    assert mean_recall(network, flat(np.zeros(8, np.int64), 0), data.preprocessing) == 1, "no class b"


def lopsided() -> Dataset:
    """Digits whose validation images are of unequal classes."""
    data = small_digits(validation=120)
    order = np.argsort(data.validation.labels < 3, kind="stable")
    return replace(data, validation=data.validation.take(order[:90]))


def test_the_best_epoch_of_a_balanced_training_is_that_of_the_best_mean_recall() -> None:
    data, network = lopsided(), new_network(small_architecture(), InputSpec(1, (8, 8)), 10, 0)
    recipe = Recipe(epochs=3, batch=32, balance="loss", keep_best=True)
    result = fit(network, data, recipe)
    measured = [entry.accuracy for entry in result.history]
    assert result.accuracy == max(entry for entry in measured if entry is not None)
    assert result.accuracy == mean_recall(network, data.validation, data.preprocessing)
    assert result.accuracy != accuracy(network, data.validation, data.preprocessing)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_finalists_of_a_balanced_recipe_are_compared_by_mean_recall(
    tmp_path: Path, precision: Literal["fp32", "int8"]
) -> None:
    data, architecture = lopsided(), small_architecture()
    config = FinalistsConfig(
        count=1, random=0, rungs=(2,), recipe=Recipe(batch=32, balance="sampling"), precision=precision
    )
    finalist = Finalist(architecture, "search", "", None, 1)
    trained = train_rung(finalist, 0, data, config, weights=tmp_path)
    held = load_checkpoint(tmp_path / f"search-{architecture.key}.0.pt", None)
    assert held is not None
    network = new_network(architecture, InputSpec(1, (8, 8)), 10, 0)
    network.load_state_dict(held["network"])
    if precision == "int8":
        right = int8_accuracy(network, data, measure=mean_recall)
        assert right != int8_accuracy(network, data)
    else:
        right = mean_recall(network, data.validation, data.preprocessing)
        assert right != accuracy(network, data.validation, data.preprocessing)
    assert trained.error == pytest.approx(1 - right)


def test_ranges_come_from_as_few_training_images_as_there_are() -> None:
    data = small_digits(train=6)
    network = new_network(small_architecture(), InputSpec(1, (8, 8)), 10, 0)
    assert 0 <= int8_accuracy(network, data) <= 1


def test_folds_of_a_balanced_recipe_count_images() -> None:
    still = Recipe(epochs=1, batch=64, balance="loss", learning_rate=0.0)  # answers class 0 to everything
    found = cross_validated(brightness, unequal(), still, 2)
    assert (found.right, found.images) == (960, 1200), "not half of them, which is the mean recall"

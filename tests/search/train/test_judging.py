"""Accuracy and loss of a trained network, from the same answers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from smash_search.data import Split
from smash_search.data.dataset import Dataset
from smash_search.train import judging
from smash_search.train.compute import Feed
from smash_search.train.judging import Judge, cross_entropies, fit_temperature
from smash_search.train.network import Recipe, accuracy, mean_recall
from tests.search.small_data import small_digits


class Means(nn.Module):
    """Logits that fall with the squared distance to the mean image of each class, times a number."""

    def __init__(self, data: Dataset, times: float) -> None:
        super().__init__()
        images, _ = Feed(data.train, data.preprocessing, torch.device("cpu"))(np.arange(len(data.train)))
        labels = torch.from_numpy(data.train.labels)
        self.means = nn.Parameter(
            torch.stack([images[labels == label].flatten(1).mean(0) for label in range(10)])
        )
        self.times = times

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images [B, 1, 8, 8] -> logits [B, 10]."""
        return -self.times * torch.cdist(images.flatten(1), self.means) ** 2


@pytest.fixture(scope="module")
def data() -> Dataset:
    """72 validation images, two thirds of them of few classes."""
    whole = small_digits(train=200, validation=48)
    few = np.argsort(whole.validation.labels, kind="stable")[:24]
    return replace(whole, validation=whole.validation.take(np.concatenate([few, few, np.arange(24)])))


@pytest.mark.parametrize("balance", ["none", "loss", "sampling"])
def test_a_judge_measures_what_the_recipe_asks_for(balance: str, data: Dataset) -> None:
    recipe = Recipe(balance=balance)  # type: ignore[arg-type]
    judge, network = Judge(recipe), Means(data, 0.1)
    measure = accuracy if balance == "none" else mean_recall
    found = judge(network, data.validation, data.preprocessing)
    assert found == pytest.approx(measure(network, data.validation, data.preprocessing))
    assert judge.loss is not None
    assert 0 < judge.loss < 1.5, "far better than a guess, which has 2.3"


def test_of_many_images_in_the_order_of_their_classes_every_class_counts(
    data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network that is right on the first classes alone is not the better one."""
    order = np.argsort(data.validation.labels, kind="stable")
    split = data.validation.take(order)

    class FirstClasses(Means):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits = super().forward(images)
            return logits - 1e3 * (torch.arange(10) >= 5)

    monkeypatch.setattr(judging, "MOST_IMAGES", len(split) // 3)
    whole, half = Judge(Recipe()), Judge(Recipe())
    whole(Means(data, 0.1), split, data.preprocessing)
    half(FirstClasses(data, 0.1), split, data.preprocessing)
    assert whole.loss is not None
    assert half.loss is not None
    assert whole.loss < half.loss


def test_the_loss_does_not_depend_on_how_sure_all_answers_are_together(data: Dataset) -> None:
    losses = []
    for times in (0.03, 0.1, 0.3):
        judge = Judge(Recipe())
        judge(Means(data, times), data.validation, data.preprocessing)
        losses.append(judge.loss)
    assert losses == pytest.approx([losses[0]] * 3, abs=1e-4)


def test_the_loss_of_a_balanced_recipe_is_the_mean_over_classes(data: Dataset) -> None:
    logits = np.random.default_rng(0).standard_normal((60, 10)).astype(np.float32)
    labels = np.repeat([0, 1], [50, 10])
    loss = cross_entropies(logits, labels, fit_temperature(logits, labels, 20))
    judge = Judge(Recipe(balance="loss"))
    split = Split(np.zeros((60, 8, 8, 1), np.uint8), labels)

    class Known(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(logits)[: len(images)]

    judge(Known(), split, data.preprocessing)
    assert judge.loss == pytest.approx((loss[:50].mean() + loss[50:].mean()) / 2)


def test_what_is_no_number_has_no_loss(data: Dataset) -> None:
    judge = Judge(Recipe())
    judge(Means(data, float("nan")), data.validation, data.preprocessing)
    assert judge.loss is None

"""Folds: every image is judged once, by a network that has not seen it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from smash_base.errors import InvalidInputError
from smash_search.data import Dataset, Split
from smash_search.data.dataset import first_equal
from smash_search.data.several import rarest
from smash_search.train.folds import _by_the_others, _Judged, cross_validated, fold_of, most_folds
from smash_search.train.network import FitResult, Recipe, fit, settled
from tests.search.several_data import several_digits
from tests.search.small_data import small_digits


def test_folds_have_equal_sizes_and_equal_shares_of_the_classes() -> None:
    labels = np.repeat([0, 1, 2], [50, 23, 7])
    places = fold_of(labels, 5, 0)
    sizes = np.bincount(places)
    assert sizes.max() - sizes.min() <= 1
    for label in range(3):
        shares = np.bincount(places[labels == label], minlength=5)
        assert shares.max() - shares.min() <= 1
    assert np.array_equal(places, fold_of(labels, 5, 0))


def test_more_folds_than_the_smallest_class_has_images_are_refused() -> None:
    data = small_digits(train=60, validation=30)
    smallest = int(np.bincount(np.concatenate([data.train.labels, data.validation.labels])).min())
    for folds in (1, smallest + 1):
        with pytest.raises(
            InvalidInputError, match=f"2 to {smallest}, the different images of the smallest class"
        ):
            cross_validated(_Memory, data, Recipe(epochs=1, batch=16), folds)


def test_folds_of_a_balanced_training_tell_the_recall_of_the_classes() -> None:
    data = small_digits(train=60, validation=30)

    def make() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    plain = cross_validated(make, data, Recipe(epochs=1, batch=16), 3)
    assert plain.recalls == ()
    balanced = cross_validated(make, data, Recipe(epochs=1, batch=16, balance="loss"), 3)
    assert len(balanced.recalls) == 3
    assert all(0 <= recall <= 1 for recall in balanced.recalls)


def test_equal_images_are_in_one_fold_and_count_once() -> None:
    data = small_digits(train=60, validation=30)
    everything = Split.joined(data.train, data.validation)
    five_times = everything.take(np.tile(np.arange(90), 5))
    smallest = int(np.bincount(everything.labels).min())
    data = replace(data, train=five_times.take(slice(0, 400)), validation=five_times.take(slice(400, None)))
    assert most_folds(data) == smallest, "as many as there are different ones"
    places = fold_of(five_times.labels, 3, 0, first_equal(five_times.images))
    assert (places.reshape(5, 90) == places[:90]).all()
    assert np.bincount(places).tolist() == [150, 150, 150]
    seen: list[int] = []

    def make() -> nn.Module:
        network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        seen.append(1)
        return network

    assert cross_validated(make, data, Recipe(epochs=1, batch=16), 3).images == 450


def test_a_class_that_is_the_rarest_of_one_image_only_limits_no_folds() -> None:
    data = several_digits(train=60, validation=30)

    def tagged(split: Split, alone: int) -> Split:
        """All of a fourth class, and the first ones of that alone."""
        assert split.targets is not None
        targets = np.concatenate([split.targets, np.ones((len(split), 1), np.uint8)], 1)
        targets[:alone, :3] = 0
        return replace(split, targets=targets, labels=rarest(targets, targets.sum(0)))

    train, validation = tagged(data.train, alone=1), tagged(data.validation, alone=0)
    data = replace(data, classes=(*data.classes, "any"), train=train, validation=validation)
    assert np.bincount(np.concatenate([train.labels, validation.labels]))[3] == 1
    assert most_folds(data) > 20

    def make() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 4))

    assert cross_validated(make, data, Recipe(epochs=1, batch=16), 3).images == 90


def test_views_of_an_object_are_in_one_fold() -> None:
    data = small_digits(train=60, validation=30)
    turned = replace(data, views=3, train=_repeated(data.train, 3), validation=_repeated(data.validation, 3))
    made: list[_Memory] = []

    def make() -> nn.Module:
        made.append(_Memory())
        return made[-1]

    found = cross_validated(make, turned, Recipe(epochs=1, batch=16), 3)
    assert found.images == 3 * 90
    assert len(made) == 3
    for network in made:
        assert not network.known & set(network.asked)


def _repeated(split: Split, views: int) -> Split:
    return split.take(np.repeat(np.arange(len(split)), views))


class _Memory(nn.Module):
    """Knows every image that it was shown in training, and answers class 0 to all others."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.known: set[bytes] = set()
        self.asked: list[bytes] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        names = [image.numpy().tobytes() for image in images]
        if self.training:
            self.known.update(names)
        else:
            self.asked += names
        return torch.zeros(len(images), 10) + self.weight


def test_no_network_is_judged_on_an_image_that_it_was_trained_on(tmp_path: Path) -> None:
    data = small_digits(train=60, validation=30)
    made: list[_Memory] = []

    def make() -> nn.Module:
        made.append(_Memory())
        return made[-1]

    found = cross_validated(make, data, Recipe(epochs=1, batch=16), 3, work=tmp_path)
    assert len(made) == 3
    for network in made:
        assert not network.known & set(network.asked)
        assert len(network.asked) == 30
    assert len({name for network in made for name in network.asked}) == 90
    labels = np.concatenate([data.train.labels, data.validation.labels])
    assert (found.right, found.images) == (int((labels == 0).sum()), 90)


def test_folds_are_trained_as_the_network_of_all_images_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though a fold has fewer images than Muon is for."""
    data, used = small_digits(train=96, validation=30), []

    def noted(network: nn.Module, part: Dataset, recipe: Recipe, **options: Any) -> FitResult:
        used.append((len(part.train), recipe.optimiser))
        return fit(network, part, recipe, **options)

    def make() -> nn.Module:
        return nn.Sequential(
            *(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1)),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)),
        )

    monkeypatch.setattr("smash_search.train.folds.fit", noted)
    monkeypatch.setattr("smash_search.train.network.FEW_IMAGES", 90)
    monkeypatch.setattr("smash_search.train.network.has_few_of_a_class", lambda _: False)
    recipe = Recipe(epochs=1, batch=16, optimiser="auto")
    assert settled(recipe, make(), data).optimiser == "muon"
    cross_validated(make, data, recipe, 3)
    assert used == [(84, "muon")] * 3


def test_folds_that_are_done_are_not_trained_again(tmp_path: Path) -> None:
    data, recipe = small_digits(train=60, validation=30), Recipe(epochs=2, batch=16)

    def make() -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    steps: list[int] = []
    first = cross_validated(make, data, recipe, 3, work=tmp_path)
    again = cross_validated(make, data, recipe, 3, work=tmp_path, on_step=lambda _, p: steps.append(p.step))
    assert again == first
    assert not steps


def test_folds_of_several_classes_are_judged_by_every_one_of_them() -> None:
    data = small_digits(train=60, validation=30)
    several = [
        replace(part, targets=np.eye(10, dtype=np.uint8)[part.labels] | np.eye(10, dtype=np.uint8)[:1])
        for part in (data.train, data.validation)
    ]
    data = replace(data, train=several[0], validation=several[1])
    found = cross_validated(_Memory, data, Recipe(epochs=1, batch=16), 3)
    assert found.right == found.images == 90, "class 0, which _Memory answers, is one of each image's"
    assert len(found.precisions) == 3
    assert all(0.1 < precision < 0.6 for precision in found.precisions)


def test_a_class_is_there_from_the_threshold_that_the_other_folds_tell() -> None:
    """A third of the images are of no class; logits of those of one are between -3 and -1."""
    random = np.random.default_rng(0)
    folds = []
    for _ in range(3):
        targets = np.repeat(np.eye(3, 2, dtype=np.uint8), 10, 0)
        logits = np.where(
            targets > 0, random.uniform(-3, -1, targets.shape), random.uniform(-9, -7, targets.shape)
        )
        folds.append(_Judged(0, 30, 1.0, answers=logits.astype(np.float32), targets=targets))
    labels = np.tile(np.repeat(np.arange(3), 10), 3)  # 2 is that of no class
    assert [_by_the_others(folds, place, labels).right for place in range(3)] == [30, 30, 30]
    plain = _Judged(7, 30)
    assert _by_the_others([plain, plain], 0, labels) is plain

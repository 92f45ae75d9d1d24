"""Recipes: fitted to the images, and what their values do to a training."""

from __future__ import annotations

import itertools
import math
import time
import tracemalloc
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from smash_base.errors import InvalidInputError, UsageError
from smash_search.data import Dataset, Split, load_dataset
from smash_search.data.several import rarest
from smash_search.space.architecture import InputSpec
from smash_search.train import initial
from smash_search.train.compute import Batches
from smash_search.train.initial import begin_as_identity, first_convolution, whiten, whitening_filters
from smash_search.train.loop import TrainingProgress
from smash_search.train.network import (
    LONG_STEPS,
    SHORT_STEPS,
    Recipe,
    accuracy,
    answers_of,
    class_weights,
    fit,
    new_network,
    schedule,
    seconds_of_validation,
    seconds_per_epoch,
    settled,
    tempering,
    within,
)
from smash_search.train.recipes import FEW_IMAGES, NAMES, has_few_of_a_class, recipe_for, survives_flip
from tests.search.hand_clock import HandClock
from tests.search.several_data import several_digits
from tests.search.small_data import same_state, small_architecture, small_digits

SPEC = InputSpec(1, (8, 8))


def _network(seed: int = 0) -> torch.nn.Module:
    return new_network(small_architecture(), SPEC, 10, seed)


@pytest.mark.parametrize("name", NAMES)
def test_digits_are_not_flipped_by_any_recipe(name: str) -> None:
    recipe = recipe_for(name, small_digits(train=600), seed=3)
    assert "flip" not in recipe.augmentation
    assert recipe.augmentation["pad_crop"] == 1
    assert recipe.seed == 3


def test_images_whose_mirror_image_is_of_the_same_kind_are_flipped() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, 400)
    bright = (labels * 100)[:, None, None, None] + random.integers(0, 150, (400, 8, 8, 3))
    assert survives_flip(bright.astype(np.uint8), labels)
    sided = random.integers(0, 100, (400, 8, 8, 3))
    sided[labels == 0, :, :4] += 100
    sided[labels == 1, :, 4:] += 100
    assert not survives_flip(sided.astype(np.uint8), labels)


@pytest.mark.parametrize("count", [40, 100, 450])
def test_few_digits_are_not_flipped_whichever_they_are(count: int) -> None:
    train = load_dataset("digits").train
    for seed in range(10):
        chosen = np.random.default_rng((seed, count)).permutation(len(train))[:count]
        assert not survives_flip(train.images[chosen], train.labels[chosen])


@pytest.mark.parametrize("count", [40, 100, 450])
def test_few_images_that_are_hard_to_tell_are_flipped_as_many_are(count: int) -> None:
    flipped = 0
    for seed in range(20):  # by one halving, of which half a dozen images decide, half of them were
        random = np.random.default_rng((seed, count))
        labels = random.integers(0, 10, count)
        shade = 8 * labels[:, None, None, None] + random.normal(90, 60, (count, 1, 1, 3))
        images = np.clip(shade + random.normal(0, 40, (count, 16, 16, 3)), 0, 255).astype(np.uint8)
        flipped += survives_flip(images, labels)
    assert flipped >= 17


def test_a_look_at_many_large_images_takes_no_longer_than_one_waits() -> None:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (3000, 31, 31, 3)).astype(np.uint8)
    start = time.process_time()
    survives_flip(images, random.integers(0, 10, 3000))
    assert time.process_time() - start < 5, "about one second"


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_handful_of_images_can_be_looked_at(count: int) -> None:
    images = np.zeros((count, 8, 8, 1), np.uint8)
    assert survives_flip(images, np.zeros(count, np.int64)) is (count > 1)


def test_an_unknown_recipe_is_refused_with_the_known_names() -> None:
    with pytest.raises(UsageError, match="quick"):
        recipe_for("slow", small_digits())


def pictures(count: int, classes: int) -> Dataset:
    """Grey images of one brightness for each class, the same from both sides."""
    labels = np.arange(count) % classes
    images = np.broadcast_to((2 * labels).astype(np.uint8)[:, None, None, None], (count, 8, 8, 1)).copy()
    images[:, ::2] //= 2
    part = Split(images, labels)
    names = tuple(map(str, range(classes)))
    return replace(small_digits(), classes=names, train=part, validation=part, test=part)


def test_few_images_of_a_class_are_few_however_many_there_are_in_all() -> None:
    many_of_each, few_of_each = (
        recipe_for("auto", pictures(6000, 10)),
        recipe_for("auto", pictures(6000, 100)),
    )
    assert (many_of_each.epochs, few_of_each.epochs) == (30, 67), "at most 400,000 images are shown"
    assert "trivial" not in many_of_each.augmentation
    assert few_of_each.augmentation["trivial"] is True
    assert many_of_each.batch == few_of_each.batch == 64, "which is about the number of steps"
    assert recipe_for("standard", pictures(6000, 100)).epochs == 25


@pytest.mark.parametrize(
    ("images", "epochs", "batch", "rate", "trivial"),
    [
        (36, 80, 8, 0.05, True),
        (200, 80, 12, 0.05, True),
        (449, 80, 28, 0.05, True),
        (450, 80, 32, 0.05, True),
        (3000, 30, 32, 0.05, True),
        (45_000, 15, 64, 0.1, False),
    ],
)
def test_the_number_of_images_decides(
    images: int, epochs: int, batch: int, rate: float, trivial: bool
) -> None:
    recipe = recipe_for("auto", pictures(images, 2))
    assert (recipe.epochs, recipe.batch, recipe.learning_rate) == (epochs, batch, rate)
    assert recipe.augmentation == {"pad_crop": 1, "flip": True} | ({"trivial": True} if trivial else {})
    standard = recipe_for("standard", pictures(images, 2))
    assert (standard.epochs, standard.batch) == (25, batch)


def test_crops_of_large_images_move_by_an_eighth_of_their_side() -> None:
    data = pictures(40, 2)
    for side, moved in ((8, 1), (40, 2), (48, 6), (64, 8)):
        images = data.train.images.repeat(8, 1).repeat(8, 2)[:, :side, :side]
        large = replace(data, train=replace(data.train, images=images))
        assert recipe_for("auto", large).augmentation["pad_crop"] == moved


def test_volumes_are_jittered_and_nothing_else() -> None:
    random = np.random.default_rng(0)
    volumes = Split(random.integers(0, 255, (20, 8, 8, 8, 1)).astype(np.uint8), np.arange(20) % 10)
    assert recipe_for("auto", replace(small_digits(), train=volumes)).augmentation == {"jitter": 2}


def test_an_image_counts_for_each_of_its_classes() -> None:
    data = pictures(6000, 100)
    assert has_few_of_a_class(data)
    targets = np.zeros((6000, 100), np.uint8)
    targets[:, :2] = 1
    assert not has_few_of_a_class(replace(data, train=replace(data.train, targets=targets)))


def test_whitening_filters_give_patches_of_unit_variance() -> None:
    images = torch.from_numpy(np.random.default_rng(0).normal(size=(200, 3, 12, 12)).astype(np.float32))
    images[:, 1] = 3 * images[:, 0] + 0.5 * images[:, 1]
    filters = whitening_filters([images], (2, 2))
    answers = F.conv2d(images, filters, stride=2).movedim(1, -1).flatten(0, 2)
    covariance = answers.T @ answers / len(answers)
    assert torch.allclose(covariance, torch.eye(12), atol=0.05)


def test_large_images_are_whitened_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    data, whole, parts = small_digits(), _network(), _network()
    whiten(whole, data)
    unfold, seen = torch.nn.functional.unfold, []

    def counted(images: torch.Tensor, *arguments: Any, **named: Any) -> torch.Tensor:
        seen.append(len(images))
        return unfold(images, *arguments, **named)

    monkeypatch.setattr(torch.nn.functional, "unfold", counted)
    monkeypatch.setattr(initial, "PATCH_VALUES", 10 * 8 * 8)
    whiten(parts, data)
    assert max(seen) == 10
    filters = [first_convolution(network) for network in (whole, parts)]
    assert filters[0] is not None
    assert filters[1] is not None
    assert torch.allclose(filters[0], filters[1], atol=1e-5)


@pytest.mark.parametrize("groups", [1, 3])
def test_a_first_convolution_that_does_not_see_the_images_is_not_whitened(groups: int) -> None:
    channels, digits = (6, 3)[groups == 3], small_digits()
    images = np.repeat(digits.train.images, 3, -1)
    preprocessing = replace(digits.preprocessing, channels=3, mean=(0.3,) * 3, std=(0.4,) * 3)
    data = replace(digits, train=replace(digits.train, images=images), preprocessing=preprocessing)
    network = torch.nn.Sequential(torch.nn.Conv2d(channels, 6, 3, groups=groups))
    before = network[0].weight.detach().clone()
    whiten(network, data)
    assert torch.equal(network[0].weight, before)
    assert network[0].weight.requires_grad


def test_flips_of_large_images_of_many_classes_are_decided_in_little_memory() -> None:
    images = np.random.default_rng(0).integers(0, 256, (60, 512, 512, 3), np.uint8)
    labels = np.arange(60) % 5 * 4000
    tracemalloc.start()
    survives_flip(images, labels)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < images.nbytes / 4


def test_a_whitened_first_convolution_is_not_trained() -> None:
    data, network = small_digits(), _network()
    filters = first_convolution(network)
    assert filters is not None
    random = filters.detach().clone()
    whiten(network, data)
    held = filters.detach().clone()
    assert not torch.equal(random, held)
    fit(network, data, Recipe(epochs=1, batch=32, whiten=True), evaluate=False)
    assert torch.equal(filters, held)


@pytest.mark.parametrize("size", [(1, 16), (2, 12)])
def test_images_smaller_than_the_filters_are_neither_whitened_nor_moved_out_of_the_frame(
    size: tuple[int, int],
) -> None:
    digits, random = small_digits(), np.random.default_rng(0)
    images = random.integers(0, 256, (96, *size, 1), np.uint8)
    preprocessing = replace(digits.preprocessing, height=size[0], width=size[1])
    data = replace(digits, train=replace(digits.train, images=images), preprocessing=preprocessing)
    data = replace(data, validation=data.train)
    recipe = replace(recipe_for("auto", data), epochs=1, whiten=True)
    assert recipe.augmentation["pad_crop"] == 0
    assert recipe_for("auto", replace(data, train=digits.train)).augmentation["pad_crop"] == 1
    network = new_network(small_architecture(), InputSpec(1, size), 10, 0)
    filters = first_convolution(network)
    assert filters is not None
    before = filters.detach().clone()
    whiten(network, data)
    assert torch.equal(filters, before)
    fit(network, data, recipe)
    assert not torch.equal(filters, before), "they are trained"


@pytest.mark.parametrize(
    ("channels", "steps", "images", "whitens"),
    [
        (8, LONG_STEPS - 1, FEW_IMAGES, True),
        (8, LONG_STEPS, FEW_IMAGES, False),
        (8, LONG_STEPS, FEW_IMAGES - 1, True),
        (9, LONG_STEPS, FEW_IMAGES, True),
    ],
)
def test_a_first_convolution_too_narrow_to_whiten_is_trained_where_images_and_time_allow_it(
    channels: int, steps: int, images: int, whitens: bool
) -> None:
    data = pictures(images, 2)
    network = torch.nn.Sequential(torch.nn.Conv2d(1, channels, 3))  # nine filters
    recipe = Recipe(epochs=steps, batch=images, whiten="auto")
    assert settled(recipe, network, data).whiten is whitens
    for asked in (True, False):
        assert settled(replace(recipe, whiten=asked), network, data).whiten is asked
    assert settled(recipe, torch.nn.Linear(1, 1), data).whiten is True, "which leaves it as it is"


@pytest.mark.parametrize(
    ("steps", "images", "classes", "chosen"),
    [
        (SHORT_STEPS, FEW_IMAGES, 2, "muon"),
        (SHORT_STEPS + 1, FEW_IMAGES, 2, "sgd"),
        (SHORT_STEPS, FEW_IMAGES - 1, 2, "sgd"),
        (SHORT_STEPS, FEW_IMAGES, 51, "sgd"),
    ],
)
def test_muon_trains_where_steps_are_few_and_images_are_many(
    steps: int, images: int, classes: int, chosen: str
) -> None:
    data, network = pictures(images, classes), _network()
    recipe = Recipe(epochs=steps, batch=images, optimiser="auto")
    assert settled(recipe, network, data).optimiser == chosen
    assert settled(recipe, torch.nn.Linear(1, 1), data).optimiser == "sgd", "nothing that Muon could train"
    asked = replace(recipe, optimiser="muon" if chosen == "sgd" else "sgd")
    assert settled(asked, network, data).optimiser == asked.optimiser


def test_what_was_trained_says_whether_its_first_convolution_whitens() -> None:
    recipe = Recipe(epochs=1, batch=32, whiten="auto")
    fitted = fit(_network(), small_digits(), recipe, evaluate=False)
    assert fitted.recipe == replace(recipe, whiten=True)


def test_identity_like_convolutions_pass_their_channels_on() -> None:
    convolution = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.Conv2d(4, 6, 3, padding=1, bias=False)
    )
    begin_as_identity(convolution)
    images = torch.rand(2, 4, 5, 5)
    assert torch.allclose(convolution[1](images)[:, :4], images)


def test_time_ends_a_training_annealed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, rates = HandClock(monkeypatch), list[float]()
    update = torch.optim.SGD.step

    def noted(optimiser: torch.optim.SGD, *arguments: Any) -> Any:
        rates.append(optimiser.param_groups[0]["lr"])
        return update(optimiser, *arguments)

    monkeypatch.setattr(torch.optim.SGD, "step", noted)
    recipe = Recipe(epochs=10_000, batch=32, seconds=0.5)
    fit(_network(), small_digits(), recipe, on_step=lambda _: clock.spend(0.01), evaluate=False)
    assert 45 <= len(rates) <= 55
    assert max(rates) > 0.9 * recipe.learning_rate
    assert rates[-1] < 0.01 * max(rates)


@pytest.mark.parametrize("ticks", range(30, 36))
def test_the_last_weights_are_measured_whenever_time_ends(
    ticks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look at the clock takes a second."""
    looks = itertools.count()
    clock = SimpleNamespace(monotonic=lambda: float(next(looks)))
    monkeypatch.setattr("smash_search.train.loop.time", clock)
    data, network = small_digits(), _network()
    recipe = Recipe(epochs=100, batch=32, seconds=ticks)
    result = fit(network, data, recipe)
    assert result.steps < 30
    assert result.history[-1].epoch == math.ceil(result.steps / 3)
    assert result.accuracy == accuracy(network, data.validation, data.preprocessing)


def test_a_training_whose_time_ended_while_it_was_measured_ends_alike_after_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, data, recipe = HandClock(monkeypatch), small_digits(), Recipe(epochs=100, batch=32, seconds=0.5)

    def measured(*arguments: Any, **options: Any) -> float:
        clock.spend(1.0)
        return accuracy(*arguments, **options)

    def killed(progress: TrainingProgress) -> None:
        if progress.step == 3:  # the first epoch is measured, and kept
            raise KeyboardInterrupt

    whole = fit(_network(), data, recipe, measure=measured)
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(KeyboardInterrupt):
        fit(_network(), data, recipe, measure=measured, checkpoint=path, on_step=killed)
    again = fit(_network(), data, recipe, measure=measured, checkpoint=path)
    assert (again.steps, again.history, again.accuracy) == (whole.steps, whole.history, whole.accuracy)
    assert whole.steps == 4


def test_time_ends_a_training_before_its_epochs(tmp_path: Path) -> None:
    data = small_digits()
    recipe = Recipe(epochs=10_000, batch=32, seconds=0.5)
    path = tmp_path / "checkpoint.pt"
    result = fit(_network(), data, recipe, checkpoint=path)
    assert 0 < result.steps < 30_000
    assert result.history[-1].accuracy is not None
    again = fit(_network(), data, replace(recipe, epochs=9000), checkpoint=path)  # as measured anew
    assert again.steps == result.steps
    assert again.recipe == result.recipe == recipe, "what is stored is what was used"


def test_epochs_fill_a_time() -> None:
    assert within(Recipe(), 50.0, 10.0).epochs == 5
    assert within(Recipe(), 1.0, 10.0).epochs == 1
    assert within(Recipe(), 1e6, 10.0).epochs == 200


def test_an_epoch_takes_its_steps_and_the_validation_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from smash_search.train import network as module

    monkeypatch.setattr(module, "seconds_per_step", lambda *_: 0.5)  # as on a machine of this speed
    monkeypatch.setattr(module, "seconds_of_validation", lambda *_: 4.0)
    data, cpu = small_digits(train=96, validation=48), torch.device("cpu")

    def seconds(**values: Any) -> float:
        return seconds_per_epoch(_network(), data, Recipe(batch=16, **values), cpu)

    assert seconds() == 6 * 0.5 + 4
    assert seconds(epoch_images=40) == 2 * 0.5 + 4
    assert seconds(include_validation=True) == 9 * 0.5, "nothing is left to look at"


def test_the_time_of_validation_grows_with_its_images() -> None:
    class Slow(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            time.sleep(0.001 * len(images))
            return torch.zeros(len(images), 10)

    data = small_digits(validation=48)
    few = seconds_of_validation(Slow(), data, Recipe(batch=2), torch.device("cpu"))  # 16 images are timed
    assert few >= 0.048


def test_people_are_told_the_values_that_decide_most_and_those_that_are_unusual() -> None:
    assert Recipe(epochs=6, augmentation={"pad_crop": 2, "flip": True}, whiten=True).words() == (
        "epochs 6, batch 64, optimiser sgd, learning_rate 0.1, warmup 0.05, schedule cosine, momentum 0.9, "
        "weight_decay 0.0005, label_smoothing 0.0, clip 5.0, augmentation pad_crop=2 flip=True, whiten True"
    )


def test_the_best_epoch_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    from smash_search.train import network as module

    measured = iter([0.3, 0.9, 0.5])
    states: list[dict] = []

    def judged(network: torch.nn.Module, *_: object) -> float:
        states.append({name: value.clone() for name, value in network.state_dict().items()})
        return next(measured)

    monkeypatch.setattr(module, "accuracy", judged)
    network = _network()
    result = fit(network, small_digits(), Recipe(epochs=3, batch=32, keep_best=True))
    assert result.accuracy == 0.9
    assert same_state(network.state_dict(), states[1])


def test_no_epoch_is_the_best_on_images_that_are_trained_on() -> None:
    states = []
    for keep_best in (True, False):  # the second is what the first uses
        network = _network()
        recipe = Recipe(epochs=2, batch=32, keep_best=keep_best, include_validation=True)
        result = fit(network, small_digits(), recipe, evaluate=False)
        assert result.history[0].accuracy is None, "only what is reported at the end is measured"
        assert not result.recipe.keep_best
        states.append(network.state_dict())
    assert same_state(*states)


class _Counting(nn.Module):
    """Counts how often it is shown each image in training; answers three classes."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.shown: Counter[bytes] = Counter()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.shown.update(image.numpy().tobytes() for image in images)
        return torch.zeros(len(images), 3) + self.weight


def test_balanced_sampling_draws_an_image_of_several_classes_for_each_of_them() -> None:
    """Drawn for its rarest class, the one image of a frequent tag alone was a third of an epoch."""
    data = several_digits(train=96, validation=48)
    assert data.train.targets is not None
    targets = data.train.targets | np.array([1, 0, 0], np.uint8)
    targets[:, 1] |= targets[:, 2] == 0
    targets[0] = [1, 0, 0]
    train = replace(data.train, targets=targets, labels=rarest(targets, targets.sum(0)))
    network = _Counting()
    fit(network, replace(data, train=train), Recipe(epochs=1, batch=16, balance="sampling"), evaluate=False)
    assert sum(network.shown.values()) == 96
    assert max(network.shown.values()) <= 3


def test_balanced_sampling_shows_every_class_equally_often() -> None:
    labels = np.repeat([0, 1, 2], [70, 20, 10])
    order = Batches(0, 100, 100, labels)[0]
    assert np.bincount(labels[order]).tolist() == [34, 33, 33]
    assert len(np.unique(order[labels[order] == 1])) == 20, "all of them, before any a second time"


def test_class_weights_are_inverse_to_images() -> None:
    weights = class_weights(np.repeat([0, 1], [30, 10]), 2)
    assert weights.tolist() == pytest.approx([2 / 3, 2.0])


def test_a_teacher_is_learned_from() -> None:
    data = small_digits()
    wrong = (data.train.labels + 1) % 10
    teacher = 20 * np.eye(10, dtype=np.float32)[wrong]
    network = _network()
    fit(network, data, Recipe(epochs=12, batch=16, distillation=1.0), evaluate=False, teacher=teacher)
    with torch.no_grad():
        answers = network(data.preprocessing.normalise(torch.from_numpy(data.train.images))).argmax(1).numpy()
    assert (answers == wrong).mean() > 0.5


def test_a_teacher_that_loses_its_weight_does_not_have_the_last_word() -> None:
    data = small_digits()
    wrong = (data.train.labels + 1) % 10
    teacher = 20 * np.eye(10, dtype=np.float32)[wrong]
    network = _network()
    recipe = Recipe(epochs=12, batch=16, distillation=0.9, distillation_left=0.0)
    fit(network, data, recipe, evaluate=False, teacher=teacher)
    assert accuracy(network, data.train, data.preprocessing) > 0.4, "below that with its whole weight"


@given(st.integers(2, 6), st.floats(0.01, 40), st.floats(0.6, 1), st.integers(0, 2**31 - 1))
def test_answers_that_are_too_sure_are_divided_until_they_are_not(
    classes: int, scale: float, confidence: float, seed: int
) -> None:
    logits = scale * np.random.default_rng(seed).standard_normal((200, classes)).astype(np.float32)
    divided = tempering(logits, confidence)
    top = torch.from_numpy(logits / divided).softmax(1).amax(1).mean().item()
    before = torch.from_numpy(logits).softmax(1).amax(1).mean().item()
    assert divided >= 1
    assert top <= confidence + 1e-4 or divided == pytest.approx(100)
    assert (divided == 1) == (before <= confidence)
    if 1 < divided < 99:
        assert top == pytest.approx(confidence, abs=1e-3), "and no further"


def test_how_sure_a_teacher_is_of_images_that_it_has_by_heart_teaches_nothing() -> None:
    data, trained = small_digits(), []
    answers = np.random.default_rng(0).standard_normal((len(data.train), 10)).astype(np.float32)
    answers += 6 * np.eye(10, dtype=np.float32)[data.train.labels]
    for times, confidence in ((1.0, 0.9), (5.0, 0.9), (5.0, 1.0)):
        network = _network()
        recipe = Recipe(epochs=3, batch=16, teacher_confidence=confidence)
        fit(network, data, recipe, evaluate=False, teacher=np.float32(times) * answers)
        trained.append(answers_of(network, data.validation, data.preprocessing))
    assert np.allclose(trained[0], trained[1], atol=1e-2)
    assert not np.allclose(trained[0], trained[2], atol=0.1)


def test_a_teacher_of_several_classes_is_learned_from_class_by_class() -> None:
    data = small_digits()
    there = np.eye(10, dtype=np.uint8)[data.train.labels] | np.eye(10, dtype=np.uint8)[9 - data.train.labels]
    data = replace(data, train=replace(data.train, targets=np.eye(10, dtype=np.uint8)[data.train.labels]))
    teacher = (8.0 * there - 4).astype(np.float32)
    network = _network()
    fit(network, data, Recipe(epochs=20, batch=16, distillation=1.0), evaluate=False, teacher=teacher)
    answers = answers_of(network, data.train, data.preprocessing)
    assert ((answers > 0) == (there > 0)).mean() > 0.85, "two classes of each image, where it is told of one"


def test_answers_for_whole_images_are_not_compared_with_mixed_ones() -> None:
    data = small_digits()
    recipe = Recipe(epochs=1, batch=16, augmentation={"mixup": 0.2})
    with pytest.raises(UsageError, match="neither mixup nor cutmix"):
        fit(_network(), data, recipe, teacher=np.zeros((len(data.train), 10), np.float32))


def test_schedules_end_at_zero() -> None:
    for shape in ("cosine", "linear"):
        assert schedule(1.0, 0.1, shape) == pytest.approx(0)  # type: ignore[arg-type]
        assert schedule(0.1, 0.1, shape) == pytest.approx(1)  # type: ignore[arg-type]
    assert schedule(0.55, 0.1, "linear") == pytest.approx(0.5)


@pytest.mark.parametrize(
    "field",
    [
        {"schedule": "step"},
        {"balance": "yes"},
        {"first_size": 0.1},
        {"whiten": "yes"},
        {"include_validation": "False"},  # which is true
        {"keep_best": 1},
        {"epochs": 1.5},
        {"batch": 16.5},
        {"seed": 1.5},
        {"seed": -1},
        {"most_bad_steps": True},
        {"augmentation": "pad_crop"},
    ],
)
def test_choices_are_checked(field: dict) -> None:
    with pytest.raises(InvalidInputError, match=next(iter(field))):
        Recipe(**field)

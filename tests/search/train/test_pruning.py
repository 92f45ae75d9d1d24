"""Which images a pass leaves out, and how much the others count."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from smash_base.errors import InvalidInputError, UsageError
from smash_export.export.freeze import rounded
from smash_search.train.compute import Feed
from smash_search.train.network import Recipe, fit, settled
from smash_search.train.pruning import Drawn, PrunedBatches
from smash_search.train.recipes import recipe_for
from tests.search.small_data import small_digits

seeds = st.integers(0, 2**31)


def one_pass(batches: PrunedBatches, start: int) -> tuple[list[Drawn], int]:
    """The batches of the pass that begins with a number, and the number after them."""
    drawn = [batches[start]]
    while (following := batches[start + len(drawn)]).which == drawn[0].which:
        drawn.append(following)
    return drawn, start + len(drawn)


def told(seed: int, count: int, size: int, share: float, progress: float = 0.5) -> PrunedBatches:
    """Batches after a first pass in which the first tenth of the images had a high loss."""
    batches = PrunedBatches(seed, count, size, share, lambda: progress)
    drawn, number = one_pass(batches, 0)
    assert number == count // size, "the next pass has begun, before losses were told"
    losses = np.where(np.arange(count) < count // 10, 2.0, 0.1).astype(np.float32)
    for entry in drawn:
        batches.tell(entry.indices, losses[entry.indices])
    return batches


@given(seeds, st.floats(0.1, 0.9), st.integers(40, 300))
@settings(deadline=None)
def test_a_pass_shows_images_of_high_loss_once_and_a_share_of_the_others(
    seed: int, share: float, count: int
) -> None:
    batches = PrunedBatches(seed, count, 1, share, lambda: 0.5)
    first, number = one_pass(batches, 0)
    assert sorted(int(entry.indices[0]) for entry in first) == list(range(count)), "all are shown at first"
    assert all(entry.weights is None for entry in first)
    losses = np.random.default_rng(seed).random(count).astype(np.float32)
    batches.tell(np.arange(count), losses)
    _, number = one_pass(batches, number)  # begun before the losses were told
    entries, _ = one_pass(batches, number)
    shown = [int(entry.indices[0]) for entry in entries]
    low = losses < losses.mean()
    assert len(shown) == len(set(shown))
    assert set(np.flatnonzero(~low)) <= set(shown)
    kept = len(set(np.flatnonzero(low)) & set(shown))
    expected, spread = low.sum() * (1 - share), np.sqrt(low.sum() * share * (1 - share))
    assert abs(kept - expected) < 5 * spread + 1


@given(seeds, st.floats(0.1, 0.9))
@settings(deadline=None, max_examples=25)
def test_weights_make_the_mean_of_shown_images_that_of_all_in_expectation(seed: int, share: float) -> None:
    count = 2000
    batches = told(seed, count, 20, share)
    values = np.random.default_rng(seed).random(count)
    _, number = one_pass(batches, count // 20)  # its first batch was drawn before losses were told
    entries, _ = one_pass(batches, number)
    weights = np.concatenate([entry.weights for entry in entries if entry.weights is not None])
    shown = np.concatenate([entry.indices for entry in entries])
    assert len(weights) == len(shown), "all of the pass are weighted"
    assert weights.mean() == pytest.approx(1, abs=0.12)
    assert (weights * values[shown]).mean() == pytest.approx(values.mean(), abs=0.08)


def test_the_last_passes_are_whole_and_losses_that_are_no_numbers_tell_nothing() -> None:
    batches = told(0, 200, 10, 0.5, progress=0.875)
    entries, _ = one_pass(batches, 20)
    entries, _ = one_pass(batches, 20 + len(entries))
    assert len(entries) == 20
    assert all(entry.weights is None for entry in entries)
    early = told(0, 200, 10, 0.5)
    early.tell(np.arange(200), np.full(200, np.nan, np.float32))
    entries, number = one_pass(early, 20)
    assert 5 <= len(one_pass(early, number)[0]) < 17, "as before they were told"


def test_batches_go_on_from_their_state_and_in_turn_alone() -> None:
    batches = told(3, 200, 10, 0.5)
    for number in range(21, 25):
        batches[number]
    other = PrunedBatches(3, 200, 10, 0.5, lambda: 0.5)
    other.load_state_dict(batches.state_dict())
    for number in range(24, 60):
        first, second = batches[number], other[number]
        assert first.which == second.which
        assert np.array_equal(first.indices, second.indices)
        assert np.array_equal(first.weights, second.weights)  # type: ignore[arg-type]
        for one in (batches, other):
            one.tell(first.indices, np.float32(1) / (1 + first.indices))
    with pytest.raises(IndexError, match="batch 70 after 59"):
        batches[70]


def test_a_training_shows_images_that_it_knows_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    data = small_digits()
    marked = data.train.images.copy()
    easy = np.arange(len(marked)) % 2 == 0
    places = np.zeros((10, 64), np.uint8)
    places[np.arange(10), np.arange(10) * 6] = 255  # a pixel of its own for each class
    marked[easy] = places.reshape(10, 8, 8, 1)[data.train.labels[easy]]
    marked[~easy] = 0  # of all classes, so that nothing tells them apart
    data = replace(data, train=replace(data.train, images=marked))
    shown = np.zeros(len(marked), np.int64)
    take = Feed.__call__

    def counted(feed: Feed, indices: np.ndarray) -> Any:
        if len(feed) == len(marked):
            shown[indices] += 1
        return take(feed, indices)

    monkeypatch.setattr(Feed, "__call__", counted)
    for prune in (0.0, 0.8):
        shown[:] = 0
        torch.manual_seed(0)
        network = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        result = fit(
            network, data, Recipe(epochs=30, batch=16, learning_rate=0.05, prune=prune), evaluate=False
        )
        assert result.steps == 30 * 6, "an epoch has as many steps as ever"
        ratio = shown[easy].mean() / shown[~easy].mean()
        assert ratio == 1 if not prune else ratio < 0.7


def test_half_of_them_are_left_out_by_itself_where_images_are_many_and_tell_by_their_loss() -> None:
    data, network = small_digits(), nn.Linear(1, 1)
    many = replace(data, train=data.train.take(np.arange(6000) % len(data.train)))
    recipe = recipe_for("quick", many)
    assert settled(recipe, network, many).prune == 0.5
    assert settled(recipe, network, data).prune == 0, "few images"
    assert settled(replace(recipe, epochs=1000), network, many).prune == 0, "not measured"
    targets = np.eye(10, dtype=np.uint8)[many.train.labels]
    several = replace(many, train=replace(many.train, targets=targets))
    assert settled(recipe, network, several).prune == 0
    with pytest.raises(UsageError, match="several classes"):
        settled(replace(recipe, prune=0.3), network, several)
    for changes in ({"balance": "loss"}, {"balance": "sampling"}, {"augmentation": {"mixup": 0.2}}):
        changed = replace(recipe, **changes)  # type: ignore[arg-type]
        assert settled(changed, network, many).prune == 0
        with pytest.raises(UsageError, match="balanced"):
            settled(replace(changed, prune=0.3), network, many)
    assert settled(replace(recipe, prune=0.3), network, data).prune == 0.3, "what is asked for is done"
    assert rounded(settled(recipe, network, many)).prune == 0
    for value in (0.95, -0.1, True, "some"):
        with pytest.raises(InvalidInputError, match=r"auto, or 0 to 0\.9"):
            Recipe(prune=value)  # type: ignore[arg-type]

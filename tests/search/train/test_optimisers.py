"""Tests of the optimisers of a training."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from smash_search.train.optimisers import Muon, orthogonal

SHAPES = st.tuples(st.integers(1, 48), st.integers(1, 24), st.sampled_from([(), (1, 1), (3, 3), (1, 3, 3)]))


@given(SHAPES, st.integers(0, 1000), st.sampled_from([1e-4, 1.0, 1e4]))
def test_an_update_of_any_shape_and_size_comes_out_with_singular_values_of_about_one(shape, seed, size):
    rows, channels, kernel = shape
    update = size * torch.randn(rows, channels, *kernel, generator=torch.Generator().manual_seed(seed))
    (turned,) = orthogonal([update])
    assert turned.shape == update.shape
    matrix = turned.flatten(1)
    values = torch.linalg.svdvals(matrix)
    assert values.max() < 1.3
    assert values.median() > 0.6


def test_filters_of_one_shape_are_turned_as_each_would_be_alone():
    updates = [torch.randn(16, 8, 3, 3), torch.randn(8, 4, 1, 1), torch.randn(16, 8, 3, 3)]
    alone = [turned for update in updates for turned in orthogonal([update])]
    for together, one in zip(orthogonal(updates), alone, strict=True):
        torch.testing.assert_close(together, one)


def test_the_size_of_a_gradient_does_not_change_a_step_and_its_direction_does():
    start = torch.randn(8, 4, 3, 3)

    def after(gradient):
        weight = nn.Parameter(start.clone())
        weight.grad = gradient
        Muon([weight], lr=0.1).step()
        return weight.detach()

    gradient = torch.randn(8, 4, 3, 3)
    torch.testing.assert_close(after(gradient), after(1000 * gradient), rtol=1e-4, atol=1e-5)
    assert (after(gradient) - after(-gradient)).norm() > 0.1


def test_a_step_turns_a_filter_by_its_share_and_keeps_its_norm():
    used, unused = nn.Parameter(5 * torch.randn(8, 2, 3, 3)), nn.Parameter(torch.ones(4, 2, 1, 1))
    before = used.detach().clone()
    optimiser = Muon([used, unused], lr=0.1)
    for _ in range(3):
        used.grad = torch.randn_like(used)
        optimiser.step()
        torch.testing.assert_close(used.norm(), before.norm())
    assert 0.05 < (used - before).norm() / before.norm() < 0.6
    torch.testing.assert_close(unused.detach(), torch.ones_like(unused))


def test_a_step_without_any_gradient_changes_nothing():
    weight = nn.Parameter(torch.randn(4, 2, 3, 3))
    before = weight.detach().clone()
    Muon([weight], lr=0.1).step()
    torch.testing.assert_close(weight.detach(), before)


def test_a_gradient_of_zero_changes_nothing():
    weight = nn.Parameter(torch.randn(4, 2, 3, 3))
    before, weight.grad = weight.detach().clone(), torch.zeros(4, 2, 3, 3)
    Muon([weight], lr=0.1).step()
    torch.testing.assert_close(weight.detach(), before)


def test_bfloat16_turns_large_filters_as_float32_does_but_for_its_rounding():
    update = torch.randn(64, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    (exact,), (low,) = orthogonal([update]), orthogonal([update], low=True)
    assert low.dtype == torch.float32
    assert 0 < (low - exact).norm() < 0.02 * exact.norm()

"""Training with rounding in the loop: rounds what int8 rounds, learns, and gives frozen weights back."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import given, settings

from smash_search.model.fake_quantisation import FakeQuantisedNetwork
from smash_search.model.interpreter import FrozenNetwork, Network, fold
from smash_search.space.architecture import Architecture
from tests.search.legal import DIGITS, EVERY_FORM, RICH, drawn, hand_written
from tests.search.model.test_interpreter import trained_like


def test_weights_come_back_as_they_went_in() -> None:
    weights = fold(trained_like(Network(RICH.draw(0, 0), DIGITS, 10)))
    frozen = FakeQuantisedNetwork(RICH.draw(0, 0), weights).frozen()
    assert set(frozen) == set(weights)
    assert all(np.array_equal(frozen[name], weights[name]) for name in weights)


@given(drawn(RICH) | drawn(EVERY_FORM) | hand_written())
@settings(max_examples=20, deadline=None)
def test_rounding_is_close_to_the_network_and_has_few_values(architecture: Architecture) -> None:
    channels = DIGITS.channels
    weights = fold(trained_like(Network(architecture, DIGITS, 10)))
    x = torch.randn(16, channels, 8, 8, generator=torch.Generator().manual_seed(0))
    rounded = FakeQuantisedNetwork(architecture, weights).train()
    with torch.no_grad():
        rounded(x)  # sees the ranges
        out, exact = rounded.eval()(x), FrozenNetwork(architecture, weights)(x)
        stem = rounded.affine("stem").weight
    assert all(len(torch.unique(row)) <= 255 for row in stem.flatten(1))
    noise = float((out - exact).norm() / exact.norm().clamp_min(1e-3))
    assert 0 <= noise < 0.5


def test_training_lowers_the_loss_through_the_rounding() -> None:
    torch.manual_seed(0)
    architecture = RICH.draw(0, 1)
    network = FakeQuantisedNetwork(architecture, fold(Network(architecture, DIGITS, 10).eval())).train()
    x, y = torch.randn(32, 1, 8, 8), torch.arange(32) % 10
    optimiser = torch.optim.SGD(network.parameters(), lr=0.02, momentum=0.9)
    losses = []
    for _ in range(40):
        loss = F.cross_entropy(network(x), y)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]

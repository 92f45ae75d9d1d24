"""Wirings of networks, and the best of each that goes on."""

from __future__ import annotations

import pytest

from smash_search.rank.patterns import SLACK, leaders, pattern_of
from smash_search.space.known import densenet, fractalnet, mobilenet, plain_resnet, resnet

NETWORKS = [
    resnet((16, 32, 64), 2),
    plain_resnet((16, 32, 64), 1),
    mobilenet((16, 32, 64), 2, 4),
    densenet(12, 4),
    fractalnet((16, 32, 64), 3),
]


def test_known_networks_have_the_pattern_that_they_are_named_after() -> None:
    found = [pattern_of(network) for network in NETWORKS]
    assert found == ["residual", "residual", "inverted", "dense", "chain"]


@pytest.mark.parametrize("behind", [0.9 * SLACK, 1.1 * SLACK])
def test_the_best_of_a_pattern_leads_unless_it_is_far_behind(behind: float) -> None:
    errors = [0.31, 0.30, 0.31, 0.30 + behind, 0.5]  # in the order of their losses
    assert leaders(NETWORKS, errors) == ([0, 2, 3] if behind < SLACK else [0, 2])
    assert leaders([], []) == []

"""The hand-made networks are those of the papers: their parameters are counted there."""

from __future__ import annotations

import pytest
import torch

from benchmarks.networks import NETWORKS, DenseNetBC, ResNet8


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_gives_logits_for_small_images(name: str) -> None:
    network = NETWORKS[name](1, 10).eval()
    with torch.no_grad():
        assert network(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    assert sum(value.numel() for value in network.parameters()) < 300_000


def test_sizes_are_those_of_the_papers() -> None:
    dense = sum(value.numel() for value in DenseNetBC(3, 10, growth=12, layers=16).parameters())
    assert dense == 769_162  # DenseNet-BC (L=100, k=12): 0.8 million
    small = sum(value.numel() for value in ResNet8(3, 10).parameters())
    assert 77_000 < small < 79_000  # 78 666 with the biases of the reference

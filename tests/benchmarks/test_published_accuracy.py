"""What was published for a network is held against that network, not against one that is like it."""

from __future__ import annotations

import importlib

from benchmarks.published_accuracy import NETWORKS, PUBLISHED


def test_what_mlperf_tiny_published_is_held_against_its_own_network() -> None:
    assert "resnet-8" not in PUBLISHED  # the preset has 101 thousand parameters
    module, name = NETWORKS["mlperf-resnet-8"].split(":")
    network = getattr(importlib.import_module(module), name)(channels=3, classes=10)
    assert 77_000 < sum(weights.numel() for weights in network.parameters()) < 79_000

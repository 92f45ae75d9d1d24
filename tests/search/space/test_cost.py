"""Cost: what is counted is what the frozen network holds and does."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode

from smash_search.model.interpreter import FrozenNetwork, Network, fold
from smash_search.space.architecture import Architecture, InputSpec
from smash_search.space.cost import block_sizes, cost_of, pooled_size
from tests.search.legal import EVERY_FORM, RICH, TINY, VOXELS, drawn, hand_written


class Multiplications(TorchFunctionMode):
    """Counts the multiply-accumulates of convolutions and linear layers that really run."""

    def __init__(self) -> None:
        self.macs = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = function(*args, **(kwargs or {}))
        if function in (torch.conv2d, torch.conv3d, torch.nn.functional.linear):
            weight = args[1]
            # A grouped convolution may run as a dense one with zeros; those are no work of the network.
            self.macs += result[0, 0].numel() * int(weight.count_nonzero())
        return result


def count(architecture: Architecture, spec: InputSpec) -> tuple[int, int]:
    drawn_weights = fold(Network(architecture, spec, 10).eval())
    # One weight in many millions is drawn as zero.
    weights = {name: np.where(value == 0, np.float32(1), value) for name, value in drawn_weights.items()}
    counter = Multiplications()
    with torch.no_grad(), counter:
        FrozenNetwork(architecture, weights)(torch.zeros(1, spec.channels, *spec.size))
    return sum(value.size for value in weights.values()), counter.macs


@given(
    drawn(RICH) | drawn(EVERY_FORM) | hand_written(),
    st.integers(1, 4),
    st.integers(5, 13),
    st.integers(5, 13),
)
@settings(max_examples=40, deadline=None)
def test_parameters_and_macs_are_those_of_a_forward_pass(
    architecture: Architecture, channels: int, height: int, width: int
) -> None:
    spec = InputSpec(channels, (height, width))
    cost = cost_of(architecture, spec, 10)
    assert (cost.parameters, cost.macs) == count(architecture, spec)


@given(drawn(VOXELS))
@settings(max_examples=10, deadline=None)
def test_voxels_are_counted_the_same_way(architecture: Architecture) -> None:
    spec = InputSpec(2, (6, 5, 4))
    cost = cost_of(architecture, spec, 10)
    assert (cost.parameters, cost.macs) == count(architecture, spec)


def test_activation_memory_holds_at_least_all_banks_of_every_block() -> None:
    spec = InputSpec(1, (8, 8))
    for slot in range(50):
        architecture = TINY.draw(0, slot)
        sizes = block_sizes(architecture, spec.size)
        held = [
            block.channels_out * math.prod(size) * 4
            for block, size in zip(architecture.blocks, sizes, strict=True)
        ]
        assert cost_of(architecture, spec, 10).activation_bytes >= max(held)


@pytest.mark.parametrize(("size", "half"), [((8, 8), (4, 4)), ((7, 1), (3, 1)), ((1, 1), (1, 1))])
def test_sizes_are_halved_but_never_vanish(size: tuple[int, int], half: tuple[int, int]) -> None:
    assert pooled_size(size) == half
    assert pooled_size(size, 1) == size

"""Exact cost of a frozen network: parameters, multiply-accumulates, activation memory. No torch.

Counts what the deployed file holds and does: every norm folded, one bias per convolution, scale and
shift where a block ends. A multiply-accumulate (MAC) is one product of a convolution or of the linear
layer; additions to banks, activations and pooling are not counted. Tested against a forward pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from smash_search.space.architecture import POOL, Architecture, Convolution, InputSpec

FLOAT_BYTES = 4


@dataclass(frozen=True)
class Cost:
    """Cost of one network for one input.

    Attributes:
        parameters: numbers stored.
        macs: multiply-accumulates per image.
        activation_bytes: largest sum of live float32 activations, at batch 1, when every op frees its
            temporaries before the next one starts.
    """

    parameters: int
    macs: int
    activation_bytes: int


def stem_size(architecture: Architecture, size: tuple[int, ...]) -> tuple[int, ...]:
    """Spatial size after the stem: ceil(n / stride) per axis, as same padding gives."""
    return tuple(-(-value // stride) for value, stride in zip(size, architecture.stem.stride, strict=True))


def pooled_size(size: tuple[int, ...], window: int = POOL) -> tuple[int, ...]:
    """Spatial size after a transition: divided by the window, rounded down, at least 1 along every axis."""
    return tuple(max(1, value // window) for value in size)


def block_sizes(architecture: Architecture, size: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Spatial size inside each block."""
    sizes = [stem_size(architecture, size)]
    for block in architecture.blocks[1:]:
        sizes.append(pooled_size(sizes[-1], block.pool))
    return sizes


def cost_of(architecture: Architecture, input_spec: InputSpec, classes: int) -> Cost:
    """Cost of ``architecture`` on ``input_spec`` with ``classes`` outputs."""
    areas = areas_of(architecture, input_spec.size)
    parameters = macs = 0
    for part in architecture.convolutions(input_spec.channels, classes):
        parameters += part.weights + part.outputs
        macs += part.weights * pixels_of(part, areas)
    for block in architecture.blocks:
        parameters += 2 * block.channels_out  # scale and shift at its end
    return Cost(parameters, macs, _peak(architecture, input_spec, areas) * FLOAT_BYTES)


def areas_of(architecture: Architecture, size: tuple[int, ...]) -> dict[str, int]:
    """Pixels of each block's feature map, by "blocks.0", "blocks.1", ..."""
    sizes = block_sizes(architecture, size)
    return {f"blocks.{index}": math.prod(value) for index, value in enumerate(sizes)}


def pixels_of(part: Convolution, areas: Mapping[str, int]) -> int:
    """How often a convolution's weights are used."""
    if part.pooled:
        return 1
    names = part.name.split(".")
    if part.name == "stem":
        return areas["blocks.0"]
    index = int(names[1]) + (names[2] == "transition")  # averages come first: they commute with it
    return areas[f"blocks.{index}"]


def _peak(architecture: Architecture, input_spec: InputSpec, areas: dict[str, int]) -> int:
    """Floats that are live at once, at most."""
    first = architecture.blocks[0].channels_in
    peak = input_spec.channels * math.prod(input_spec.size) + first * areas["blocks.0"]
    for index, block in enumerate(architecture.blocks):
        area = areas[f"blocks.{index}"]
        for op in block.ops:
            reads = len(op.reads) * block.bank_channels
            live = reads + op.bottleneck
            if op.branches():
                live = max(live, op.bottleneck + 3 * op.width)
            if op.project is not None:
                live = max(live, op.width + op.units)
            peak = max(peak, (block.channels_out + live) * area)
        peak = max(peak, 2 * block.channels_out * area)
    return peak

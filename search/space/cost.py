"""Exact cost of a frozen network: parameters, multiply-accumulates, activation memory. No torch.

Counts what the deployed file holds and does: every norm folded, one bias per convolution, scale and
shift where a block ends. A multiply-accumulate (MAC) is one product of a convolution or of the linear
layer; additions to banks, activations and pooling are not counted. Tested against a forward pass.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from smash_search.space.architecture import Architecture, Block, InputSpec

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


def pooled_size(size: tuple[int, ...]) -> tuple[int, ...]:
    """Spatial size after a transition: halved, rounded down; an axis of size 1 stays."""
    return tuple(max(1, value // 2) for value in size)


def block_sizes(architecture: Architecture, size: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Spatial size inside each block."""
    sizes = [stem_size(architecture, size)]
    for _ in architecture.blocks[1:]:
        sizes.append(pooled_size(sizes[-1]))
    return sizes


def cost_of(architecture: Architecture, input_spec: InputSpec, classes: int) -> Cost:
    """Cost of ``architecture`` on ``input_spec`` with ``classes`` outputs."""
    blocks = architecture.blocks
    sizes = block_sizes(architecture, input_spec.size)
    first = blocks[0].channels_in
    stem_weights = first * input_spec.channels * math.prod(architecture.stem.kernel)
    parameters = stem_weights + first
    macs = stem_weights * math.prod(sizes[0])
    peak = input_spec.channels * math.prod(input_spec.size) + first * math.prod(sizes[0])
    for index, block in enumerate(blocks):
        area = math.prod(sizes[index])
        block_parameters, block_macs, block_peak = _block_cost(block, area)
        parameters += block_parameters
        macs += block_macs
        peak = max(peak, block_peak)
        out = block.channels_out
        parameters += 2 * out  # scale and shift
        last = index + 1 == len(blocks)
        wanted = classes if last else blocks[index + 1].channels_in
        parameters += wanted * out + wanted
        macs += wanted * out * (1 if last else math.prod(sizes[index + 1]))
        peak = max(peak, 2 * out * area)
    return Cost(parameters, macs, peak * FLOAT_BYTES)


def _block_cost(block: Block, area: int) -> tuple[int, int, int]:
    parameters = macs = peak = 0
    banks = block.channels_out * area
    for op in block.ops:
        reads = len(op.reads) * block.bank_channels
        parameters += reads * op.bottleneck + op.bottleneck
        macs += reads * op.bottleneck * area
        live = reads + op.bottleneck
        for slot, conv in enumerate(op.convs):
            if conv is None:
                continue
            channels = op.bottleneck if slot in (0, 2) else op.units
            weights = channels // conv.groups * op.units * math.prod(conv.kernel)
            parameters += weights + op.units
            macs += weights * area
            live = max(live, op.bottleneck + 3 * op.units)
        peak = max(peak, banks + live * area)
    return parameters, macs, max(peak, banks)

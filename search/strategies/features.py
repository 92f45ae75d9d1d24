"""An architecture as a few numbers, for methods that search in a space of numbers (Optuna's samplers).

The way back is not unique: a wanted point stands for the nearest of many architectures that exist.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from smash_search.space.architecture import Architecture
from smash_search.space.cost import Cost


def features(architecture: Architecture, cost: Cost) -> dict[str, float]:
    """Numbers by name: sizes as powers of two, means over ops and convolutions, width of each block."""
    blocks = architecture.blocks
    ops = [op for block in blocks for op in block.ops]
    convs = [conv for op in ops for conv in op.convs if conv is not None]
    return {
        "macs": math.log2(cost.macs),
        "parameters": math.log2(cost.parameters),
        "memory": math.log2(cost.activation_bytes),
        "bank": _mean([math.log2(block.bank_channels) for block in blocks]),
        "reads": _mean([len(op.reads) for op in ops]),
        "writes": _mean([len(op.writes) for op in ops]),
        "units": _mean([op.units for op in ops]),
        "bottleneck": _mean([op.bottleneck for op in ops]),
        "convs": len(convs) / len(ops),
        "kernel": _mean([math.prod(conv.kernel) for conv in convs]),
        "dilation": _mean([math.prod(conv.dilation) for conv in convs]),
        "groups": _mean([math.log2(conv.groups) for conv in convs]),
        "gates": _mean([float(op.gate) for op in ops]),
        "projections": _mean([float(op.project is not None) for op in ops]),
        "plain": _mean([float(not op.reduce) for op in ops]),
        "squeeze": _mean([float(op.squeeze > 0) for op in ops]),
        "stem": math.log2(architecture.stem.stride[0]),
        **{f"width{index}": float(block.channels_in) for index, block in enumerate(blocks)},
        **{f"ops{index}": float(len(block.ops)) for index, block in enumerate(blocks)},
    }


def ranges(samples: Sequence[dict[str, float]]) -> dict[str, tuple[float, float]]:
    """Smallest and largest value of every feature that differs between the samples."""
    found = {
        name: (min(s[name] for s in samples), max(s[name] for s in samples)) for name in sorted(samples[0])
    }
    return {name: (low, high) for name, (low, high) in found.items() if high > low}


def nearest(
    wanted: dict[str, float], pool: Sequence[dict[str, float]], limits: dict[str, tuple[float, float]]
) -> int:
    """Index of the pool's point with the smallest distance, each feature as a share of its range."""
    names = list(limits)
    spans = np.asarray([high - low for low, high in limits.values()])
    points = np.asarray([[point[name] for name in names] for point in pool])
    goal = np.asarray([wanted[name] for name in names])
    return int(np.argmin((((points - goal) / spans) ** 2).sum(1)))


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else 0.0

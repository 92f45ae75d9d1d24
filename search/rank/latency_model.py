"""Latency of architectures on a device, predicted from those that were measured there. No torch, no runtime.

A search proposes networks that keep a latency limit; measuring is what decides. A few hundred measurements
are enough to propose well: the time of a network is close to a sum over its parts, each with a price per
node, per multiply-accumulate and per number written, and no price is below zero. Relative errors are what is
made small, so that fast networks count as much as slow ones.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from smash_base.errors import InvalidInputError
from smash_search.space.architecture import Architecture, Convolution, InputSpec
from smash_search.space.cost import areas_of, pixels_of

LEAST = 8  # measurements
RIDGE = 0.01  # see fit_costs


@dataclass(frozen=True)
class LatencyModel:
    """Prices of the parts of a network on one device.

    Attributes:
        input_spec, classes: Input and number of classes of the networks.
        prices: milliseconds by feature (:func:`parts_of`).
        usual: milliseconds that a quarter of the measured networks exceeds.
        error: median relative error on measurements that were left out while it was fitted, 0.05 for 5 %.
    """

    input_spec: InputSpec
    classes: int
    prices: dict[str, float]
    usual: float
    error: float

    def predict(self, architecture: Architecture) -> float:
        """Milliseconds."""
        parts = parts_of(architecture, self.input_spec, self.classes)
        return sum(self.prices.get(name, 0.0) * value for name, value in parts.items())


def fit_latency(
    architectures: Sequence[Architecture],
    milliseconds: Sequence[float],
    input_spec: InputSpec,
    classes: int,
) -> LatencyModel:
    """Prices that explain measured latencies.

    Raises:
        InvalidInputError: fewer than eight measurements.
    """
    if len(architectures) < LEAST:
        raise InvalidInputError(
            "too few measured networks to predict latency",
            expected=f"{LEAST} or more",
            received=len(architectures),
        )
    parts = [parts_of(architecture, input_spec, classes) for architecture in architectures]
    names = sorted({name for part in parts for name in part})
    matrix = np.asarray([[part.get(name, 0.0) for name in names] for part in parts])
    wanted = np.asarray(milliseconds, np.float64)
    folds = np.arange(len(wanted)) % 4
    left_out = np.empty(len(wanted))
    for fold in range(4):
        prices = fit_costs(matrix[folds != fold], wanted[folds != fold], ridge=RIDGE)
        left_out[folds == fold] = matrix[folds == fold] @ prices
    prices = fit_costs(matrix, wanted, ridge=RIDGE)
    error = float(np.median(np.abs(left_out / wanted - 1)))
    usual = float(np.quantile(wanted, 0.75))
    return LatencyModel(input_spec, classes, dict(zip(names, prices.tolist(), strict=True)), usual, error)


def fit_costs(rows: np.ndarray, times: np.ndarray, *, ridge: float = 0.0, passes: int = 1) -> np.ndarray:
    """Non-negative costs of parts with the least squared relative error.

    Args:
        rows: [networks, parts], how much of each part a network has.
        times: [networks], what was measured.
        ridge: weight that keeps costs of parts that few networks have from explaining noise.
        passes: fits, each after the first without the outliers of the one before: a disturbed measurement is
            slow by a factor, and must not bend the costs of everything else.
    """
    from scipy.optimize import nnls

    relative = rows / times[:, None]
    largest = relative.max(0)
    scale = np.where(largest > 0, largest, 1.0)
    weighted = relative / scale
    penalty = ridge * math.sqrt(len(times)) * np.eye(len(scale)) if ridge else np.empty((0, len(scale)))
    kept = np.ones(len(times), bool)
    for _ in range(passes):
        wanted = np.concatenate([np.ones(int(kept.sum())), np.zeros(len(penalty))])
        costs, _ = nnls(np.concatenate([weighted[kept], penalty]), wanted)
        error = np.abs(weighted @ costs - 1)
        kept = error <= max(0.05, 3 * float(np.median(error)))
    unscaled: np.ndarray = costs / scale
    return unscaled


def parts_of(architecture: Architecture, input_spec: InputSpec, classes: int) -> dict[str, float]:
    """What the time of a network is explained by: counts, multiply-accumulates and numbers written."""
    areas = areas_of(architecture, input_spec.size)
    parts: dict[str, float] = defaultdict(float)
    parts["network"] = 1.0
    for conv in architecture.convolutions(input_spec.channels, classes):
        area = pixels_of(conv, areas)
        kind = _kind(conv)
        parts[f"{kind} nodes"] += 1
        parts[f"{kind} MACs"] += conv.weights * area
        parts[f"{kind} written"] += conv.outputs * area
    for where, block, op in architecture.ops():
        area = areas[".".join(where.split(".")[:2])]
        written = op.units * area
        parts["added"] += written * len(op.writes) * block.bank_channels / op.units
        parts["adds"] += 1
        parts["read apart"] += 0 if op.reads == op.writes else len(op.reads) * block.bank_channels * area
        activations = [conv.activation for conv in op.convs if conv is not None]
        for name in activations + ([op.project] if op.project else []):
            parts[f"{name} written"] += op.width * area
        if op.squeeze:
            parts["squeezes"] += 1
            parts["squeeze written"] += op.width * area
    for index, block in enumerate(architecture.blocks):
        parts["ends"] += 1
        parts["end written"] += block.channels_out * areas[f"blocks.{index}"]
    return dict(parts)


def _kind(conv: Convolution) -> str:
    if conv.pooled:
        return "pooled"
    if conv.name == "stem":
        return "stem"
    if conv.groups > 1:
        return "depthwise" if conv.groups == conv.inputs == conv.outputs else "grouped"
    if max(conv.dilation) > 1:
        return "dilated"
    return "pointwise" if max(conv.kernel) == 1 else "dense"

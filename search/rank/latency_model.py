"""Latency of architectures on a device, predicted from those that were measured there. No torch, no runtime.

A search proposes networks that keep a latency limit; measuring is what decides. A few hundred measurements
are enough to propose well: the time of a network is close to a sum over its parts, each with a price per
node, per multiply-accumulate, per number written and per row of a feature map, and no price is below zero.
Relative errors are what is made small, so that fast networks count as much as slow ones.

Processors compute channels in whole vectors: a convolution of 24 channels costs as one of 32 where vectors
hold 16, and banks that fill none are copied. How wide vectors are is what explains the measurements best. On
643 networks of a processor with AVX-512 and ONNX Runtime that took the median error from 12 to 7 %.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from smash_base.errors import InvalidInputError
from smash_search.space.architecture import Architecture, Convolution, InputSpec
from smash_search.space.cost import block_sizes, pixels_of

LEAST = 8  # measurements
RIDGE = 0.01  # see fit_costs
VECTORS = (4, 8, 16)  # channels of a vector, of fp32: NEON and SSE, AVX2, AVX-512
FOLDS = 4


@dataclass(frozen=True)
class LatencyModel:
    """Prices of the parts of a network on one device.

    Attributes:
        input_spec, classes: Input and number of classes of the networks.
        prices: milliseconds by feature (:func:`parts_of`).
        vector: Number of channels that the device computes at once.
        usual: milliseconds that a quarter of the measured networks exceeds.
        error: median relative error on measurements that were left out while it was fitted, 0.05 for 5 %.
    """

    input_spec: InputSpec
    classes: int
    prices: dict[str, float]
    vector: int
    usual: float
    error: float

    def predict(self, architecture: Architecture) -> float:
        """Milliseconds."""
        parts = parts_of(architecture, self.input_spec, self.classes, self.vector)
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
    wanted = np.asarray(milliseconds, np.float64)
    fits = [_fit(architectures, wanted, input_spec, classes, vector) for vector in VECTORS]
    return min(fits, key=lambda model: model.error)


def _fit(
    architectures: Sequence[Architecture],
    wanted: np.ndarray,
    input_spec: InputSpec,
    classes: int,
    vector: int,
) -> LatencyModel:
    """The model of a device with vectors of so many channels."""
    parts = [parts_of(architecture, input_spec, classes, vector) for architecture in architectures]
    names = sorted({name for part in parts for name in part})
    matrix = np.asarray([[part.get(name, 0.0) for name in names] for part in parts])
    folds = np.arange(len(wanted)) % FOLDS
    left_out = np.empty(len(wanted))
    for fold in range(FOLDS):
        prices = fit_costs(matrix[folds != fold], wanted[folds != fold], ridge=RIDGE)
        left_out[folds == fold] = matrix[folds == fold] @ prices
    prices = fit_costs(matrix, wanted, ridge=RIDGE)
    error = float(np.median(np.abs(left_out / wanted - 1)))
    usual = float(np.quantile(wanted, 0.75))
    return LatencyModel(
        input_spec, classes, dict(zip(names, prices.tolist(), strict=True)), vector, usual, error
    )


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


def parts_of(
    architecture: Architecture, input_spec: InputSpec, classes: int, vector: int = 1
) -> dict[str, float]:
    """What the time of a network is explained by: counts, multiply-accumulates, numbers written, rows.

    Args:
        architecture: the network.
        input_spec, classes: Its input and number of classes.
        vector: Number of channels that are computed at once; others are filled up.
    """
    sizes = block_sizes(architecture, input_spec.size)
    areas = {f"blocks.{index}": math.prod(size) for index, size in enumerate(sizes)}
    rows = {f"blocks.{index}": math.prod(size[:-1]) for index, size in enumerate(sizes)}
    parts: dict[str, float] = defaultdict(float)
    parts["network"] = 1.0
    for conv in architecture.convolutions(input_spec.channels, classes):
        _add_convolution(parts, conv, pixels_of(conv, areas), pixels_of(conv, rows), vector)
    for where, block, op in architecture.ops():
        area = areas[".".join(where.split(".")[:2])]
        bank = whole(block.bank_channels, vector)
        kind = " of parts" if bank > block.bank_channels else ""
        parts[f"added{kind}"] += len(op.writes) * bank * area
        parts[f"adds{kind}"] += 1
        parts[f"read apart{kind}"] += 0 if op.reads == op.writes else len(op.reads) * bank * area
        width = whole(op.width, vector)
        activations = [conv.activation for conv in op.convs if conv is not None]
        for name in activations + ([op.project] if op.project else []):
            parts[f"{name} written"] += width * area
        if op.squeeze:
            parts["squeezes"] += 1
            parts["squeeze written"] += width * area
    for index, block in enumerate(architecture.blocks):
        parts["ends"] += 1
        parts["end written"] += whole(block.channels_out, vector) * areas[f"blocks.{index}"]
    return dict(parts)


def _add_convolution(parts: dict[str, float], conv: Convolution, area: int, rows: int, vector: int) -> None:
    """The features of one convolution over so many pixels, in so many rows."""
    kind, taps = _kind(conv), math.prod(conv.kernel)
    inputs, outputs = whole(conv.inputs, vector), whole(conv.outputs, vector)
    macs = conv.weights  # of groups that are no whole vectors
    if conv.groups == 1:
        macs = inputs * outputs * taps
    elif kind == "depthwise":
        macs = outputs * taps
    parts[f"{kind} nodes"] += 1
    parts[f"{kind} MACs"] += macs * area
    parts[f"{kind} written"] += outputs * area
    parts[f"{kind} read"] += inputs * taps * area
    if not conv.pooled:  # an inner loop runs along a row, for each row of the filter and pair of vectors
        pairs = outputs / vector * (inputs / vector if conv.groups == 1 else 1)
        parts[f"{kind} rows"] += pairs * rows * (taps // conv.kernel[-1])


def whole(channels: int, vector: int) -> int:
    """Channels that are computed: whole vectors of so many."""
    return -(-channels // vector) * vector


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

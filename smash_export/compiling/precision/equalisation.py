"""Channels scaled so that one range per tensor fits all of them (Nagel et al. 2019, section 4.1).

A runtime rounds a tensor with one scale. A channel of small values beside one of large values keeps few
levels. ReLU, pooling and addition commute with a positive factor per channel, so a channel may be divided by
it where it is written and multiplied where it is read, and the network answers the same. The factor balances
what activations gain against what the weights that read them lose. Weights that write have a scale per
output channel, and so have depthwise ones that read: these lose nothing.

Channels between convolutions and Gemm are scaled. A tensor that is split, concatenated, multiplied or
answered stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from smash_export.export.onnx_graphs import (
    TensorSets,
    attribute,
    chunks,
    readers,
    session_of,
    static_batch,
)

if TYPE_CHECKING:
    import onnx

_COMMUTE = {"Relu", "LeakyRelu", "AveragePool", "MaxPool", "GlobalAveragePool"}
MOST = 32.0  # largest factor, and the inverse of the smallest: a channel that hardly lives says little


@dataclass
class _Tied:
    """Tensors whose channels have the same factors, and the layers around them."""

    writers: list[onnx.NodeProto] = field(default_factory=list)
    readers: list[onnx.NodeProto] = field(default_factory=list)
    fixed: bool = False


def equalised(model: onnx.ModelProto, tensors: np.ndarray) -> tuple[onnx.ModelProto, int]:
    """A copy that computes the same, and how many sets of tensors were scaled.

    Args:
        model: fp32, see :func:`smash_export.export.onnx_graphs.prepared`.
        tensors: float32 [N, *input_shape], calibration images.
    """
    import onnx
    from onnx import numpy_helper

    model = onnx.ModelProto.FromString(model.SerializeToString())
    constants = {item.name: numpy_helper.to_array(item).copy() for item in model.graph.initializer}
    sets = [tied for tied in _tied(model, constants) if tied.writers and tied.readers and not tied.fixed]
    peaks = _channel_peaks(model, tensors, sorted({node.input[0] for tied in sets for node in tied.readers}))
    scaled = 0
    for tied in sets:
        channels = {len(constants[node.input[1]]) for node in tied.writers if node.op_type == "Conv"}
        channels |= {_rows(node, constants).shape[0] for node in tied.writers if node.op_type == "Gemm"}
        channels |= {len(peaks[node.input[0]]) for node in tied.readers}
        if len(channels) != 1:
            continue
        factors = _factors(tied, constants, peaks)
        for node in tied.writers:
            _divide_outputs(node, constants, factors)
        for node in tied.readers:
            _multiply_inputs(node, constants, factors)
        scaled += 1
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(constants[tensor.name], tensor.name))
    return model, scaled


def _tied(model: onnx.ModelProto, constants: Mapping[str, np.ndarray]) -> list[_Tied]:
    graph = model.graph
    ranks = {
        value.name: [item.dim_value for item in value.type.tensor_type.shape.dim]
        for value in (*graph.value_info, *graph.input, *graph.output)
    }
    reading = readers(graph)
    sets = TensorSets()
    for node in graph.node:
        if _commutes(node, constants, ranks):
            sets.join([*node.input, *node.output])
    found: dict[str, _Tied] = {}

    def of(name: str) -> _Tied:
        return found.setdefault(sets.root(name), _Tied())

    for node in graph.node:
        if _commutes(node, constants, ranks):
            continue
        if node.op_type in ("Conv", "Gemm") and _own_weights(node, constants, reading):
            of(node.input[0]).readers.append(node)
            of(node.output[0]).writers.append(node)
        else:
            for name in (*node.input, *node.output):
                of(name).fixed = True
    for value in (*graph.input, *graph.output):
        of(value.name).fixed = True
    return list(found.values())


def _commutes(
    node: onnx.NodeProto, constants: Mapping[str, np.ndarray], shapes: Mapping[str, list[int]]
) -> bool:
    """Whether a positive factor per channel may pass through the node."""
    if node.op_type == "Add":
        one, other = (shapes.get(name, []) for name in node.input)
        return not any(name in constants for name in node.input) and one[1:] == other[1:] != []
    if node.op_type == "Flatten":  # of one value per channel
        before, after = shapes.get(node.input[0], []), shapes.get(node.output[0], [])
        return len(after) == 2 and len(before) > 1 and before[1] == after[1] > 0
    return node.op_type in _COMMUTE


def _own_weights(
    node: onnx.NodeProto, constants: Mapping[str, np.ndarray], reading: Mapping[str, list[onnx.NodeProto]]
) -> bool:
    """Whether all but its input are constants of its own, in the usual form."""
    if not all(name in constants and len(reading[name]) == 1 for name in node.input[1:]):
        return False
    if node.op_type == "Conv":
        return True
    usual = attribute(node, "alpha", 1.0) == attribute(node, "beta", 1.0) == 1.0
    return (
        usual
        and not attribute(node, "transA", 0)
        and all(constants[name].ndim == 1 for name in node.input[2:])
    )


def _rows(node: onnx.NodeProto, constants: Mapping[str, np.ndarray]) -> np.ndarray:
    """A view of the weights with the output channels first, the inputs of a group second."""
    weight = constants[node.input[1]]
    return weight.T if node.op_type == "Gemm" and not attribute(node, "transB", 0) else weight


def _grouped(node: onnx.NodeProto, constants: Mapping[str, np.ndarray]) -> np.ndarray:
    """A view of the weights [groups, outputs of a group, inputs of a group, ...]."""
    rows = _rows(node, constants)
    groups = attribute(node, "group", 1)
    return rows.reshape(groups, len(rows) // groups, *rows.shape[1:])


def _factors(tied: _Tied, constants: Mapping[str, np.ndarray], peaks: Mapping[str, np.ndarray]) -> np.ndarray:
    """float64 [channels]: what a channel is divided by where it is written; their geometric mean is 1."""
    activations = np.max([peaks[node.input[0]] for node in tied.readers], axis=0)
    dense = [node for node in tied.readers if _rows(node, constants).shape[1] > 1]
    columns = np.max([_column_peaks(node, constants) for node in dense], axis=0) if dense else None
    alive = activations > 0
    factors = np.ones(len(activations))
    if columns is None:
        factors[alive] = activations[alive]
    else:
        alive &= columns > 0
        factors[alive] = np.sqrt(activations[alive] / columns[alive])
    if alive.any():
        factors[alive] /= np.exp(np.log(factors[alive]).mean())
    return factors.clip(1 / MOST, MOST)


def _column_peaks(node: onnx.NodeProto, constants: Mapping[str, np.ndarray]) -> np.ndarray:
    """float64 [input channels]: the largest weight that reads a channel, over the largest of its row."""
    weight = np.abs(_grouped(node, constants)).astype(np.float64)
    size = weight.reshape(*weight.shape[:3], -1).max(axis=3)  # [groups, outputs, inputs]
    size /= np.maximum(size.max(axis=2, keepdims=True), 1e-30)
    peaks: np.ndarray = size.max(axis=1).reshape(-1)
    return peaks


def _divide_outputs(node: onnx.NodeProto, constants: Mapping[str, np.ndarray], factors: np.ndarray) -> None:
    rows = _rows(node, constants)
    rows /= factors.reshape(-1, *[1] * (rows.ndim - 1)).astype(np.float32)
    for name in node.input[2:]:
        constants[name][...] /= factors.astype(np.float32)


def _multiply_inputs(node: onnx.NodeProto, constants: Mapping[str, np.ndarray], factors: np.ndarray) -> None:
    weight = _grouped(node, constants)
    groups, _, inputs = weight.shape[:3]
    weight *= factors.reshape(groups, 1, inputs, *[1] * (weight.ndim - 3)).astype(np.float32)


def _channel_peaks(model: onnx.ModelProto, tensors: np.ndarray, names: list[str]) -> dict[str, np.ndarray]:
    """Largest absolute value of every channel of some tensors, float64 [channels]."""
    import onnx
    from onnx import TensorProto, helper

    if not names:
        return {}
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in copy.graph.value_info}
    for name in names:
        pool = "GlobalMaxPool" if ranks[name] > 2 else "Identity"
        copy.graph.node.append(helper.make_node("Abs", [name], [f"{name}/size"]))
        copy.graph.node.append(helper.make_node(pool, [f"{name}/size"], [f"{name}/peak"]))
        copy.graph.output.append(helper.make_tensor_value_info(f"{name}/peak", TensorProto.FLOAT, None))
    session, source = session_of(copy), model.graph.input[0].name
    peaks: dict[str, np.ndarray] = {}
    for part in chunks(tensors, static_batch(model)):
        answers = session.run([f"{name}/peak" for name in names], {source: part})
        for name, value in zip(names, answers, strict=True):
            seen = value.reshape(*value.shape[:2]).max(axis=0).astype(np.float64)
            peaks[name] = np.maximum(peaks.get(name, seen), seen)
    return peaks

"""Biases that take back what rounding adds on average (Nagel et al. 2019, "Data-free quantization through
weight equalization and bias correction", section 4.2).

A rounded weight or input is wrong by a little in one direction, the same for every image, so a convolution's
channel is shifted as a whole. The mean of that shift on the calibration images is taken off the bias.
Every layer is measured with exact inputs: what earlier layers add is taken back by them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from smash_export.compiling.precision.noise import EXACT, with_exact_inputs
from smash_export.export.onnx_graphs import attribute, chunks, producers, session_of, static_batch

if TYPE_CHECKING:
    import onnx

_SHIFT = "/shift"


def with_corrected_biases(
    exact: onnx.ModelProto, quantised: onnx.ModelProto, tensors: np.ndarray
) -> onnx.ModelProto:
    """A copy of the fp32 graph whose convolutions and Gemm have other biases, to be quantised again.

    Args:
        exact: the fp32 graph, every node named.
        quantised: the same graph with Q/DQ nodes.
        tensors: float32 [N, *input_shape].
    """
    import onnx

    model: onnx.ModelProto = onnx.ModelProto.FromString(exact.SerializeToString())
    nodes = {node.name: node for node in model.graph.node}
    for name, shift in _shifts(exact, quantised, tensors).items():
        _lower_bias(model.graph, nodes[name], shift)
    return model


def _shifts(exact: onnx.ModelProto, quantised: onnx.ModelProto, tensors: np.ndarray) -> dict[str, np.ndarray]:
    """Name of a node -> what rounding adds to its output on average, float64 [channels]."""
    from onnx import TensorProto, helper

    model, _, _ = with_exact_inputs(exact, quantised)
    makers = producers(model.graph)
    originals = {node.name: node for node in model.graph.node}
    measured = []
    for node in list(model.graph.node):
        original = originals.get(EXACT + node.name)
        rounded = makers.get(node.input[0]) if node.input else None
        if original is None or rounded is None or rounded.op_type != "DequantizeLinear":
            continue
        if node.op_type not in ("Conv", "Gemm"):
            continue
        error, shift = f"{node.name}/error", node.name + _SHIFT
        pool = "GlobalAveragePool" if node.op_type == "Conv" else "Identity"
        model.graph.node.append(helper.make_node("Sub", [node.output[0], original.output[0]], [error]))
        model.graph.node.append(helper.make_node(pool, [error], [shift]))
        model.graph.output.append(helper.make_tensor_value_info(shift, TensorProto.FLOAT, None))
        measured.append(node.name)
    if not measured:
        return {}
    session, source = session_of(model), exact.graph.input[0].name
    sums: dict[str, np.ndarray] = {}
    images = 0
    for part in chunks(tensors, static_batch(exact)):
        images += len(part)
        for name, value in zip(measured, session.run(None, {source: part}), strict=True):
            total = value.reshape(*value.shape[:2]).sum(axis=0, dtype=np.float64)
            sums[name] = sums.get(name, 0.0) + total
    return {name: total / images for name, total in sums.items()}


def _lower_bias(graph: onnx.GraphProto, node: onnx.NodeProto, shift: np.ndarray) -> None:
    """Take ``shift`` off a node's bias, which becomes its own; a bias of another form stays as it is."""
    from onnx import numpy_helper

    bias = np.zeros(len(shift), np.float32)
    if len(node.input) > 2 and node.input[2]:
        constants = {tensor.name: tensor for tensor in graph.initializer}
        if node.input[2] not in constants:
            return
        bias = numpy_helper.to_array(constants[node.input[2]])
    if bias.shape != shift.shape or attribute(node, "beta", 1.0) != 1.0:
        return
    name = f"{node.name}/corrected_bias"
    graph.initializer.append(numpy_helper.from_array((bias - shift).astype(np.float32), name))
    del node.input[2:]
    node.input.append(name)

"""Signal to noise of every quantised node, all of them in one run.

The fp32 graph and the Q/DQ graph are put side by side, and every QuantizeLinear of the second is made to
read the exact tensor of the first. Each node then works on rounded but otherwise exact inputs with its
rounded weights, so what its output differs by, after its own rounding, is what it adds by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from smash_export.export.onnx_graphs import chunks, session_of, static_batch
from smash_export.measure.noise import NodeNoise

if TYPE_CHECKING:
    import onnx

EXACT = "exact/"


def noise_by_node(
    exact: onnx.ModelProto, quantised: onnx.ModelProto, tensors: np.ndarray, operators: Sequence[str]
) -> list[NodeNoise]:
    """Measure the nodes of these operators.

    Args:
        exact: the fp32 graph, every node named, with the types of its tensors.
        quantised: the same graph with Q/DQ nodes; activations behind a node may have been merged into it.
        tensors: float32 [N, *input_shape].

    Returns:
        one entry per node, the noisiest first.
    """
    model, measured = _measuring(exact, quantised, operators)
    session = session_of(model)
    names = [output.name for output in session.get_outputs()]
    totals = dict.fromkeys(names, 0.0)
    for part in chunks(tensors, static_batch(exact)):
        for name, value in zip(names, session.run(None, {exact.graph.input[0].name: part}), strict=True):
            totals[name] += float(value)
    rows = []
    for node, operator in measured:
        signal, noise = totals[f"{node}/signal"], totals[f"{node}/noise"]
        ratio = 10 * np.log10(max(signal, 1e-30) / noise) if noise > 0 else 200.0
        rows.append(NodeNoise(node, operator, round(float(ratio), 2)))
    return sorted(rows, key=lambda row: row.sqnr_db)


def _renamed(exact: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, str]]:
    """The fp32 graph under names of its own, and each tensor's new name."""
    import onnx

    left = onnx.ModelProto.FromString(exact.SerializeToString())
    rename = {name: EXACT + name for node in left.graph.node for name in node.output}
    rename |= {tensor.name: EXACT + tensor.name for tensor in left.graph.initializer}
    for node in left.graph.node:
        node.name = EXACT + node.name
        node.input[:] = [rename.get(name, name) for name in node.input]
        node.output[:] = [rename.get(name, name) for name in node.output]
    for tensor in left.graph.initializer:
        tensor.name = rename[tensor.name]
    return left, rename


def with_exact_inputs(
    exact: onnx.ModelProto, quantised: onnx.ModelProto
) -> tuple[onnx.ModelProto, dict[str, str], dict[str, onnx.NodeProto]]:
    """Both graphs in one, without outputs: every QuantizeLinear of the second reads the tensor of the first.

    Returns:
        the merged graph; for each tensor of the first graph its name there (:data:`EXACT` before it); and for
        each of these tensors that is rounded its QuantizeLinear.
    """
    import onnx

    left, rename = _renamed(exact)
    merged = onnx.ModelProto.FromString(quantised.SerializeToString())
    for node in merged.graph.node:
        if node.op_type == "QuantizeLinear":
            node.input[0] = rename.get(node.input[0], node.input[0])
    del merged.graph.output[:], merged.graph.value_info[:]
    merged.graph.initializer.extend(left.graph.initializer)
    ordered = [*left.graph.node, *merged.graph.node]
    del merged.graph.node[:]
    merged.graph.node.extend(ordered)
    rounding = {node.input[0]: node for node in merged.graph.node if node.op_type == "QuantizeLinear"}
    return merged, rename, {old: rounding[new] for old, new in rename.items() if new in rounding}


def _measuring(
    exact: onnx.ModelProto, quantised: onnx.ModelProto, operators: Sequence[str]
) -> tuple[onnx.ModelProto, list[tuple[str, str]]]:
    """The merged graph with two scalars per measured node, and (name, operator) of these nodes."""
    from onnx import TensorProto, helper

    source = exact.graph.input[0].name
    model, rename, rounding = with_exact_inputs(exact, quantised)
    shapes = {  # a traced network computes them from its images, with some of the same operators
        value.name
        for value in exact.graph.value_info
        if value.type.tensor_type.elem_type != TensorProto.FLOAT
    }
    nodes, outputs, measured = [], [], []
    for node in model.graph.node:
        output = node.output[0] if node.output else ""
        if node.op_type not in operators or output not in rename or output in {source, *shapes}:
            continue
        received = output
        if output in rounding:
            scale, zero = rounding[output].input[1:3]
            nodes += [
                helper.make_node("QuantizeLinear", [output, scale, zero], [f"{node.name}/q"]),
                helper.make_node("DequantizeLinear", [f"{node.name}/q", scale, zero], [f"{node.name}/dq"]),
            ]
            received = f"{node.name}/dq"
        nodes += [
            helper.make_node("Sub", [received, rename[output]], [f"{node.name}/error"]),
            helper.make_node("ReduceSumSquare", [f"{node.name}/error"], [f"{node.name}/noise"], keepdims=0),
            helper.make_node("ReduceSumSquare", [rename[output]], [f"{node.name}/signal"], keepdims=0),
        ]
        outputs += [
            helper.make_tensor_value_info(f"{node.name}/{what}", TensorProto.FLOAT, [])
            for what in ("noise", "signal")
        ]
        measured.append((node.name, node.op_type))
    model.graph.output.extend(outputs)
    model.graph.node.extend(nodes)
    return model, measured

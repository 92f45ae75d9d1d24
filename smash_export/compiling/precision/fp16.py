"""fp16 by a cast of the ONNX graph: fp32 in, fp32 out, and fp32 where numbers would not fit.

Own pass, although ONNX Runtime ships one: that one casts the output of every node it keeps in fp32 back
to fp16, so a large number between two kept nodes becomes infinity on the way (transformers/float16.py,
1.32). Here a tensor has the type of the node that makes it, and casts stand only where types meet.

A node is kept in fp32 when a tensor that it reads or writes comes near the largest fp16 number on
calibration images, when the sum behind an average does, or when its operator has no fp16 form. The cast
graph is not run here: ONNX Runtime on a CPU computes it in fp32 and would show no overflow. Verification
runs it on the runtime that it is for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from smash_base.errors import InvalidInputError
from smash_base.json_values import JsonObject
from smash_export.export.onnx_graphs import check_finite, logits_of, prepared, tensor_peaks

if TYPE_CHECKING:
    import onnx

LARGEST = 65504.0
HEADROOM = 2.0  # images in use may go beyond those seen here
_AVERAGES = ("GlobalAveragePool", "ReduceMean", "AveragePool")


def cast_to_fp16(model: onnx.ModelProto, calibration: np.ndarray) -> tuple[onnx.ModelProto, JsonObject]:
    """Cast an fp32 graph to fp16.

    Args:
        model: one float32 input, one float32 output of logits [B, K].
        calibration: float32 [N, *input_shape].

    Returns:
        the graph, whose input and output are float32 as before, and notes for the manifest: nodes kept in
        fp32 with the reason, weights that became zero, the largest value seen.

    Raises:
        InvalidInputError: a graph with control flow.
        VerificationError: the logits of the fp32 graph are not finite.
    """
    exact = prepared(model)
    check_finite(logits_of(exact, calibration), "the fp32 network")
    peaks = tensor_peaks(exact, calibration)
    kept = _too_large(exact, peaks, _shapes(exact), LARGEST / HEADROOM)
    result, flushed = _cast(exact, set(kept))
    notes: JsonObject = {
        "kept_fp32": [{"node": name, "reason": reason} for name, reason in kept.items()],
        "weights_flushed_to_zero": flushed,
        "largest_value": round(max(peaks.values()), 3),
        "calibration_images": len(calibration),
    }
    return result, notes


def _too_large(
    model: onnx.ModelProto, peaks: dict[str, float], shapes: dict[str, list[int | None]], limit: float
) -> dict[str, str]:
    """Node name -> why it stays in fp32."""
    kept = {}
    for node in model.graph.node:
        for name in (*node.input, *node.output):
            if peaks.get(name, 0.0) > limit:
                kept[node.name] = f"{name} reaches {peaks[name]:.4g}"
                break
        else:
            if node.op_type in _AVERAGES:
                total = peaks.get(node.output[0], 0.0) * _averaged(node, shapes)
                if total > limit:
                    kept[node.name] = f"the sum behind the average reaches {total:.4g}"
    return kept


def _averaged(node: onnx.NodeProto, shapes: dict[str, list[int | None]]) -> int:
    """Elements that go into one element of the output; 1 where shapes do not tell."""
    before, after = shapes.get(node.input[0]), shapes.get(node.output[0])
    if before is None or after is None:
        return 1
    sizes = [size or 1 for size in before[1:]], [size or 1 for size in after[1:]]
    return max(1, math.prod(sizes[0]) // max(1, math.prod(sizes[1])))


def _shapes(model: onnx.ModelProto) -> dict[str, list[int | None]]:
    values = [*model.graph.input, *model.graph.value_info, *model.graph.output]
    return {
        value.name: [
            axis.dim_value if axis.HasField("dim_value") else None
            for axis in value.type.tensor_type.shape.dim
        ]
        for value in values
        if value.type.tensor_type.HasField("shape")
    }


_MAKERS = ("Cast", "Constant", "ConstantOfShape")  # what they give has the type that they say


def _refuse_control_flow(node: onnx.NodeProto) -> None:
    import onnx

    if any(item.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for item in node.attribute):
        raise InvalidInputError(
            "a graph with control flow cannot be cast", expected="one flat graph", received=node.op_type
        )


def _cast(model: onnx.ModelProto, kept: set[str]) -> tuple[onnx.ModelProto, int]:
    """The graph in fp16 but for the nodes in ``kept``, and how many weights became zero."""
    import onnx
    from onnx import TensorProto, helper

    result = onnx.ModelProto.FromString(model.SerializeToString())
    graph = result.graph
    version = next(item.version for item in result.opset_import if item.domain in ("", "ai.onnx"))
    floats = {
        value.name
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.tensor_type.elem_type == TensorProto.FLOAT
    }
    weights = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}
    half: set[str] = set()  # tensors that are fp16 now
    casts: dict[tuple[str, int], str] = {}
    nodes: list[onnx.NodeProto] = []
    used: set[tuple[str, bool]] = set()
    for node in graph.node:
        _refuse_control_flow(node)
        takes, gives = _half_forms(node, version)
        as_half = node.name not in kept and gives and node.op_type not in _MAKERS
        for index, name in enumerate(node.input):
            wanted = as_half and index in takes
            if name in weights:
                used.add((name, wanted))
                if wanted:
                    node.input[index] = f"{name}/fp16"
            elif name in floats and (name in half) != wanted:
                kind = TensorProto.FLOAT16 if wanted else TensorProto.FLOAT
                if (name, kind) not in casts:
                    casts[name, kind] = f"{name}/{'fp16' if wanted else 'fp32'}"
                    nodes.append(
                        helper.make_node(
                            "Cast", [name], [casts[name, kind]], f"{casts[name, kind]}/cast", to=kind
                        )
                    )
                node.input[index] = casts[name, kind]
        if as_half:
            half.update(name for name in node.output if name in floats)
        nodes.append(node)
    _keep_outputs(graph, nodes, half)
    tensors, flushed = _cast_weights(graph, weights, used)
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend(tensors)
    checked: onnx.ModelProto = onnx.shape_inference.infer_shapes(result, strict_mode=True)
    onnx.checker.check_model(checked, full_check=True)
    return checked, flushed


def _keep_outputs(graph: onnx.GraphProto, nodes: list[onnx.NodeProto], half: set[str]) -> None:
    """Outputs that are fp16 now get a cast; the name stays with the fp32 tensor."""
    from onnx import TensorProto, helper

    for output in graph.output:
        if output.name in half:
            inner = f"{output.name}/half"
            for node in nodes:
                node.input[:] = [inner if name == output.name else name for name in node.input]
                node.output[:] = [inner if name == output.name else name for name in node.output]
            nodes.append(
                helper.make_node("Cast", [inner], [output.name], f"{output.name}/cast", to=TensorProto.FLOAT)
            )


def _cast_weights(
    graph: onnx.GraphProto, weights: Mapping[str, onnx.TensorProto], used: set[tuple[str, bool]]
) -> tuple[list[onnx.TensorProto], int]:
    """Weights in the forms that are used, and how many values became zero."""
    from onnx import numpy_helper

    flushed = 0
    tensors = []
    for tensor in graph.initializer:
        if tensor.name not in weights or (tensor.name, False) in used:
            tensors.append(tensor)
        if (tensor.name, True) in used:
            array = numpy_helper.to_array(tensor)
            small = np.clip(array, -LARGEST, LARGEST).astype(np.float16)
            flushed += int(((small == 0) & (array != 0)).sum())
            tensors.append(numpy_helper.from_array(small, f"{tensor.name}/fp16"))
    return tensors, flushed


def _half_forms(node: onnx.NodeProto, version: int) -> tuple[set[int], bool]:
    """Which inputs the operator takes in fp16, and whether all its float outputs can be fp16."""
    import onnx

    try:
        schema = onnx.defs.get_schema(node.op_type, version, node.domain)
    except onnx.defs.SchemaError:
        return set(), False
    allowed = {item.type_param_str: set(item.allowed_type_strs) for item in schema.type_constraints}

    def types(formal: Any, index: int) -> set[str]:
        if not formal:
            return set()
        kind = formal[min(index, len(formal) - 1)].type_str  # the last one may be variadic
        return allowed.get(kind, {kind})

    takes = {index for index in range(len(node.input)) if "tensor(float16)" in types(schema.inputs, index)}
    gives = [
        "tensor(float16)" in options
        for index in range(len(node.output))
        if "tensor(float)" in (options := types(schema.outputs, index))
    ]
    return takes, bool(gives) and all(gives)

"""Parameters and multiply-accumulates of an ONNX file as it is stored: more than its network has, at times.

Convolutions whose groups are too narrow for vector units are stored with fewer groups, and zeros between them
(``regroup`` in the ONNX writer); norms are folded; quantised weights are behind a DequantizeLinear. What a
device loads and computes is counted here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx

MAX_ONNX_BYTES = 512 * 2**20
_NUMBERS = {1, 2, 3, 10, 11, 16}  # ONNX types of weights: float, uint8, int8, float16, double, bfloat16


@dataclass(frozen=True)
class StoredCost:
    """What a file holds.

    Attributes:
        parameters: numbers in its weights, zeros included; shapes and axes, which are int64, are none.
        zeros: those among them in kernels of convolutions that are all zeros.
        macs: multiply-accumulates of convolutions and matrix products for one image; None where a shape is
            not known.
    """

    parameters: int
    zeros: int
    macs: int | None


def stored_cost(model: onnx.ModelProto) -> StoredCost:
    """Count a graph; its external data is not read."""
    weights = {item.name: item for item in model.graph.initializer}
    parameters = sum(
        math.prod(max(0, size) for size in item.dims)
        for item in weights.values()
        if item.data_type in _NUMBERS and len(item.dims)
    )
    zeros = sum(_zeros(weights.get(node.input[1])) for node in model.graph.node if node.op_type == "Conv")
    return StoredCost(parameters, zeros, _macs(model))


def cost_words(path: Path) -> str:
    """The cost of a file in words; says so where it is not read."""
    if path.stat().st_size > MAX_ONNX_BYTES:
        return "too large to be counted"
    try:
        import onnx
    except ImportError:  # an edge device has no need of it
        return "not counted: onnx is not installed"

    cost = stored_cost(onnx.load_model_from_string(path.read_bytes()))
    words = f"{cost.parameters:,} parameters"
    if cost.zeros:
        words += f", {cost.zeros:,} of them in kernels of zeros (narrow groups are stored wider)"
    return words if cost.macs is None else f"{words}; {cost.macs:,} MACs"


def _zeros(weight: onnx.TensorProto | None) -> int:
    """Numbers of the kernels that are all zeros: regrouping adds such, and pruning."""
    import onnx

    if weight is None or weight.data_location == onnx.TensorProto.EXTERNAL or len(weight.dims) < 3:
        return 0
    try:
        values = onnx.numpy_helper.to_array(weight)
    except (ValueError, TypeError):
        return 0
    empty = ~values.reshape(*values.shape[:2], -1).any(axis=2)  # [O, I / groups]
    return int(empty.sum()) * math.prod(values.shape[2:])


def _macs(model: onnx.ModelProto) -> int | None:
    """Multiply-accumulates for one image, from inferred shapes."""
    import onnx

    one = onnx.ModelProto.FromString(model.SerializeToString())
    for value in one.graph.input:
        axes = value.type.tensor_type.shape.dim
        if axes and not axes[0].dim_value:
            axes[0].dim_value = 1
    try:
        inferred = onnx.shape_inference.infer_shapes(one, data_prop=True).graph
    except Exception:  # noqa: BLE001  a file of somebody else: its checker raises many types
        return None
    shapes: dict[str, list[int]] = {item.name: list(item.dims) for item in inferred.initializer}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        shapes[value.name] = [axis.dim_value for axis in value.type.tensor_type.shape.dim]
    batch = max(1, next((shapes[item.name][0] for item in inferred.input if shapes[item.name]), 1))
    counts = [
        _node_macs(node, shapes) for node in inferred.node if node.op_type in ("Conv", "Gemm", "MatMul")
    ]
    if any(count is None for count in counts):
        return None
    return sum(count for count in counts if count is not None) // batch


def _node_macs(node: Any, shapes: dict[str, list[int]]) -> int | None:
    """Multiply-accumulates of one convolution or matrix product; None where a size is not known."""
    result, left = shapes.get(node.output[0]), shapes.get(node.input[0])
    weight = shapes.get(node.input[1])
    if not result or not left or not weight or not all((*result, *left, *weight)):
        return None
    if node.op_type == "Conv":
        return math.prod(result) * math.prod(weight[1:])
    transposed = any(item.name == "transA" and item.i for item in node.attribute)
    return math.prod(result) * int(np.asarray(left)[-2 if transposed else -1])

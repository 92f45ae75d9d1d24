"""An fp32 graph in operators that integer kernels are fast at: exact rewritings, before anything is rounded.

In ONNX Runtime on x86 with VNNI, ResNet-8 at int8 spends 18 of 190 microseconds in one average pooling of
2x2, and 4 in the 1x1 convolution behind it; both as one convolution of 2x2 with stride 2 take 6. A ReLU whose
input something else reads as well cannot disappear into the rounding of that input: as a comparison of whole
numbers, with the scale of its input, it is one node instead of two conversions. A hard swish in fp32 between
integers is four nodes; an addition that saturates and a multiplication are two, 0.7 microseconds faster.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import numpy as np

from smash_export.export.onnx_graphs import attribute, producers, readers

if TYPE_CHECKING:
    import onnx


def fold_pools(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which pooling in whole windows and a 1x1 convolution behind it are one convolution."""
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.ModelProto.FromString(model.SerializeToString())
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    reading = readers(graph)
    for pool in [node for node in graph.node if node.op_type == "AveragePool"]:
        after = reading.get(pool.output[0], [])
        window = attribute(pool, "kernel_shape")
        if len(after) != 1 or not _whole_windows(pool) or not _pointwise(after[0], constants, reading):
            continue
        (conv,) = after
        name = conv.input[1]
        weight = numpy_helper.to_array(constants[name])
        spread = np.tile(weight / math.prod(window), (1, 1, *window)).astype(weight.dtype)
        constants[name].CopyFrom(numpy_helper.from_array(spread, name))
        conv.input[0] = pool.input[0]
        for item in [item for item in conv.attribute if item.name in ("kernel_shape", "strides")]:
            conv.attribute.remove(item)
        conv.attribute.append(helper.make_attribute("kernel_shape", window))
        conv.attribute.append(helper.make_attribute("strides", window))
        graph.node.remove(pool)
    return model


def _whole_windows(pool: onnx.NodeProto) -> bool:
    window = attribute(pool, "kernel_shape")
    return (
        attribute(pool, "strides") == window
        and not any(attribute(pool, "pads", [0]))
        and not attribute(pool, "ceil_mode", 0)
        and attribute(pool, "auto_pad", b"NOTSET") == b"NOTSET"
        and set(attribute(pool, "dilations", [1])) == {1}
    )


def _pointwise(
    node: onnx.NodeProto,
    constants: Mapping[str, onnx.TensorProto],
    reading: Mapping[str, list[onnx.NodeProto]],
) -> bool:
    """Whether it is a 1x1 convolution without stride and padding, whose weights nothing else reads."""
    if node.op_type != "Conv" or node.input[1] not in constants or len(reading[node.input[1]]) > 1:
        return False
    return (
        set(constants[node.input[1]].dims[2:]) == {1}
        and set(attribute(node, "strides", [1])) == {1}
        and not any(attribute(node, "pads", [0]))
        and attribute(node, "auto_pad", b"NOTSET") == b"NOTSET"
    )


def clip_integers(graph: onnx.GraphProto) -> None:
    """ReLUs between a DequantizeLinear and a QuantizeLinear of the same scale become integer comparisons.

    Args:
        graph: with Q/DQ nodes; changed in place. Activations are unsigned or signed bytes.
    """
    from onnx import helper, numpy_helper

    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    makers = producers(graph)
    reading = readers(graph)
    clips: dict[str, onnx.NodeProto] = {}  # name of a ReLU -> what stands in its place
    removed: set[str] = set()
    for rectifier in graph.node:
        after = reading.get(rectifier.output[0], [])
        before = makers.get(rectifier.input[0])
        if rectifier.op_type != "Relu" or len(after) != 1 or before is None:
            continue
        (quantise,) = after
        if before.op_type != "DequantizeLinear" or quantise.op_type != "QuantizeLinear":
            continue
        pairs = zip(before.input[1:], quantise.input[1:], strict=True)
        if all(np.array_equal(values[one], values[other]) for one, other in pairs):
            inputs = [before.input[0], before.input[2]]
            clip = helper.make_node("Clip", inputs, list(quantise.output), name=f"{rectifier.name}_clip")
            clips[rectifier.name] = clip
            removed.add(quantise.name)
            if len(reading[before.output[0]]) == 1:
                removed.add(before.name)
    nodes = [clips.get(node.name, node) for node in graph.node if node.name not in removed]
    del graph.node[:]
    graph.node.extend(nodes)


def swish_integers(graph: onnx.GraphProto, kept: Collection[str] = ()) -> None:
    """Hard swishes between Q/DQ nodes become an addition and a multiplication of unsigned bytes.

    ``x * clip(x / 6 + 1/2, 0, 1)``: the factor is rounded to 255ths, and saturation is its clip. It is 1
    exactly where x is 3 or more; below, its rounding is less than that of most outputs.

    Args:
        graph: with Q/DQ nodes; changed in place. Signed bytes stay as they are: they do not end at zero.
        kept: names of nodes to leave in fp32.
    """
    from onnx import numpy_helper

    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    makers = producers(graph)
    reading = readers(graph)
    constants: dict[str, np.ndarray] = {}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        before = makers.get(node.input[0]) if node.op_type == "HardSwish" else None
        after = [reader.op_type for reader in reading.get(node.output[0], [])]
        between = before is not None and before.op_type == "DequantizeLinear" and after == ["QuantizeLinear"]
        if before is None or not between or node.name in kept or values[before.input[2]].dtype != np.uint8:
            nodes.append(node)
        else:
            nodes += _swish(node, before, values[before.input[1]], constants)
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    del graph.node[:]
    graph.node.extend(nodes)


def _swish(
    node: onnx.NodeProto, before: onnx.NodeProto, scale: np.ndarray, constants: dict[str, np.ndarray]
) -> list[onnx.NodeProto]:
    """What computes a hard swish of a dequantised tensor of this scale; adds the constants that it needs."""
    from onnx import helper

    name = node.name
    sixth, factor = f"{name}_sixth", f"{name}_factor"
    constants |= {
        "swish_zero": np.zeros((), np.uint8),
        "swish_unit": np.full((), 1 / 255, np.float32),
        "swish_255": np.full((), 255, np.uint8),
        "swish_half": np.full((), 0.5 / 255, np.float32),  # 255 of these
        f"{sixth}_scale": (scale / 6).astype(np.float32),
    }
    rows = [
        ("DequantizeLinear", [before.input[0], f"{sixth}_scale", before.input[2]], sixth),
        ("DequantizeLinear", ["swish_255", "swish_half", "swish_zero"], f"{name}_half"),
        ("Add", [sixth, f"{name}_half"], factor),
        ("QuantizeLinear", [factor, "swish_unit", "swish_zero"], f"{factor}_rounded"),
        ("DequantizeLinear", [f"{factor}_rounded", "swish_unit", "swish_zero"], f"{factor}_read"),
    ]
    made = [helper.make_node(kind, inputs, [output], name=output) for kind, inputs, output in rows]
    product = helper.make_node("Mul", [node.input[0], f"{factor}_read"], list(node.output), name=name)
    return [*made, product]


def pad_integers(graph: onnx.GraphProto) -> None:
    """Padding in front of a QuantizeLinear comes behind it: bytes are padded with the zero point.

    Args:
        graph: with Q/DQ nodes; changed in place.
    """
    makers = producers(graph)
    reading = readers(graph)
    nodes = list(graph.node)
    for quantise in [node for node in nodes if node.op_type == "QuantizeLinear"]:
        pad = makers.get(quantise.input[0])
        if pad is None or pad.op_type != "Pad" or len(pad.input) > 2 or len(reading[pad.output[0]]) > 1:
            continue
        last = quantise.output[0]
        quantise.input[0], quantise.output[0] = pad.input[0], f"{last}_narrow"
        pad.input[:] = [quantise.output[0], pad.input[1], quantise.input[2]]
        pad.output[0] = last
        first, second = nodes.index(pad), nodes.index(quantise)
        nodes[first], nodes[second] = quantise, pad
    del graph.node[:]
    graph.node.extend(nodes)

"""Channels filled up with zeros to whole vectors, where an integer kernel would otherwise be a slow one.

ONNX Runtime's fast int8 convolutions on x86 take at least 16 output channels and multiples of 4, its
depthwise ones multiples of 16; anything else is copied into columns and multiplied group by group. A
convolution of 16 to 8 channels, 3x3 on 32x32 pixels, took 51 microseconds, one of 16 to 16 channels 16.

Zeros may be added where all who write a tensor are dense convolutions (zero rows) and all who read it are
(zero columns), with depthwise convolutions and what works on each channel alone between them. A tensor that
is split, concatenated or answered stays as it is. Images get a channel of zeros more in a node of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from smash_export.export.onnx_graphs import TensorSets, attribute, readers

if TYPE_CHECKING:
    import onnx

DEPTHWISE, FEWEST, DENSE = 16, 16, 4  # multiple for depthwise ones, least and multiple for dense ones
_BY_CHANNEL = {
    "Relu", "Clip", "LeakyRelu", "Tanh", "HardSwish", "HardSigmoid", "Sigmoid",
    "AveragePool", "MaxPool", "GlobalAveragePool",
}  # fmt: skip


@dataclass
class _Tied:
    """Tensors that have the same channels, and the convolutions around them."""

    writers: list[onnx.NodeProto] = field(default_factory=list)
    readers: list[onnx.NodeProto] = field(default_factory=list)
    depthwise: list[onnx.NodeProto] = field(default_factory=list)
    fixed: bool = False


def fill_vectors(model: onnx.ModelProto, *, images: bool = False) -> onnx.ModelProto:
    """A copy whose int8 convolutions have whole vectors of channels wherever zeros can be added.

    Args:
        model: fp32.
        images: the channels of the input are padded too, where one convolution alone reads it.
    """
    import onnx

    model = onnx.ModelProto.FromString(model.SerializeToString())
    graph = model.graph
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    changes: dict[str, list[int]] = {}  # constant -> its new shape
    groups: dict[str, int] = {}  # depthwise convolution -> its new groups
    for tied in _tied(graph, shapes):
        sizes = {shapes[node.input[1]][0] for node in (*tied.writers, *tied.depthwise)}
        sizes |= {shapes[node.input[1]][1] for node in tied.readers}
        if tied.fixed or len(sizes) != 1:  # one channel may weigh all others
            continue
        (channels,) = sizes
        wanted = _wanted(channels, bool(tied.depthwise))
        if not tied.writers or wanted == channels:
            continue
        for node in (*tied.writers, *tied.depthwise):
            for name in node.input[1:]:
                changes.setdefault(name, list(shapes[name]))[0] = wanted
        for node in tied.readers:
            changes.setdefault(node.input[1], list(shapes[node.input[1]]))[1] = wanted
        groups |= dict.fromkeys((node.name for node in tied.depthwise), wanted)
    _apply(graph, changes, groups)
    if images:
        _fill_images(graph)
    return model


def in_whole_vectors(outputs: int, inputs: int, groups: int) -> bool:
    """Whether a convolution of these channels gets a fast kernel; ``inputs`` are those of one group."""
    if groups > 1:
        return inputs == 1 and outputs == groups and outputs % DEPTHWISE == 0
    return outputs >= FEWEST and outputs % DENSE == 0 and inputs % DENSE == 0


def _fill_images(graph: onnx.GraphProto) -> None:
    """Pad the channels of the images, where that gives the first convolution the fast kernel."""
    from onnx import helper, numpy_helper

    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    reading = readers(graph)
    source = graph.input[0].name
    first = reading.get(source, [])
    if len(first) != 1 or first[0].op_type != "Conv" or not _own_constants(first[0], shapes, reading):
        return
    (conv,) = first
    outputs, channels, *window = shapes[conv.input[1]]
    missing = -channels % DENSE
    groups = attribute(conv, "group", 1)
    if not missing or groups > 1 or not in_whole_vectors(outputs, channels + missing, groups):
        return
    ends = np.asarray([0, missing, *[0] * len(window)], np.int64)
    name = f"{source}_filled"
    pads = np.concatenate([np.zeros_like(ends), ends])
    graph.initializer.append(numpy_helper.from_array(pads, f"{name}_pads"))
    conv.input[0] = name
    graph.node.insert(0, helper.make_node("Pad", [source, f"{name}_pads"], [name], name=name))
    _apply(graph, {conv.input[1]: [outputs, channels + missing, *window]}, {})


def _wanted(channels: int, depthwise: bool) -> int:
    multiple = DEPTHWISE if depthwise else DENSE
    return -(-max(channels, FEWEST) // multiple) * multiple


def _tied(graph: onnx.GraphProto, shapes: dict[str, list[int]]) -> list[_Tied]:
    sets = TensorSets()
    reading = readers(graph)
    for node in graph.node:
        if node.op_type in _BY_CHANNEL or _is_depthwise(node, shapes):
            sets.join([node.input[0], node.output[0]])
        elif node.op_type in ("Add", "Mul"):
            sets.join([*node.input, *node.output])
    found: dict[str, _Tied] = {}

    def of(name: str) -> _Tied:
        return found.setdefault(sets.root(name), _Tied())

    for node in graph.node:
        if node.op_type in _BY_CHANNEL:
            continue
        if node.op_type in ("Add", "Mul"):
            of(node.output[0]).fixed |= any(name in shapes for name in node.input)
        elif node.op_type == "Conv" and _own_constants(node, shapes, reading):
            if _is_depthwise(node, shapes):
                of(node.input[0]).depthwise.append(node)
            elif attribute(node, "group", 1) == 1:
                of(node.output[0]).writers.append(node)
                of(node.input[0]).readers.append(node)
            else:
                of(node.output[0]).fixed = of(node.input[0]).fixed = True
        else:
            for name in (*node.input, *node.output):
                of(name).fixed = True
    for value in (*graph.input, *graph.output):
        of(value.name).fixed = True
    return list(found.values())


def _is_depthwise(node: onnx.NodeProto, shapes: dict[str, list[int]]) -> bool:
    if node.op_type != "Conv" or node.input[1] not in shapes:
        return False
    shape = shapes[node.input[1]]
    return shape[1] == 1 and attribute(node, "group", 1) == shape[0] > 1


def _own_constants(
    node: onnx.NodeProto, shapes: dict[str, list[int]], reading: Mapping[str, list[onnx.NodeProto]]
) -> bool:
    return all(name in shapes and len(reading[name]) == 1 for name in node.input[1:])


def _apply(graph: onnx.GraphProto, changes: dict[str, list[int]], groups: dict[str, int]) -> None:
    from onnx import helper, numpy_helper

    for tensor in graph.initializer:
        if tensor.name in changes:
            value = numpy_helper.to_array(tensor)
            filled = np.zeros(changes[tensor.name], value.dtype)
            filled[tuple(slice(size) for size in value.shape)] = value
            tensor.CopyFrom(numpy_helper.from_array(filled, tensor.name))
    for node in graph.node:
        if node.name in groups:
            (item,) = (item for item in node.attribute if item.name == "group")
            node.attribute.remove(item)
            node.attribute.append(helper.make_attribute("group", groups[node.name]))
    if changes:
        del graph.value_info[:]  # they tell the old shapes

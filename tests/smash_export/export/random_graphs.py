"""Random small image classifiers as others export them: every operator family, each as its opset writes it.

``random_classifier(seed, opset)`` is a function of its arguments. Weights are random, so that an operator
that changes its meaning changes the answers. Shapes: C channels of a side x side image, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CLASSES = 5
CHANNELS, SIDE = 3, 12
NEWEST = 27  # the newest that ONNX Runtime 1.32 runs


@dataclass
class Graph:
    """A graph that grows at its end.

    Attributes:
        opset: decides how operators are written.
        random: the source of all choices.
        last: name of the tensor at the end.
        channels, side: of that tensor, [B, channels, side, side].
    """

    opset: int
    random: np.random.Generator
    last: str = "image"
    channels: int = CHANNELS
    side: int = SIDE
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)

    def weight(self, *shape: int, scale: float = 1.0, shift: float = 0.0) -> str:
        """A new float32 weight of that shape."""
        return self.constant((self.random.normal(size=shape) * scale + shift).astype(np.float32))

    def constant(self, value: np.ndarray) -> str:
        """A new weight."""
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def ints(self, *values: int) -> str:
        """A new int64 weight."""
        return self.constant(np.array(values, np.int64))

    def add(self, kind: str, *inputs: str, outputs: int = 1, **attributes: object) -> str:
        """A new node; its first output is the end of the graph."""
        names = [f"t{len(self.nodes)}_{index}" for index in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
        self.last = names[0]
        return names[0]

    def pick(self, *choices: object) -> object:
        """One of them."""
        return choices[int(self.random.integers(len(choices)))]


Family = Callable[[Graph], None]


def convolution(g: Graph) -> None:
    kernel, groups = int(g.pick(1, 3)), int(g.pick(1, g.channels))
    out = g.channels if groups > 1 else int(g.pick(4, 6, 8))
    pads = {"pads": [kernel // 2] * 4} if g.pick(True, False) else {"auto_pad": "SAME_UPPER"}
    weight = g.weight(out, g.channels // groups, kernel, kernel, scale=0.5)
    g.add("Conv", g.last, weight, g.weight(out), group=groups, kernel_shape=[kernel] * 2, **pads)
    g.channels = out


def transposed_convolution(g: Graph) -> None:
    if g.side > 16:
        return
    weight = g.weight(g.channels, 4, 2, 2, scale=0.5)
    g.add("ConvTranspose", g.last, weight, kernel_shape=[2, 2], strides=[2, 2])
    g.channels, g.side = 4, g.side * 2


def batch_normalization(g: Graph) -> None:
    size = g.channels
    variance = g.constant(g.random.uniform(0.5, 2, size).astype(np.float32))
    g.add(
        "BatchNormalization", g.last, g.weight(size), g.weight(size), g.weight(size), variance, epsilon=1e-3
    )


def instance_normalization(g: Graph) -> None:
    g.add("InstanceNormalization", g.last, g.weight(g.channels), g.weight(g.channels))


def local_response(g: Graph) -> None:
    g.add("LRN", g.last, size=3, alpha=0.1, beta=0.6, bias=1.0)


def activation(g: Graph) -> None:
    kinds = [
        "Relu",
        "LeakyRelu",
        "Elu",
        "Selu",
        "Sigmoid",
        "Tanh",
        "HardSigmoid",
        "Softplus",
        "Softsign",
        "PRelu",
    ]
    kinds += ["ThresholdedRelu"] * (g.opset >= 10) + ["HardSwish"] * (g.opset >= 14)
    kinds += ["Mish"] * (g.opset >= 18) + ["Gelu"] * (g.opset >= 20) + ["Celu"] * (g.opset >= 12)
    kind = str(g.pick(*kinds))
    slopes = (g.weight(g.channels, 1, 1),) if kind == "PRelu" else ()
    g.add(kind, g.last, *slopes)


def clip(g: Graph) -> None:
    if g.opset < 11:
        g.add("Clip", g.last, min=-0.5, max=2.0)
    else:
        bounds = [g.constant(np.array(value, np.float32)) for value in (-0.5, 2.0)]
        g.add("Clip", g.last, *bounds)


def pooling(g: Graph) -> None:
    if g.side < 4 or g.side % 2:
        return
    kind = str(g.pick("MaxPool", "AveragePool", "LpPool"))
    pads = g.pick(True, False)
    attributes: dict[str, object] = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}
    if not pads:
        attributes = {"kernel_shape": [2, 2], "strides": [2, 2]}
    if kind == "AveragePool":
        attributes["count_include_pad"] = int(g.pick(0, 1))
    if kind == "LpPool":
        attributes["p"] = 2
    g.add(kind, g.last, **attributes)
    g.side //= 2


def ceil_pooling(g: Graph) -> None:
    if g.opset < 10 or g.side < 4:
        return
    kind = str(g.pick("MaxPool", "AveragePool"))
    g.add(kind, g.last, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)
    g.side = -(-(g.side - 3) // 2) + 1


def resizing(g: Graph) -> None:
    if g.side > 14:
        return
    factor = float(g.pick(2.0, 1.5, 0.5, 1.7) if g.opset >= 9 else g.pick(2.0, 1.5, 1.7))
    mode = str(g.pick("nearest", "linear"))
    scales = np.array([1, 1, factor, factor], np.float32)
    if g.opset < 9:
        g.add("Upsample", g.last, scales=scales.tolist(), mode=mode)
    elif g.opset == 9:
        g.add("Upsample", g.last, g.constant(np.maximum(scales, 1)), mode=mode)
        factor = max(factor, 1)
    elif g.opset == 10:
        g.add("Resize", g.last, g.constant(scales), mode=mode)
    else:
        way = str(g.pick("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"))
        nearest = {"nearest_mode": g.pick("floor", "round_prefer_floor", "ceil")} if mode == "nearest" else {}
        empty = g.constant(np.zeros(0, np.float32)) if g.opset < 13 else ""
        g.add(
            "Resize",
            g.last,
            empty,
            g.constant(scales),
            mode=mode,
            coordinate_transformation_mode=way,
            **nearest,
        )
    g.side = int(np.floor(g.side * np.float32(factor)))


def padding(g: Graph) -> None:
    mode = str(g.pick("constant", "reflect", "edge"))
    pads = [0, 0, 1, 1, 0, 0, 0, 1]
    if g.opset < 11:
        g.add("Pad", g.last, mode=mode, pads=[0, 0, 1, 1, 0, 0, 1, 1])
        g.side += 2
        return
    pads = [0, 0, 1, 0, 0, 0, 0, 1]
    g.add("Pad", g.last, g.ints(*pads), mode=mode)
    g.side += 1


def slicing(g: Graph) -> None:
    if g.side < 4:
        return
    if g.opset < 10:
        g.add("Slice", g.last, axes=[2, 3], starts=[1, 0], ends=[1000, -1])
    else:
        g.add("Slice", g.last, g.ints(1, 0), g.ints(1000, -1), g.ints(2, 3))
    g.side -= 1


def split_and_concat(g: Graph) -> None:
    if g.channels % 2:
        return
    half = g.channels // 2
    source = g.last
    if g.opset < 13:
        first = g.add("Split", source, outputs=2, axis=1, split=[half, half])
    else:
        first = g.add("Split", source, g.ints(half, half), outputs=2, axis=1)
    second = f"{first[:-1]}1"
    g.add("Concat", second, first, axis=1)


def channel_shuffle(g: Graph) -> None:
    if g.channels % 2:
        return
    shape = g.add("Reshape", g.last, g.ints(0, 2, g.channels // 2, g.side, g.side))
    turned = g.add("Transpose", shape, perm=[0, 2, 1, 3, 4])
    g.add("Reshape", turned, g.ints(-1, g.channels, g.side, g.side))


def squeeze_excite(g: Graph) -> None:
    source = g.last
    if g.opset < 18:
        mean = g.add("ReduceMean", source, axes=[2, 3], keepdims=1)
    else:
        mean = g.add("ReduceMean", source, g.ints(2, 3), keepdims=1)
    inner = g.add("Conv", mean, g.weight(2, g.channels, 1, 1))
    outer = g.add("Conv", g.add("Relu", inner), g.weight(g.channels, 2, 1, 1))
    gate = g.add(str(g.pick("Sigmoid", "HardSigmoid")), outer)
    g.add("Mul", source, gate)


def residual(g: Graph) -> None:
    source = g.last
    inner = g.add("Conv", source, g.weight(g.channels, g.channels, 3, 3, scale=0.2), pads=[1, 1, 1, 1])
    g.add("Relu", g.add(str(g.pick("Add", "Sub")), inner, source))


def arithmetic(g: Graph) -> None:
    scaled = g.add("Mul", g.last, g.weight(g.channels, 1, 1))
    moved = g.add("Add", scaled, g.weight(1, g.channels, 1, 1))
    if g.pick(True, False):
        g.add("Sqrt", g.add("Add", g.add("Mul", moved, moved), g.constant(np.array(0.5, np.float32))))
    else:
        g.add("Div", moved, g.constant(np.array(3.0, np.float32)))


def layer_normalization(g: Graph) -> None:
    if g.opset < 17:
        return
    turned = g.add("Transpose", g.last, perm=[0, 2, 3, 1])
    normal = g.add("LayerNormalization", turned, g.weight(g.channels), g.weight(g.channels), axis=-1)
    g.add("Transpose", normal, perm=[0, 3, 1, 2])


def channel_softmax(g: Graph) -> None:
    kind = str(g.pick("Softmax", "LogSoftmax"))
    g.add(kind, g.last, axis=int(g.pick(1, 3)))


def depth_to_space(g: Graph) -> None:
    if g.channels % 4 or g.side > 12:
        return
    mode = {"mode": g.pick("DCR", "CRD")} if g.opset >= 11 else {}
    g.add("DepthToSpace", g.last, blocksize=2, **mode)
    g.channels, g.side = g.channels // 4, g.side * 2


def space_to_depth(g: Graph) -> None:
    if g.side % 2 or g.channels > 8:
        return
    g.add("SpaceToDepth", g.last, blocksize=2)
    g.channels, g.side = g.channels * 4, g.side // 2


def dropout(g: Graph) -> None:
    g.add("Dropout", g.last, **({"ratio": 0.5} if g.opset < 12 else {}))


def quantised(g: Graph) -> None:
    if g.opset < 10:
        return
    scale, zero = g.constant(np.array(0.05, np.float32)), g.constant(np.array(120, np.uint8))
    g.add("DequantizeLinear", g.add("QuantizeLinear", g.last, scale, zero), scale, zero)


def attention(g: Graph) -> None:
    """Tokens are pixels; one head."""
    count = g.side * g.side
    flat = g.add("Reshape", g.last, g.ints(0, g.channels, count))
    tokens = g.add("Transpose", flat, perm=[0, 2, 1])
    scores = g.add("MatMul", g.add("MatMul", tokens, g.weight(g.channels, g.channels, scale=0.3)), flat)
    mixed = g.add("MatMul", g.add("Softmax", scores, axis=2), tokens)
    g.add("Reshape", g.add("Transpose", mixed, perm=[0, 2, 1]), g.ints(-1, g.channels, g.side, g.side))


def extrema(g: Graph) -> None:
    if g.opset < 8:  # no broadcasting yet
        return
    g.add(str(g.pick("Max", "Min")), g.last, g.weight(1, g.channels, 1, 1))


FAMILIES: tuple[Family, ...] = (
    convolution,
    transposed_convolution,
    batch_normalization,
    instance_normalization,
    local_response,
    activation,
    clip,
    pooling,
    ceil_pooling,
    resizing,
    padding,
    slicing,
    split_and_concat,
    channel_shuffle,
    squeeze_excite,
    residual,
    arithmetic,
    layer_normalization,
    channel_softmax,
    depth_to_space,
    space_to_depth,
    dropout,
    quantised,
    attention,
    extrema,
)


def _head(g: Graph) -> None:
    """[B, C, H, W] -> [B, K], in the ways in which exporters write it."""
    way = int(g.random.integers(4))
    if way == 0:
        pooled = g.add(str(g.pick("GlobalAveragePool", "GlobalMaxPool")), g.last)
        flat, size = g.add("Flatten", pooled), g.channels
    elif way == 1:
        pooled = g.add("GlobalAveragePool", g.last)
        if g.opset < 13:
            flat, size = g.add("Squeeze", pooled, axes=[2, 3]), g.channels
        else:
            flat, size = g.add("Squeeze", pooled, g.ints(2, 3)), g.channels
    elif way == 2:
        size = g.channels * g.side * g.side
        flat = g.add("Flatten", g.last)
    else:  # the shape computed in the graph, as older PyTorch does
        size = g.channels * g.side * g.side
        first = g.add("Gather", g.add("Shape", g.last), g.constant(np.array(0, np.int64)), axis=0) and g.last
        if g.opset < 13:
            part = g.add("Unsqueeze", first, axes=[0])
        else:
            part = g.add("Unsqueeze", first, g.ints(0))
        image = next(node.input[0] for node in g.nodes if node.op_type == "Shape")
        flat = g.add("Reshape", image, g.add("Concat", part, g.ints(-1), axis=0))
    weight = (g.random.normal(size=(size, CLASSES)) / np.sqrt(size) * 3).astype(np.float32)
    if g.pick(True, False):
        g.add("Gemm", flat, g.constant(np.ascontiguousarray(weight.T)), g.weight(CLASSES), transB=1)
    else:
        g.add("Add", g.add("MatMul", flat, g.constant(weight)), g.weight(CLASSES))
    tail = str(g.pick("", "", "", "Softmax", "Sigmoid", "LogSoftmax"))
    if tail:
        g.add(tail, g.last, **({} if tail == "Sigmoid" else {"axis": 1}))


def random_classifier(seed: int, opset: int, depth: int = 7) -> onnx.ModelProto:
    """An image classifier [B, 3, 12, 12] -> [B, 5] of ``depth`` random parts, valid at that opset.

    Batch axis, IR version and whether weights are listed as inputs vary too.
    """
    random = np.random.default_rng((seed, opset))
    g = Graph(opset, random)
    for index in random.permutation(len(FAMILIES))[:depth]:
        FAMILIES[int(index)](g)
    _head(g)
    g.nodes[-1].output[0] = "answers"
    batch = g.pick("N", None, 1, 4, -1)
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, CHANNELS, SIDE, SIDE])
    answers = helper.make_tensor_value_info("answers", TensorProto.FLOAT, [batch, CLASSES])
    listed = opset < 9 or random.random() < 0.2
    weights = (
        [helper.make_tensor_value_info(w.name, w.data_type, w.dims) for w in g.weights] if listed else []
    )
    graph = helper.make_graph(g.nodes, "random", [image, *weights], [answers], g.weights)
    version = 3 if opset < 9 else 6 if opset < 15 else 8 if opset < 19 else 10 if opset < 23 else 12
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=version)

"""An ONNX graph, with Q/DQ nodes or without, written as a .tflite file, operator by operator.

Google's converter starts from the PyTorch program: banks are split, joined and transposed there, which costs
LiteRT more than the convolutions between them, and it brings 2 GB. The ONNX graph of a bundle is lowered
already, and so is what it becomes here: channels last from the input on, so that nothing is transposed;
an operator whose inputs come from DequantizeLinear and whose output goes to QuantizeLinear computes in int8;
a ReLU that is a rounding which begins at zero is that rounding. Everything else computes in float32, between
conversions. An operator that is not known here is an error; the converter may know it.

    Glossary: an ONNX tensor is known by its name, one of the file by ``Tensor``; shapes of four axes are
    [B, C, H, W] in ONNX and [B, H, W, C] in the file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from smash_base.errors import UsageError
from smash_targets.litert_file import File, Rounding, Tensor

if TYPE_CHECKING:
    import onnx

CHANNELS_LAST = "_channels_last"  # ends the name of an input whose images are [B, H, W, C]
_ACTIVATIONS = {"NONE": 0, "RELU": 1, "RELU6": 3}
_PADDING = {"SAME": 0, "VALID": 1}
_FUSING = {"Conv", "Gemm", "MatMul", "Add", "Mul"}  # with a ReLU behind them
_SPLITS = (2, 3, 4)  # that XNNPACK takes
_SIGMOID, _TANH = Rounding.of(1 / 256, -128), Rounding.of(1 / 128, 0)  # the only ones of LiteRT


class UnknownOperatorError(UsageError):
    """A graph that is not written here. The hint is what else can be done."""


def write(model: onnx.ModelProto, batch: int | None) -> bytes:
    """The .tflite file of a classifier.

    Args:
        model: one input of images or vectors, one output; ONNX opset 13 and newer.
        batch: the only batch size that the file will take; None for that of the graph, else 1.

    Raises:
        UnknownOperatorError: an operator, or a form of it, that is not known here.
    """
    return _Writer(model, batch).content()


@dataclass(frozen=True)
class _Constant:
    """A value of the graph; integers where it was rounded."""

    value: np.ndarray
    rounding: Rounding | None = None

    @property
    def floats(self) -> np.ndarray:
        """As float32."""
        if self.rounding is None:
            return self.value.astype(np.float32)
        view = [1] * self.value.ndim
        if len(self.rounding.scales) > 1:
            view[self.rounding.axis] = -1
        scales, zeros = self.rounding.scales.reshape(view), self.rounding.zeros.reshape(view)
        floats: np.ndarray = ((self.value.astype(np.int64) - zeros) * scales).astype(np.float32)
        return floats


class _Writer:
    """Walks over the nodes once, in their order."""

    def __init__(self, model: onnx.ModelProto, batch: int | None) -> None:
        self.graph, self.shapes = _with_batch(model, batch)
        self.file = File()
        self.constants = {name: _Constant(value) for name, value in _values(self.graph).items()}
        self.floats: dict[str, Tensor] = {}
        self.integers: dict[str, Tensor] = {}  # by name of what QuantizeLinear and DequantizeLinear write
        self.done: set[str] = set()  # outputs of nodes that became part of another operator
        self.reading: dict[str, list[onnx.NodeProto]] = {}
        for node in self.graph.node:
            for name in dict.fromkeys(node.input):
                self.reading.setdefault(name, []).append(node)

    def content(self) -> bytes:
        """The bytes of the file."""
        source, answer = self.graph.input[0].name, self.graph.output[0].name
        images = self._input(source)
        for node in self.graph.node:
            if node.output[0] not in self.done:
                self._node(node)
        logits = self.integers[answer] if answer in self.integers else self.float(answer)
        return self.file.content({source: images}, {answer: logits})

    def _input(self, name: str) -> Tensor:
        """In int8 where it is only read as such."""
        shape = _last(self.shapes[name])
        called = name + CHANNELS_LAST if len(shape) == 4 else name
        rounded = self._roundings(name)
        if rounded is None:
            self.floats[name] = self.file.tensor(called, shape)
            return self.floats[name]
        return self._integer(called, name, shape, rounded)

    def _node(self, node: onnx.NodeProto) -> None:
        if node.op_type == "Constant":
            return
        if node.op_type == "QuantizeLinear":
            self._quantise(node)
        elif node.op_type == "DequantizeLinear":
            self._dequantise(node)
        elif node.op_type in _WRITERS:
            _WRITERS[node.op_type](self, node)
        else:
            raise _unknown(node, "this operator")

    # ---------------------------------------------------------------------------------- values

    def constant(self, node: onnx.NodeProto, index: int, default: Any = None) -> np.ndarray:
        """A constant input as it stands in the graph, or ``default`` where there is none."""
        if len(node.input) <= index or not node.input[index]:
            if default is None:
                raise _unknown(node, f"no input {index}")
            return np.asarray(default)
        if node.input[index] not in self.constants:
            raise _unknown(node, f"input {index} that is computed")
        return self.constants[node.input[index]].value

    def float(self, name: str) -> Tensor:
        """A tensor of activations in float32; converted once."""
        if name in self.floats:
            return self.floats[name]
        if name not in self.integers:
            raise UnknownOperatorError(f"LiteRT's writer does not know where {name} comes from")
        source = self.integers[name]
        self.floats[name] = self.file.tensor(f"{name}/float", source.shape)
        self.file.operator("DEQUANTIZE", [source], [self.floats[name]])
        return self.floats[name]

    def result(self, name: str, rounding: Rounding | None) -> Tensor:
        """A new tensor for an activation of the graph; a rounded one is what its QuantizeLinear writes."""
        shape = _last(self.shapes[name])
        if rounding is None:
            self.floats[name] = self.file.tensor(name, shape)
            return self.floats[name]
        return self._integer(name, name, shape, rounding)

    def passed(self, name: str, source: Tensor, rounding: Rounding | None) -> Tensor:
        """A new tensor for an operator that keeps the scale of what it reads; :meth:`convert` follows."""
        if rounding is None or source.rounding is None or rounding.same(source.rounding):
            return self.result(name, rounding)
        return self.file.tensor(f"{name}/kept", _last(self.shapes[name]), source.rounding)

    def convert(self, name: str, written: Tensor, rounding: Rounding | None) -> None:
        """The conversion after :meth:`passed`, where one is needed."""
        if rounding is not None and written.rounding is not None and not rounding.same(written.rounding):
            self.file.operator("QUANTIZE", [written], [self.result(name, rounding)])

    def rounding_of(self, node: onnx.NodeProto, results: Sequence[str]) -> Rounding | None:
        """How the results are rounded, when the node can compute in int8; they must all be alike."""
        sources = [name for name in node.input if name and name not in self.constants]
        if not all(name in self.integers for name in sources):
            return None
        roundings = [self._roundings(name) for name in results]
        first = roundings[0]
        if first is None or any(other is None or not other.same(first) for other in roundings):
            return None
        return first

    def source(self, name: str, rounding: Rounding | None) -> Tensor:
        """What an operator reads: integers if it computes in them."""
        return self.float(name) if rounding is None else self.integers[name]

    def operand(self, node: onnx.NodeProto, index: int, rounding: Rounding | None) -> Tensor:
        """An input of an addition or a multiplication, constant or not."""
        name = node.input[index]
        if name not in self.constants:
            return self.source(name, rounding)
        constant = self.constants[name]
        axes = len(self.shapes[node.output[0]])
        if rounding is None:
            value = _spread(constant.floats, axes)
            return self.file.tensor(name, value.shape, value=value)
        if constant.rounding is None or len(constant.rounding.scales) > 1:
            constant = _rounded(constant.floats)
        value = _spread(constant.value, axes)
        return self.file.tensor(name, value.shape, constant.rounding, value)

    def fused(self, node: onnx.NodeProto) -> tuple[str, str]:
        """The activation that becomes part of a node, and the name of what it then writes."""
        after = self.reading.get(node.output[0], [])
        if len(after) != 1 or after[0].op_type not in ("Relu", "Clip") or node.op_type not in _FUSING:
            return "NONE", node.output[0]
        activation = self.activation(after[0])
        if activation is None:
            return "NONE", node.output[0]
        self.done.add(after[0].output[0])
        return activation, after[0].output[0]

    def activation(self, node: onnx.NodeProto) -> str | None:
        """The name of a ReLU or clipping in LiteRT."""
        if node.op_type == "Relu":
            return "RELU"
        low = self.constant(node, 1, -math.inf).item()
        high = self.constant(node, 2, math.inf).item()
        return {(0.0, math.inf): "RELU", (0.0, 6.0): "RELU6"}.get((low, high))

    def _roundings(self, name: str) -> Rounding | None:
        """How all who read an activation round it first; None unless they agree."""
        after = self.reading.get(name, [])
        if not after or any(node.op_type != "QuantizeLinear" or node.input[0] != name for node in after):
            return None
        if name == self.graph.output[0].name:
            return None
        roundings = [self._scale(node) for node in after]
        return roundings[0] if all(roundings[0].same(other) for other in roundings[1:]) else None

    def _scale(self, node: onnx.NodeProto, kind: np.dtype[Any] | type = np.uint8) -> Rounding:
        """That of a QuantizeLinear or DequantizeLinear; unsigned bytes become signed ones.

        Args:
            kind: Type of the integers, where the node has no zero point that tells.
        """
        scales = np.atleast_1d(self.constant(node, 1)).astype(np.float32)
        zeros = np.atleast_1d(self.constant(node, 2, np.zeros(len(scales), kind)))
        shift = 128 if zeros.dtype == np.uint8 else 0
        axis = _attribute(node, "axis", 1)
        return Rounding(scales, zeros.astype(np.int64) - shift, axis if len(scales) > 1 else 0)

    def _integer(self, called: str, name: str, shape: Sequence[int], rounding: Rounding) -> Tensor:
        tensor = self.file.tensor(called, shape, rounding)
        for node in self.reading[name]:
            self.integers[node.output[0]] = tensor
            self.done.add(node.output[0])
        return tensor

    # -------------------------------------------------------------------------- rounding nodes

    def _quantise(self, node: onnx.NodeProto) -> None:
        name, rounding = node.input[0], self._scale(node)
        if name in self.constants:
            raise _unknown(node, "a constant that is rounded when the network runs")
        source = self.integers.get(name) or self.float(name)
        if source.rounding is not None and source.rounding.same(rounding):
            self.integers[node.output[0]] = source
            return
        self.integers[node.output[0]] = self.file.tensor(node.output[0], source.shape, rounding)
        self.file.operator("QUANTIZE", [source], [self.integers[node.output[0]]])

    def _dequantise(self, node: onnx.NodeProto) -> None:
        name = node.input[0]
        if name not in self.constants:
            self.integers[node.output[0]] = self.integers[name]
            return
        value = self.constants[name].value
        rounding = self._scale(node, value.dtype)
        if value.dtype == np.uint8:
            value = (value.astype(np.int16) - 128).astype(np.int8)
        self.constants[node.output[0]] = _Constant(value, rounding)


# ------------------------------------------------------------------------------------ operators


def _convolution(writer: _Writer, node: onnx.NodeProto) -> None:
    if len(writer.shapes[node.output[0]]) != 4:
        raise _unknown(node, "a convolution that is not over two axes")
    activation, result = writer.fused(node)
    rounding = writer.rounding_of(node, [result])
    weight, bias, rounding = _weighted(writer, node, rounding, 0)
    source = writer.source(node.input[0], rounding)
    groups, inputs = _attribute(node, "group", 1), source.shape[3]
    outputs = weight.value.shape[0]
    depthwise = groups == inputs > 1
    axes = (1, 2, 3, 0) if depthwise else (0, 2, 3, 1)
    kernel = weight.value.transpose(axes)
    scale = weight.rounding
    if rounding is not None and scale is not None:
        scale = Rounding(scale.scales, scale.zeros, 3 if depthwise else 0)
    strides = _attribute(node, "strides", [1, 1])
    dilations = _attribute(node, "dilations", [1, 1])
    source, padding = _padded(writer, node, source, kernel.shape[1:3], strides, dilations)
    read = [source, writer.file.tensor(f"{result}/weight", kernel.shape, scale, kernel), bias]
    shared = {
        "padding": _PADDING[padding],
        "strideH": strides[0],
        "strideW": strides[1],
        "dilationHFactor": dilations[0],
        "dilationWFactor": dilations[1],
        "fusedActivationFunction": _ACTIVATIONS[activation],
    }
    written = [writer.result(result, rounding)]
    if depthwise:
        writer.file.operator("DEPTHWISE_CONV_2D", read, written, depthMultiplier=outputs // inputs, **shared)
    else:
        writer.file.operator("CONV_2D", read, written, **shared)


def _fully_connected(writer: _Writer, node: onnx.NodeProto) -> None:
    plain = node.op_type == "MatMul" or (
        _attribute(node, "alpha", 1.0) == _attribute(node, "beta", 1.0) == 1
        and not _attribute(node, "transA", 0)
    )
    if not plain or len(writer.shapes[node.output[0]]) != 2:
        raise _unknown(node, "a product that is no fully connected layer")
    turned = node.op_type == "Gemm" and _attribute(node, "transB", 0)
    activation, result = writer.fused(node)
    rounding = writer.rounding_of(node, [result])
    weight, bias, rounding = _weighted(writer, node, rounding, 0 if turned else 1)
    matrix = weight.value if turned else weight.value.T
    scale = weight.rounding and Rounding(weight.rounding.scales, weight.rounding.zeros)
    read = [
        writer.source(node.input[0], rounding),
        writer.file.tensor(f"{result}/weight", matrix.shape, scale, matrix),
        bias,
    ]
    fused = _ACTIVATIONS[activation]
    writer.file.operator(
        "FULLY_CONNECTED", read, [writer.result(result, rounding)], fusedActivationFunction=fused
    )


def _weighted(
    writer: _Writer, node: onnx.NodeProto, rounding: Rounding | None, axis: int
) -> tuple[_Constant, Tensor, Rounding | None]:
    """Weights and bias of a layer, and how it rounds: in float32 unless its weights are int8.

    Args:
        axis: Axis of the weights, along which the outputs are.
    """
    writer.constant(node, 1)
    weight = writer.constants[node.input[1]]
    has_bias = len(node.input) > 2 and bool(node.input[2])
    if has_bias:
        writer.constant(node, 2)
    outputs = weight.value.shape[axis]
    bias = writer.constants[node.input[2]].floats.reshape(-1) if has_bias else np.zeros(outputs, np.float32)
    if len(bias) != outputs:
        raise _unknown(node, "a bias that is not one number for each output")
    scale = weight.rounding
    integer = scale is not None and not scale.zeros.any() and (len(scale.scales) == 1 or scale.axis == axis)
    name = f"{node.output[0]}/bias"
    if rounding is None or scale is None or not integer:
        tensor = writer.file.tensor(name, bias.shape, value=bias)
        return _Constant(weight.floats), tensor, None
    before = writer.integers[node.input[0]].rounding
    assert before is not None  # it computes in int8
    steps = before.scales.astype(np.float64) * scale.scales
    whole = np.rint(bias / steps).clip(-(2**31), 2**31 - 1).astype(np.int32)
    zeros = np.zeros(len(steps), np.int64)
    return weight, writer.file.tensor(name, whole.shape, Rounding(steps, zeros), whole), rounding


def _padded(
    writer: _Writer,
    node: onnx.NodeProto,
    source: Tensor,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> tuple[Tensor, str]:
    """What a window slides over, and LiteRT's word for its padding; other paddings become an operator."""
    pads = _pads(node)
    sizes = source.shape[1:3]
    if pads is None:
        return source, "SAME"
    if not any(pads):
        return source, "VALID"
    if pads == _same(sizes, kernel, strides, dilations):
        return source, "SAME"
    if node.op_type != "Conv":
        raise _unknown(node, f"a padding of {pads}")
    before, after = pads[:2], pads[2:]
    widths = _int32([[0, 0], [before[0], after[0]], [before[1], after[1]], [0, 0]])
    shape = (source.shape[0], *(size + sum(widths[i + 1]) for i, size in enumerate(sizes)), source.shape[3])
    padded = writer.file.tensor(f"{node.output[0]}/padded", shape, source.rounding)
    writer.file.operator(
        "PAD", [source, writer.file.tensor(f"{node.output[0]}/pads", (4, 2), value=widths)], [padded]
    )
    return padded, "VALID"


def _pads(node: onnx.NodeProto) -> list[int] | None:
    """[top, left, bottom, right]; None for LiteRT's SAME."""
    automatic = _attribute(node, "auto_pad", b"NOTSET")
    if automatic == b"SAME_UPPER":
        return None
    if automatic == b"SAME_LOWER":
        raise _unknown(node, "a padding of SAME_LOWER")
    pads = _attribute(node, "pads", [0, 0, 0, 0])
    return [0, 0, 0, 0] if automatic == b"VALID" else list(pads)


def _same(
    sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> list[int]:
    """What SAME adds: [top, left, bottom, right], the larger half behind."""
    before, after = [], []
    for size, taps, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        total = max((-(-size // stride) - 1) * stride + (taps - 1) * dilation + 1 - size, 0)
        before.append(total // 2)
        after.append(total - total // 2)
    return [*before, *after]


def _arithmetic(writer: _Writer, node: onnx.NodeProto) -> None:
    activation, result = writer.fused(node)
    rounding = writer.rounding_of(node, [result])
    read = [writer.operand(node, index, rounding) for index in (0, 1)]
    name = {"Add": "ADD", "Mul": "MUL"}[node.op_type]
    fused = _ACTIVATIONS[activation]
    writer.file.operator(name, read, [writer.result(result, rounding)], fusedActivationFunction=fused)


def _rectifier(writer: _Writer, node: onnx.NodeProto) -> None:
    """A rounding that begins at zero is a ReLU already; one that ends at six is a ReLU6."""
    name, result = writer.activation(node), node.output[0]
    if name is None:
        raise _unknown(node, "other bounds than 0 and 6")
    rounding = writer.rounding_of(node, [result])
    highest = 0.0 if rounding is None else float((127 - rounding.zeros[0]) * rounding.scales[0])
    if rounding is None or (name == "RELU6" and highest > 6.001):
        writer.file.operator(name, [writer.float(node.input[0])], [writer.result(result, None)])
        return
    source = writer.integers[node.input[0]]
    if rounding.zeros[0] != -128:  # it goes below zero for the sake of others that have the same
        source = _at(writer, source, Rounding.of(highest / 255, -128), f"{result}/positive")
    assert source.rounding is not None  # it is one of the integers
    if rounding.same(source.rounding):
        _alias(writer, result, source)
    else:
        writer.convert(result, source, rounding)


def _alias(writer: _Writer, result: str, source: Tensor) -> None:
    """What reads the result of a node that changes nothing reads its source."""
    for reader in writer.reading[result]:
        writer.integers[reader.output[0]] = source
        writer.done.add(reader.output[0])


def _by_number(writer: _Writer, node: onnx.NodeProto) -> None:
    """Functions of each number alone, whose scales LiteRT fixes, or that it has in float32 only."""
    result = node.output[0]
    name, fixed = {
        "Sigmoid": ("LOGISTIC", _SIGMOID),
        "Tanh": ("TANH", _TANH),
        "HardSwish": ("HARD_SWISH", None),
    }[node.op_type]
    rounding = writer.rounding_of(node, [result])
    if rounding is None or fixed is None:
        writer.file.operator(name, [writer.float(node.input[0])], [writer.result(result, None)])
        return
    source = writer.integers[node.input[0]]
    same = fixed.same(rounding)
    shape = _last(writer.shapes[result])
    written = writer.result(result, rounding) if same else writer.file.tensor(f"{result}/kept", shape, fixed)
    writer.file.operator(name, [source], [written])
    writer.convert(result, written, rounding)


def _leaky(writer: _Writer, node: onnx.NodeProto) -> None:
    rounding = writer.rounding_of(node, [node.output[0]])
    read = [writer.source(node.input[0], rounding)]
    slope = float(_attribute(node, "alpha", 0.01))
    writer.file.operator("LEAKY_RELU", read, [writer.result(node.output[0], rounding)], alpha=slope)


def _concatenation(writer: _Writer, node: onnx.NodeProto) -> None:
    """Parts have one scale: what has another is converted first, or the result where all have the same."""
    result = node.output[0]
    rounding = writer.rounding_of(node, [result])
    axis = _axis(writer, node, _attribute(node, "axis", 1))
    read = [writer.operand(node, index, rounding) for index in range(len(node.input))]
    first = read[0].rounding
    if rounding is not None and first is not None:
        alike = all(tensor.rounding is not None and first.same(tensor.rounding) for tensor in read)
        if not alike:
            read = [_at(writer, tensor, rounding, f"{result}/part{i}") for i, tensor in enumerate(read)]
    written = writer.passed(result, read[0], rounding)
    writer.file.operator("CONCATENATION", read, [written], axis=axis)
    writer.convert(result, written, rounding)


def _at(writer: _Writer, tensor: Tensor, rounding: Rounding, name: str) -> Tensor:
    if tensor.rounding is not None and tensor.rounding.same(rounding):
        return tensor
    converted = writer.file.tensor(name, tensor.shape, rounding)
    writer.file.operator("QUANTIZE", [tensor], [converted])
    return converted


def _mean(writer: _Writer, node: onnx.NodeProto) -> None:
    """Over height and width."""
    keeps = True
    if node.op_type == "ReduceMean":
        axes = _attribute(node, "axes", None)
        axes = writer.constant(node, 1).tolist() if axes is None else axes
        keeps = bool(_attribute(node, "keepdims", 1))
        if sorted(axis % 4 for axis in axes) != [2, 3] or _rank(writer, node.input[0]) != 4:
            raise _unknown(node, f"a mean over the axes {axes}")
    if _rank(writer, node.input[0]) != 4:
        raise _unknown(node, "a mean that is not over two axes")
    result = node.output[0]
    rounding = writer.rounding_of(node, [result])
    axes = writer.file.tensor(f"{result}/axes", (2,), value=_int32([1, 2]))
    read = [writer.source(node.input[0], rounding), axes]
    writer.file.operator("MEAN", read, [writer.result(result, rounding)], keepDims=keeps)


def _pool(writer: _Writer, node: onnx.NodeProto) -> None:
    average = node.op_type == "AveragePool"
    dilated = set(_attribute(node, "dilations", [1])) != {1}
    if _attribute(node, "ceil_mode", 0) or dilated or _rank(writer, node.input[0]) != 4:
        raise _unknown(node, "windows that are dilated, end outside or are not over two axes")
    result = node.output[0]
    rounding = writer.rounding_of(node, [result])
    source = writer.source(node.input[0], rounding)
    kernel = list(_attribute(node, "kernel_shape"))
    strides = list(_attribute(node, "strides", [1, 1]))
    _, padding = _padded(writer, node, source, kernel, strides, [1, 1])
    if average and padding == "SAME" and _attribute(node, "count_include_pad", 0):
        raise _unknown(node, "a mean that counts padding")
    written = writer.passed(result, source, rounding)
    writer.file.operator(
        "AVERAGE_POOL_2D" if average else "MAX_POOL_2D",
        [source],
        [written],
        padding=_PADDING[padding],
        strideH=strides[0],
        strideW=strides[1],
        filterHeight=kernel[0],
        filterWidth=kernel[1],
    )
    writer.convert(result, written, rounding)


def _reshape(writer: _Writer, node: onnx.NodeProto) -> None:
    """From images to vectors, in the order of ONNX, and from vectors to images of one pixel."""
    result = node.output[0]
    before, after = writer.shapes[node.input[0]], writer.shapes[result]
    pixels = math.prod(before[2:])
    to_vectors = len(before) == 4 and len(after) == 2 and before[0] == after[0]
    to_pixel = len(before) == 2 and len(after) == 4 and after[2:] == (1, 1)
    if not (to_vectors or to_pixel or before == after):
        raise _unknown(node, f"a change of shape from {list(before)} to {list(after)}")
    rounding = writer.rounding_of(node, [result])
    source = writer.source(node.input[0], rounding)
    if to_vectors and pixels > 1 and before[1] > 1:
        order = writer.file.tensor(f"{result}/order", (4,), value=_int32([0, 3, 1, 2]))
        turned = writer.file.tensor(f"{result}/turned", before, source.rounding)
        writer.file.operator("TRANSPOSE", [source, order], [turned])
        source = turned
    written = writer.passed(result, source, rounding)
    shape = _int32(written.shape)
    writer.file.operator(
        "RESHAPE", [source, writer.file.tensor(f"{result}/shape", shape.shape, value=shape)], [written]
    )
    writer.convert(result, written, rounding)


def _slice(writer: _Writer, node: onnx.NodeProto) -> None:
    shape = writer.shapes[node.input[0]]
    starts, ends = writer.constant(node, 1).tolist(), writer.constant(node, 2).tolist()
    axes = writer.constant(node, 3, np.arange(len(starts))).tolist()
    if set(writer.constant(node, 4, np.ones(1, np.int64)).tolist()) != {1}:
        raise _unknown(node, "steps other than 1")
    begins, sizes = [0] * len(shape), list(shape)
    for start, end, axis in zip(starts, ends, axes, strict=True):
        low, high, _ = slice(start, end).indices(shape[axis])
        begins[axis], sizes[axis] = low, high - low
    rounding = writer.rounding_of(node, [node.output[0]])
    _part(writer, node, node.output[0], begins, sizes, rounding)


def _split(writer: _Writer, node: onnx.NodeProto) -> None:
    axis = _attribute(node, "axis", 0) % _rank(writer, node.input[0])
    rounding = writer.rounding_of(node, list(node.output))
    sizes = [writer.shapes[name][axis] for name in node.output]
    if len(set(sizes)) == 1 and len(sizes) in _SPLITS:
        place = _int32(_axis(writer, node, axis))
        source = writer.source(node.input[0], rounding)
        written = [writer.passed(name, source, rounding) for name in node.output]
        read = [writer.file.tensor(f"{node.output[0]}/axis", (), value=place), source]
        writer.file.operator("SPLIT", read, written, numSplits=len(sizes))
        for name, tensor in zip(node.output, written, strict=True):
            writer.convert(name, tensor, rounding)
        return
    for index, name in enumerate(node.output):
        begins, part = [0] * len(writer.shapes[node.input[0]]), list(writer.shapes[name])
        begins[axis] = sum(sizes[:index])
        _part(writer, node, name, begins, part, rounding)


def _part(
    writer: _Writer,
    node: onnx.NodeProto,
    result: str,
    begins: Sequence[int],
    sizes: Sequence[int],
    rounding: Rounding | None,
) -> None:
    source = writer.source(node.input[0], rounding)
    bounds = [_int32(_last(values)) for values in (begins, sizes)]
    constants = [
        writer.file.tensor(f"{result}/{name}", value.shape, value=value)
        for name, value in zip(("begin", "size"), bounds, strict=True)
    ]
    written = writer.passed(result, source, rounding)
    writer.file.operator("SLICE", [source, *constants], [written])
    writer.convert(result, written, rounding)


def _same_value(writer: _Writer, node: onnx.NodeProto) -> None:
    """Identity, and dropout that is over."""
    source, result = node.input[0], node.output[0]
    if source in writer.constants:
        writer.constants[result] = writer.constants[source]
    if source in writer.floats:
        writer.floats[result] = writer.floats[source]
    if source in writer.integers:
        writer.integers[result] = writer.integers[source]


_WRITERS: dict[str, Callable[[_Writer, Any], None]] = {
    "Conv": _convolution,
    "Gemm": _fully_connected,
    "MatMul": _fully_connected,
    "Add": _arithmetic,
    "Mul": _arithmetic,
    "Relu": _rectifier,
    "Clip": _rectifier,
    "LeakyRelu": _leaky,
    "Sigmoid": _by_number,
    "Tanh": _by_number,
    "HardSwish": _by_number,
    "Concat": _concatenation,
    "GlobalAveragePool": _mean,
    "ReduceMean": _mean,
    "AveragePool": _pool,
    "MaxPool": _pool,
    "Flatten": _reshape,
    "Reshape": _reshape,
    "Squeeze": _reshape,
    "Unsqueeze": _reshape,
    "Slice": _slice,
    "Split": _split,
    "Identity": _same_value,
    "Dropout": _same_value,
}


# -------------------------------------------------------------------------------------- helpers


def _unknown(node: onnx.NodeProto, what: str) -> UnknownOperatorError:
    """The error for a node that is not written here."""
    return UnknownOperatorError(
        f"LiteRT's writer does not know {what}: {node.op_type} {node.name or node.output[0]}"
    )


def _with_batch(
    model: onnx.ModelProto, batch: int | None
) -> tuple[onnx.GraphProto, dict[str, tuple[int, ...]]]:
    """The graph and the shapes of its tensors at a batch size."""
    import onnx

    model = onnx.ModelProto.FromString(model.SerializeToString())
    del model.graph.value_info[:]
    first = model.graph.input[0].type.tensor_type.shape.dim[0]
    if batch is None:
        batch = first.dim_value or 1
    if first.dim_value not in (0, batch):
        raise UnknownOperatorError(
            "the graph has a batch size of its own",
            expected=f"batch={first.dim_value}",
            received=f"batch={batch}",
            hint="Say it: --option batch=NUMBER.",
        )
    first.dim_value = batch
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    except onnx.shape_inference.InferenceError as error:
        raise UnknownOperatorError("LiteRT's writer cannot tell shapes", received=error) from None
    shapes = {
        value.name: tuple(axis.dim_value for axis in value.type.tensor_type.shape.dim)
        for value in (*inferred.input, *inferred.value_info, *inferred.output)
    }
    hollow = [name for name, shape in shapes.items() if 0 in shape]
    if hollow:
        raise UnknownOperatorError(f"LiteRT's writer cannot tell the shape of {hollow[0]}")
    return inferred, shapes


def _values(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    """Initialisers and the values of Constant nodes."""
    from onnx import numpy_helper

    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            tensors[node.output[0]] = node.attribute[0].t
    return {name: numpy_helper.to_array(tensor) for name, tensor in tensors.items()}


def _attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    import onnx

    for item in node.attribute:
        if item.name == name:
            return onnx.helper.get_attribute_value(item)
    return default


def _int32(values: Sequence[Any] | int) -> np.ndarray:
    return np.asarray(values, np.int32)


def _rank(writer: _Writer, name: str) -> int:
    return len(writer.shapes[name])


def _last(shape: Sequence[int]) -> tuple[int, ...]:
    """Four axes with channels last; others as they are."""
    return (shape[0], shape[2], shape[3], shape[1]) if len(shape) == 4 else tuple(shape)


def _axis(writer: _Writer, node: onnx.NodeProto, axis: int) -> int:
    """An axis of ONNX as one of the file."""
    rank = _rank(writer, node.output[0])
    return (0, 3, 1, 2)[axis % 4] if rank == 4 else axis % rank


def _spread(value: np.ndarray, axes: int) -> np.ndarray:
    """A constant that is added to, or multiplies, tensors of that many axes."""
    value = value.reshape([1] * (axes - value.ndim) + list(value.shape))
    return np.ascontiguousarray(value.transpose(0, 2, 3, 1)) if axes == 4 else value


def _rounded(value: np.ndarray) -> _Constant:
    """A float constant in int8, symmetric."""
    scale = max(float(np.abs(value).max()), 1e-12) / 127
    return _Constant(np.rint(value / scale).astype(np.int8), Rounding.of(scale, 0))

"""A .tflite file as tensors and operators: the flatbuffer of LiteRT's schema, and nothing about networks.

Tensors of images have channels last. Numbers that were rounded are int8; their scales are one for the tensor,
or one for each slice along an axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

# Versions tell a runtime which types an operator needs; those of float32 are 1, others are 2 if not said.
_INT8_VERSIONS = {"CONV_2D": 3, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 4, "RESHAPE": 1}


@dataclass(frozen=True)
class Rounding:
    """What integers of a tensor stand for: ``scale * (integer - zero)``.

    Attributes:
        scales: float32 [n].
        zeros: int64 [n].
        axis: along which there are n slices, when n is not 1.
    """

    scales: np.ndarray
    zeros: np.ndarray
    axis: int = 0

    @classmethod
    def of(cls, scale: float, zero: int) -> Rounding:
        """One scale for a whole tensor."""
        return cls(np.array([scale], np.float32), np.array([zero], np.int64))

    def same(self, other: Rounding) -> bool:
        """Whether integers mean the same."""
        return np.array_equal(self.scales, other.scales) and np.array_equal(self.zeros, other.zeros)


@dataclass(frozen=True)
class Tensor:
    """One tensor of a file, by its index in it."""

    index: int
    shape: tuple[int, ...]
    rounding: Rounding | None


@dataclass
class File:
    """A file that is being written."""

    tensors: list[Any] = field(default_factory=list)
    buffers: list[Any] = field(default_factory=list)
    operators: list[Any] = field(default_factory=list)
    codes: dict[tuple[str, int], int] = field(default_factory=dict)

    def tensor(
        self,
        name: str,
        shape: Sequence[int],
        rounding: Rounding | None = None,
        value: np.ndarray | None = None,
    ) -> Tensor:
        """Add a tensor: a constant if it has a value, whose type it then has."""
        from ai_edge_litert import schema_py_generated as schema

        kind = np.dtype(np.float32 if rounding is None else np.int8) if value is None else value.dtype
        added = schema.TensorT()
        added.name, added.shape = name, list(map(int, shape))
        added.type = getattr(schema.TensorType, kind.name.upper())
        added.buffer = 0  # the empty one
        if value is not None:
            self.buffers.append(np.frombuffer(np.ascontiguousarray(value).tobytes(), np.uint8))
            added.buffer = len(self.buffers)
        if rounding is not None:
            added.quantization = schema.QuantizationParametersT()
            added.quantization.scale = rounding.scales.astype(np.float32)
            added.quantization.zeroPoint = rounding.zeros.astype(np.int64)
            added.quantization.quantizedDimension = rounding.axis
        self.tensors.append(added)
        return Tensor(len(self.tensors) - 1, tuple(map(int, shape)), rounding)

    def operator(
        self, name: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor], **options: int | float | bool
    ) -> None:
        """Add an operator; options are those of its table in the schema."""
        from ai_edge_litert import schema_py_generated as schema

        integers = any(tensor.rounding is not None for tensor in (*inputs, *outputs))
        key = name, _INT8_VERSIONS.get(name, 2) if integers else 1
        added = schema.OperatorT()
        added.opcodeIndex = self.codes.setdefault(key, len(self.codes))
        added.inputs = [tensor.index for tensor in inputs]
        added.outputs = [tensor.index for tensor in outputs]
        if name in _OPTIONS:
            added.builtinOptionsType = getattr(schema.BuiltinOptions, _OPTIONS[name])
            added.builtinOptions = getattr(schema, f"{_OPTIONS[name]}T")()
            for option, value in options.items():
                assert hasattr(added.builtinOptions, option), option
                setattr(added.builtinOptions, option, value)
        self.operators.append(added)

    def content(self, inputs: dict[str, Tensor], outputs: dict[str, Tensor]) -> bytes:
        """The bytes of the file; names of inputs and outputs are those of its signature."""
        import flatbuffers
        from ai_edge_litert import schema_py_generated as schema

        graph = schema.SubGraphT()
        graph.name = "main"
        graph.tensors, graph.operators = self.tensors, self.operators
        graph.inputs = [tensor.index for tensor in inputs.values()]
        graph.outputs = [tensor.index for tensor in outputs.values()]
        signature = schema.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = "serving_default", 0
        signature.inputs = [_named(name, tensor) for name, tensor in inputs.items()]
        signature.outputs = [_named(name, tensor) for name, tensor in outputs.items()]
        model = schema.ModelT()
        model.version, model.description = 3, "smash-export"
        model.operatorCodes = [_code(*key) for key in self.codes]
        model.subgraphs, model.signatureDefs = [graph], [signature]
        model.buffers = [schema.BufferT()]
        for data in self.buffers:
            buffer = schema.BufferT()
            buffer.data = data
            model.buffers.append(buffer)
        builder = flatbuffers.Builder(1024 + sum(len(data) for data in self.buffers))
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())


_OPTIONS = {
    "CONV_2D": "Conv2DOptions",
    "DEPTHWISE_CONV_2D": "DepthwiseConv2DOptions",
    "FULLY_CONNECTED": "FullyConnectedOptions",
    "ADD": "AddOptions",
    "MUL": "MulOptions",
    "CONCATENATION": "ConcatenationOptions",
    "MEAN": "ReducerOptions",
    "AVERAGE_POOL_2D": "Pool2DOptions",
    "MAX_POOL_2D": "Pool2DOptions",
    "SPLIT": "SplitOptions",
    "LEAKY_RELU": "LeakyReluOptions",
}


def _code(name: str, version: int) -> Any:
    from ai_edge_litert import schema_py_generated as schema

    code = schema.OperatorCodeT()
    code.builtinCode = getattr(schema.BuiltinOperator, name)
    code.deprecatedBuiltinCode = min(code.builtinCode, 127)  # read by runtimes from before there were more
    code.version = version
    return code


def _named(name: str, tensor: Tensor) -> Any:
    from ai_edge_litert import schema_py_generated as schema

    named = schema.TensorMapT()
    named.name, named.tensorIndex = name, tensor.index
    return named

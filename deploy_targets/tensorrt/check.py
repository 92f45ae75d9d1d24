"""Whether TensorRT's parser, and a DLA, would take an ONNX file: one verdict per node, without a GPU.

Rules after the parser's operator list (:mod:`smash_targets.tensorrt.operators`), its Q/DQ importer and the
documented DLA limits. They are necessary, not sufficient: the builder has the last word. Needs the ``onnx``
package, but neither TensorRT nor torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from smash_targets.onnx_file import read_onnx_facts
from smash_targets.tensorrt.nodes import describe_node
from smash_targets.tensorrt.operators import (
    DLA,
    INTEGERS,
    REFUSED,
    RTX,
    SUPPORTED,
    dla_of,
    opsets_of,
    release_of,
)
from smash_targets.tensorrt.restrictions import NodeFacts, restrictions

EXPLICIT_INT8 = "NVIDIA/Model-Optimizer pull request 1661"
Level = Literal["ok", "warn", "error"]


@dataclass(frozen=True)
class DlaLimits:
    """What a DLA convolution and pooling can be.

    All ranges are inclusive. ``dimensions`` is the number of spatial axes.
    """

    dimensions: int = 2
    kernel: tuple[int, int] = (1, 32)
    stride: tuple[int, int] = (1, 8)
    dilation: tuple[int, int] = (1, 32)
    padding: tuple[int, int] = (0, 31)
    units: tuple[int, int] = (1, 8192)
    groups: tuple[int, int] = (1, 8192)
    pool: tuple[int, int] = (1, 8)
    pool_stride: tuple[int, int] = (1, 16)
    batch: tuple[int, int] = (1, 4096)
    dimension: tuple[int, int] = (1, 8192)
    softmax: tuple[int, int] = (1, 1024)
    activations: tuple[str, ...] = ("relu", "sigmoid", "tanh")


@dataclass(frozen=True)
class Verdict:
    """One node, or the graph (node ``""``).

    Attributes:
        node: with its place in the architecture where the name tells it.
        operator: ONNX operator.
        level: "error" will be refused, "warn" will run slower or on the GPU instead of the DLA, or is not
            known here.
        reason: what is wrong; "" for "ok".
        change: what to do about it.
        source: where it stands that the parser reads or refuses the operator; "" where that is not known.
    """

    node: str
    operator: str
    level: Level
    reason: str = ""
    change: str = ""
    source: str = ""


def check_onnx(
    path: Path,
    release: str = "10",
    dla: bool = False,
    gpu_fallback: bool = False,
    computes: str = "",
) -> list[Verdict]:
    """Verdicts on the graph, if any, and then one on each node, in the order of the file.

    Args:
        release: "8.6", "10", "10.MINOR", "11" or "11.MINOR"; without a minor, what all of it has.
        dla: hold it to the limits of a DLA too.
        gpu_fallback: what the DLA does not take may run on the GPU; otherwise it is an error.
        computes: precision that the builder's flags allow, where those and not the graph decide.

    Raises:
        InvalidInputError: not a whole ONNX file.
        UsageError: an unknown release.
    """
    version = release_of(release)
    read_onnx_facts(path)  # refuses external data before anything follows its paths
    import onnx

    model = onnx.load_model_from_string(path.read_bytes())
    off_dla: Level = "warn" if gpu_fallback else "error"
    return _Checker(model, release, version, dla, off_dla, computes).run()


class _Checker:
    def __init__(
        self,
        model: Any,
        release: str,
        version: tuple[int, int | None],
        dla: bool,
        off_dla: Level,
        computes: str,
    ) -> None:
        import onnx
        from onnx import numpy_helper

        self._model, self._release, self._version = model, release, version
        self._dla, self._off_dla, self._computes = dla, off_dla, computes
        self._constants = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
        for node in model.graph.node:
            if node.op_type == "Constant":
                for item in node.attribute:
                    if item.name == "value":
                        self._constants[node.output[0]] = numpy_helper.to_array(item.t)
        inferred = onnx.shape_inference.infer_shapes(model).graph
        self._shapes = {
            item.name: [
                dim.dim_value if dim.HasField("dim_value") else None
                for dim in item.type.tensor_type.shape.dim
            ]
            for item in (*inferred.value_info, *inferred.input, *inferred.output)
        }
        self._types = {  # -1: no tensor
            item.name: item.type.tensor_type.elem_type if item.type.HasField("tensor_type") else -1
            for item in (*inferred.value_info, *inferred.input, *inferred.output)
        } | {item.name: item.data_type for item in model.graph.initializer}
        self._makers = {name: node for node in model.graph.node for name in node.output}
        self._attribute = onnx.helper.get_attribute_value
        self._int8 = any(node.op_type == "QuantizeLinear" for node in model.graph.node)

    def run(self) -> list[Verdict]:
        verdicts = self._graph()
        for node in self._model.graph.node:
            found = self._node(node)
            if self._dla and not any(item[0] == "error" for item in found):
                found += self._dla_node(node)
            name = describe_node(node.name or (node.output[0] if node.output else ""))
            source = SUPPORTED.get(node.op_type, REFUSED.get(node.op_type, ""))
            if not found:
                verdicts.append(Verdict(name, node.op_type, "ok", source=source))
                continue
            level: Level = "error" if any(item[0] == "error" for item in found) else "warn"
            reasons = "; ".join(item[1] for item in found)
            changes = "; ".join(dict.fromkeys(item[2] for item in found))
            verdicts.append(Verdict(name, node.op_type, level, reasons, changes, source))
        return verdicts

    def _graph(self) -> list[Verdict]:
        found = [*self._opset(), *self._integers()]
        for name, value in self._constants.items():
            if value.dtype == np.float64:
                found.append(
                    Verdict(
                        describe_node(name),
                        "weight",
                        "warn",
                        "double is cast to float",
                        "store it as float32",
                    )
                )
        for item in self._model.graph.input:
            shape = self._shapes.get(item.name, [])
            if None in shape[1:] or not shape:
                found.append(
                    Verdict(item.name, "input", "error", f"shape {shape} is open besides the batch", "fix it")
                )
        return found + (self._dla_graph() if self._dla else [])

    def _dla_graph(self) -> list[Verdict]:
        """What a DLA asks of the graph as a whole."""
        there, where = dla_of(self._version)
        found = [
            Verdict(
                "",
                "DLA",
                "warn" if there else "error",
                where if there else f"TensorRT {self._release} has no DLA: {where}",
                "look at the version on the device: trtexec --help" if there else "use one that has it",
            )
        ]
        for item in self._model.graph.input:
            found += self._dla_input(item.name)
        half = any(value.dtype == np.float16 for value in self._constants.values())
        if not (half or self._int8 or self._computes in ("fp16", "int8")):
            reason = "DLA computes in fp16 and int8 only"
            found.append(Verdict("", "graph", "error", reason, "use --precision fp16 or int8"))
        if self._int8 and self._version[0] < 11:
            reason = "Q/DQ nodes are for a DLA from TensorRT 11 on"
            change = "ranges by tensor, which smash-export trtexec --dla writes: calibration.cache"
            found.append(Verdict("", "graph", "error", reason, change, EXPLICIT_INT8))
        if self._off_dla == "error":
            for item in (*self._model.graph.input, *self._model.graph.output):
                if self._types.get(item.name) == 1:
                    reason = "DLA: fp32 must be converted, and only the GPU can (trtexec sets kDIRECT_IO)"
                    found.append(Verdict(item.name, "input or output", "error", reason, "--gpu-fallback"))
        return found

    def _dla_input(self, name: str) -> list[Verdict]:
        shape, most = self._shapes.get(name, []), DlaLimits().batch[1]
        if shape and shape[0] is None:
            change = "build for one batch: smallest = usual = largest"
            return [Verdict(name, "input", "warn", "DLA has no dynamic shapes", change)]
        if shape and not 1 <= (shape[0] or 1) <= most:
            return [Verdict(name, "input", "error", f"DLA: batch {shape[0]}", f"at most {most}")]
        return []

    def _opset(self) -> list[Verdict]:
        least, most, source = opsets_of(self._version)
        opset = next((item.version for item in self._model.opset_import if item.domain in ("", "ai.onnx")), 0)
        if least <= opset <= most:
            return []
        reason = f"opset {opset}, TensorRT {self._release} reads {least} to {most}"
        if opset > most and self._version[0] == 8:  # its parser warns and goes on
            change = f"use TensorRT 10 or 11, or adopt an ONNX file of opset {most}"
            return [Verdict("", "opset", "warn", reason, change, source)]
        return [
            Verdict("", "opset", "error", reason, f"export with opset {min(most, max(least, 20))}", source)
        ]

    def _integers(self) -> list[Verdict]:
        """int64 constants that are computed with; shapes, axes and indices are integers by nature."""
        found = []
        for node in self._model.graph.node:
            for name in node.input:
                value = self._constants.get(name)
                if value is not None and value.dtype == np.int64 and node.op_type not in INTEGERS:
                    what = "cast to int32" if self._version[0] == 8 else "computed in int64, which is slow"
                    found.append(
                        Verdict(describe_node(name), "weight", "warn", what, "store it as float32 or int32")
                    )
        return found

    def _node(self, node: Any) -> list[tuple[str, str, str]]:
        if node.domain not in ("", "ai.onnx"):
            return [("error", f"operator of the domain {node.domain}", "use operators of ONNX itself")]
        if node.op_type in REFUSED:
            return [("error", f"the parser refuses {node.op_type}", "replace it by operators that it reads")]
        if node.op_type not in SUPPORTED:
            return [
                ("warn", f"unknown: {node.op_type} is not in our list", "ask the parser: trtexec --onnx=FILE")
            ]
        attributes = {item.name: self._attribute(item) for item in node.attribute}
        found = restrictions(
            NodeFacts(
                node.op_type,
                tuple(node.input),
                tuple(node.output),
                attributes,
                self._types,
                self._constants.keys(),
                self._version,
            )
        )
        if node.op_type == "Conv":
            found += self._conv(node, attributes)
        elif node.op_type == "Dropout" and len(node.input) > 2 and node.input[2]:
            if node.input[2] not in self._constants or bool(self._constants[node.input[2]]):
                found.append(("error", "dropout in training mode", "export in evaluation mode"))
        elif node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            found += self._quantised(node, attributes)
        elif node.op_type == "Concat" and self._int8:
            found += self._concat(node)
        elif node.op_type == "Add" and self._int8:
            found += self._residual(node)
        return found

    def _conv(self, node: Any, attributes: Mapping[str, Any]) -> list[tuple[str, str, str]]:
        found = []
        shape = self._weight_shape(node.input[1])
        if shape is None:
            return [("warn", "weights are computed", "store them as a constant")]
        if len(shape) not in (3, 4, 5):
            found.append(("error", f"convolution of {len(shape) - 2} axes", "use 2 or 3"))
        if len(node.input) > 2 and node.input[2]:
            bias = self._weight_shape(node.input[2])
            if bias is None or tuple(bias) != (shape[0],):
                found.append(
                    ("error", "the bias is no constant of one value per unit", "fold it into a constant")
                )
        groups = attributes.get("group", 1)
        quantised = self._maker(node.input[1]) == "DequantizeLinear"
        if quantised and groups > 1 and (shape[1] % 4 or (shape[0] // groups) % 4):
            found.append(
                (
                    "warn",
                    f"int8 with {shape[1]} channels and {shape[0] // groups} units per group",
                    "multiples of 4 in each group, or keep the node in fp16",
                )
            )
        return found

    def _quantised(self, node: Any, attributes: Mapping[str, Any]) -> list[tuple[str, str, str]]:
        found = []
        scale = self._constants.get(node.input[1])
        weights = self._is_weight(node)
        if scale is None and self._version != RTX:
            found.append(("error", "the scale is computed", "calibrate, and store it as a constant"))
        elif scale is not None and not (np.isfinite(scale).all() and (scale > 0).all()):
            found.append(("error", "a scale is not positive", "calibrate on real images"))
        elif (
            scale is not None and scale.ndim == 1 and scale.size > 1 and not weights and self._version != RTX
        ):
            found.append(("error", "activations with a scale per channel", "use one scale per tensor"))
        if len(node.input) > 2 and node.input[2]:
            zero = self._constants.get(node.input[2])
            if self._version != RTX and (zero is None or zero.dtype != np.int8):
                received = "computed" if zero is None else zero.dtype
                found.append(
                    (
                        "error",
                        f"zero point {received}",
                        "quantise to int8, symmetric: smash-export does for tensorrt",
                    )
                )
            elif zero is not None and zero.any():
                found.append(("error", "a zero point other than 0", "quantise symmetrically"))
            elif scale is not None and zero is not None and zero.size != scale.size:
                found.append(("error", "scale and zero point of different sizes", "make them equal"))
        elif node.op_type == "QuantizeLinear" and attributes.get("output_dtype", 3) not in (0, 3):
            found.append(("error", "quantised to another type than int8", "use int8"))
        if scale is not None and scale.ndim == 1 and scale.size > 1 and weights:
            shape = self._weight_shape(node.input[0])
            axis = attributes.get("axis", 1)
            if shape is not None and not (axis < len(shape) and shape[axis] == scale.size):
                found.append(
                    (
                        "error",
                        f"{scale.size} scales along axis {axis} of {list(shape)}",
                        "one per unit, axis 0",
                    )
                )
        return found

    def _concat(self, node: Any) -> list[tuple[str, str, str]]:
        scales = [self._scale_of(name) for name in node.input]
        known = [scale for scale in scales if scale is not None]
        if known and (len(known) != len(scales) or len(set(known)) > 1):
            return [
                ("warn", "its inputs have different scales or none", "give all inputs of a Concat one scale")
            ]
        return []

    def _residual(self, node: Any) -> list[tuple[str, str, str]]:
        makers = [self._maker(name) for name in node.input]
        if "Conv" in makers and not any(maker == "DequantizeLinear" for maker in makers):
            return [
                (
                    "warn",
                    "the side of the sum that is no convolution is not quantised",
                    "put Q/DQ on that side",
                )
            ]
        return []

    def _dla_node(self, node: Any) -> list[tuple[str, str, str]]:
        off = self._off_dla
        if node.op_type == "Constant":
            return []
        if node.op_type not in DLA:
            if off == "warn":
                return [
                    (off, "not for a DLA: it runs on the GPU", "avoid it, or accept the change of processor")
                ]
            return [(off, "not for a DLA", "avoid it, or let the GPU take it: --gpu-fallback")]
        limits = DlaLimits()
        attributes = {item.name: self._attribute(item) for item in node.attribute}
        found: list[tuple[str, str, str]] = []
        if node.op_type == "Conv":
            found += self._dla_conv(node, attributes)
        elif node.op_type in ("AveragePool", "MaxPool"):
            found += self._within("pooling window", attributes.get("kernel_shape", 1), limits.pool)
            found += self._within("pooling stride", attributes.get("strides", 1), limits.pool_stride)
        elif node.op_type == "GlobalAveragePool":
            window = [size for size in self._shapes.get(node.input[0], [])[2:] if size]
            found += self._within("pooling window", window, limits.pool)
        elif node.op_type == "Concat" and attributes.get("axis") != 1:
            found.append((off, "DLA: concatenation along another axis than channels", "axis 1"))
        elif node.op_type == "PRelu" and self._weight_shape(node.input[1]) is None:
            found.append((off, "DLA: slopes are computed", "store them as a constant"))
        elif node.op_type == "Softmax":
            sizes = [size or 1 for size in self._shapes.get(node.input[0], [])[1:]]
            if sizes and max(sizes) > (
                limits.softmax[1] if sorted(sizes)[-2:-1] > [1] else limits.dimension[1]
            ):
                found.append((off, f"DLA: softmax over {max(sizes)}", f"at most {limits.softmax[1]}"))
        for name in node.output:
            sizes = [size for size in self._shapes.get(name, [])[1:] if size]
            found += self._within("dimension", sizes, limits.dimension)
        return found

    def _dla_conv(self, node: Any, attributes: Mapping[str, Any]) -> list[tuple[str, str, str]]:
        limits, off = DlaLimits(), self._off_dla
        shape = self._weight_shape(node.input[1])
        if shape is not None and len(shape) != limits.dimensions + 2:
            return [(off, f"DLA: convolution of {len(shape) - 2} axes", "2 axes")]
        kernel = attributes.get("kernel_shape") or (list(shape[2:]) if shape is not None else [])
        pads = attributes.get("pads", [])
        found = [
            *self._within("kernel", kernel, limits.kernel),
            *self._within("stride", attributes.get("strides", 1), limits.stride),
            *self._within("dilation", attributes.get("dilations", 1), limits.dilation),
            *self._within("padding", pads, limits.padding),
            *self._within("groups", attributes.get("group", 1), limits.groups),
        ]
        if shape is not None:
            found += self._within("units", shape[0], limits.units)
        if any(pad >= size for pad, size in zip(pads, [*kernel, *kernel], strict=False)):
            found.append((off, "DLA: padding not below the kernel", "a smaller dilation, or less padding"))
        return found

    def _within(self, what: str, values: Any, bounds: tuple[int, int]) -> list[tuple[str, str, str]]:
        """A finding for each value outside of the bounds of a DLA."""
        return [
            (self._off_dla, f"DLA: {what} {value}", f"{what} {bounds[0]} to {bounds[1]}")
            for value in (values if isinstance(values, list | tuple) else [values])
            if not bounds[0] <= value <= bounds[1]
        ]

    def _maker(self, name: str) -> str:
        node = self._makers.get(name)
        return node.op_type if node is not None else ""

    def _weight_shape(self, name: str) -> tuple[int, ...] | None:
        """Shape of a constant, also of one behind Q/DQ or a cast."""
        for _ in range(4):
            if name in self._constants:
                return tuple(self._constants[name].shape)
            node = self._makers.get(name)
            if node is None or node.op_type not in ("QuantizeLinear", "DequantizeLinear", "Cast", "Identity"):
                return None
            name = node.input[0]
        return None

    def _is_weight(self, node: Any) -> bool:
        return self._weight_shape(node.input[0]) is not None

    def _scale_of(self, name: str) -> float | None:
        node = self._makers.get(name)
        if node is None or node.op_type != "DequantizeLinear":
            return None
        scale = self._constants.get(node.input[1])
        return float(scale.reshape(-1)[0]) if scale is not None and scale.size else None

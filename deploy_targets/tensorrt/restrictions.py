"""What the parser refuses of operators that it reads: types, computed inputs, attributes, further outputs.

Found by giving ONNX's own operator tests to the parser of TensorRT for RTX 1.7.1; a test compares every
verdict with it again. Convolutions and quantisation have rules of their own in
:mod:`smash_targets.tensorrt.check`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from smash_targets.tensorrt.operators import RTX

Finding = tuple[str, str, str]
"""Level, reason, and what to change."""

# ONNX's numbers of tensor types (TensorProto.DataType).
FLOATING = {1: "float", 10: "float16", 16: "bfloat16", 11: "double"}
_READ = {*FLOATING, 2, 3, 6, 7, 9, 17, 22, 23}  # uint8 int8 int32 int64 bool float8 int4 float4
_COMPUTED = {*FLOATING, 3, 6, 7}
_SCALE_TYPE = 24
_NAMES = {
    -1: "sequences",
    4: "uint16",
    5: "int16",
    12: "uint32",
    13: "uint64",
    8: "text",
    14: "complex64",
    15: "complex128",
}
_NAMES |= {2: "uint8", 3: "int8", 9: "bool"}

_ARITHMETIC_NAMES = """
Abs Add AveragePool Ceil Clip Div Floor Greater GreaterOrEqual Less LessOrEqual Max MaxPool Mean Min Mul Neg
Relu Sub Sum
"""
_REDUCTION_NAMES = """
ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum
ReduceSumSquare
"""
_ARITHMETIC = frozenset(_ARITHMETIC_NAMES.split())
_REDUCTIONS = frozenset(_REDUCTION_NAMES.split())
# operator -> inputs that must be constants; of Pad and Slice the axes only, which are seldom given
_CONSTANT: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(_REDUCTIONS, (1,)),
    **dict.fromkeys(("Squeeze", "Unsqueeze"), (1,)),
    **dict.fromkeys(("Pad", "Slice"), (3,)),
    **dict.fromkeys(("OneHot", "STFT", "Upsample"), (1,)),
    "Resize": (1, 2),
}
_ONE_OUTPUT = frozenset(["BatchNormalization", "GroupNormalization", "LayerNormalization", "MaxPool"])
# Read by the parser, but built by a plugin that the RTX libraries do not bring.
_PLUGINS = frozenset(["CausalConvWithState", "LinearAttention", "NonZero", "RoiAlign"])
# Read in some forms only, too many to be told apart here.
_SOME_FORMS = frozenset(["Attention", "TensorScatter"])
_INNER_GRAPHS = frozenset(["If", "Loop", "Scan"])


@dataclass(frozen=True)
class NodeFacts:
    """What the rules look at.

    Attributes:
        operator: ONNX operator.
        inputs, outputs: names of tensors; "" is one that is left out.
        attributes: Attributes by name.
        types: tensor name -> ONNX's number of its element type, where that is known.
        constants: names of constant tensors.
        release: Release of the parser.
    """

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    types: Mapping[str, int]
    constants: Collection[str]
    release: tuple[int, int | None]


def restrictions(facts: NodeFacts) -> list[Finding]:
    """Every rule that a node breaks."""
    return [finding for rule in _RULES for finding in rule(facts)]


def _types(facts: NodeFacts) -> list[Finding]:
    used = [facts.types[name] for name in (*facts.inputs, *facts.outputs) if name in facts.types]
    unread = sorted({number for number in used if number not in _READ})
    if unread:
        name = _NAMES.get(unread[0], f"type {unread[0]} of ONNX")
        return [("error", f"tensors of {name}", "use float, float16, int32 or int64")]
    first = facts.types.get(facts.inputs[0]) if facts.inputs else None
    if facts.operator in _ARITHMETIC and first is not None and first not in _COMPUTED:
        name = _NAMES.get(first, f"type {first}")
        return [("error", f"{facts.operator} of {name}", "cast it to float or int32 before")]
    if facts.operator == "Clip" and first == 3:
        return [("error", "Clip of int8", "cast it to float or int32 before")]
    if facts.operator == "DequantizeLinear" and first == 2:
        return [("error", "dequantisation of uint8", "quantise to int8")]
    if facts.operator == "DequantizeLinear" and first in (22, 23):
        return [("warn", "4-bit values are read in pairs only", "give them an even number of elements")]
    if facts.operator == "Celu" and first in (10, 16):
        return [("error", "Celu of half precision", "cast it to float before")]
    if facts.operator == "Cast" and facts.attributes.get("to") == _SCALE_TYPE:
        return [("error", "a cast to float8e8m0", "cast to float16")]
    return []


def _computed_inputs(facts: NodeFacts) -> list[Finding]:
    places = _CONSTANT.get(facts.operator, ())
    if facts.release == RTX and facts.operator in ("Pad", "Slice"):
        return []
    return [
        ("error", f"input {at} is computed", "make it a constant")
        for at in places
        if len(facts.inputs) > at and facts.inputs[at] and facts.inputs[at] not in facts.constants
    ]


def _outputs(facts: NodeFacts) -> list[Finding]:
    if facts.operator in _ONE_OUTPUT and any(facts.outputs[1:]):
        return [("error", f"{facts.operator} with more than one output", "use its first output only")]
    return []


def _pooling(facts: NodeFacts) -> list[Finding]:
    if facts.operator not in ("AveragePool", "MaxPool", "LpPool"):
        return []
    found: list[Finding] = []
    if len(facts.attributes.get("kernel_shape", ())) not in (1, 2, 3):
        found.append(("error", "pooling of other than 1, 2 or 3 axes", "use 1, 2 or 3"))
    if any(size != 1 for size in facts.attributes.get("dilations", ())):
        found.append(("error", "dilated pooling", "use dilation 1"))
    if facts.operator == "LpPool" and facts.attributes.get("p", 2) not in (1, 2):
        found.append(("error", f"LpPool with p={facts.attributes['p']}", "use p 1 or 2"))
    return found


def _modes(facts: NodeFacts) -> list[Finding]:
    values = facts.attributes
    if facts.operator == "BatchNormalization" and values.get("training_mode", 0):
        return [("error", "batch normalisation in training mode", "export in evaluation mode")]
    if facts.operator.startswith("Scatter") and _text(values.get("reduction", b"none")) != "none":
        return [("error", f"{facts.operator} with a reduction", "scatter without one")]
    if facts.operator == "Resize" and values.get("antialias", 0):
        return [("error", "Resize with antialiasing", "resize without it")]
    if facts.operator == "Resize" and _text(values.get("keep_aspect_ratio_policy", "stretch")) != "stretch":
        return [("error", "Resize that keeps the aspect ratio", "keep_aspect_ratio_policy=stretch")]
    floats = facts.inputs and facts.types.get(facts.inputs[0]) in FLOATING
    if facts.operator == "Mod" and floats and not values.get("fmod", 0):
        return [("error", "Mod of floating point without fmod", "set fmod=1")]
    if (
        facts.operator in ("Mod", "Range")
        and not floats
        and facts.types.get(facts.inputs[0], 6) not in (6, 7)
    ):
        return [("error", f"{facts.operator} of small integers", "cast it to int32 before")]
    if facts.operator == "Range" and floats and facts.inputs[0] not in facts.constants:
        return [("error", "Range of computed floating point", "make its inputs constants")]
    if facts.operator in _SOME_FORMS:
        return [
            ("warn", f"only some forms of {facts.operator} are read", "ask the parser: trtexec --onnx=FILE")
        ]
    if facts.operator in _INNER_GRAPHS:
        return [("warn", "the graphs inside are not looked at", "ask the parser: trtexec --onnx=FILE")]
    if facts.operator in _PLUGINS and facts.release == RTX:
        return [("error", f"{facts.operator} is built by a plugin that is not there", "avoid it")]
    return []


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


_RULES: tuple[Callable[[NodeFacts], list[Finding]], ...] = (
    _types,
    _computed_inputs,
    _outputs,
    _pooling,
    _modes,
)

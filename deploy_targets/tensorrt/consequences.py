"""What trtexec does after it has parsed its options, and which lines cannot build because of it.

The option table (:mod:`smash_targets.tensorrt.trtexec_options`) says what a version parses. What it then sets
on the builder decides whether an engine comes out, and depends on what the ONNX file holds. One rule each,
with where it stands.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from smash_targets.tensorrt.operators import dla_of

Holds = Literal["fp32", "fp16", "int8"]
_ENGINES = "samples/common/sampleEngines.cpp of NVIDIA/TensorRT, setupNetworkAndConfig, 8.6 to 10.16"
_DLA_FORMATS = ("dla_linear", "dla_hwc4", "chw16", "chw32")
_PRECISION_FLAGS = ("--fp16", "--bf16", "--int8", "--fp8", "--int4", "--best")


@dataclass(frozen=True)
class NetworkFacts:
    """What is in the ONNX file.

    Attributes:
        holds: "fp32" for float tensors only, "fp16" for casts to half, "int8" for Q/DQ nodes.
        static: whether every dimension is fixed.
        jetson: whether it is built on a Jetson.
    """

    holds: Holds
    static: bool
    jetson: bool = False


@dataclass(frozen=True)
class Refusal:
    """Why a line builds nothing, or not what was asked for; what to do; where that stands."""

    reason: str
    change: str
    source: str


def refusals(words: Sequence[str], version: str, network: NetworkFacts) -> list[Refusal]:
    """What stops a line that builds; [] when nothing known does. A line that loads an engine builds nothing.

    Args:
        words: options that the table takes.
        version: Version of the table, for example "10.3".
    """
    given = {name: value for name, _, value in (word.partition("=") for word in words)}
    if "--loadEngine" in given:
        return []
    major, minor = (int(part) for part in version.split("."))
    line = _Line(given, (major, minor), network)
    return [refusal for rule in _RULES if (refusal := rule(line)) is not None]


@dataclass(frozen=True)
class _Line:
    given: Mapping[str, str]
    version: tuple[int, int]
    network: NetworkFacts

    @property
    def dla(self) -> bool:
        return "--useDLACore" in self.given

    @property
    def strong(self) -> bool:
        return "--stronglyTyped" in self.given or self.version[0] >= 11

    @property
    def int8(self) -> bool:
        return "--int8" in self.given or "--best" in self.given

    @property
    def half(self) -> bool:
        """Whether kFP16 is set: asked for, or by itself with a DLA core and no --int8."""
        asked = "--fp16" in self.given or "--best" in self.given
        return asked or (self.dla and not self.int8 and self.version[0] < 11)


def _no_dla(line: _Line) -> Refusal | None:
    if not line.dla:
        return None
    there, where = dla_of(line.version)
    if there:
        return None
    release = ".".join(map(str, line.version))
    return Refusal(f"TensorRT {release} has no DLA: {where}", "build for the GPU", "support pages of 11.4.1")


def _typed_dla(line: _Line) -> Refusal | None:
    if not (line.dla and line.strong and line.version[0] < 11):
        return None
    return Refusal(
        "with a DLA core trtexec sets kFP16 and kPREFER_PRECISION_CONSTRAINTS, which a strongly typed "
        "network refuses",
        "weak typing: --fp16 on the fp32 graph",
        f"NVIDIA/TensorRT issue 4253; {_ENGINES}",
    )


def _typed_flags(line: _Line) -> Refusal | None:
    flags = [name for name in _PRECISION_FLAGS if name in line.given]
    if not (line.strong and flags and line.version[0] < 11):
        return None
    return Refusal(
        f"{flags[0]} is not for a strongly typed network", f"leave {flags[0]} out", "trtexec's help, 10.16"
    )


def _direct_io(line: _Line) -> Refusal | None:
    if not line.dla or "--allowGPUFallback" in line.given:
        return None
    formats = [line.given.get(name, "") for name in ("--inputIOFormats", "--outputIOFormats")]
    if all(any(name in text for name in _DLA_FORMATS) for text in formats):
        return None
    return Refusal(
        "without a fallback to the GPU trtexec sets kDIRECT_IO, so that input and output need a format of "
        "the DLA; those of this graph are fp32 and linear",
        "let the GPU convert them: --gpu-fallback",
        f"{_ENGINES}; I/O formats on DLA in the DLA pages",
    )


def _explicit_int8_on_dla(line: _Line) -> Refusal | None:
    if not (line.dla and line.network.holds == "int8" and line.version[0] < 11):
        return None
    return Refusal(
        "a DLA takes no Q/DQ nodes before TensorRT 11",
        "ranges by tensor: --int8 --calib=FILE on the fp32 graph",
        "NVIDIA/Model-Optimizer pull request 1661; DLA chapter of the developer guide, 8.6 and 10",
    )


def _invented_ranges(line: _Line) -> Refusal | None:
    if not line.int8 or line.network.holds == "int8" or "--calib" in line.given:
        return None
    return Refusal(
        "--int8 without Q/DQ nodes and without --calib gives every tensor the same made-up range",
        "--calib=FILE",
        _ENGINES,
    )


def _ignored_ranges(line: _Line) -> Refusal | None:
    if "--calib" not in line.given or line.network.holds != "int8":
        return None
    return Refusal("ranges of --calib are not used beside Q/DQ nodes", "leave --calib out", _ENGINES)


def _untyped_halves(line: _Line) -> Refusal | None:
    """A weakly typed network that holds a type needs the flag that allows it."""
    if line.strong:
        return None
    if line.network.holds == "int8" and not line.int8:
        return Refusal("Q/DQ nodes need --int8 or strong typing", "--int8", "NVIDIA/TensorRT issue 4021")
    if line.network.holds == "fp16" and not line.half:
        return Refusal(
            "half tensors need --fp16 or strong typing", "--fp16", "builder flags of NvInfer.h, 10"
        )
    return None


def _shapes(line: _Line) -> Refusal | None:
    names = ("--minShapes", "--optShapes", "--maxShapes")
    found = [line.given[name] for name in names if name in line.given]
    if found and line.network.static:
        return Refusal("a graph of fixed shapes refuses shape options", "leave them out", _ENGINES)
    if not found and not line.network.static:
        return Refusal(
            "without shapes trtexec sets every open dimension to 1, with a warning only",
            "--minShapes, --optShapes and --maxShapes",
            _ENGINES,
        )
    if line.dla and len(set(found)) > 1:
        return Refusal("a DLA takes fixed shapes only", "one batch size", "DLA restrictions, 11.4.1")
    return None


def _jetson(line: _Line) -> Refusal | None:
    level = line.given.get("--hardwareCompatibilityLevel", "none").lower()
    if not (line.network.jetson and level == "ampere+"):
        return None
    return Refusal(
        "hardware compatibility is not there on JetPack",
        "build on each kind of Jetson",
        "hardware compatibility in the developer guide",
    )


_RULES: tuple[Callable[[_Line], Refusal | None], ...] = (
    _no_dla,
    _typed_dla,
    _typed_flags,
    _direct_io,
    _explicit_int8_on_dla,
    _invented_ranges,
    _ignored_ranges,
    _untyped_halves,
    _shapes,
    _jetson,
)

"""int8 by Q/DQ nodes on the ONNX graph, calibrated, with the layers that do not bear it left alone.

ONNX Runtime's quantiser places the nodes and its calibrators measure ranges. What it lacks is here:

* one range for all inputs of a concatenation (and for what slices and pools of them pass on), so that
  runtimes copy bytes there instead of rescaling them;
* first and last layer in int8 or not, as measured; logits are rounded only where a runtime wants them so;
* biases that take back the mean of what rounding adds, where that costs fewer labels
  (:mod:`smash_export.compiling.precision.bias_correction`);
* the noise that every single layer brings (:mod:`smash_export.compiling.precision.noise`), and a loop that
  puts the worst layers back to fp32 until the changed labels of the calibration images show, by their margins
  (:mod:`smash_export.measure.gates`), that no more than ``max_drop`` points are lost; test images stay unseen
  until verification;
* Q/DQ as TensorRT wants it: symmetric, zero point 0, no int32 bias, the convolution's side of an
  addition left to be fused and only the other side quantised.

Weights are int8, symmetric, one scale per output channel. Activations are U8 where x86 multiplies
U8 by S8 (S8 by S8 is slower than fp32 in ONNX Runtime there), S8 on ARM. Without VNNI the x86
instruction adds pairs of products in 16 bits and saturates: weights then get 7 bits.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np

from smash_base.errors import VerificationError
from smash_base.json_values import JsonObject
from smash_base.preprocess import Outputs, with_none
from smash_base.sampling import evenly
from smash_export.compiling.precision.bias_correction import with_corrected_biases
from smash_export.compiling.precision.calibration import METHODS, Method, Ranges, check_classes, tensor_ranges
from smash_export.compiling.precision.integer_form import clip_integers, pad_integers, swish_integers
from smash_export.compiling.precision.noise import noise_by_node
from smash_export.export.onnx_graphs import (
    TensorSets,
    check_finite,
    logits_of,
    prepared,
    producers,
    readers,
    require_onnxruntime,
    sqnr_db,
)
from smash_export.measure.gates import margin_costs, margin_interval
from smash_export.measure.noise import NodeNoise
from smash_targets.base import get_target

if TYPE_CHECKING:
    import onnx

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_COMPUTED = (*WEIGHTED, "Add", "Mul", "Concat", "LeakyRelu", "Sigmoid", "GlobalAveragePool")
_PASSED = (  # the output has the scale of the input
    "AveragePool", "MaxPool", "Flatten", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze",
)  # fmt: skip
_RUNTIME_OPS = sorted({*_COMPUTED, *_PASSED, "Relu", "Clip"})
_TENSORRT_OPS = sorted({*WEIGHTED, "Add", "AveragePool", "Concat", "MaxPool"})

NOISE_IMAGES = 256  # for what is compared, in decibels
JUDGED_IMAGES = 512  # for the share of labels that change
KEPT_GRAPHS = len(METHODS) + 2  # the quantiser takes long: each method's graph, and two with an end in fp32
SINGLES = 12  # nodes that go back to fp32 one by one
BOUNDARY_GAIN_DB = 3.0  # keeping first or last layer in fp32 must halve the noise of the logits


@dataclass(frozen=True)
class Scheme:
    """How numbers are rounded.

    Attributes:
        activations: "u8" with a zero point, or "s8".
        symmetric: activations have zero point 0.
        reduce_range: weights use 7 of 8 bits.
        placement: "runtime" (Q/DQ around every operator, for CPU runtimes), "whole" (logits as well) or
            "tensorrt".
        clips: a ReLU whose input others read too keeps the scale of that input and compares whole numbers;
            hard swishes and padding work on bytes (:mod:`smash_export.compiling.precision.integer_form`).
    """

    activations: Literal["u8", "s8"] = "u8"
    symmetric: bool = False
    reduce_range: bool = False
    placement: Literal["runtime", "whole", "tensorrt"] = "runtime"
    clips: bool = False


TENSORRT = Scheme("s8", symmetric=True, placement="tensorrt")
WHOLE = Scheme("s8", placement="whole")  # of LiteRT: zero points cost its kernels nothing on any processor


def scheme_for(target: str, features: dict[str, bool]) -> Scheme:
    """What a target runs fast on a processor with these features (:func:`machine.cpu_features`)."""
    placement = get_target(target).int8_placement
    if placement != "runtime":
        return TENSORRT if placement == "tensorrt" else WHOLE
    if "dot product" in features:  # the ARM family
        return Scheme("s8", symmetric=True)
    vnni = features.get("VNNI", False) or features.get("AMX int8", False)
    return Scheme("u8", reduce_range=not vnni)


def quantise(
    model: onnx.ModelProto,
    calibration: np.ndarray,
    scheme: Scheme,
    *,
    method: Method | Literal["auto"] = "auto",
    boundary: Literal["auto", "int8", "fp32"] = "auto",
    max_drop: float = 0.5,
    faster_fp32: Iterable[str] = (),
    outputs: Outputs = "logits",
) -> tuple[onnx.ModelProto, JsonObject]:
    """Give an fp32 graph Q/DQ nodes.

    Args:
        model: one float32 input [B, *input_shape], one output of logits [B, K].
        calibration: float32 [N, *input_shape], training images after the one preprocessing.
        scheme: how numbers are rounded.
        method: how ranges are chosen; "auto" takes the one whose changed labels cost least, then the least
            noisy one.
        boundary: first and last layer: in int8, in fp32, or as measured.
        max_drop: points of accuracy that changed labels of the calibration images may cost at most by their
            margins, as sure as the gate wants to be.
        faster_fp32: nodes that stay in fp32 because that was measured to be faster.
        outputs: what the answers of the graph are.

    Returns:
        the graph, and notes for the manifest: scheme, method, layers kept in fp32 with the reason, the
        table of noise by layer, and what was measured on the calibration images.

    Raises:
        InvalidInputError: calibration images of one class.
        VerificationError: ``max_drop`` does not hold with any layer in int8.
    """
    require_onnxruntime()
    graph = _Quantiser(prepared(model), calibration, scheme, outputs=outputs)
    check_classes(graph.expected, outputs)
    graph.choose_ranges(METHODS if method == "auto" else (method,))
    kept = dict.fromkeys(faster_fp32, "faster in fp32 on this machine")
    kept |= dict.fromkeys(graph.boundary(boundary), "first or last layer")
    corrected = graph.corrected(kept)
    better = corrected.outcome(kept).rank < graph.outcome(kept).rank
    graph = corrected if better else graph
    table = graph.noise_by_node()
    kept = graph.spared(kept, [row.node for row in table if row.node not in kept], max_drop)
    outcome = graph.outcome(kept)
    if not graph.rounds_any(kept):
        raise VerificationError(
            "int8 costs too much accuracy whichever layers it is kept away from",
            expected=f"changed labels of the calibration images that cost at most {max_drop:g} points",
            received=f"{graph.outcome(()).cost:.2f} points with all layers in int8",
            hint="Allow more (--max-drop 2) or train for it (smash-export freeze --qat).",
        )
    result = graph.build(kept)
    notes: JsonObject = {
        "scheme": asdict(scheme),
        "calibration_images": len(calibration),
        "calibration_method": graph.method,
        "biases_corrected": better,
        "kept_fp32": [{"node": name, "reason": reason} for name, reason in kept.items()],
        "labels_changed_percent": round(outcome.changed, 4),
        "expected_points_lost": round(outcome.cost, 4),
        "most_points_lost": round(outcome.high, 4),
        "logits_sqnr_db": outcome.sqnr,
        "noise_by_node": [
            asdict(replace(row, precision="fp32" if row.node in kept else "int8")) for row in table
        ],
    }
    return result, notes


def quantise_untrained(
    model: onnx.ModelProto, scheme: Scheme, faster_fp32: Iterable[str] = ()
) -> onnx.ModelProto:
    """Layers in int8 with made-up ranges, for timing only: what is rounded how does not change the time."""
    require_onnxruntime()
    model = prepared(model)
    graph = _Quantiser(model, np.zeros((0, 1), np.float32), scheme)
    graph.ranges = {model.graph.input[0].name: (-4.0, 4.0)}
    for node in model.graph.node:
        made_up = (0.0 if node.op_type in ("Relu", "Clip") else -4.0, 4.0)
        if node.op_type in _PASSED or node.op_type == "GlobalAveragePool":
            made_up = graph.ranges.get(node.input[0], made_up)
        graph.ranges |= dict.fromkeys(node.output, made_up)
    return graph.build(faster_fp32)


@dataclass(frozen=True)
class _Outcome:
    changed: float  # percent of the images
    cost: float  # percentage points of accuracy, by the margins of the changed labels
    high: float  # end of its interval
    sqnr: float  # of the logits, in decibels

    @property
    def rank(self) -> tuple[float, float]:
        """Less is better: what changed labels cost, then the noise."""
        return self.cost, -self.sqnr

    def keeps(self, limit: float) -> bool:
        """Whether the images show that no more is lost, as the gate will ask of as many others."""
        return self.cost == 0 or self.high <= limit


class _Quantiser:
    """One graph with its calibration images; builds it with any set of nodes left in fp32."""

    def __init__(
        self,
        model: onnx.ModelProto,
        calibration: np.ndarray,
        scheme: Scheme,
        exact: onnx.ModelProto | None = None,
        outputs: Outputs = "logits",
    ) -> None:
        self.model, self.calibration, self.scheme = model, calibration, scheme
        self.outputs: Outputs = outputs
        self.exact = exact or model  # what it is compared with, before biases were corrected
        self.op_types = _TENSORRT_OPS if scheme.placement == "tensorrt" else _RUNTIME_OPS
        self.nodes = [node for node in model.graph.node if node.op_type in self.op_types]
        self.method: Method = "minmax"
        self.ranges: Ranges = {}
        self._built: dict[tuple[Method, frozenset[str]], onnx.ModelProto] = {}
        self._outcomes: dict[tuple[Method, frozenset[str], int], _Outcome] = {}

    def choose_ranges(self, methods: tuple[Method, ...]) -> None:
        """Measure ranges by each method; keep those whose changed labels cost least, then the least noisy."""
        best: tuple[float, float] | None = None
        extremes: Ranges | None = None
        for method in methods:
            ranges = tensor_ranges(self.model, self.calibration, method, self.op_types, extremes)
            extremes = ranges if method == "minmax" else extremes
            before = self.ranges, self.method
            self.ranges, self.method = ranges, method
            if len(methods) == 1:
                return
            outcome = self.outcome((), NOISE_IMAGES)
            if best is None or outcome.rank < best:
                best = outcome.rank
            else:
                self.ranges, self.method = before

    def boundary(self, wish: Literal["auto", "int8", "fp32"]) -> list[str]:
        """Which of the first and the last layer stay in fp32."""
        layers = [node.name for node in self.nodes if node.op_type in WEIGHTED]
        if wish == "int8" or len(layers) < 3:
            return []
        ends = [layers[0], layers[-1]]
        if wish == "fp32":
            return ends
        base = self.outcome((), NOISE_IMAGES).sqnr
        return [name for name in ends if self.outcome((name,), NOISE_IMAGES).sqnr >= base + BOUNDARY_GAIN_DB]

    def noise_by_node(self) -> list[NodeNoise]:
        """Noise that each node brings to its own output when its inputs are exact, the worst first."""
        few = evenly(self.calibration, NOISE_IMAGES)
        return noise_by_node(self.exact, self.build(()), few, _COMPUTED)

    def spared(self, kept: dict[str, str], worst: list[str], max_drop: float) -> dict[str, str]:
        """Nodes that stay in fp32 and why: ``kept``, and the worst until no more than ``max_drop`` points are
        lost: surely, or where that leaves no layer in int8, as few images may, by the mean of the images.
        """
        likely: dict[str, str] | None = None
        for names in _batches(worst):
            outcome = self.outcome(kept)
            if outcome.keeps(max_drop):
                break
            if likely is None and outcome.cost <= max_drop:
                likely = kept
            reason = f"noise; labels that change with it cost more than {max_drop:g} points"
            kept = {**kept, **dict.fromkeys(names, reason)}
        if not self.rounds_any(kept):
            return likely or kept
        return self._needed(kept, [name for name in worst if name in kept][-SINGLES:], max_drop)

    def _needed(self, kept: dict[str, str], doubted: list[str], max_drop: float) -> dict[str, str]:
        """Without those of ``doubted`` that may be in int8 now, the least noisy tried first.

        Noise is that of each node by itself: where one of a chain is what costs labels, those that are worse
        by themselves went before it.
        """
        for name in reversed(doubted):
            fewer = {node: reason for node, reason in kept.items() if node != name}
            if self.outcome(fewer).keeps(max_drop):
                kept = fewer
        return kept

    def rounds_any(self, kept: Iterable[str]) -> bool:
        """Whether a layer with weights is in int8 when these nodes are in fp32."""
        spared = set(kept)
        return any(node.op_type in WEIGHTED and node.name not in spared for node in self.nodes)

    def corrected(self, kept: Iterable[str]) -> _Quantiser:
        """The same with biases corrected for all operators but ``kept`` in int8."""
        few = evenly(self.calibration, NOISE_IMAGES)
        model = with_corrected_biases(self.model, self.build(kept), few)
        other = _Quantiser(model, self.calibration, self.scheme, self.exact, self.outputs)
        other.method, other.ranges = self.method, self.ranges
        other.__dict__["expected"] = self.expected
        return other

    def outcome(self, kept: Iterable[str], images: int = JUDGED_IMAGES) -> _Outcome:
        """What the graph with these nodes in fp32 does on so many of the calibration images."""
        key = self.method, frozenset(kept), images
        if key not in self._outcomes:
            self._outcomes[key] = self._outcome(key[1], images)
        return self._outcomes[key]

    def _outcome(self, kept: frozenset[str], images: int) -> _Outcome:
        expected = evenly(self.expected, images)
        received = logits_of(self.build(kept), evenly(self.calibration, images))
        asked, answered = expected, received
        if self.outputs == "sigmoid":  # which class is the likeliest means nothing where none is there
            asked, answered = with_none(expected), with_none(received)
        answers = answered.argmax(1)
        changed = float((answers != asked.argmax(1)).mean() * 100)
        mean, spread = margin_interval(margin_costs(asked, answers, 1.0))
        return _Outcome(changed, 100 * mean, 100 * (mean + spread), sqnr_db(expected, received))

    def build(self, kept: Iterable[str]) -> onnx.ModelProto:
        """The graph with Q/DQ nodes on all operators but ``kept``; not to be changed."""
        key = self.method, frozenset(kept)
        if key not in self._built:
            if len(self._built) == KEPT_GRAPHS:
                self._built.pop(next(iter(self._built)))
            self._built[key] = self._build(key[1])
        return self._built[key]

    def _build(self, left: frozenset[str]) -> onnx.ModelProto:
        import onnx
        from onnxruntime.quantization import CalibrationMethod, QuantType
        from onnxruntime.quantization.calibrate import TensorsData
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

        nodes = [node for node in self.nodes if node.name not in left]
        ranges = _with_shared_ranges(self.ranges, nodes, self._reading, self.scheme.clips)
        # The quantiser merges a ReLU into the rounding of its output, which clips at zero only while that
        # range begins there. Tied to a range that begins below, the ReLU must stay.
        nodes = [
            node for node in nodes if not (node.op_type in ("Relu", "Clip") and ranges[node.output[0]][0] < 0)
        ]
        data = {
            name: (np.float32(low).reshape(()), np.float32(high).reshape(()))
            for name, (low, high) in ranges.items()
        }
        tensorrt = self.scheme.placement == "tensorrt"
        options = {
            "ActivationSymmetric": self.scheme.symmetric,
            "WeightSymmetric": True,
            "QuantizeBias": not tensorrt,
            # What follows a convolution is fused with it by TensorRT; Q/DQ stand where int8 is read.
            "OpTypesToExcludeOutputQuantization": self.op_types if tensorrt else [],
        }
        with _quiet():
            quantiser = QDQQuantizer(
                onnx.ModelProto.FromString(self._bytes),
                per_channel=True,
                reduce_range=self.scheme.reduce_range,
                weight_qType=QuantType.QInt8,
                activation_qType=QuantType.QUInt8 if self.scheme.activations == "u8" else QuantType.QInt8,
                tensors_range=TensorsData(CalibrationMethod.MinMax, data),
                nodes_to_quantize=[node.name for node in nodes] or ["-"],
                nodes_to_exclude=[],
                op_types_to_quantize=self.op_types,
                extra_options=options,
            )
            quantised: onnx.ModelProto = quantiser.quantize_model()
            quantiser.model.topological_sort()
        if tensorrt:
            _free_convolution_sides(quantised.graph)
        if self.scheme.clips:
            clip_integers(quantised.graph)
            swish_integers(quantised.graph, left)
            pad_integers(quantised.graph)
        if self.scheme.placement != "whole":
            _leave_logits(quantised.graph)
        _drop_unused(quantised.graph)
        quantised.producer_name = self.model.producer_name
        quantised.producer_version = self.model.producer_version
        return quantised

    @cached_property
    def expected(self) -> np.ndarray:
        """Logits of the fp32 graph on the calibration images."""
        logits = logits_of(self.exact, self.calibration)
        check_finite(logits, "the fp32 network")
        return logits

    @cached_property
    def _bytes(self) -> bytes:
        data: bytes = self.model.SerializeToString()
        return data

    @cached_property
    def _reading(self) -> dict[str, list[onnx.NodeProto]]:
        return dict(readers(self.model.graph))


def _with_shared_ranges(
    ranges: Ranges, nodes: list[onnx.NodeProto], reading: dict[str, list[onnx.NodeProto]], clips: bool
) -> Ranges:
    """One range for each set of tensors that concatenations and passing operators tie together.

    A concatenation whose only reader is a ReLU keeps an output range of its own: the quantiser merges
    the two, and a range that begins at zero is worth one bit.
    """
    sets = TensorSets()
    for node in nodes:
        tied: list[str] = []
        if node.op_type == "Concat":
            tied = [*node.input]
            after = reading.get(node.output[0], [])
            if not (len(after) == 1 and after[0].op_type in ("Relu", "Clip")):
                tied.append(node.output[0])
        elif clips and node.op_type == "Relu" and len(reading[node.input[0]]) > 1:
            tied = [node.input[0], node.output[0]]
        elif node.op_type in _PASSED:
            tied = [node.input[0], *node.output]
        sets.join(tied)
    shared: Ranges = {}
    for name, (low, high) in ranges.items():
        before = shared.get(sets.root(name), (low, high))
        shared[sets.root(name)] = (min(low, before[0]), max(high, before[1]))
    return {name: shared[sets.root(name)] for name in ranges}


def _free_convolution_sides(graph: onnx.GraphProto) -> None:
    """Take Q/DQ off one side of each addition: the side of a convolution that nothing else reads."""
    makers = producers(graph)
    reading = readers(graph)
    removed: list[str] = []
    for node in graph.node:
        if node.op_type != "Add":
            continue
        for index, name in enumerate(node.input):
            dequantise = makers.get(name)
            if dequantise is None or dequantise.op_type != "DequantizeLinear":
                continue
            quantiser = makers.get(dequantise.input[0])
            if quantiser is None or quantiser.op_type != "QuantizeLinear":
                continue
            source = makers.get(quantiser.input[0])
            alone = len(reading[quantiser.input[0]]) == len(reading[name]) == 1
            if source is not None and source.op_type in WEIGHTED and alone:
                node.input[index] = quantiser.input[0]
                removed += [quantiser.name, dequantise.name]
                break
    for node in [node for node in graph.node if node.name in set(removed)]:
        graph.node.remove(node)


def _leave_logits(graph: onnx.GraphProto) -> None:
    """Take Q/DQ off the graph's output."""
    makers = producers(graph)
    output = graph.output[0].name
    dequantise = makers[output]
    if dequantise.op_type != "DequantizeLinear":
        return
    quantiser = makers[dequantise.input[0]]
    raw = quantiser.input[0]
    if len(readers(graph)[raw]) > 1 or raw not in makers:
        return
    source = makers[raw]
    source.output[list(source.output).index(raw)] = output
    graph.node.remove(dequantise)
    graph.node.remove(quantiser)


def _drop_unused(graph: onnx.GraphProto) -> None:
    """Remove scales and zero points that nothing reads any more."""
    used = {name for node in graph.node for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)


def _batches(names: list[str]) -> Iterator[list[str]]:
    """The names in order: the first one by one, then in pieces that double."""
    start, size = 0, 1
    while start < len(names):
        yield names[start : start + size]
        start += size
        size = 1 if start < SINGLES else 2 * size


@contextmanager
def _quiet() -> Iterator[None]:
    """The quantiser warns through the root logger about what is decided here on purpose."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)

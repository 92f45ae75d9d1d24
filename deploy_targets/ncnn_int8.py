"""ncnn at int8: its files written by us, since its quantisation tools are not in the Python packages.

The format is what ncnn's ``Convolution`` and ``ConvolutionDepthWise`` read with parameter 8 set, the
int8_scale_term: weights as int8 behind a tag, then float scales of the weights, one per output channel (per
group in ``ConvolutionDepthWise``), and the scale of the layer's input; with 100 added to the parameter, the
scale of the output as well, which then leaves the layer as int8. A scale multiplies: q = round(x * scale).

The range of an input is the threshold that rounds its values on the calibration images with the least squared
error. Dense and depthwise convolutions are rounded; the last layer and everything between stay in fp32.

    .param  text: magic, counts, one layer a line: kind name inputs outputs INPUT... OUTPUT... KEY=VALUE...
    .bin    the weights of the layers in their order
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from smash_base.errors import VerificationError

INT8_TAG = 0x000D4B38
LEVELS = 127
KEPT_VALUES = 2048  # of each input from each calibration image, evenly over it
SHARES = np.linspace(0.2, 1.0, 41)  # thresholds that are tried, as shares of the largest value
_CONVOLUTIONS = ("Convolution", "ConvolutionDepthWise")
_WEIGHTED = (*_CONVOLUTIONS, "InnerProduct")


@dataclass
class _Layer:
    kind: str
    name: str
    inputs: list[str]
    outputs: list[str]
    parameters: dict[int, str]

    def number(self, key: int, default: int = 0) -> int:
        return int(self.parameters.get(key, default))

    @property
    def outputs_count(self) -> int:
        return self.number(0)

    @property
    def weights(self) -> int:
        return self.number(6) if self.kind in _CONVOLUTIONS else self.number(2)

    @property
    def bias(self) -> int:
        return self.outputs_count if self.number(5 if self.kind in _CONVOLUTIONS else 1) else 0

    def line(self) -> str:
        """As in the .param file."""
        pairs = [f"{key}={value}" for key, value in self.parameters.items()]
        counts = [str(len(self.inputs)), str(len(self.outputs))]
        return " ".join([self.kind, self.name, *counts, *self.inputs, *self.outputs, *pairs])


def is_int8(text: str) -> bool:
    """Whether a .param text holds layers with int8 weights."""
    return any(layer.kind in _WEIGHTED and layer.number(8) for layer in _layers(text))


def quantise(
    text: str, weights: bytes, calibration: np.ndarray, values_of: Callable[[list[str]], Any]
) -> tuple[str, bytes, dict[str, Any]]:
    """The .param text and .bin content at int8 of an fp32 network.

    Args:
        text, weights: Both files that pnnx wrote, fp32.
        calibration: float32 [N, *input_shape].
        values_of: gives a function for these blobs that maps an image to their values.

    Returns:
        text, content, and notes.

    Raises:
        VerificationError: a layer with weights that is not known here.
    """
    layers = _layers(text)
    pieces = _pieces(layers, weights)
    rounded = [layer for layer in layers if _is_rounded(layer)]
    scales = _input_scales(sorted({layer.inputs[0] for layer in rounded}), calibration, values_of)
    content = []
    for layer, piece in zip(layers, pieces, strict=True):
        content.append(_rounded(layer, piece, layers, scales) if _is_rounded(layer) else piece)
    head = text.splitlines()[:2]
    notes = {
        "calibration_images": len(calibration),
        "int8 layers": len(rounded),
        "fp32 layers with weights": [
            layer.name for layer in layers if layer.kind in _WEIGHTED and not _is_rounded(layer)
        ],
    }
    return "\n".join([*head, *(layer.line() for layer in layers)]) + "\n", b"".join(content), notes


def _layers(text: str) -> list[_Layer]:
    found = []
    for line in text.splitlines()[2:]:
        kind, name, inputs, outputs, *rest = line.split()
        first, second = int(inputs), int(inputs) + int(outputs)
        pairs = (word.split("=", 1) for word in rest[second:])
        parameters = {int(key): value for key, value in pairs}
        found.append(_Layer(kind, name, rest[:first], rest[first:second], parameters))
    return found


def _is_rounded(layer: _Layer) -> bool:
    """Dense and depthwise convolutions; in grouped ones ncnn has one scale for all channels of a group."""
    return layer.kind == "Convolution" or (
        layer.kind == "ConvolutionDepthWise" and layer.number(7, 1) == layer.outputs_count
    )


def _pieces(layers: Sequence[_Layer], weights: bytes) -> list[bytes]:
    """The part of the .bin file that belongs to each layer."""
    pieces, at = [], 0
    for layer in layers:
        size = _bytes(layer)
        pieces.append(weights[at : at + size])
        at += size
    if at != len(weights):
        kinds = sorted({layer.kind for layer in layers if not _bytes(layer)})
        raise VerificationError(
            "this network has weights in layers that are not known at int8",
            expected=f"weights in {', '.join(_WEIGHTED)} and MemoryData only: {at} bytes",
            received=f"{len(weights)} bytes; other layers: {', '.join(kinds)}",
            hint="Compile it for ncnn at fp16, or at int8 for onnxruntime or openvino.",
        )
    return pieces


def _bytes(layer: _Layer) -> int:
    if layer.kind in _WEIGHTED:
        return 4 + 4 * (layer.weights + layer.bias)  # a tag of zeros stands before fp32 weights
    if layer.kind == "MemoryData":
        sizes = [layer.number(key) for key in (0, 1, 2, 11)]
        return 4 * int(np.prod([size for size in sizes if size]))
    return 0


def _rounded(layer: _Layer, piece: bytes, layers: Sequence[_Layer], scales: dict[str, float]) -> bytes:
    """Weights of a convolution at int8; its parameters are changed to say so."""
    values = np.frombuffer(piece, "<f4")[1:]
    weight, bias = values[: layer.weights], values[layer.weights :]
    depthwise = layer.kind == "ConvolutionDepthWise"
    rows = layer.number(7, 1) if depthwise else layer.outputs_count
    weight = weight.reshape(rows, -1)
    scale = LEVELS / np.maximum(np.abs(weight).max(axis=1), 1e-12)
    whole: bytes = np.rint(weight * scale[:, None]).clip(-LEVELS, LEVELS).astype(np.int8).tobytes()
    whole += bytes(-len(whole) % 4)
    ends = [scales[layer.inputs[0]]]
    after = [other for other in layers if layer.outputs[0] in other.inputs]
    term = 1 if depthwise else 2
    if len(after) == 1 and _is_rounded(after[0]):  # the next layer reads int8 as it comes
        ends.append(scales[layer.outputs[0]])
        term += 100
    layer.parameters[8] = str(term)
    floats: bytes = np.concatenate([bias, scale, ends]).astype("<f4").tobytes()
    return struct.pack("<I", INT8_TAG) + whole + floats


def _input_scales(
    blobs: list[str], calibration: np.ndarray, values_of: Callable[[list[str]], Any]
) -> dict[str, float]:
    """What each blob is multiplied with."""
    read = values_of(blobs)
    kept: dict[str, list[np.ndarray]] = {blob: [] for blob in blobs}
    largest = dict.fromkeys(blobs, 0.0)
    for image in calibration:
        for blob, value in zip(blobs, read(image), strict=True):
            sizes = np.abs(value).reshape(-1)
            largest[blob] = max(largest[blob], float(sizes.max()))
            kept[blob].append(sizes[:: max(1, sizes.size // KEPT_VALUES)])
    return {blob: LEVELS / threshold(np.concatenate(kept[blob]), largest[blob]) for blob in blobs}


def threshold(sizes: np.ndarray, largest: float) -> float:
    """The end of the range that rounds values of these sizes with the least squared error."""
    if largest <= 0:
        return 1.0
    few = sizes[:: max(1, sizes.size // 100_000)].astype(np.float64)
    errors = []
    for end in SHARES * largest:
        step = end / LEVELS
        errors.append(np.square(np.minimum(np.rint(few / step), LEVELS) * step - few).mean())
    return float(SHARES[int(np.argmin(errors))] * largest)

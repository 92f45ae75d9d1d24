"""int8 files of MNN, by its own offline quantiser.

It reads a folder of pictures and prepares them itself. What it is given are PNG files of the network's own
size, each channel stretched over 0 to 255, with the factors that undo that: it then sees the calibration
tensors of the bundle, to within half of 1/255 of their range. Given the tensors as text instead
(``input_type`` "sequence"), that of MNN 3.6.1 ends with ``std::length_error``.

Ranges are chosen by its entropy method ("KL"). Of its others, "ADMM" crashed (SIGSEGV) and "EMA" gave
files that answer at random, on networks of 5 to 15 million multiply-accumulates. A mean over the axes of an
image crashes it too; as a global pooling, which computes the same, it does not.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from smash_base import files
from smash_base.errors import UsageError
from smash_base.sampling import evenly

if TYPE_CHECKING:
    import onnx

IMAGES = 256
_FORMATS = {1: "GRAY", 3: "RGB"}


def quantise(
    source: Path, destination: Path, calibration: np.ndarray | None, run: Callable[[Sequence[str]], None]
) -> None:
    """Write the int8 file of an fp32 file.

    Args:
        source, destination: files of MNN.
        calibration: float32 [N, C, H, W], normalised.
        run: runs the quantiser with these arguments.

    Raises:
        UsageError: no calibration images, or such as no picture can hold.
    """
    if calibration is None:
        raise UsageError("int8 needs calibration images", hint="Freeze the bundle with its data.")
    if calibration.ndim != 4 or calibration.shape[1] not in _FORMATS:
        raise UsageError(
            "MNN's quantiser reads pictures",
            expected="images of 1 or 3 channels",
            received=f"tensors of shape {list(calibration.shape[1:])}",
            hint="Choose onnxruntime or openvino for int8.",
        )
    with files.temporary_folder() as folder:
        pictures = folder / "pictures"
        pictures.mkdir()
        low, step = _write_pictures(calibration, pictures)
        height, width = calibration.shape[2:]
        settings = {
            "format": _FORMATS[calibration.shape[1]],
            "mean": (-low / step).tolist(),
            "normal": step.tolist(),
            "width": width,
            "height": height,
            "path": f"{pictures}/",
            "used_image_num": len(list(pictures.iterdir())),
            "feature_quantize_method": "KL",
            "weight_quantize_method": "MAX_ABS",
        }
        (folder / "settings.json").write_text(json.dumps(settings))
        run([str(source), str(destination), str(folder / "settings.json")])


def _write_pictures(calibration: np.ndarray, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Evenly chosen images as PNG files; gives the value of byte 0 and the step per byte, of each channel."""
    from PIL import Image

    chosen = evenly(calibration, IMAGES)
    low = chosen.min(axis=(0, 2, 3)).astype(np.float64)
    step = np.maximum(chosen.max(axis=(0, 2, 3)) - low, 1e-6) / 255
    planes = np.rint((chosen - low[:, None, None]) / step[:, None, None]).astype(np.uint8)
    for index, image in enumerate(planes.transpose(0, 2, 3, 1)):
        Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image).save(folder / f"{index:03}.png")
    return low, step


def with_pooled_means(path: Path, destination: Path) -> Path:
    """An ONNX file whose means over height and width are global poolings; the given one where it has none."""
    import onnx
    from onnx import helper

    model = onnx.load_model_from_string(path.read_bytes())
    constants = _constants(model.graph)
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if not _is_mean_of_images(node, constants):
            nodes.append(node)
            continue
        keeps = next((item.i for item in node.attribute if item.name == "keepdims"), 1)
        pooled = node.output[0] if keeps else f"{node.output[0]}/pooled"
        nodes.append(helper.make_node("GlobalAveragePool", [node.input[0]], [pooled]))
        if not keeps:
            nodes.append(helper.make_node("Flatten", [pooled], [node.output[0]]))
    if not any(_is_mean_of_images(node, constants) for node in model.graph.node):
        return path
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    destination.write_bytes(model.SerializeToString())
    return destination


def _constants(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    """Initialisers and the values of Constant nodes by name, of one axis and less."""
    from onnx import numpy_helper

    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            tensors[node.output[0]] = node.attribute[0].t
    return {name: numpy_helper.to_array(tensor) for name, tensor in tensors.items() if len(tensor.dims) < 2}


def _is_mean_of_images(node: onnx.NodeProto, constants: dict[str, np.ndarray]) -> bool:
    """Whether it is a mean over axes 2 and 3; the two last ones are these in tensors of images."""
    if node.op_type != "ReduceMean":
        return False
    axes = [list(item.ints) for item in node.attribute if item.name == "axes"]
    if len(node.input) > 1 and node.input[1] in constants:
        axes = [constants[node.input[1]].tolist()]
    return axes in ([[2, 3]], [[-2, -1]], [[-1, -2]], [[3, 2]])

"""What a DLA before TensorRT 11 is given: the fp32 graph at one batch size, and ranges of tensors for int8.

There flags and not the graph decide in which precision a DLA computes. Ranges come in a calibration cache,
which trtexec reads with ``--calib``: a line that names the release and the kind of calibrator, then for each
tensor its name and the scale, range / 127, as the eight hexadecimal digits of a big-endian float.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from smash_base import files
from smash_base.errors import VerificationError
from smash_export.bundle.bundle import Bundle
from smash_targets.tensorrt.check import Verdict, check_onnx
from smash_targets.tensorrt.trtexec import EngineCommand

if TYPE_CHECKING:
    import onnx

_RELEASES = {"8.6": "8602", "10": "100300"}  # 10.3.0 is that of JetPack 6
_KIND = "EntropyCalibration2"  # that of trtexec's calibrator


def write_dla_source(bundle: Bundle, command: EngineCommand, batch: int, method: str, folder: Path) -> None:
    """``model.onnx``, and ``calibration.cache`` where the command reads one.

    Args:
        batch: the only size.
        method: Method that chooses ranges: "minmax", "entropy" or "percentile".
    """
    import onnx

    model = onnx.load_model_from_string(bundle.onnx.read_bytes())
    if command.calibration:
        from smash_export.compiling.precision.calibration import calibration_tensors

        # How many there are was judged when the Q/DQ graph was made, which the CPU has answered for.
        tensors = calibration_tensors(bundle.calibration(), bundle.preprocessing, minimum=1)
        text = calibration_cache(model, tensors, method, command.release)
        files.write_text(folder / command.calibration, text)
    write_fixed_batch(bundle.onnx, batch, folder / command.onnx)


def write_fixed_batch(onnx_file: Path, batch: int, destination: Path) -> None:
    """A copy of an ONNX file for one batch size."""
    import onnx

    model = with_fixed_batch(onnx.load_model_from_string(onnx_file.read_bytes()), batch)
    files.write_bytes(destination, model.SerializeToString(deterministic=True))


def with_fixed_batch(model: onnx.ModelProto, batch: int) -> onnx.ModelProto:
    """A copy whose input and output have one batch size; shapes between them are inferred again."""
    import onnx

    fixed = onnx.ModelProto.FromString(model.SerializeToString())
    for item in (*fixed.graph.input, *fixed.graph.output):
        item.type.tensor_type.shape.dim[0].dim_value = batch
    del fixed.graph.value_info[:]
    return onnx.shape_inference.infer_shapes(fixed)


def calibration_cache(model: onnx.ModelProto, tensors: np.ndarray, method: str, release: str) -> str:
    """The text of a calibration cache for every tensor of a graph.

    Args:
        model: fp32, one input.
        tensors: float32 [N, *input_shape], training images after the one preprocessing.
    """
    from smash_export.compiling.precision.calibration import tensor_ranges

    operators = sorted({node.op_type for node in model.graph.node})
    ranges = tensor_ranges(model, tensors, method, operators)  # type: ignore[arg-type]
    lines = [f"TRT-{_RELEASES[release]}-{_KIND}"]
    for name, (low, high) in sorted(ranges.items()):
        scale = max(abs(low), abs(high)) / 127 or 1 / 127  # a tensor of zeros needs a range too
        lines.append(f"{name}: {struct.pack('>f', scale).hex()}")
    return "\n".join(lines) + "\n"


def read_calibration_cache(text: str) -> dict[str, float]:
    """Largest absolute value of each tensor of a calibration cache, by name."""
    lines = (line.rpartition(": ") for line in text.splitlines()[1:])
    return {name: 127 * struct.unpack(">f", bytes.fromhex(digits))[0] for name, _, digits in lines}


def dla_verdicts(path: Path, command: EngineCommand) -> list[Verdict]:
    """The verdicts of ``check --dla`` on the file that trtexec gets.

    Raises:
        VerificationError: a node or the graph cannot be built.
    """
    release = {"10": "10.3", "11": "11.4"}.get(command.release, command.release)
    verdicts = check_onnx(path, release, True, command.gpu_fallback, command.precision)
    wrong = [item for item in verdicts if item.level == "error"]
    if wrong:
        raise VerificationError(
            f"the DLA would refuse {wrong[0].node or wrong[0].operator}: {wrong[0].reason}",
            hint="See all of them: smash-export check BUNDLE --dla orin",
        )
    return verdicts

"""LiteRT (formerly TensorFlow Lite), with XNNPACK: a .tflite file for phones and boards.

The file is written here, from the ONNX graph (:mod:`smash_targets.litert_writer`), with channels last; int8
is that of the graph, images and logits included, and the session does both roundings. What the writer does
not know goes to Google's converter, from the PyTorch program, and to its quantiser. These bring 2 GB and
their own pins, so they have an environment of their own: ``smash-export doctor --environment litert``. The
batch size is fixed when it is compiled; other batches run in parts of that size.
"""

from __future__ import annotations

import importlib.metadata
import os
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from smash_base.errors import UsageError, VerificationError
from smash_targets.base import (
    CompileRequest,
    CompileResult,
    ModelSignature,
    Session,
    SessionInfo,
    SessionOptions,
)
from smash_targets.common import (
    check_batch,
    check_file,
    check_threads,
    damaged,
    fixed_batch,
    has_module,
    input_type,
    only_cpu,
    run_in_chunks,
    torch_program_of,
)
from smash_targets.isolation.environments import EnvironmentTarget
from smash_targets.litert_writer import CHANNELS_LAST, UnknownOperatorError, write
from smash_targets.onnx_file import read_onnx_facts

_LOWEST, _HIGHEST = np.float32(-128), np.float32(127)
_IDENTIFIER = b"TFL3"  # at byte 4 of the flatbuffer


class LiteRtTarget(EnvironmentTarget):
    """See the head of this module. Option ``batch``: the fixed batch size."""

    name = "litert"
    extra = "litert"
    modules = {"ai_edge_litert": ("ai-edge-litert",)}
    environment = "litert"
    precisions = ("fp32", "int8")
    int8_placement = "whole"
    reads = ("fp32", "int8")
    batch_note = "has one batch size; others run in parts of it"
    compiler = ("litert_torch", "ai_edge_quantizer", "torch")
    install = "pip install ai-edge-litert"

    def starts_from_program(self, onnx: Path) -> bool:
        """Whether the writer is not here or does not know the graph."""
        try:
            return not _can_write() or not _written(onnx, None)
        except UnknownOperatorError:
            return True

    def compile(self, request: CompileRequest, destination: Path) -> CompileResult:
        """Write the file; a graph that the writer does not know is converted, where there is a program."""
        self.check_request(request)
        batch = fixed_batch(request.options, request.signature)
        if not _can_write():
            return super().compile(request, destination)
        try:
            content = _written(request.onnx, batch)
        except UnknownOperatorError as error:
            if request.torch_program is None:
                error.hint = error.hint or "For an adopted file choose onnxruntime, openvino, ncnn or mnn."
                raise
            result = super().compile(request, destination)
            return replace(result, notes={**result.notes, "converted": str(error)})
        (destination / "model.tflite").write_bytes(content)
        return CompileResult("model.tflite", {"batch": batch})

    def _compiling(self) -> str:
        return "" if _can_write() else super()._compiling()

    def compile_here(self, request: CompileRequest, destination: Path) -> CompileResult:
        """Convert for one batch size; quantise if int8 was asked for."""
        source = torch_program_of(request, self.name)
        batch = fixed_batch(request.options, request.signature)
        if request.precision == "int8" and request.calibration is None:
            raise UsageError("int8 needs calibration images", hint="Freeze the bundle with its data.")
        import litert_torch
        import torch

        program = torch.export.load(source)
        module = program.module()
        example = torch.zeros(batch, *request.signature.input_shape, dtype=input_type(program))
        model = litert_torch.convert(module, (example,))
        file = destination / "model.tflite"
        if request.precision == "fp32":
            model.export(str(file))
        else:
            with tempfile.TemporaryDirectory(prefix="smash-export-") as work:
                whole = os.path.join(work, "fp32.tflite")
                model.export(whole)
                _quantise(whole, file, request.calibration, batch)
        return CompileResult("model.tflite", {"batch": batch})

    def open_here(self, path: Path, signature: ModelSignature, options: SessionOptions) -> Session:
        """On the CPU."""
        only_cpu(options, "LiteRT")
        return LiteRtSession(check_file(path, "LiteRT file"), signature, options)


class LiteRtSession(Session):
    """One interpreter, which rounds int8 inputs and logits itself where the file has such."""

    def __init__(self, path: Path, signature: ModelSignature, options: SessionOptions) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self._signature = signature
        threads = check_threads(options.threads) or os.cpu_count() or 1
        content = path.read_bytes()  # by its path it would be mapped: overwritten later, it answers otherwise
        if content[4:8] != _IDENTIFIER:  # the native reader does not check, and crashes
            raise damaged(path, "LiteRT", ValueError("it does not begin like a .tflite file"))
        try:
            self._interpreter = Interpreter(model_content=content, num_threads=threads)
            self._interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            raise damaged(path, "LiteRT", error) from error
        (self._input,) = self._interpreter.get_input_details()
        (self._output,) = self._interpreter.get_output_details()
        self._batch, *shape = map(int, self._input["shape"])
        self._turned = self._input["name"].endswith(CHANNELS_LAST)
        if tuple(shape[-1:] + shape[:-1] if self._turned else shape) != signature.input_shape:
            raise damaged(path, "LiteRT", ValueError(f"its input is {[self._batch, *shape]}"))
        self._rounds = _Rounds(self._input)
        int8 = any(detail["dtype"] is np.int8 for detail in self._interpreter.get_tensor_details())
        self.info = SessionInfo(
            target="litert",
            version=importlib.metadata.version("ai-edge-litert"),
            provider="XNNPACK",
            device="cpu",
            threads=threads,
            precision="int8" if int8 else "fp32",
        )

    def run(self, batch: np.ndarray) -> np.ndarray:
        batch = check_batch(batch, self._signature)
        return run_in_chunks(self._run, batch, self._batch, self._signature.classes)

    def close(self) -> None:
        self._interpreter = None

    def _run(self, images: np.ndarray) -> np.ndarray:
        interpreter = self._interpreter
        rounded = self._rounds(images)
        if self._turned:
            rounded = _channels_last(rounded)
        interpreter.set_tensor(self._input["index"], rounded)
        try:
            interpreter.invoke()
        except RuntimeError as error:
            raise VerificationError("LiteRT failed to run the network", received=error) from error
        result: np.ndarray = interpreter.get_tensor(self._output["index"])
        if self._output["dtype"] is np.float32:
            return result
        scale, zero = self._output["quantization"]
        logits: np.ndarray = (result.astype(np.float32) - zero) * np.float32(scale)
        return logits


class _Rounds:
    """Images in the type that a file takes."""

    def __init__(self, detail: Mapping[str, Any]) -> None:
        self._type = np.dtype(detail["dtype"])
        if self._type == np.int8:
            scale, zero = detail["quantization"]
            self._factor, self._zero = np.float32(1 / scale), np.float32(zero)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        if self._type == np.float32:
            return images
        if self._type == np.uint8:  # a baked file takes the bytes themselves
            return images.astype(np.uint8)
        rounded: np.ndarray = images * self._factor
        rounded += self._zero
        np.rint(rounded, out=rounded)
        np.minimum(rounded, _HIGHEST, out=rounded)
        np.maximum(rounded, _LOWEST, out=rounded)
        return rounded.astype(np.int8)


def _channels_last(images: np.ndarray) -> np.ndarray:
    """[B, C, H, W] -> [B, H, W, C]; plane by plane where they are few, which is faster."""
    if images.shape[1] > 4:
        return np.ascontiguousarray(images.transpose(0, 2, 3, 1))
    turned = np.empty((len(images), *images.shape[2:], images.shape[1]), images.dtype)
    for channel in range(images.shape[1]):
        turned[..., channel] = images[:, channel]
    return turned


def _can_write() -> bool:
    """Whether there is what reads ONNX graphs, and the schema of the file."""
    return has_module("onnx") and has_module("ai_edge_litert")


def _written(path: Path, batch: int | None) -> bytes:
    """The file of an ONNX graph; for any batch size that it takes if None.

    Raises:
        UnknownOperatorError: a graph that the writer does not know.
    """
    import onnx

    read_onnx_facts(path)  # no weights in other files
    return write(onnx.load_model_from_string(path.read_bytes()), batch)


def _quantise(source: str, destination: Path, calibration: np.ndarray | None, batch: int) -> None:
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import quantizer, recipe

    assert calibration is not None
    signatures = Interpreter(model_path=source).get_signature_list()
    name, names = next(iter(signatures.items()))
    images = calibration[: len(calibration) // batch * batch].reshape(-1, batch, *calibration.shape[1:])
    job = quantizer.Quantizer(source, recipe.static_wi8_ai8())
    statistics = job.calibrate({name: [{names["inputs"][0]: part} for part in images]})
    job.quantize(statistics).export_model(str(destination), overwrite=True)

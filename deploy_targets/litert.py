"""LiteRT (formerly TensorFlow Lite), with XNNPACK: a .tflite file for phones and boards.

The runtime is small and installs beside the others; the converter brings 2 GB and its own pins, so it has an
environment of its own: ``smash-export doctor --environment litert``. The batch size is fixed when it is
compiled, since its converter writes the example's batch size into reductions; other batches run in parts of
that size.

int8 is quantised by Google's quantiser from calibration images, inputs and logits included; the session
does both roundings.
"""

from __future__ import annotations

import importlib.metadata
import os
import tempfile
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
    input_type,
    only_cpu,
    run_in_chunks,
    torch_program_of,
)
from smash_targets.isolation.environments import EnvironmentTarget

_IDENTIFIER = b"TFL3"  # at byte 4 of the flatbuffer


class LiteRtTarget(EnvironmentTarget):
    """See the head of this module. Option ``batch``: the fixed batch size."""

    name = "litert"
    extra = "litert"
    modules = {"ai_edge_litert": ("ai-edge-litert",)}
    environment = "litert"
    precisions = ("fp32", "int8")
    precision_source = "target"
    needs_torch_program = True
    batch_note = "has one batch size; others run in parts of it"
    compiler = ("litert_torch", "ai_edge_quantizer", "torch")
    options = ("batch",)
    install = "pip install ai-edge-litert"

    def compile_here(self, request: CompileRequest, destination: Path) -> CompileResult:
        """Convert for one batch size; quantise if int8 was asked for."""
        source = torch_program_of(request, self.name)
        batch = fixed_batch(request)
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
        with path.open("rb") as stream:
            if stream.read(8)[4:] != _IDENTIFIER:  # the native reader does not check, and crashes
                raise damaged(path, "LiteRT", ValueError("it does not begin like a .tflite file"))
        try:
            self._interpreter = Interpreter(model_path=str(path), num_threads=threads)
            self._interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            raise damaged(path, "LiteRT", error) from error
        (self._input,) = self._interpreter.get_input_details()
        (self._output,) = self._interpreter.get_output_details()
        shape = tuple(map(int, self._input["shape"]))
        if shape[1:] != signature.input_shape:
            raise damaged(path, "LiteRT", ValueError(f"its input is {list(shape)}"))
        self._batch = shape[0]
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
        interpreter.set_tensor(self._input["index"], _quantised(images, self._input))
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


def _quantised(images: np.ndarray, detail: dict[str, Any]) -> np.ndarray:
    if detail["dtype"] is np.float32:
        return images
    if detail["dtype"] is np.uint8:  # a baked file takes the bytes themselves
        return images.astype(np.uint8)
    scale, zero = detail["quantization"]
    limits = np.iinfo(detail["dtype"])
    rounded: np.ndarray = np.rint(images / np.float32(scale)) + zero
    return rounded.clip(limits.min, limits.max).astype(detail["dtype"])


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

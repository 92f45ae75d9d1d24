"""OpenVINO: ONNX becomes IR (model.xml and model.bin), which runs on CPU, GPU or NPU of Intel, and on
the CPU of others.

The precision is always said aloud: left alone, OpenVINO computes in bf16 on processors that have it and
in fp32 on others, so that the same file answers differently. fp16 files hold fp16 weights; a CPU
computes them in fp32. int8 comes as the Q/DQ graph that every other runtime gets, not from OpenVINO's own
quantiser: one calibration and one accuracy loop, and differences between rows are those of the runtimes.

``import openvino`` sends a usage event over the network, from its converter ``openvino.tools.ovc``. The
converter is not needed here and is kept out of the import.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np

from smash_base.errors import InvalidInputError, MissingRuntimeError
from smash_base.json_values import JsonObject
from smash_targets.base import (
    Availability,
    CompileRequest,
    CompileResult,
    ModelSignature,
    Session,
    SessionInfo,
    SessionOptions,
    Target,
)
from smash_targets.common import check_batch, check_file, check_threads, damaged, find_runtime
from smash_targets.onnx_file import read_onnx_facts

_CONVERTER = "openvino.tools.ovc"
_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16", "int8": "f32"}
_NAMES = {
    "float32": "fp32",
    "f32": "fp32",
    "bfloat16": "bf16",
    "bf16": "bf16",
    "float16": "fp16",
    "f16": "fp16",
}
_RT_INFO = ["smash_export", "precision"]


class OpenVinoTarget(Target):
    """See the head of this module."""

    name = "openvino"
    extra = "openvino"
    modules = {"openvino": ("openvino",)}
    precisions = ("fp32", "bf16", "fp16", "int8")
    batch_note = "takes every batch size; the one named when it is opened runs fastest"

    def availability(self) -> Availability:
        return find_runtime(self, "pip install openvino")

    def compile(self, request: CompileRequest, destination: Path) -> CompileResult:
        """Convert; types of the graph are kept as they are."""
        self.require()
        self.check_request(request)
        read_onnx_facts(request.onnx)  # no weights in other files
        openvino = import_openvino()
        try:
            model = openvino.Core().read_model(str(request.onnx))
        except RuntimeError as error:
            raise damaged(request.onnx, "OpenVINO", error) from error
        model.set_rt_info(request.precision, _RT_INFO)
        openvino.save_model(model, str(destination / "model.xml"), compress_to_fp16=False)
        return CompileResult("model.xml")

    def open(self, path: Path, signature: ModelSignature, options: SessionOptions) -> Session:
        """``options.device`` (or ``provider``) is "cpu", "gpu", "gpu.1" or "npu"; ``options.batch`` is the
        batch size to be fast for, the usual one of the signature without it."""
        self.require()
        check_file(path, "OpenVINO file")
        check_file(path.with_suffix(".bin"), "OpenVINO weights")
        with path.open("rb") as stream:
            if not stream.read(64).lstrip().startswith(b"<?xml"):  # else OpenVINO tries TensorFlow, loudly
                raise damaged(path, "OpenVINO", ValueError("it does not begin like XML"))
        openvino = import_openvino()
        core = openvino.Core()
        core.set_property({"ENABLE_MMAP": False})  # a file that is overwritten later changes no answer
        device = _device(core, options)
        try:
            model = core.read_model(str(path))
        except RuntimeError as error:
            raise damaged(path, "OpenVINO", error) from error
        _check_signature(model, signature, path)
        stored = model.get_rt_info(_RT_INFO).astype(str) if model.has_rt_info(_RT_INFO) else "fp32"
        settings: JsonObject = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": _hint(stored, device),
        }
        if device == "CPU":
            # One image at a time uses all threads; pinned threads of two processes can share a core.
            settings |= {"NUM_STREAMS": 1, "ENABLE_CPU_PINNING": False}
            if check_threads(options.threads) is not None:
                settings["INFERENCE_NUM_THREADS"] = options.threads
        batch = options.batch or signature.batch[1]
        return OpenVinoSession(core, model, device, settings, batch, signature, openvino.__version__, stored)


class OpenVinoSession(Session):
    """Kernels for one fixed batch size, which are 1.2 to 1.6 times faster than those for any; the others
    are compiled when another batch size first comes."""

    def __init__(
        self,
        core: Any,
        model: Any,
        device: str,
        settings: JsonObject,
        batch: int,
        signature: ModelSignature,
        version: str,
        stored: str,
    ) -> None:
        self._core, self._model, self._device, self._settings = core, model, device, settings
        self._batch = batch
        self._signature = signature
        self._any: Any = None
        fixed = model.clone()
        if fixed.inputs[0].partial_shape.is_dynamic:
            fixed.reshape({0: [batch, *signature.input_shape]})
        else:
            self._batch = int(fixed.inputs[0].shape[0])
        self._fixed, compiled = self._request(fixed)
        # Arrays of the request itself: handing it a dictionary of arrays costs 14 of 76 microseconds.
        self._images: np.ndarray = self._fixed.get_input_tensor(0).data
        self._logits: np.ndarray = self._fixed.get_output_tensor(0).data
        hint = str(_value(compiled, "INFERENCE_PRECISION_HINT"))
        used = next((name for key, name in _NAMES.items() if f"'{key}'" in hint), hint)
        self.info = SessionInfo(
            target="openvino",
            version=version.partition("-")[0],
            provider=device,
            device=device.lower(),
            threads=int(_value(compiled, "INFERENCE_NUM_THREADS") or 0),
            # On a CPU, fp16 is how weights are stored; what it computes in is the hint read back.
            precision=stored if stored in ("int8", "fp16") else used,
        )

    def run(self, batch: np.ndarray) -> np.ndarray:
        batch = check_batch(batch, self._signature)
        if len(batch) == self._batch:
            self._images[...] = batch
            self._fixed.infer()
            return self._logits.copy()
        if self._any is None:
            if not self._model.inputs[0].partial_shape.is_dynamic:
                raise InvalidInputError(
                    "this network takes one batch size", expected=self._batch, received=len(batch)
                )
            self._any, _ = self._request(self._model)
        logits: np.ndarray = self._any.infer({0: batch}, share_inputs=True, share_outputs=False)[0]
        return logits

    def close(self) -> None:
        self._fixed = self._any = None
        del self._images, self._logits

    def _request(self, model: Any) -> tuple[Any, Any]:
        try:
            compiled = self._core.compile_model(model, self._device, self._settings)
        except RuntimeError as error:
            raise damaged(Path(model.get_friendly_name()), "OpenVINO", error) from error
        return compiled.create_infer_request(), compiled


def import_openvino() -> Any:
    """OpenVINO without its converter; see the head of this module."""
    if "openvino" not in sys.modules and _CONVERTER not in sys.modules:
        sys.modules[_CONVERTER] = None  # type: ignore[assignment]  # import machinery: "there is none"
        try:
            return importlib.import_module("openvino")
        finally:
            del sys.modules[_CONVERTER]
    return importlib.import_module("openvino")


def _device(core: Any, options: SessionOptions) -> str:
    asked = (options.provider or options.device or "cpu").upper()
    there: list[str] = core.available_devices
    if asked in there or any(name.startswith(f"{asked}.") for name in there):
        return asked
    if options.allow_fallback and "CPU" in there:
        return "CPU"
    raise MissingRuntimeError(
        f"OpenVINO finds no device {asked}",
        expected=", ".join(there),
        received=asked,
        hint=f"Choose {' or '.join(there)}, or install the driver: https://docs.openvino.ai",
    )


def _hint(stored: str, device: str) -> str:
    # A processor without fp16 arithmetic refuses the hint f16; fp16 weights compute in fp32 there.
    return "f32" if device == "CPU" and stored == "fp16" else _HINTS[stored]


def _value(compiled: Any, name: str) -> Any:
    return compiled.get_property(name) if name in compiled.get_property("SUPPORTED_PROPERTIES") else None


def _check_signature(model: Any, signature: ModelSignature, path: Path) -> None:
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise InvalidInputError(f"{path} is another network", expected="one input and one output")
    shape = model.inputs[0].partial_shape
    sizes = tuple(-1 if size.is_dynamic else size.get_length() for size in shape)
    if len(sizes) != 1 + len(signature.input_shape) or any(
        size not in (-1, wanted) for size, wanted in zip(sizes[1:], signature.input_shape, strict=True)
    ):
        raise InvalidInputError(
            f"{path} is another network",
            expected=f"input [B, {', '.join(map(str, signature.input_shape))}]",
            received=f"input {list(sizes)}",
        )

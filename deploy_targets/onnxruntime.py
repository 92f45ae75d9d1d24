"""ONNX Runtime: the bundle's ONNX as it is, on the CPU, CUDA, TensorRT or OpenVINO provider.

Any distribution that provides the module ``onnxruntime`` will do; which providers it brings differs:
``onnxruntime`` (CPU), ``onnxruntime-gpu`` (CUDA and TensorRT), ``onnxruntime-openvino``.

ONNX Runtime falls back to the CPU with no more than a logged line when a provider does not load. Here
the provider that was asked for is compared with those of the session, and another one is an error.
"""

from __future__ import annotations

import shutil
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from smash_base.errors import InvalidInputError, MissingRuntimeError, UsageError
from smash_targets.base import (
    Availability,
    CompileRequest,
    CompileResult,
    ModelSignature,
    Precision,
    Session,
    SessionInfo,
    SessionOptions,
    Target,
    TritonBackend,
)
from smash_targets.common import (
    check_batch,
    check_threads,
    damaged,
    find_runtime,
    gpu_number,
    kind_of_device,
)
from smash_targets.onnx_file import OnnxFacts, read_onnx_facts
from smash_targets.onnxruntime_gpu import (
    cache_folder,
    cuda_options,
    require_linked_tensorrt,
    tensorrt_options,
)

DISTRIBUTIONS = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-openvino",
    "onnxruntime-directml",
    "onnxruntime-rocm",
    "onnxruntime-qnn",
)
# short name -> (name in ONNX Runtime, what installs it)
PROVIDERS = {
    "cpu": ("CPUExecutionProvider", "pip install onnxruntime"),
    "cuda": ("CUDAExecutionProvider", "pip install onnxruntime-gpu"),
    "tensorrt": ("TensorrtExecutionProvider", 'pip install onnxruntime-gpu "tensorrt-cu13>=10,<11"'),
    "openvino": ("OpenVINOExecutionProvider", "pip install onnxruntime-openvino"),
}
EP_CONTEXT = "EPContext"  # the operator that holds an engine
NOT_RUN = "not run on hardware by its authors"
_ERROR = 3  # severity from which ONNX Runtime writes to stderr

_open_sessions: weakref.WeakSet[OnnxRuntimeSession] = weakref.WeakSet()


class OnnxRuntimeTarget(Target):
    """See the head of this module."""

    name = "onnxruntime"
    extra = "cpu"
    modules = {"onnxruntime": DISTRIBUTIONS}
    triton = TritonBackend("onnx", "onnxruntime", "model.onnx")
    precisions = ("fp32", "fp16", "int8")
    batch_note = "takes every batch size"
    options = ("ep_context",)

    def availability(self) -> Availability:
        return find_runtime(self, "pip install onnxruntime")

    def check_options(
        self, options: Mapping[str, Any], signature: ModelSignature, precision: Precision
    ) -> None:
        super().check_options(options, signature, precision)
        context = options.get("ep_context", False)
        if not isinstance(context, bool):
            raise UsageError("option ep_context", expected="true or false", received=context)

    def compile(self, request: CompileRequest, destination: Path) -> CompileResult:
        """Copy the ONNX file, whose fp16 casts or Q/DQ nodes are there already; optimisation happens at
        :meth:`open`, for the processor that runs it.

        Option ``ep_context``: true makes the TensorRT provider build its engine now and keep it inside the
        file, which only this GPU and this ONNX Runtime open then (not run on hardware).
        """
        self.require()
        self.check_request(request)
        facts = read_onnx_facts(request.onnx)
        if request.options.get("ep_context", False):
            return _write_ep_context(request, destination)
        shutil.copyfile(request.onnx, destination / "model.onnx")
        return CompileResult("model.onnx", {"operators": sorted(facts.operators)})

    def open(self, path: Path, signature: ModelSignature, options: SessionOptions) -> Session:
        """``options.provider`` is "cpu", "cuda", "tensorrt", "openvino" or a name of ONNX Runtime's own;
        without one, ``options.device`` decides: "cpu", "cuda" or "cuda:NUMBER"."""
        self.require()
        facts = read_onnx_facts(path)
        import onnxruntime

        onnxruntime.disable_telemetry_events()  # where it was imported before smash_base could say so
        provider = _provider(options, facts)
        providers = _with_settings(onnxruntime, provider, options, path, signature, facts.precision)
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = _ERROR
        threads = check_threads(options.threads)
        if threads is not None:
            settings.intra_op_num_threads = threads
        if threads == 1 or _open_sessions:
            # Idle threads of one session spin on cores that another one needs: 10 to 40 times slower.
            settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            session = onnxruntime.InferenceSession(path, settings, providers=providers)
        except Exception as error:  # its errors have no common base but Exception
            raise damaged(path, "ONNX Runtime", error) from error
        session.disable_fallback()  # else an error of the provider means the CPU from then on
        used = session.get_providers()
        if provider not in used and not options.allow_fallback:
            raise _not_there(provider, f"ONNX Runtime opened the file with {', '.join(used)} instead")
        _check_signature(session, signature, path)
        on_gpu = used[0] in ("CUDAExecutionProvider", "TensorrtExecutionProvider")
        return OnnxRuntimeSession(
            session,
            signature,
            SessionInfo(
                target=self.name,
                version=onnxruntime.__version__,
                provider=used[0],
                device=_gpu(options) if on_gpu else "cpu",
                threads=session.get_session_options().intra_op_num_threads,
                precision=facts.precision,
            ),
        )


class OnnxRuntimeSession(Session):
    """One ``InferenceSession``; ONNX Runtime allows concurrent runs of it."""

    thread_safe = True

    def __init__(self, session: Any, signature: ModelSignature, info: SessionInfo) -> None:
        self._session = session
        self._signature = signature
        self._outputs = [signature.output_name]
        self.info = info
        _open_sessions.add(self)

    def run(self, batch: np.ndarray) -> np.ndarray:
        batch = check_batch(batch, self._signature)
        answers: list[np.ndarray] = self._session.run(self._outputs, {self._signature.input_name: batch})
        return answers[0]  # a new array for every run

    def close(self) -> None:
        _open_sessions.discard(self)
        self._session = None


def _provider(options: SessionOptions, facts: OnnxFacts) -> str:
    """ONNX Runtime's name of the provider that was asked for."""
    asked = options.provider
    if asked is None and EP_CONTEXT in facts.operators:
        asked = "tensorrt"  # nothing else can run an engine
    if asked is None:
        asked = kind_of_device(options.device)
    if asked.lower() in PROVIDERS:
        return PROVIDERS[asked.lower()][0]
    if not asked.endswith("ExecutionProvider"):
        raise UsageError(
            f"ONNX Runtime has no provider {asked!r}", expected=", ".join(PROVIDERS), received=asked
        )
    return asked


def _with_settings(
    onnxruntime: Any,
    provider: str,
    options: SessionOptions,
    path: Path,
    signature: ModelSignature,
    precision: str,
) -> list[tuple[str, dict[str, str]]]:
    """Providers in order of preference; the CPU takes what the first one leaves."""
    cpu: tuple[str, dict[str, str]] = ("CPUExecutionProvider", {})
    if provider not in onnxruntime.get_available_providers():
        if not options.allow_fallback:
            names = ", ".join(onnxruntime.get_available_providers())
            raise _not_there(provider, f"this build of ONNX Runtime has {names}")
        return [cpu]
    if provider == "CPUExecutionProvider":
        return [cpu]
    settings: dict[str, str] = {}
    if provider in ("CUDAExecutionProvider", "TensorrtExecutionProvider"):
        number = int(_gpu(options).partition(":")[2])
        if hasattr(onnxruntime, "preload_dlls"):
            onnxruntime.preload_dlls()  # CUDA from pip packages, which no loader path names
        if provider == "CUDAExecutionProvider":
            settings = cuda_options(number)
        else:
            require_linked_tensorrt()
            settings = tensorrt_options(signature, cache_folder(path), device=number, precision=precision)
    if provider == "OpenVINOExecutionProvider":
        settings["device_type"] = "CPU"
        settings["precision"] = "FP32"  # its default is bf16 on processors that have it
    return [(provider, settings), cpu]


def _write_ep_context(request: CompileRequest, destination: Path) -> CompileResult:
    import onnxruntime

    provider, _ = PROVIDERS["tensorrt"]
    if provider not in onnxruntime.get_available_providers():
        names = ", ".join(onnxruntime.get_available_providers())
        raise _not_there(provider, f"this build of ONNX Runtime has {names}", fallback=False)
    require_linked_tensorrt()
    result = destination / "model.onnx"
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = _ERROR
    options = tensorrt_options(
        request.signature,
        cache_folder(request.onnx),
        precision=request.precision,
        ep_context=result,
    )
    try:
        session = onnxruntime.InferenceSession(request.onnx, settings, providers=[(provider, options)])
    except Exception as error:  # its errors have no common base but Exception
        raise damaged(request.onnx, "ONNX Runtime", error) from error
    used = session.get_providers()
    if provider not in used or not result.is_file():
        raise _not_there(provider, f"ONNX Runtime opened the file with {', '.join(used)}", fallback=False)
    return CompileResult(
        result.name, {"ep_context": "an engine of this GPU, driver and TensorRT", "status": NOT_RUN}
    )


def _gpu(options: SessionOptions) -> str:
    return f"cuda:{gpu_number(options.device, 'this provider of ONNX Runtime')}"


def _not_there(provider: str, why: str, fallback: bool = True) -> MissingRuntimeError:
    command = next((command for name, command in PROVIDERS.values() if name == provider), None)
    return MissingRuntimeError(
        f"the provider {provider} cannot be used here: {why}",
        hint=_advice(command, fallback),
    )


def _advice(command: str | None, fallback: bool) -> str | None:
    if not fallback:
        return f"Install it: {command}" if command else None
    other = "choose another device or provider (in Python, SessionOptions(allow_fallback=True) takes the CPU)"
    return f"Install it: {command}; or {other}." if command else f"To go on, {other}."


def _check_signature(session: Any, signature: ModelSignature, path: Path) -> None:
    inputs = [(item.name, item.type) for item in session.get_inputs()]
    outputs = [(item.name, item.type) for item in session.get_outputs()]
    expected = [(signature.input_name, "tensor(float)")], [(signature.output_name, "tensor(float)")]
    if (inputs, outputs) != expected:
        raise InvalidInputError(
            f"{path} is another network",
            expected=f"input {expected[0]} and output {expected[1]}",
            received=f"input {inputs} and output {outputs}",
        )

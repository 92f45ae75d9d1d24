"""ONNX Runtime: the ONNX file itself, run by one execution provider that was really taken.

ONNX Runtime falls back to the CPU with a logged line when a provider cannot be loaded. Here that is an
error unless the caller allows it: what a session uses is read back and reported.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from deploy_targets.base import (
    Availability,
    CompileRequest,
    CompileResult,
    ModelSignature,
    Precision,
    Session,
    SessionInfo,
    SessionOptions,
    Target,
)
from smash_base.errors import InvalidInputError, MissingRuntimeError, UsageError

FILE = "model.onnx"
PROVIDERS = {  # short name on the command line -> name in ONNX Runtime
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
}


class OnnxRuntimeTarget(Target):
    """See the module. ``provider`` is one of ``cpu``, ``cuda``, ``tensorrt``, ``openvino``."""

    name = "onnxruntime"
    extra = "cpu"
    precisions: tuple[Precision, ...] = ("fp32", "fp16", "int8")
    precision_source = "onnx"

    def availability(self) -> Availability:
        """Any distribution that provides the module ``onnxruntime`` will do."""
        install = "pip install 'smash-export[cpu]'"
        try:
            import onnxruntime
        except ImportError as error:
            return Availability(False, reason=str(error), install=install)
        return Availability(True, onnxruntime.__version__)

    def compile(self, request: CompileRequest, destination: Path) -> CompileResult:
        """Copy the ONNX file: the runtime optimises it when it opens it, for the machine at hand."""
        self.check_request(request)
        self.require()
        shutil.copyfile(request.onnx, destination / FILE)
        return CompileResult(FILE)

    def open(self, path: Path, signature: ModelSignature, options: SessionOptions) -> Session:
        """Open with the wished provider and threads; see :meth:`Target.open`."""
        self.require()
        return OnnxRuntimeSession(path, signature, options, target=self)


class OnnxRuntimeSession(Session):
    """An open ONNX file. Runs may overlap: ONNX Runtime's sessions are safe for threads."""

    thread_safe = True

    def __init__(
        self, path: Path, signature: ModelSignature, options: SessionOptions, target: Target
    ) -> None:
        import onnxruntime

        wanted = _provider(options)
        available = onnxruntime.get_available_providers()
        if wanted not in available and not options.allow_fallback:
            raise MissingRuntimeError(
                f"ONNX Runtime {onnxruntime.__version__} has no {wanted} here",
                expected=wanted,
                received=", ".join(available),
                hint="Install the build that has it, or pass --allow-fallback.",
            )
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 4  # failures arrive as exceptions
        threads = options.threads or 0
        if threads:
            settings.intra_op_num_threads = threads
        settings.inter_op_num_threads = 1
        if threads == 1:
            # Spinning pools of several sessions slow each other down by an order of magnitude.
            settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        chain = [name for name in (wanted, "CPUExecutionProvider") if name in available]
        try:
            self._session: Any = onnxruntime.InferenceSession(
                str(path), settings, providers=list(dict.fromkeys(chain))
            )
        except Exception as error:  # its exception types are not part of its interface
            if not Path(path).exists():
                raise InvalidInputError(f"{path} does not exist", expected="an ONNX file") from None
            raise InvalidInputError(
                f"ONNX Runtime cannot open {path}", expected="a whole ONNX file", received=error
            ) from None
        used = self._session.get_providers()[0]
        if used != wanted and not options.allow_fallback:
            raise MissingRuntimeError(
                f"ONNX Runtime fell back to {used}",
                expected=wanted,
                received=used,
                hint="Check the driver and libraries of that provider, or pass --allow-fallback.",
            )
        self._check(path, signature)
        self._input, self._output = signature.input_name, signature.output_name
        device = "cpu" if used in ("CPUExecutionProvider", "OpenVINOExecutionProvider") else "cuda:0"
        self.info = SessionInfo(
            target=target.name,
            version=onnxruntime.__version__,
            provider=used,
            device=device,
            threads=threads,
            precision=self._precision(path),
        )

    def _check(self, path: Path, signature: ModelSignature) -> None:
        names = [value.name for value in self._session.get_inputs()]
        outputs = [value.name for value in self._session.get_outputs()]
        if names != [signature.input_name] or signature.output_name not in outputs:
            raise InvalidInputError(
                f"{path} has other inputs or outputs",
                expected=f"{signature.input_name} -> {signature.output_name}",
                received=f"{', '.join(names)} -> {', '.join(outputs)}",
            )

    @staticmethod
    def _precision(path: Path) -> str:
        return path.parent.name if path.parent.name in ("fp32", "fp16", "int8") else "fp32"

    def run(self, batch: np.ndarray) -> np.ndarray:
        """See :meth:`Session.run`."""
        return self._session.run([self._output], {self._input: batch})[0]

    def close(self) -> None:
        """Drop the session; its memory goes with it."""
        self._session = None


def _provider(options: SessionOptions) -> str:
    name = options.provider or ("cuda" if (options.device or "").startswith("cuda") else "cpu")
    if name in PROVIDERS:
        return PROVIDERS[name]
    if name in PROVIDERS.values():
        return name
    raise UsageError(
        f"there is no execution provider {name!r}", expected=", ".join(PROVIDERS), received=name
    )

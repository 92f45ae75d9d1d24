"""TorchScript: the traced file, frozen. Deprecated by PyTorch since 2.11; kept because it is asked for."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from deploy_targets.base import (
    Availability,
    CompileRequest,
    CompileResult,
    ModelSignature,
    Session,
    SessionInfo,
    SessionOptions,
    Target,
)
from smash_base.errors import InvalidInputError, MissingRuntimeError, UsageError

FILE = "model.torchscript.pt"


class TorchScriptTarget(Target):
    """The traced network in PyTorch itself."""

    name = "torchscript"
    extra = "search"
    deprecated = "TorchScript is deprecated since PyTorch 2.11; prefer ONNX Runtime or torch_export."

    def availability(self) -> Availability:
        """PyTorch with torch.jit."""
        install = "pip install 'smash-export[search]'"
        try:
            import torch
        except ImportError as error:
            return Availability(False, reason=str(error), install=install)
        if not hasattr(torch, "jit"):
            return Availability(False, torch.__version__, "this PyTorch has no torch.jit", install)
        return Availability(True, torch.__version__)

    def compile(self, request: CompileRequest, destination: Path) -> CompileResult:
        """Copy the traced file of the bundle; it is frozen when it is opened."""
        self.check_request(request)
        self.require()
        if request.torchscript is None:
            raise UsageError(
                "this bundle has no TorchScript file",
                expected="model.torchscript.pt",
                hint="Freeze the network with this version, or take another target.",
            )
        shutil.copyfile(request.torchscript, destination / FILE)
        return CompileResult(FILE)

    def open(self, path: Path, signature: ModelSignature, options: SessionOptions) -> Session:
        """Load, freeze and warm up; see :meth:`Target.open`. A TorchScript file is a program: open
        only files whose origin is known (bundles are checked by hash)."""
        self.require()
        return TorchScriptSession(path, signature, options)


class TorchScriptSession(Session):
    """A loaded and frozen trace."""

    thread_safe = True

    def __init__(self, path: Path, signature: ModelSignature, options: SessionOptions) -> None:
        import torch

        device = options.device or "cpu"
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise MissingRuntimeError("PyTorch finds no CUDA device", expected=device, received="cpu")
        if options.threads:
            torch.set_num_threads(options.threads)  # of the process: PyTorch has no other setting
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the deprecation is told once, by the target
                module = torch.jit.load(str(path), map_location=device).eval()
                self._module: Any = torch.jit.freeze(module)
        except (RuntimeError, ValueError, OSError) as error:
            raise InvalidInputError(
                f"PyTorch cannot open {path}", expected="a whole TorchScript file", received=error
            ) from None
        self._torch, self._device = torch, device
        self.info = SessionInfo(
            target="torchscript",
            version=torch.__version__,
            provider="torch.jit",
            device=device,
            threads=torch.get_num_threads(),
            precision="fp32",
        )
        example = np.zeros((signature.batch[0], *signature.input_shape), np.float32)
        for _ in range(3):  # the profiling executor specialises in its first runs
            self.run(example)

    def run(self, batch: np.ndarray) -> np.ndarray:
        """See :meth:`Session.run`."""
        with self._torch.inference_mode():
            output = self._module(self._torch.from_numpy(batch).to(self._device))
        return output.cpu().numpy().copy()

    def close(self) -> None:
        """Drop the module."""
        self._module = None

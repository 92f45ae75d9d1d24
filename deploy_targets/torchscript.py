"""TorchScript: the traced file, frozen. Deprecated by PyTorch; kept because devices still load it.

A TorchScript file is a program: open only those that you or people you trust made.

PyTorch's thread count belongs to the process, not to a model. A session sets it while it is open and
puts the earlier one back when it closes.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from smash_base.errors import MissingRuntimeError, UsageError, VerificationError
from smash_targets.base import (
    Availability,
    CompileRequest,
    CompileResult,
    ModelSignature,
    Session,
    SessionInfo,
    SessionOptions,
    Target,
    TritonBackend,
)
from smash_targets.common import check_batch, check_file, check_threads, damaged, find_runtime

INSTALL = "pip install torch"
TYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
_EXTRA = "precision.txt"  # inside the archive, where TorchScript keeps files of its users


class TorchScriptTarget(Target):
    """See the head of this module."""

    name = "torchscript"
    extra = "search"
    modules = {"torch": ("torch",)}
    imports_torch = True
    # TorchScript has no names: Triton's backend goes by position.
    triton = TritonBackend("torchscript", "pytorch", "model.pt", "INPUT__0", "OUTPUT__0")
    precisions = ("fp32", "bf16", "fp16")
    precision_source = "target"
    batch_note = "takes every batch size"
    deprecated = "PyTorch deprecated TorchScript in 2.11; prefer onnxruntime, or torch_export"

    def availability(self) -> Availability:
        return find_runtime(self, INSTALL)

    def compile(self, request: CompileRequest, destination: Path) -> CompileResult:
        """Freeze the traced file: parameters become constants, and what only training needs goes.

        bf16 and fp16 round the weights and compute in that type; inputs and logits stay float32.
        """
        self.require()
        self.check_request(request)
        if request.torchscript is None:
            raise UsageError(
                "this bundle has no TorchScript file",
                expected="a bundle that freeze or train wrote, or one of an adopted TorchScript file",
                hint="For an adopted ONNX file choose onnxruntime, openvino, ncnn or mnn.",
            )
        import torch

        with no_deprecation_warnings():
            module = _load(request.torchscript, "cpu", {})
            if hasattr(module, "training"):  # else it was frozen already
                module.eval().to(getattr(torch, TYPES[request.precision]))
                module = torch.jit.freeze(module)
            elif request.precision != "fp32":
                raise UsageError(
                    f"this TorchScript file is frozen and cannot become {request.precision}",
                    hint="Compile it at fp32, or trace the network without freezing it.",
                )
            # Through memory: on a full disk PyTorch's own writer aborts the process.
            content = io.BytesIO()
            torch.jit.save(module, content, _extra_files={_EXTRA: request.precision})
        (destination / "model.pt").write_bytes(content.getvalue())
        return CompileResult("model.pt")

    def open(self, path: Path, signature: ModelSignature, options: SessionOptions) -> Session:
        """``options.device`` is "cpu", "cuda" or "cuda:NUMBER"."""
        self.require()
        import torch

        device = torch_device(options)
        facts = {_EXTRA: ""}
        with no_deprecation_warnings():
            module = _load(path, device, facts)
        stored: str | bytes = facts[_EXTRA]
        precision = stored.decode() if isinstance(stored, bytes) else stored
        return TorchSession(
            module,
            signature,
            SessionInfo(
                target=self.name,
                version=torch.__version__,
                provider="torch.jit",
                device=device,
                threads=options.threads or torch.get_num_threads(),
                precision=precision or "fp32",
            ),
        )


class TorchSession(Session):
    """A callable that maps a tensor [B, C, H, W] to logits [B, K], on one device."""

    def __init__(self, function: Any, signature: ModelSignature, info: SessionInfo) -> None:
        import torch

        self._torch: Any = torch
        self._function = function
        self._signature = signature
        self._type = getattr(torch, TYPES[info.precision])
        self._threads_before = torch.get_num_threads()
        self.info = info
        self._use_threads(check_threads(info.threads) or 1)

    def run(self, batch: np.ndarray) -> np.ndarray:
        torch = self._torch
        self._use_threads(self.info.threads)  # training, or another session, may have changed it
        images = torch.from_numpy(check_batch(batch, self._signature))
        with torch.inference_mode(), self._true_fp32():
            logits = self._function(images.to(self.info.device, self._type))
            # copy=True: a module may return a view of something that it uses again
            result: np.ndarray = logits.to("cpu", torch.float32, copy=True).numpy()
        if result.shape != (len(batch), self._signature.classes):  # a file that was traced for one batch size
            raise VerificationError(
                f"{self.info.target} gave no logits for every image",
                expected=[len(batch), self._signature.classes],
                received=list(result.shape),
            )
        return result

    def close(self) -> None:
        self._function = None
        self._use_threads(self._threads_before)

    def _use_threads(self, threads: int) -> None:
        if self._torch.get_num_threads() != threads:
            self._torch.set_num_threads(threads)

    def _true_fp32(self) -> contextlib.AbstractContextManager[object]:
        """cuDNN's default computes fp32 convolutions in tf32."""
        if self.info.device == "cpu":
            return contextlib.nullcontext()
        flags: contextlib.AbstractContextManager[object] = self._torch.backends.cudnn.flags(allow_tf32=False)
        return flags


def torch_device(options: SessionOptions) -> str:
    """The device as PyTorch names it, after asking whether it is there.

    Raises:
        UsageError: not a device of PyTorch.
        MissingRuntimeError: no such device here; ``options.allow_fallback`` takes the CPU instead.
    """
    import torch

    name = options.device or "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError("no such device", expected="cpu, cuda or cuda:NUMBER", received=name) from error
    if device.type == "cpu":
        return "cpu"
    if device.type == "cuda" and (device.index or 0) < torch.cuda.device_count():
        return f"cuda:{device.index or 0}"
    if options.allow_fallback:
        return "cpu"
    raise MissingRuntimeError(
        f"PyTorch finds no device {name}",
        expected=f"cpu, or one of {torch.cuda.device_count()} CUDA devices",
        hint="Pass --device cpu, or install the PyTorch build for this device: https://pytorch.org",
    )


def _load(path: Path, device: str, extra: dict[str, str]) -> Any:
    import torch

    check_file(path, "TorchScript file")
    try:
        return torch.jit.load(str(path), map_location=device, _extra_files=extra)
    except (RuntimeError, ValueError, EOFError) as error:
        raise damaged(path, "TorchScript", error) from error


@contextlib.contextmanager
def no_deprecation_warnings() -> Iterator[None]:
    """Every torch.jit function warns; the user is told once, by ``TorchScriptTarget.deprecated``."""
    with warnings.catch_warnings():
        for kind in (DeprecationWarning, FutureWarning):
            warnings.filterwarnings("ignore", message=r".*torch\.jit", category=kind)
        yield

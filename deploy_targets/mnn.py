"""MNN: a runtime for phones, from the ONNX file.

Its Python converter (``MNN.tools``) runs ``pip install`` and sends telemetry when it is imported. It is
never imported here: the native module ``_tools`` behind it converts without either, in a process of its
own, since it leaves the process when it fails. ``import MNN`` alone installs and sends nothing.

fp16 files hold fp16 weights; ARM processors with fp16 arithmetic also compute in it. int8 files are made by
its quantiser (:mod:`smash_targets.mnn_int8`).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from smash_base import files
from smash_base.errors import VerificationError
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
from smash_targets.common import (
    check_batch,
    check_file,
    check_threads,
    damaged,
    find_module,
    find_runtime,
    only_cpu,
)
from smash_targets.mnn_int8 import quantise, with_pooled_means
from smash_targets.onnx_file import read_onnx_facts

SECONDS = 300  # for the converter and the quantiser, which take about one
_CONVERT = "import sys, _tools; _tools.mnnconvert(sys.argv)"
_QUANTISE = "import sys, _tools; _tools.mnnquant(sys.argv)"
_CODE = "smash-export-"  # with the precision as bizCode, the one text of ours that the file keeps
_FP16 = f"{_CODE}fp16"


class MnnTarget(Target):
    """See the head of this module."""

    name = "mnn"
    extra = "mnn"
    modules = {"MNN": ("MNN",)}
    precisions = ("fp32", "fp16", "int8")
    precision_source = "target"
    reads = ("fp32", "fp16")
    batch_note = "takes every batch size"

    def availability(self) -> Availability:
        return find_runtime(self, "pip install MNN")

    def compile(self, request: CompileRequest, destination: Path) -> CompileResult:
        """Convert with the native module."""
        self.require()
        self.check_request(request)
        read_onnx_facts(request.onnx)  # no weights in other files
        file = destination / "model.mnn"
        with files.temporary_folder() as work:
            converted, source = file, request.onnx
            if request.precision == "int8":
                converted, source = work / "fp32.mnn", with_pooled_means(source, work / "pooled.onnx")
            arguments = ["-f", "ONNX", "--modelFile", str(source.absolute())]
            arguments += ["--MNNModel", str(converted.absolute()), "--bizCode", _CODE + request.precision]
            _run(_CONVERT, arguments + (["--fp16"] if request.precision == "fp16" else []), converted)
            if request.precision == "int8":
                quantise(converted, file, request.calibration, lambda words: _run(_QUANTISE, words, file))
        return CompileResult("model.mnn")

    def open(self, path: Path, signature: ModelSignature, options: SessionOptions) -> Session:
        """Only the CPU: the packages on PyPI have no other backend."""
        self.require()
        only_cpu(options, "MNN")
        return MnnSession(check_file(path, "MNN file"), signature, options)


def _run(program: str, arguments: Sequence[str], written: Path) -> None:
    """A tool of the native module in a process of its own, which must write a file.

    Raises:
        VerificationError: it took too long, failed or crashed.
    """
    tool = "quantiser" if program == _QUANTISE else "converter"
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", program, *arguments],
            capture_output=True,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise VerificationError(f"MNN's {tool} took longer than {SECONDS} seconds") from None
    if done.returncode or not written.is_file():
        log = (done.stdout + done.stderr).decode(errors="replace").splitlines()
        raise VerificationError(
            f"MNN's {tool} failed for this network (exit code {done.returncode})",
            received=" ".join(log[-3:]),
        )


# Interpreter::HintMode of MNN. With Winograd's transforms fp32 logits of trained networks were off by up to
# 1.7e-4, without by 3e-6.
_WINOGRAD_MEMORY_LEVEL = 3


class MnnSession(Session):
    """One module of MNN's expression interface."""

    def __init__(self, path: Path, signature: ModelSignature, options: SessionOptions) -> None:
        self._signature = signature
        threads = check_threads(options.threads) or os.cpu_count() or 1
        self._opened = open_module(path, (signature.input_name,), (signature.output_name,), threads)
        self.info = SessionInfo(
            target="mnn",
            version=find_module("MNN", ("MNN",), "").version,
            provider="CPU",
            device="cpu",
            threads=threads,
            precision=_precision(self._opened.facts.get("bizCode")),
        )

    def run(self, batch: np.ndarray) -> np.ndarray:
        batch = check_batch(batch, self._signature)
        expr = self._opened.expr
        (logits,) = self._opened.module.onForward([expr.const(batch, list(batch.shape), expr.NCHW)])
        result = np.array(logits.read())  # a copy: the next run writes into what read() returns
        if result.shape != (len(batch), self._signature.classes):
            raise VerificationError(
                "MNN gave no logits for every image",
                expected=[len(batch), self._signature.classes],
                received=list(result.shape),
            )
        return result

    def close(self) -> None:
        del self._opened


def _precision(code: str | None) -> str:
    """What a file of ours says of itself; a foreign one says nothing."""
    known = [f"{_CODE}{precision}" for precision in MnnTarget.precisions]
    return code.removeprefix(_CODE) if code in known else "fp32"


@dataclass(frozen=True)
class OpenedModule:
    """MNN's expression interface, a module of it, what the file says of itself, and what keeps it alive."""

    expr: Any
    module: Any
    facts: dict[str, Any]
    runtime: Any


def open_module(
    path: Path, inputs: tuple[str, ...], outputs: tuple[str, ...], threads: int = 1
) -> OpenedModule:
    """A file of MNN on the CPU.

    Raises:
        InvalidInputError: not a whole file of MNN.
    """
    with _unprinted():
        import MNN

        settings = {"backend": "CPU", "numThread": threads, "precision": "high"}

        def load(winograd: bool) -> OpenedModule:
            runtime: Any = MNN.nn.create_runtime_manager((settings,))
            if not winograd:
                runtime.set_hint(_WINOGRAD_MEMORY_LEVEL, 0)
            module = MNN.nn.load_module_from_file(
                str(path), list(inputs), list(outputs), runtime_manager=runtime
            )
            return OpenedModule(MNN.expr, module, module.get_info(), runtime)

        try:
            opened = load(winograd=False)
            if opened.facts.get("bizCode") == _FP16:  # as fast as it goes: fp16 weights are rounded anyway
                opened = load(winograd=True)
        except (SystemError, RuntimeError, ValueError, AttributeError) as error:
            raise damaged(path, "MNN", error) from error
        return opened


@contextlib.contextmanager
def _unprinted() -> Iterator[None]:
    """Keep what MNN prints on stdout, where ``--json`` answers go: nobody asked for it unless it fails, and
    then it goes to stderr. C holds it back where stdout is a pipe.
    """
    sys.stdout.flush()
    kept = os.dup(1)
    with tempfile.TemporaryFile() as printed:
        os.dup2(printed.fileno(), 1)
        try:
            yield
        except BaseException:
            ctypes.CDLL(None).fflush(None)
            printed.seek(0)
            os.write(2, printed.read())
            raise
        finally:
            ctypes.CDLL(None).fflush(None)
            os.dup2(kept, 1)
            os.close(kept)

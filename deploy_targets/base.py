"""The one interface of every runtime, and the registry that finds them.

A *target* turns the bundle's source file (``model.onnx`` or ``model.torchscript.pt``) into the file
of one runtime and opens it as a *session*. Verification, measurement, prediction and the server see
sessions only. Adding a runtime adds one file beside this one and one line to ``TARGETS``.

Glossary of shapes: B batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import abc
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from smash_base.errors import MissingRuntimeError, UsageError

if TYPE_CHECKING:  # Pillow comes with it, which the environment of a single runtime need not have
    from smash_base.preprocess import Outputs

Precision = Literal["fp32", "tf32", "bf16", "fp16", "int8"]
OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Availability:
    """Whether a runtime can be used on this machine.

    Attributes:
        available: whether it imports and finds its device.
        version: version of the runtime, "" when it is missing.
        reason: One line, why it cannot be used; where it can: what it lacks all the same, or "".
        install: the exact command that would make it available.
    """

    available: bool
    version: str = ""
    reason: str = ""
    install: str = ""


@dataclass(frozen=True)
class ModelSignature:
    """Names and shapes of the one input and the one output; what every source file agrees on.

    Attributes:
        input_name, output_name: tensor names, "input" and "logits" for networks of this project.
        input_shape: without the batch, for example (C, H, W).
        classes: K.
        batch: smallest, most usual and largest batch that the file must take; (n, n, n) is static.
        outputs: what the answers are; see :func:`smash_base.preprocess.probabilities_of`.
    """

    input_name: str
    output_name: str
    input_shape: tuple[int, ...]
    classes: int
    batch: tuple[int, int, int] = (1, 1, 32)
    outputs: Outputs = "logits"


@dataclass(frozen=True)
class CompileRequest:
    """Everything a target may need to write its file.

    Attributes:
        onnx: the ONNX file at the requested precision (fp16 is already cast and int8 already carries
            Q/DQ, for targets whose ``precision_source`` is "onnx"); else the fp32 one.
        torchscript: the traced file, None when the bundle has none.
        torch_program: a ``torch.export`` program (.pt2) with a dynamic batch axis; None when the bundle does
            not hold the PyTorch network, or the target does not ask for it (``needs_torch_program``).
        signature: names and shapes.
        precision: what was asked for.
        calibration: float32 [N, C, H, W], normalised training images; None unless int8 or fp16.
        options: settings of this target by name; a target refuses unknown ones.
        source_sha256: SHA-256 of the ``model.onnx`` that ``onnx`` was made from; "" outside a bundle.
    """

    onnx: Path
    torchscript: Path | None
    signature: ModelSignature
    precision: Precision = "fp32"
    calibration: np.ndarray | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    torch_program: Path | None = None
    source_sha256: str = ""


@dataclass(frozen=True)
class CompileResult:
    """What a target wrote.

    Attributes:
        main: the file that :meth:`Target.open` takes, relative to the destination.
        notes: facts for the manifest and the reader: nodes kept in fp32, settings chosen, warnings.
    """

    main: str
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SessionOptions:
    """How to run: wishes. What was really used is in :class:`SessionInfo`."""

    threads: int | None = None
    batch: int | None = None
    device: str | None = None
    provider: str | None = None
    allow_fallback: bool = False


@dataclass(frozen=True)
class SessionInfo:
    """What is really used, read back from the runtime where it can be asked.

    Attributes:
        target: name of the target.
        version: Version of the runtime.
        provider: execution provider, device plugin or backend in use.
        device: "cpu", "cuda:0", ...
        threads: in use for one inference; 0 when the runtime does not tell.
        precision: Precision of the computation ("bf16" when a runtime chose that by itself).
    """

    target: str
    version: str
    provider: str
    device: str
    threads: int
    precision: str


class Session(abc.ABC):
    """An opened file. One thread at a time, unless ``thread_safe`` is true."""

    info: SessionInfo
    thread_safe: bool = False

    @abc.abstractmethod
    def run(self, batch: np.ndarray) -> np.ndarray:
        """float32 [B, C, H, W], C-contiguous -> float32 logits [B, K]; the result is the caller's own."""

    def close(self) -> None:  # noqa: B027  most runtimes hold nothing
        """Free what the runtime holds; a closed session must not be run."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


@dataclass(frozen=True)
class TritonBackend:
    """How Triton Inference Server calls the files of a target.

    Attributes:
        variant: as in ``smash-export triton --variant``.
        backend: name of Triton's backend.
        file: name of the model file in its repository.
        input, output: tensor names where the backend does not go by those of the network.
        gpu_only: whether it needs a GPU.
    """

    variant: str
    backend: str
    file: str
    input: str | None = None
    output: str | None = None
    gpu_only: bool = False


class Target(abc.ABC):
    """One runtime, with all that other parts of the program must know of it.

    Class attributes:
        name: as in ``--target``.
        extra: the optional dependency group that installs it.
        modules: Python modules that it imports, each with the distributions that may bring it; the first
            is the runtime itself. Their versions stand beside every result.
        imports_torch: whether opening a file loads PyTorch, which takes seconds.
        int8_placement: where a graph of precision int8 has its Q/DQ pairs: "runtime" (around every
            operator), "whole" (logits as well) or "tensorrt" (by NVIDIA's rules).
        triton: how Triton takes its files, None where it does not.
        environment: name of the file of pins in ``deploy_targets/environments``, "" for a runtime that shares
            an environment with the others.
        precisions: what :meth:`compile` can be asked for.
        precision_source: "onnx" when fp16 and int8 are written into the ONNX graph before
            :meth:`compile`; "target" when the runtime converts by itself.
        reads: precisions of an ONNX graph that it can start from; a foreign file may hold int8 already.
        needs_torch_program: whether :meth:`compile` starts from ``CompileRequest.torch_program``.
        batch_note: what the file does with other batches than it was compiled for.
        options: names of the settings that :meth:`compile` takes.
        deprecated: a line to show with every use, "" when there is nothing to say.

    Attributes:
        on_progress: set by a caller that wants to hear how far :meth:`compile` is; called with a phase, the
            steps done and all steps. Targets that compile in seconds do not call it.
    """

    name: str
    extra: str
    modules: Mapping[str, tuple[str, ...]] = {}
    imports_torch: bool = False
    int8_placement: Literal["runtime", "whole", "tensorrt"] = "runtime"
    triton: TritonBackend | None = None
    environment: str = ""
    precisions: tuple[Precision, ...] = ("fp32",)
    precision_source: Literal["onnx", "target"] = "onnx"
    reads: tuple[str, ...] = ("fp32", "fp16", "bf16", "int8")
    needs_torch_program: bool = False
    batch_note: str = ""
    options: tuple[str, ...] = ()
    deprecated: str = ""
    on_progress: OnProgress | None = None

    @abc.abstractmethod
    def availability(self) -> Availability:
        """Whether the runtime can be used here; imports it, never installs anything."""

    @abc.abstractmethod
    def compile(self, request: CompileRequest, destination: Path) -> CompileResult:
        """Write the runtime's file into the folder ``destination``, which exists and is empty.

        The caller verifies the result and only then gives the folder its final name.

        Raises:
            MissingRuntimeError: the runtime is not there.
            UsageError: a precision or option that this target does not have.
        """

    @abc.abstractmethod
    def open(self, path: Path, signature: ModelSignature, options: SessionOptions) -> Session:
        """Open a compiled file (the ``main`` of its :class:`CompileResult`).

        Raises:
            MissingRuntimeError: the runtime or the requested device is not there.
            InvalidInputError: the file is damaged or of another version.
        """

    def starts_from_program(self, onnx: Path) -> bool:
        """Whether :meth:`compile` needs ``CompileRequest.torch_program`` for this ONNX file."""
        return self.needs_torch_program

    def require(self) -> None:
        """Raise :class:`MissingRuntimeError` with the install command unless available."""
        state = self.availability()
        if not state.available:
            raise MissingRuntimeError(
                f"target {self.name} cannot be used here: {state.reason}",
                hint=f"Install it: {state.install}" if state.install else None,
            )

    def check_request(self, request: CompileRequest) -> None:
        """Refuse precisions and options that this target does not have."""
        if request.precision not in self.precisions:
            raise UsageError(
                f"target {self.name} has no precision {request.precision}",
                expected=" or ".join(self.precisions),
                received=request.precision,
            )
        self.check_options(request.options, request.signature, request.precision)

    def check_options(
        self, options: Mapping[str, Any], signature: ModelSignature, precision: Precision
    ) -> None:
        """Refuse options that this target does not have, and values of them that it does not take.

        The runtime need not be here.
        """
        unknown = set(options) - set(self.options)
        if unknown:
            raise UsageError(
                f"target {self.name} has no option {sorted(unknown)[0]!r}",
                expected=", ".join(self.options) or "no options",
                received=sorted(unknown)[0],
            )


# name -> "module:class"; imported on first use, so that listing them costs nothing.
TARGETS: dict[str, str] = {
    "torchscript": "smash_targets.torchscript:TorchScriptTarget",
    "onnxruntime": "smash_targets.onnxruntime:OnnxRuntimeTarget",
    "openvino": "smash_targets.openvino:OpenVinoTarget",
    "ncnn": "smash_targets.ncnn:NcnnTarget",
    "mnn": "smash_targets.mnn:MnnTarget",
    "torch_export": "smash_targets.torch_export:TorchExportTarget",
    "executorch": "smash_targets.executorch:ExecuTorchTarget",
    "litert": "smash_targets.litert:LiteRtTarget",
    "tensorrt": "smash_targets.tensorrt.target:TensorRtTarget",
    "tensorrt_rtx": "smash_targets.tensorrt.rtx:TensorRtRtxTarget",
    "baked": "smash_targets.baked:BakedTarget",
    "trtexec": "smash_targets.tensorrt.trtexec:TrtexecTarget",
}


def target_names() -> list[str]:
    """Every registered target, in the order of the table."""
    return list(TARGETS)


def get_target(name: str) -> Target:
    """The target of that name.

    Raises:
        UsageError: no such target; near misses are suggested.
    """
    if name not in TARGETS:
        import difflib

        near = difflib.get_close_matches(name, TARGETS, n=1)
        raise UsageError(
            f"there is no target {name!r}",
            expected=", ".join(TARGETS),
            received=name,
            hint=f"Did you mean {near[0]}?" if near else "See: smash-export targets",
        )
    module, _, attribute = TARGETS[name].partition(":")
    kind: type[Target] = getattr(importlib.import_module(module), attribute)
    return kind()

"""What each runtime makes of a baked file: compiled from it and run on every test image, or why not.

One function per runtime writes into a folder of its own and returns how to run what it wrote.
TorchScript, torch.export, LiteRT and ExecuTorch start from the PyTorch network, put between the same
arithmetic; the others from ``model.onnx``. TensorRT is built without a GPU where its builder is here, else
judged by rules.
"""

from __future__ import annotations

import contextlib
import shlex
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from smash_base import files
from smash_base.errors import MissingRuntimeError, SmashError, UsageError
from smash_base.preprocess import Preprocessing, scale_and_shift
from smash_export.bundle.bundle import Bundle
from smash_export.measure.verify import Parity
from smash_targets.base import CompileRequest, ModelSignature, Precision, SessionOptions, get_target
from smash_targets.tensorrt.check import check_onnx
from smash_targets.tensorrt.rtx import build_without_gpu
from smash_targets.tensorrt.trtexec import EngineCommand, build_words

if TYPE_CHECKING:
    from torch import Tensor, nn

INPUT = "image"
Run = Callable[[np.ndarray], tuple[np.ndarray, ...]]
How = Literal["verified", "built", "checked", "rejected", "does not take it", "not here", "left out"]


@dataclass(frozen=True)
class Taken:
    """What one runtime made of the baked file.

    Attributes:
        target: name of the runtime.
        how: "verified" on all images, "built" and not run, "checked" by rules, or why there is no file.
        file: relative to the folder, "" where nothing is kept.
        agreement: share of images with the label of PyTorch; None where it was not run.
        why: Reason why there is no file, one line.
    """

    target: str
    how: How
    file: str = ""
    agreement: float | None = None
    why: str = ""


@dataclass(frozen=True)
class Baked:
    """What runtimes start from.

    Attributes:
        bundle: Bundle that was baked.
        precision: Precision of the graph inside ``model.onnx``.
        top_k: Number of classes that are answered; None for all probabilities.
        folder: Folder of ``model.onnx``, where each runtime gets its own.
    """

    bundle: Bundle
    precision: str
    top_k: int | None
    folder: Path

    @property
    def main(self) -> Path:
        """The ONNX file."""
        return self.folder / "model.onnx"

    @property
    def signature(self) -> ModelSignature:
        """Bytes in, probabilities out."""
        inner = self.bundle.signature
        shape = self.bundle.preprocessing.sample_shape
        return ModelSignature(INPUT, "probabilities", shape, inner.classes, inner.batch, "probabilities")


class _Untaken(Exception):
    """A runtime that does not take such a file, by its nature; the text says why."""


@dataclass(frozen=True)
class _Runtime:
    """How one runtime takes the file.

    Attributes:
        write: compiles into the folder that it is given; returns the file's name and how to run it. What
            has to be closed goes onto the stack.
        seconds: Time that compiling takes, roughly.
        precisions: Precisions of the graph inside that it is compiled for.
        why: Reason why other precisions are not compiled for it.
        top_k: whether it can answer the best classes.
    """

    write: Callable[[Baked, Path, contextlib.ExitStack], tuple[str, Run]]
    seconds: int = 1
    precisions: tuple[str, ...] = ("fp32",)
    why: str = "its own way to fp16 and int8 starts from a network that takes float32"
    top_k: bool = True


def chosen_runtimes(names: Sequence[str] = ()) -> tuple[str, ...]:
    """Those that are compiled: the named ones, else all that take seconds; "all" is all.

    Raises:
        UsageError: no such runtime.
    """
    for name in names:
        if name not in (*RUNTIMES, "all"):
            raise UsageError("runtime", expected=", ".join((*RUNTIMES, "all")), received=name)
    if "all" in names:
        return tuple(RUNTIMES)
    quick = (name for name, runtime in RUNTIMES.items() if runtime.seconds < 10)
    return tuple(dict.fromkeys(names or quick))


def compile_baked(
    file: Baked, chosen: tuple[str, ...], parity: Callable[[str, Run], Parity]
) -> Iterator[Taken]:
    """Every runtime's verdict; those that are not ``chosen`` are said to be left out.

    Args:
        parity: runs all test images; raises a SmashError for a file that misses a gate.
    """
    for name in RUNTIMES:
        yield _taken(file, name, name in chosen, parity)
    yield Taken(
        "ncnn", "does not take it", why="its tensors are floats; Mat::from_pixels prepares pixels in C++"
    )
    size = build_without_gpu(CompileRequest(file.main, None, file.signature, cast(Precision, file.precision)))
    if size is not None:
        yield Taken("tensorrt_rtx", "built")
    for release in ("10", "11"):
        if not any(item.level == "error" for item in check_onnx(file.main, release)):
            line = f"trtexec_{release}.txt"
            files.write_text(file.folder / line, _trtexec_line(file, release))
            yield Taken(f"tensorrt:{release}", "checked", line)


def _taken(file: Baked, name: str, chosen: bool, parity: Callable[[str, Run], Parity]) -> Taken:
    runtime = RUNTIMES[name]
    if file.precision not in runtime.precisions:
        return Taken(name, "does not take it", why=f"{file.precision}: {runtime.why}")
    if file.top_k is not None and not runtime.top_k:
        return Taken(name, "does not take it", why="top-k: it is run through one output here")
    if not chosen:
        return Taken(name, "left out", why=f"--runtime {name} compiles it in about {runtime.seconds} s")
    folder = file.folder / name
    folder.mkdir()
    try:
        with contextlib.ExitStack() as stack:
            get_target(name).require()
            main, run = runtime.write(file, folder, stack)
            return Taken(name, "verified", f"{name}/{main}", parity(name, run).agreement)
    except _Untaken as error:
        left = Taken(name, "does not take it", why=str(error))
    except MissingRuntimeError as error:
        left = Taken(name, "not here", why=error.hint or error.what)
    except SmashError as error:
        left = Taken(name, "rejected", why=str(error))
    shutil.rmtree(folder)
    return left


def onnxruntime_run(path: Path) -> Run:
    """The file in ONNX Runtime on the CPU."""
    from smash_export.export.onnx_graphs import require_onnxruntime

    session = require_onnxruntime().InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: tuple(session.run(None, {INPUT: images}))


def openvino_run(path: Path) -> Run:
    """The file in OpenVINO on the CPU, at its own precision."""
    from smash_targets.openvino import import_openvino

    compiled = import_openvino().Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(images: np.ndarray) -> tuple[np.ndarray, ...]:
        answers = compiled([images])
        return tuple(np.asarray(answers[index]) for index in range(len(compiled.outputs)))

    return run


def mnn_run(path: Path, outputs: tuple[str, ...]) -> Run:
    """The file in MNN on one core."""
    from smash_targets.mnn import open_module

    opened = open_module(path, (INPUT,), outputs)
    expr = opened.expr

    def run(images: np.ndarray) -> tuple[np.ndarray, ...]:
        answers = opened.module.onForward([expr.const(images, list(images.shape), expr.NCHW, expr.uint8)])
        return tuple(np.array(answer.read()) for answer in answers)  # copies: MNN uses the memory again

    return run


def torchscript_run(path: Path) -> Run:
    """The file in libtorch, as Triton's backend for PyTorch runs it."""
    import torch

    from smash_targets.torchscript import no_deprecation_warnings

    with no_deprecation_warnings():
        return _of_torch(torch.jit.load(str(path)))


def torch_export_run(path: Path) -> Run:
    """The package of compiled C++."""
    import torch

    return _of_torch(torch._inductor.aoti_load_package(str(path)))


def _of_torch(function: Callable[[Tensor], Any]) -> Run:
    import torch

    def run(images: np.ndarray) -> tuple[np.ndarray, ...]:
        with torch.inference_mode():
            answers = function(torch.from_numpy(images))
        return tuple(
            answer.numpy().copy() for answer in (answers if isinstance(answers, list | tuple) else [answers])
        )

    return run


def _openvino(file: Baked, folder: Path, stack: contextlib.ExitStack) -> tuple[str, Run]:
    from smash_targets.openvino import import_openvino

    openvino, path = import_openvino(), folder / "model.xml"
    openvino.save_model(openvino.Core().read_model(str(file.main)), str(path), compress_to_fp16=False)
    return path.name, openvino_run(path)


def _mnn(file: Baked, folder: Path, stack: contextlib.ExitStack) -> tuple[str, Run]:
    precision = cast(Precision, file.precision)
    written = get_target("mnn").compile(CompileRequest(file.main, None, file.signature, precision), folder)
    outputs = ("probabilities",) if file.top_k is None else ("scores", "classes")
    return written.main, mnn_run(folder / written.main, outputs)


def _torchscript(file: Baked, folder: Path, stack: contextlib.ExitStack) -> tuple[str, Run]:
    import torch

    from smash_export.export.torch_program import save_whole
    from smash_targets.torchscript import no_deprecation_warnings

    example = torch.zeros(file.signature.batch[2], *file.signature.input_shape, dtype=torch.uint8)
    work = stack.enter_context(files.temporary_folder())
    with no_deprecation_warnings(), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # that shapes are constants
        network = _network(file, traced=True)
        save_whole(torch.jit.save, torch.jit.trace(network, example), work / "traced.pt")
    request = CompileRequest(file.main, work / "traced.pt", file.signature)
    written = get_target("torchscript").compile(request, folder)
    return written.main, torchscript_run(folder / written.main)


def _torch_export(file: Baked, folder: Path, stack: contextlib.ExitStack) -> tuple[str, Run]:
    written = get_target("torch_export").compile(_exported(file, stack), folder)
    return written.main, torch_export_run(folder / written.main)


def _by_session(name: str) -> Callable[[Baked, Path, contextlib.ExitStack], tuple[str, Run]]:
    """A runtime in an environment of its own, whose session takes bytes as float32 and rounds nothing."""

    def write(file: Baked, folder: Path, stack: contextlib.ExitStack) -> tuple[str, Run]:
        target = get_target(name)
        written = target.compile(_exported(file, stack), folder)
        session = target.open(folder / written.main, file.signature, SessionOptions())
        stack.callback(session.close)
        return written.main, lambda images: (session.run(images.astype(np.float32)),)

    return write


def _exported(file: Baked, stack: contextlib.ExitStack) -> CompileRequest:
    """The request of a runtime that starts from a ``torch.export`` program."""
    import torch

    from smash_export.export.torch_program import export_program

    work = stack.enter_context(files.temporary_folder())
    program = export_program(_network(file), file.signature, work / "model.pt2", torch.uint8)
    return CompileRequest(file.main, None, file.signature, torch_program=program)


def _network(file: Baked, traced: bool = False) -> nn.Module:
    """uint8 [B, *sample_shape] -> probabilities [B, K], or scores and classes [B, k].

    Args:
        traced: whether a TorchScript file will do, where the bundle holds no PyTorch network.
    """
    import torch

    bundle = file.bundle
    architecture, weights = bundle.architecture, bundle.weights()
    if architecture is not None and weights is not None:
        from smash_search.model.interpreter import FrozenNetwork

        network: nn.Module = FrozenNetwork(architecture, weights)
    elif traced and bundle.torchscript is not None:
        network = torch.jit.load(str(bundle.torchscript))
    else:
        raise _Untaken("it starts from the PyTorch network, which an adopted file does not hold")
    return _baked_module(network.eval(), bundle.preprocessing, bundle.signature.outputs, file.top_k)


def _baked_module(
    network: nn.Module, preprocessing: Preprocessing, outputs: str, top_k: int | None
) -> nn.Module:
    import torch

    axes = len(preprocessing.sample_shape)
    per_channel = (-1, *(1,) * (axes - 1))
    constants = scale_and_shift(preprocessing.mean, preprocessing.std)
    scale, shift = (torch.tensor(values.copy()).reshape(per_channel) for values in constants)

    class Baked(torch.nn.Module):
        """The arithmetic of Preprocessing.normalise, the network, softmax."""

        scale: Tensor
        shift: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.network = network
            self.register_buffer("scale", scale)
            self.register_buffer("shift", shift)

        def forward(self, image: Tensor) -> Any:
            planes = image.to(torch.float32).permute(0, axes, *range(1, axes))
            if preprocessing.order == "BGR":
                planes = planes.flip(1)
            answers = self.network((planes * self.scale + self.shift).contiguous())
            if outputs == "logits":
                answers = torch.softmax(answers, 1)
            return answers if top_k is None else tuple(torch.topk(answers, top_k, dim=1))

    return Baked().eval()


def _trtexec_line(file: Baked, release: str) -> str:
    least, usual, most = file.signature.batch
    command = EngineCommand(
        "model.onnx", "model.engine", INPUT, file.signature.input_shape, file.precision,
        cast(Any, release), None if least == most else (least, usual, most),
    )  # fmt: skip
    return shlex.join(["trtexec", *build_words(command)]) + "\n"


RUNTIMES = {
    "openvino": _Runtime(_openvino, precisions=("fp32", "fp16", "int8")),
    "mnn": _Runtime(_mnn, precisions=("fp32", "fp16"), why="its converter does not read quantised graphs"),
    "torchscript": _Runtime(_torchscript, seconds=3),
    "torch_export": _Runtime(_torch_export, seconds=30),
    "litert": _Runtime(_by_session("litert"), seconds=60, top_k=False),
    "executorch": _Runtime(_by_session("executorch"), seconds=60, top_k=False),
}

"""ncnn: a small runtime for phones and boards, through its converter pnnx, from the ONNX file.

ncnn has no batch axis: a batch is one run per image. fp16 files hold fp16 weights, which ARM processors
with fp16 arithmetic also compute in; x86 computes them in fp32. Its int8 tools are not in the Python
packages; :mod:`smash_targets.ncnn_int8` writes such files.

``ncnn.Mat(array)`` borrows the array's memory and does not keep the array alive; the result is garbage,
without an error, once the array is gone. Every input is cloned.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from smash_base import files
from smash_base.errors import InvalidInputError, MissingRuntimeError, UsageError, VerificationError
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
from smash_targets.common import check_batch, check_file, check_threads, find_module, find_runtime, only_cpu
from smash_targets.ncnn_int8 import is_int8, quantise
from smash_targets.onnx_file import read_onnx_facts

INSTALL = "pip install ncnn pnnx"
SECONDS = 300  # for the converter; a network of hundreds of layers takes seconds
_OUTPUT = "out0"  # as pnnx calls the first output
_MAGIC = b"7767517"
_FP16_TAG = 0x01306B47  # stands before weights that are fp16


class NcnnTarget(Target):
    """See the head of this module."""

    name = "ncnn"
    extra = "ncnn"
    modules = {"ncnn": ("ncnn",), "pnnx": ("pnnx",)}
    precisions = ("fp32", "fp16", "int8")
    precision_source = "target"
    reads = ("fp32",)
    batch_note = "runs one image after the other"

    def availability(self) -> Availability:
        return find_runtime(self, INSTALL)

    def compile(self, request: CompileRequest, destination: Path) -> CompileResult:
        """Convert in a folder of its own, since pnnx writes nine files beside its input."""
        self.require()
        self.check_request(request)
        converter = _converter()
        read_onnx_facts(request.onnx)  # no weights in other files
        shape = ",".join(map(str, (1, *request.signature.input_shape)))
        with files.temporary_folder() as work:
            _copy_for_one_image(request, work / "model.onnx")
            command = [
                str(converter),
                "model.onnx",
                f"inputshape=[{shape}]",
                f"fp16={int(request.precision == 'fp16')}",
            ]
            try:
                done = subprocess.run(
                    command,
                    cwd=work,
                    capture_output=True,
                    timeout=SECONDS,
                    env=_quiet_environment(),
                    check=False,
                )
            except subprocess.TimeoutExpired:
                raise VerificationError(f"pnnx took longer than {SECONDS} seconds") from None
            parameters, weights = work / "model.ncnn.param", work / "model.ncnn.bin"
            log = (done.stdout + done.stderr).decode(errors="replace")
            if done.returncode or not parameters.is_file() or not weights.is_file():
                raise VerificationError(
                    f"pnnx could not convert this network (exit code {done.returncode})",
                    received=" ".join(log.splitlines()[-3:]),
                )
            for file in (parameters, weights):
                shutil.copyfile(file, destination / file.name.replace(".ncnn", ""))
        layers = int((destination / "model.param").read_text().split()[1])
        notes: dict[str, Any] = {"layers": layers}
        if request.precision == "int8":
            notes |= _write_int8(destination / "model.param", request)
        return CompileResult("model.param", notes)

    def open(self, path: Path, signature: ModelSignature, options: SessionOptions) -> Session:
        """Only the CPU: ncnn's Vulkan devices need a build and a driver that this project does not test."""
        self.require()
        only_cpu(options, "ncnn")
        weights = path.with_suffix(".bin")
        check_file(path, "ncnn file")
        check_file(weights, "ncnn weights")
        return NcnnSession(path, weights, signature, options)


def _write_int8(path: Path, request: CompileRequest) -> dict[str, Any]:
    """Replace an fp32 network by the same at int8; returns notes."""
    if request.calibration is None:
        raise UsageError("int8 needs calibration images", hint="Freeze the bundle with its data.")
    weights = path.with_suffix(".bin")
    source, _ = _check_parameters(path)

    def values_of(blobs: list[str]) -> Callable[[np.ndarray], list[np.ndarray]]:
        net = _network(path, weights, threads=1, half=False)
        net.opt.lightmode = False  # intermediate blobs are kept, so that an image runs once for all of them

        def values(image: np.ndarray) -> list[np.ndarray]:
            import ncnn

            extractor = net.create_extractor()
            extractor.set_light_mode(False)
            extractor.input(source, ncnn.Mat(image).clone())
            results = [extractor.extract(blob) for blob in blobs]
            if any(code for code, _ in results):
                raise VerificationError("ncnn failed to run the network on a calibration image")
            return [np.array(blob) for _, blob in results]

        return values

    text, content, notes = quantise(path.read_text(), weights.read_bytes(), request.calibration, values_of)
    path.write_text(text)
    weights.write_bytes(content)
    return notes


def _network(path: Path, weights: Path, threads: int, half: bool) -> Any:
    """An opened ``ncnn.Net``."""
    import ncnn

    net = ncnn.Net()
    net.opt.use_vulkan_compute = False
    net.opt.num_threads = threads
    # Its defaults compute in fp16 and bf16 where the processor can, whatever the weights are.
    net.opt.use_bf16_storage = False
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = half
    if net.load_param(str(path)) or net.load_model(str(weights)):
        raise InvalidInputError(
            f"ncnn cannot open {path}", expected="a whole model.param and model.bin of the same network"
        )
    return net


def _copy_for_one_image(request: CompileRequest, path: Path) -> None:
    """The graph for one image at a time, as ncnn runs it; a fixed batch of more is written down to one."""
    if request.signature.batch[0] == 1:
        shutil.copyfile(request.onnx, path)
        return
    import onnx

    model = onnx.load_model_from_string(request.onnx.read_bytes())
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    del model.graph.value_info[:]
    try:
        onnx.shape_inference.infer_shapes(model, strict_mode=True)
    except onnx.shape_inference.InferenceError as error:
        raise InvalidInputError(
            f"this network takes {request.signature.batch[0]} images at once and nothing else; ncnn runs one",
            expected="a batch axis that no operator inside repeats",
            received=error,
            hint="Export it again with one image or with a dynamic batch axis, or choose onnxruntime.",
        ) from None
    path.write_bytes(model.SerializeToString())


class NcnnSession(Session):
    """One ``ncnn.Net``; an extractor per image."""

    def __init__(self, path: Path, weights: Path, signature: ModelSignature, options: SessionOptions) -> None:
        import ncnn

        self._ncnn: Any = ncnn
        self._signature = signature
        names = _check_parameters(path)
        self._input, self._output = names
        content = weights.read_bytes()
        half = _FP16_TAG in np.frombuffer(content[: len(content) // 4 * 4], "<u4")
        threads = check_threads(options.threads) or ncnn.get_cpu_count()
        net = _network(path, weights, threads, half)
        rounded = is_int8(path.read_text())
        self._net = net
        self.info = SessionInfo(
            target="ncnn",
            version=find_module("ncnn", ("ncnn",), INSTALL).version,
            provider="cpu",
            device="cpu",
            threads=threads,
            precision="int8" if rounded else "fp16" if half else "fp32",
        )

    def run(self, batch: np.ndarray) -> np.ndarray:
        batch = check_batch(batch, self._signature)
        logits = np.empty((len(batch), self._signature.classes), np.float32)
        for index, image in enumerate(batch):
            extractor = self._net.create_extractor()
            status = extractor.input(self._input, self._ncnn.Mat(image).clone())
            code, result = extractor.extract(self._output)
            if status or code:
                raise VerificationError("ncnn failed to run the network", received=f"code {status or code}")
            values = np.array(result).reshape(-1)  # pnnx keeps a batch axis of 1 in front of some layers
            if values.shape != logits.shape[1:]:
                raise VerificationError(
                    "ncnn gave logits of another shape",
                    expected=list(logits.shape[1:]),
                    received=list(values.shape),
                )
            logits[index] = values
        return logits

    def close(self) -> None:
        self._net.clear()


def _converter() -> Path:
    """The program inside the package pnnx; the package itself imports torch and is left alone."""
    import importlib.util

    found = importlib.util.find_spec("pnnx")
    folders = found.submodule_search_locations if found else None
    program = Path(next(iter(folders)), "pnnx") if folders else None
    if program is None or not os.access(program, os.X_OK):
        raise MissingRuntimeError(
            "target ncnn cannot compile here: its converter pnnx is not installed",
            hint=f"Install it: {INSTALL}",
        )
    return program


def _quiet_environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def _check_parameters(path: Path) -> tuple[str, str]:
    """Names of the one input and the one output; ncnn itself crashes on some damaged files.

    Raises:
        InvalidInputError: not the text that pnnx writes.
    """
    lines = path.read_bytes().splitlines()
    broken = InvalidInputError(
        f"{path} is damaged or not an ncnn file",
        expected="the whole .param text that pnnx wrote",
        hint="Compile it again: smash-export compile BUNDLE --target ncnn",
    )
    try:
        magic, counts, *layers = [line.decode("ascii").split() for line in lines]
        count, _ = map(int, counts)
        written, read, inputs = set(), set(), []
        for kind, _, reads, writes, *rest in layers:
            ends = int(reads), int(reads) + int(writes)
            read.update(rest[: ends[0]])
            written.update(rest[ends[0] : ends[1]])
            if kind == "Input":
                inputs.extend(rest[ends[0] : ends[1]])
    except (UnicodeDecodeError, ValueError):
        raise broken from None
    unread = written - read
    outputs = unread & {_OUTPUT} or unread  # a part of a split tensor may have no reader either
    if magic != [_MAGIC.decode()] or count != len(layers) or len(inputs) != 1 or len(outputs) != 1:
        raise broken
    return inputs[0], outputs.pop()

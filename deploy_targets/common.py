"""What several targets do the same way: find a module, check a batch or a file, run a fixed batch size."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from smash_base.errors import InvalidInputError, MissingRuntimeError, UsageError
from smash_targets.base import (
    Availability,
    CompileRequest,
    ModelSignature,
    Precision,
    Session,
    SessionOptions,
    Target,
)


def open_graph(
    target: Target,
    model: bytes,
    signature: ModelSignature,
    precision: Precision,
    options: SessionOptions,
    folder: Path,
) -> Session:
    """Compile an ONNX graph and open the result: for graphs that are timed and never shipped.

    Args:
        folder: Where its files go; must not exist, and must outlive the session.
    """
    source, compiled = folder / "model.onnx", folder / "compiled"
    compiled.mkdir(parents=True)
    source.write_bytes(model)
    result = target.compile(CompileRequest(source, None, signature, precision), compiled)
    return target.open(compiled / result.main, signature, options)


def has_module(name: str) -> bool:
    """Whether a top-level module could be imported, without importing it."""
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # an import hook refuses it, or it is half imported
        return False


def find_module(module: str, distributions: tuple[str, ...], install: str) -> Availability:
    """Whether ``module`` could be imported, and the version of the distribution that brought it.

    A look at the installed files only: listing targets must not cost the import of each.
    """
    if not has_module(module):
        return Availability(False, reason=f"the Python module {module} is not installed", install=install)
    for name in distributions:
        try:
            return Availability(True, version=importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            continue
    return Availability(True)


def find_runtime(target: Target, install: str) -> Availability:
    """Whether the first module of a target could be imported, and its version; see :func:`find_module`."""
    module, distributions = next(iter(target.modules.items()))
    return find_module(module, distributions, install)


def check_batch(batch: np.ndarray, signature: ModelSignature) -> np.ndarray:
    """The batch as C-contiguous float32 [B, *input_shape].

    Raises:
        InvalidInputError: another type, shape, or no image at all.
    """
    if batch.dtype != np.float32 or batch.shape[1:] != signature.input_shape or not len(batch):
        raise InvalidInputError(
            "this batch does not fit the network",
            expected=f"float32 [B, {', '.join(map(str, signature.input_shape))}] with B >= 1",
            received=f"{batch.dtype} {list(batch.shape)}",
        )
    return np.ascontiguousarray(batch)


def check_file(path: Path, what: str) -> Path:
    """``path`` itself, if it is a file that is not empty.

    Raises:
        InvalidInputError: it is not.
    """
    if not path.is_file():
        raise InvalidInputError(f"{what} {path} does not exist")
    if not path.stat().st_size:
        raise InvalidInputError(f"{what} {path} is empty")
    return path


def check_threads(threads: int | None) -> int | None:
    """``threads`` itself, if a runtime can be asked for that many.

    Raises:
        UsageError: fewer than one.
    """
    if threads is not None and threads < 1:
        raise UsageError("too few threads", expected="1 or more", received=threads)
    return threads


def damaged(path: Path, runtime: str, error: BaseException) -> InvalidInputError:
    """The one error for a file that its runtime does not take."""
    return InvalidInputError(
        f"{runtime} cannot open {path}",
        expected=f"a whole file, written for this version of {runtime}",
        received=str(error) or type(error).__name__,
        hint="Compile it again: smash-export compile BUNDLE --target NAME",
    )


def torch_program_of(request: CompileRequest, target: str) -> Path:
    """The ``torch.export`` file that a target of the PyTorch family starts from.

    Raises:
        UsageError: the bundle does not hold the PyTorch network.
    """
    if request.torch_program is None:
        raise UsageError(
            f"target {target} starts from the PyTorch network, which this bundle does not hold",
            expected="a bundle that freeze wrote",
            hint="For an adopted ONNX file choose onnxruntime, openvino, ncnn or tensorrt.",
        )
    return check_file(request.torch_program, "exported program")


def input_type(program: Any) -> Any:
    """The type of the one input of a ``torch.export`` program; a baked network takes uint8."""
    return program.example_inputs[0][0].dtype


def run_in_chunks(
    run: Callable[[np.ndarray], np.ndarray], batch: np.ndarray, size: int, classes: int
) -> np.ndarray:
    """Logits [B, K] from a file that takes ``size`` images, no more and no fewer.

    Args:
        run: [size, C, H, W] -> [size, K]; its result may be memory that it uses again.
    """
    logits = np.empty((len(batch), classes), np.float32)
    for start in range(0, len(batch), size):
        part = batch[start : start + size]
        if len(part) < size:
            padded = np.zeros((size, *batch.shape[1:]), np.float32)
            padded[: len(part)] = part
            logits[start:] = run(padded)[: len(part)]
        else:
            logits[start : start + size] = run(part)
    return logits


def fixed_batch(options: Mapping[str, Any], signature: ModelSignature) -> int:
    """The batch size to compile for: the option, else the usual one of the signature."""
    batch = options.get("batch", signature.batch[1])
    if not str(batch).isdecimal() or not 0 < int(batch) <= 4096:
        raise UsageError("option batch is no batch size", expected="1 to 4096", received=batch)
    return int(batch)


def kind_of_device(device: str | None) -> str:
    """ "cpu" or "cuda", by the names that PyTorch has for them too; the CPU by default.

    Raises:
        UsageError: another name.
    """
    kind, _, number = (device or "cpu").lower().partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdecimal()):
        raise UsageError(
            "no such device",
            expected="cpu, cuda or cuda:NUMBER",
            received=device,
            hint="Other names belong to one runtime: name it too, as in --target openvino --device gpu.",
        )
    return kind


def gpu_number(device: str | None, runtime: str) -> int:
    """Number of the GPU that a device names, 0 by default.

    Raises:
        UsageError: neither "cuda" nor "cuda:NUMBER".
        MissingRuntimeError: the CPU, which a runtime of GPUs does not run on.
    """
    if kind_of_device(device or "cuda") == "cpu":
        raise MissingRuntimeError(
            f"{runtime} runs on a GPU, not on {device}", hint="Leave the device out, or pass cuda."
        )
    return int((device or "").partition(":")[2] or 0)


def only_cpu(options: SessionOptions, runtime: str) -> None:
    """Refuse another device, unless a fallback is allowed."""
    asked = (options.provider or options.device or "cpu").lower()
    if asked not in ("cpu", "xnnpack") and not options.allow_fallback:
        raise MissingRuntimeError(
            f"{runtime} runs on the CPU here, not on {asked}", hint="Leave the device out, or pass cpu."
        )

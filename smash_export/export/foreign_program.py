"""A classifier that somebody saved with torch.export.save: run as PyTorch runs it, and as an ONNX graph.

A .pt2 file names operators of PyTorch and may hold pickled constants: load only those whose maker you trust.
A package that AOTInductor compiled, as ``smash-export compile --target torch_export`` does, is machine code
for one kind of processor and cannot be adopted.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from smash_base.errors import InvalidInputError, MissingRuntimeError
from smash_export.export.foreign_rewriting import Run
from smash_export.export.onnx_graphs import chunks

if TYPE_CHECKING:
    import onnx


def read_foreign_program(path: Path, opset: int) -> tuple[Run, onnx.ModelProto]:
    """What the program answers, as a function of any number of images, and its ONNX graph.

    Args:
        path: the .pt2 file.
        opset: version of ONNX's operators in the graph.

    Raises:
        InvalidInputError: not a program of one image and one answer, or one that ONNX cannot hold.
        MissingRuntimeError: torch is not installed.
    """
    try:
        import torch
    except ImportError:
        raise MissingRuntimeError(
            "an exported program needs torch", hint="Install it: pip install 'smash-export[search]'"
        ) from None
    with _quiet():
        try:
            program = torch.export.load(path)
            module = program.module()
        except Exception as error:  # a zip, a JSON, a schema or a pickle error of many types
            raise InvalidInputError(
                f"{path} is not a torch.export program",
                expected="a file of torch.export.save, of this version of PyTorch",
                received=f"{type(error).__name__}: {error}"[:300],
            ) from error
        shape = _input_shape(program, path)
        batch = shape[0] if isinstance(shape[0], int) else None

        def run(images: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                parts = [
                    module(torch.from_numpy(np.ascontiguousarray(part))) for part in chunks(images, batch)
                ]
            return joined_answers(parts, path)[: len(images)]

        try:
            exported = torch.onnx.export(
                program, dynamo=True, opset_version=opset, external_data=False, verbose=False
            )
        except Exception as error:  # of the exporter's many parts
            raise InvalidInputError(f"{path} cannot be written as ONNX", received=str(error)[:300]) from error
        assert exported is not None
        model: onnx.ModelProto = exported.model_proto
    return run, model


def joined_answers(parts: Sequence[Any], path: Path) -> np.ndarray:
    """Answers of a network of torch to several batches: float32 [N, K], where each is [B, K], or [B] of one.

    Raises:
        InvalidInputError: they are none of an image classifier.
    """
    import torch

    if not all(isinstance(part, torch.Tensor) and part.ndim in (1, 2) for part in parts):
        raise InvalidInputError(f"{path} is not an image classifier", expected="one output [B, K]")
    answers: np.ndarray = torch.cat(list(parts)).float().numpy()
    return answers.reshape(len(answers), -1)


def _input_shape(program: Any, path: Path) -> tuple[Any, ...]:
    """Shape of the one image input; a size that may change is not an int."""
    names = program.graph_signature.user_inputs
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    if len(names) != 1 or names[0] not in nodes:
        raise InvalidInputError(
            f"{path} is not an image classifier", expected="one input", received=f"{len(names)} inputs"
        )
    return tuple(nodes[names[0]].meta["val"].shape)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter prints and warns of on its way."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield

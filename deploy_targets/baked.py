"""An ONNX file for other programs: images as bytes in, probabilities or the best classes out.

``smash-export bake`` writes it. Nothing here opens it, since sessions take what one preprocessing made; it is
a target so that commands which go through the files of a bundle list it, and Triton gets it.
"""

from __future__ import annotations

from pathlib import Path

from smash_base.errors import MissingRuntimeError
from smash_targets.base import (
    Availability,
    CompileRequest,
    CompileResult,
    ModelSignature,
    Session,
    SessionOptions,
    Target,
    TritonBackend,
)


class BakedTarget(Target):
    """See the head of this module."""

    name = "baked"
    extra = "cpu"
    int8_placement = "tensorrt"
    precisions = ("fp32", "fp16", "int8")
    triton: TritonBackend | None = TritonBackend("baked", "onnxruntime", "model.onnx")

    def availability(self) -> Availability:
        return Availability(
            False,
            reason="a file for other programs, which take images as they are",
            install="smash-export bake BUNDLE writes and verifies it",
        )

    def compile(self, request: CompileRequest, destination: Path) -> CompileResult:
        raise _not_here()

    def open(self, path: Path, signature: ModelSignature, options: SessionOptions) -> Session:
        raise _not_here()


def _not_here() -> MissingRuntimeError:
    return MissingRuntimeError(
        "a baked file takes images as they are, not what this program prepares",
        hint="Write it: smash-export bake BUNDLE",
    )

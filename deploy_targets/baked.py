"""An ONNX file for other programs: images as bytes in, probabilities or the best classes out.

``smash-export bake`` writes it. Nothing here opens it, since sessions take what one preprocessing made; it is
a target so that commands which go through the files of a bundle list it, and Triton gets it.
"""

from __future__ import annotations

from smash_targets.base import TritonBackend
from smash_targets.elsewhere import ElsewhereTarget


class BakedTarget(ElsewhereTarget):
    """See the head of this module."""

    name = "baked"
    extra = "cpu"
    int8_placement = "tensorrt"
    precisions = ("fp32", "fp16", "int8")
    triton: TritonBackend | None = TritonBackend("baked", "onnxruntime", "model.onnx")
    why = "a file for other programs, which take images as they are"
    way = "smash-export bake BUNDLE writes and verifies it"
    refusal = "a baked file takes images as they are, not what this program prepares"
    command = "smash-export bake BUNDLE"

"""What clients send, as bytes."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def png(pixels: np.ndarray) -> bytes:
    """An image file of uint8 or uint16 [H, W], or uint8 [H, W, 3]."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def grpc_infer(tensor: np.ndarray) -> bytes:
    """A ``ModelInferRequest`` of float32 [B, 1, 8, 8] to the model digits."""
    from smash_export.server.messages import message

    request = message("ModelInferRequest")(model_name="digits", raw_input_contents=[tensor.tobytes()])
    request.inputs.add(name="input", datatype="FP32", shape=tensor.shape)
    data: bytes = request.SerializeToString()
    return data

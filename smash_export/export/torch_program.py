"""The bundle's network as a ``torch.export`` program, for targets of the PyTorch family.

Not a file of the bundle: it follows from the architecture and the weights, takes seconds to make, and only
some targets start from it.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smash_export.bundle.bundle import Bundle

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

    from smash_targets.base import ModelSignature


def write_torch_program(
    bundle: Bundle, path: Path, weights: dict[str, np.ndarray] | None = None
) -> Path | None:
    """Export the frozen network with a dynamic batch axis.

    Args:
        path: the .pt2 file to write.
        weights: other ones than the bundle's, by name.

    Returns:
        ``path``, or None when the bundle holds no PyTorch network (it was adopted as ONNX).
    """
    weights = bundle.weights() if weights is None else weights
    if bundle.architecture is None or weights is None:
        return None
    from smash_search.model.interpreter import FrozenNetwork

    return export_program(FrozenNetwork(bundle.architecture, weights).eval(), bundle.signature, path)


def export_program(
    network: nn.Module, signature: ModelSignature, path: Path, dtype: torch.dtype | None = None
) -> Path:
    """Export a network with the batch range of its signature.

    Args:
        network: in evaluation mode.
        path: the .pt2 file to write.
        dtype: Type of its input, float32 if None.
    """
    import torch

    smallest, _, largest = signature.batch
    # Two images: torch.export takes an example batch of one for a constant.
    example = torch.zeros(2, *signature.input_shape, dtype=dtype)
    batch = torch.export.Dim("batch", min=smallest, max=max(largest, 2))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.export.export(network, (example,), dynamic_shapes=({0: batch},))
        save_whole(torch.export.save, program, path)
    return path


def save_whole(save: Callable[[Any, Any], None], value: Any, path: Path) -> None:
    """Write what ``torch.jit.save`` or ``torch.export.save`` makes of a value, through memory: on a full disk
    PyTorch's own writer of files ends the process.

    Raises:
        OSError: the disk is full.
    """
    stream = io.BytesIO()
    save(value, stream)
    path.write_bytes(stream.getvalue())

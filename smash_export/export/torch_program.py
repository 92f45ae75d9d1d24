"""The bundle's network as a ``torch.export`` program, for targets of the PyTorch family.

Not a file of the bundle: it follows from the architecture and the weights, takes seconds to make, and only
some targets start from it.
"""

from __future__ import annotations

import warnings
from pathlib import Path

from smash_export.bundle.bundle import Bundle


def write_torch_program(bundle: Bundle, path: Path) -> Path | None:
    """Export the frozen network with a dynamic batch axis.

    Args:
        path: the .pt2 file to write.

    Returns:
        ``path``, or None when the bundle holds no PyTorch network (it was adopted as ONNX).
    """
    weights = bundle.weights()
    if bundle.architecture is None or weights is None:
        return None
    import torch

    from smash_search.model.interpreter import FrozenNetwork

    smallest, _, largest = bundle.signature.batch
    network = FrozenNetwork(bundle.architecture, weights).eval()
    # Two images: torch.export takes an example batch of one for a constant.
    example = torch.zeros(2, *bundle.signature.input_shape)
    batch = torch.export.Dim("batch", min=smallest, max=max(largest, 2))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.export.export(network, (example,), dynamic_shapes=({0: batch},))
        torch.export.save(program, path)
    return path

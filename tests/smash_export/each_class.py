"""A bundle whose classes do not exclude each other, made of one whose classes do."""

from __future__ import annotations

from pathlib import Path

import torch

from smash_export.bundle.bundle import Bundle
from smash_export.export.adopt import Images, adopt


def each_class_by_itself(bundle: Path, folder: Path) -> Path:
    """The same network with a sigmoid of each logit, as a bundle in ``folder``; 8x8 grey images."""
    plain = Bundle.open(bundle)
    samples = plain.samples()
    network = torch.nn.Sequential(torch.jit.load(plain.torchscript), torch.nn.Sigmoid())
    torch.jit.trace(network, torch.zeros(2, 1, 8, 8)).save(folder / "each.pt")
    return adopt(
        folder / "each.pt",
        folder / "each",
        labels=plain.labels,
        preprocessing=plain.preprocessing,
        images=Images(samples.images, samples.labels, None, {}),
        outputs="sigmoid",
    ).bundle.path

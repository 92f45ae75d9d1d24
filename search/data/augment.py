"""Augmentation of a batch on its device: pad-crop, flip, cutout, mixup; shifts for volumes.

Applied to normalised batches [B, C, H, W] or [B, C, D, H, W], so that padding and erased parts are zero,
the mean of the training images. Every random number comes from the one generator given, on its device and
in a fixed order, so that a resumed run sees the same images. No loop over images, no wait for the device.

Sources: pad-crop and flip, Lee et al. 2015; cutout, DeVries & Taylor 2017 (1708.04552); mixup, Zhang et al.
2018 (1710.09412); translated and flipped volumes, Brock et al. 2016 (1608.04236).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from smash_base.errors import InvalidInputError


@dataclass(frozen=True)
class Augmentation:
    """What is done to a training batch; the default does nothing.

    Attributes:
        pad_crop: images are shifted by up to this many pixels along each axis, zeros come in.
        flip: images are mirrored left to right with probability 1/2 (not for digits or text).
        cutout: side of the square (cube) that is set to zero, in pixels; it may stick out of the image.
        mixup: alpha of the Beta distribution of the mixing ratio; 0 is off. One ratio per batch.
        classes: K; needed with mixup, whose targets are shares of classes.
        jitter: volumes are shifted by up to this many voxels along each axis and mirrored along the two
            horizontal ones (depth and width) with probability 1/2 each. Refused for images.
    """

    pad_crop: int = 0
    flip: bool = False
    cutout: int = 0
    mixup: float = 0.0
    jitter: int = 0
    classes: int = 0

    def __post_init__(self) -> None:
        for name in ("pad_crop", "cutout", "jitter", "classes"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise InvalidInputError(f"augmentation {name}", expected="0 or more, whole", received=value)
        if not 0 <= self.mixup < float("inf"):
            raise InvalidInputError("augmentation mixup", expected="0 or more", received=self.mixup)
        if self.mixup and self.classes < 2:
            raise InvalidInputError(
                "augmentation mixup", expected="the number of classes with it", received=self.classes
            )

    def to_json(self) -> dict[str, object]:
        """The fields, for run configurations."""
        return asdict(self)

    def __call__(self, batch: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Augment one batch.

        Args:
            batch: float [B, C, H, W] or [B, C, D, H, W], normalised; it is not changed in place.
            labels: int64 [B].
            generator: of the batch's device, or of the CPU.

        Returns:
            The batch, and targets as ``cross_entropy`` takes them: the labels [B], or with mixup the
            share of each class, float32 [B, K].

        Raises:
            InvalidInputError: jitter for images, or a batch of another number of axes.
        """
        if batch.ndim not in (4, 5):
            raise InvalidInputError(
                "batch to augment", expected="[B, C, H, W] or [B, C, D, H, W]", received=tuple(batch.shape)
            )
        if self.jitter and batch.ndim == 4:
            raise InvalidInputError(
                "augmentation jitter", expected="volumes [B, C, D, H, W]", received=tuple(batch.shape)
            )
        if reach := max(self.pad_crop, self.jitter):
            batch = shift(batch, _integers((len(batch), batch.ndim - 2), -reach, reach, generator))
        if self.flip:
            batch = mirror(batch, -1, _coins(len(batch), generator))
        if self.jitter:
            # Horizontal axes only: the first one is the height of a voxelised object (see modelnet.py).
            for axis in (-1, -2):
                batch = mirror(batch, axis, _coins(len(batch), generator))
        if self.cutout:
            sizes = batch.shape[2:]
            middle = torch.stack([_integers((len(batch),), 0, size - 1, generator) for size in sizes], dim=1)
            batch = erase(batch, middle, self.cutout)
        if not self.mixup:
            return batch, labels
        weight = _beta(self.mixup, generator).to(batch.device, batch.dtype)
        order = torch.randperm(len(batch), generator=generator, device=generator.device).to(batch.device)
        shares = one_hot(labels, self.classes).float()
        mixed = batch.lerp(batch[order], 1.0 - weight)
        return mixed, shares.lerp(shares[order], 1.0 - weight.float())


def shift(batch: Tensor, offsets: Tensor) -> Tensor:
    """Move each image by its own offsets, zeros come in: [B, C, *size], int64 [B, axes] -> [B, C, *size]."""
    for axis in range(batch.ndim - 2):
        size = batch.shape[axis + 2]
        source = torch.arange(size, device=offsets.device) - offsets[:, axis : axis + 1]  # [B, size]
        valid = ((source >= 0) & (source < size)).to(batch.device)
        view = [len(batch), 1] + [1] * (batch.ndim - 2)
        view[axis + 2] = size
        index = source.clamp(0, size - 1).to(batch.device).view(view).expand(batch.shape)
        batch = batch.gather(axis + 2, index) * valid.view(view)
    return batch


def mirror(batch: Tensor, axis: int, chosen: Tensor) -> Tensor:
    """Reverse one axis of the images that are chosen: bool [B]."""
    mask = chosen.to(batch.device).view(-1, *[1] * (batch.ndim - 1))
    return torch.where(mask, batch.flip(axis), batch)


def erase(batch: Tensor, middle: Tensor, side: int) -> Tensor:
    """Zero a square or cube of ``side`` pixels around each image's own ``middle``, int64 [B, axes]."""
    inside = torch.ones((), dtype=torch.bool, device=middle.device)
    for axis in range(batch.ndim - 2):
        low = middle[:, axis] - side // 2  # [B]
        place = torch.arange(batch.shape[axis + 2], device=middle.device)
        along = (place >= low[:, None]) & (place < low[:, None] + side)  # [B, size]
        view = [len(batch), 1] + [1] * (batch.ndim - 2)
        view[axis + 2] = batch.shape[axis + 2]
        inside = inside & along.view(view)
    return batch.masked_fill(inside.to(batch.device), 0.0)


def _integers(shape: tuple[int, ...], low: int, high: int, generator: torch.Generator) -> Tensor:
    return torch.randint(low, high + 1, shape, generator=generator, device=generator.device)


def _coins(count: int, generator: torch.Generator) -> Tensor:
    return torch.rand(count, generator=generator, device=generator.device) < 0.5


def _beta(alpha: float, generator: torch.Generator) -> Tensor:
    """One draw of Beta(alpha, alpha), float64 []; torch's own Beta takes no generator."""
    shape = torch.full((2,), alpha, dtype=torch.float64, device=generator.device)
    draws = torch._standard_gamma(shape, generator=generator)
    return draws[0] / draws.sum().clamp_min(torch.finfo(torch.float64).tiny)

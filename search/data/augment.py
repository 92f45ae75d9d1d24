"""Augmentation of a batch on its device: crop, flip, one random change each, cutout, mixup, cutmix; volumes.

Applied to normalised batches [B, C, H, W] or [B, C, D, H, W], so that padding and erased parts are zero,
the mean of the training images. Every random number comes from the one generator given, on its device and
in a fixed order, so that a resumed run sees the same images. No loop over images, and no wait for the device
but for the box of cutmix.
Operations are our own: those of torchvision and kornia draw from PyTorch's global generator, which the
thread that makes batches shares with everything else, and are slower. Crops and flips of 128 images of 32x32
take 1.8 ms of a core here, 3.3 ms by kornia 0.9, and 6.1 ms by torchvision 0.28, which draws once for a batch
and so has to be called for each image. kornia's TrivialAugment changes all images of a batch in one way.

Sources: pad-crop and flip, Lee et al. 2015; alternating flips, KellerJordan/cifar10-airbench 2024; one change
of random strength, TrivialAugment, Müller & Hutter 2021 (2103.10158); cutout, DeVries & Taylor 2017
(1708.04552); mixup, Zhang et al. 2018 (1710.09412); cutmix, Yun et al. 2019 (1905.04899); translated and
flipped volumes, Brock et al. 2016 (1608.04236).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, avg_pool2d, grid_sample, one_hot, pad

from smash_base.errors import InvalidInputError


@dataclass(frozen=True)
class Augmentation:
    """What is done to a training batch; the default does nothing.

    Attributes:
        pad_crop: images are shifted by up to this many pixels along each axis, zeros come in.
        flip: images are mirrored left to right with probability 1/2 (not for digits or text); "alternate"
            draws for the first epoch only and shows the other side in every second one.
        trivial: each image is changed in one of twelve ways, chosen and sized at random: moved, sheared,
            turned, brightness, contrast, saturation, sharpness, solarised, posterised, or left as it is.
        cutout: side of the square (cube) that is set to zero, in pixels; it may stick out of the image.
        mixup: alpha of the Beta distribution of the mixing ratio; 0 is off. One ratio per batch.
        cutmix: alpha of the Beta distribution of the share that stays of an image; a box of the rest is
            another image's. 0 is off. One box per batch; not together with mixup.
        classes: K; needed with mixup and cutmix, whose targets are shares of classes.
        jitter: volumes are shifted by up to this many voxels along each axis and mirrored along the two
            horizontal ones (depth and width) with probability 1/2 each. Refused for images.
    """

    pad_crop: int = 0
    flip: bool | Literal["alternate"] = False
    trivial: bool = False
    cutout: int = 0
    mixup: float = 0.0
    cutmix: float = 0.0
    jitter: int = 0
    classes: int = 0

    def __post_init__(self) -> None:
        for name in ("pad_crop", "cutout", "jitter", "classes"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise InvalidInputError(f"augmentation {name}", expected="0 or more, whole", received=value)
        if self.flip not in (True, False, "alternate"):
            raise InvalidInputError(
                "augmentation flip", expected="true, false or alternate", received=self.flip
            )
        if not isinstance(self.trivial, bool):
            raise InvalidInputError("augmentation trivial", expected="true or false", received=self.trivial)
        for name in ("mixup", "cutmix"):
            alpha = getattr(self, name)
            if not isinstance(alpha, int | float) or not 0 <= alpha < float("inf"):
                raise InvalidInputError(f"augmentation {name}", expected="0 or more", received=alpha)
            if alpha and self.classes < 2:
                raise InvalidInputError(
                    f"augmentation {name}", expected="the number of classes with it", received=self.classes
                )
        if self.mixup and self.cutmix:
            raise InvalidInputError("augmentation", expected="mixup or cutmix", received="both")

    def to_json(self) -> dict[str, object]:
        """The fields, for run configurations."""
        return asdict(self)

    def __call__(
        self,
        batch: Tensor,
        labels: Tensor,
        generator: torch.Generator,
        *,
        epoch: int = 0,
        indices: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Augment one batch.

        Args:
            batch: float [B, C, H, W] or [B, C, D, H, W], normalised; it is not changed in place.
            labels: int64 [B]; without a mixture whatever belongs to the images.
            generator: Generator of the batch's device, or of the CPU.
            epoch: from 0.
            indices: numbers of the images in their data set, int64 [B]; needed to alternate flips.

        Returns:
            The batch, and targets as ``cross_entropy`` takes them: the labels [B], or with a mixture the
            share of each class, float32 [B, K].

        Raises:
            InvalidInputError: jitter for images, or a batch of another number of axes.
        """
        self._check_axes(batch)
        if reach := max(self.pad_crop, self.jitter):
            batch = shift(batch, _integers((len(batch), batch.ndim - 2), -reach, reach, generator))
        if self.flip == "alternate":
            if indices is None:
                raise InvalidInputError("augmentation flip", expected="numbers of the images with it")
            batch = mirror(batch, -1, alternating(indices, epoch))
        elif self.flip:
            batch = mirror(batch, -1, _coins(len(batch), generator))
        if self.trivial:
            batch = change_one_way(batch, generator)
        if self.jitter:
            # Horizontal axes only: the first one is the height of a voxelised object (see modelnet.py).
            for axis in (-1, -2):
                batch = mirror(batch, axis, _coins(len(batch), generator))
        if self.cutout:
            sizes = batch.shape[2:]
            middle = torch.stack([_integers((len(batch),), 0, size - 1, generator) for size in sizes], dim=1)
            batch = erase(batch, middle, self.cutout)
        if self.cutmix:
            return self._patched(batch, labels, generator)
        return self._mixed(batch, labels, generator) if self.mixup else (batch, labels)

    def _patched(self, batch: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A box of each image is another image's; targets are the shares of the area."""
        sides = (1 - float(_beta(self.cutmix, generator))) ** (1 / (batch.ndim - 2))
        place, inside = [slice(None), slice(None)], 1.0
        for size in batch.shape[2:]:
            half = sides * size / 2
            middle = float(torch.rand((), generator=generator, device=generator.device)) * size
            low, high = max(0, round(middle - half)), min(size, round(middle + half))
            place.append(slice(low, high))
            inside *= (high - low) / size
        order = torch.randperm(len(batch), generator=generator, device=generator.device).to(batch.device)
        patched = batch.clone()
        patched[tuple(place)] = batch[order][tuple(place)]
        shares = one_hot(labels, self.classes).float()
        return patched, shares.lerp(shares[order], inside)

    def _mixed(self, batch: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Each image blended with another one, and the shares of both classes."""
        weight = _beta(self.mixup, generator).to(batch.device, batch.dtype)
        order = torch.randperm(len(batch), generator=generator, device=generator.device).to(batch.device)
        shares = one_hot(labels, self.classes).float()
        mixed = batch.lerp(batch[order], 1.0 - weight)
        return mixed, shares.lerp(shares[order], 1.0 - weight.float())

    def _check_axes(self, batch: Tensor) -> None:
        if batch.ndim not in (4, 5):
            raise InvalidInputError(
                "batch to augment", expected="[B, C, H, W] or [B, C, D, H, W]", received=tuple(batch.shape)
            )
        wrong = "jitter" if self.jitter and batch.ndim == 4 else ""
        wrong = "trivial" if self.trivial and batch.ndim == 5 else wrong
        if wrong:
            expected = "images [B, C, H, W]" if wrong == "trivial" else "volumes [B, C, D, H, W]"
            raise InvalidInputError(f"augmentation {wrong}", expected=expected, received=tuple(batch.shape))


def shift(batch: Tensor, offsets: Tensor) -> Tensor:
    """Move each image by its own offsets, zeros come in: [B, C, *size], int64 [B, axes] -> [B, C, *size]."""
    if batch.ndim == 4 and batch.is_contiguous(memory_format=torch.channels_last):
        return _shift_pixels(batch, offsets.to(batch.device))
    for axis in range(batch.ndim - 2):
        size = batch.shape[axis + 2]
        source = torch.arange(size, device=offsets.device) - offsets[:, axis : axis + 1]  # [B, size]
        valid = ((source >= 0) & (source < size)).to(batch.device)
        view = [len(batch), 1] + [1] * (batch.ndim - 2)
        view[axis + 2] = size
        index = source.clamp(0, size - 1).to(batch.device).view(view).expand(batch.shape)
        batch = batch.gather(axis + 2, index) * valid.view(view)
    return batch


def _shift_pixels(batch: Tensor, offsets: Tensor) -> Tensor:
    """:func:`shift` of channels_last images: one look-up of whole pixels, nine times faster on a CPU."""
    count, _, height, width = batch.shape
    rows = torch.arange(height, device=batch.device) - offsets[:, :1]  # [B, H]
    columns = torch.arange(width, device=batch.device) - offsets[:, 1:]  # [B, W]
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    first = torch.arange(count, device=batch.device)[:, None, None] * (height * width)
    place = first + rows.clamp(0, height - 1)[:, :, None] * width + columns.clamp(0, width - 1)[:, None, :]
    pixels = batch.permute(0, 2, 3, 1).reshape(-1, batch.shape[1])
    moved = pixels.index_select(0, place.flatten()) * inside.flatten()[:, None]
    return moved.view(count, height, width, -1).permute(0, 3, 1, 2)


def alternating(indices: Tensor, epoch: int) -> Tensor:
    """Which images are mirrored in an epoch, bool [B]: half of them in even ones, the others in odd ones."""
    return ((indices * 2654435761 >> 16) + epoch) % 2 == 0


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


GEOMETRIC = 5  # of the twelve ways: shear x, shear y, move x, move y, turn


def change_one_way(batch: Tensor, generator: torch.Generator) -> Tensor:
    """Change each image in one way of random strength: normalised [B, C, H, W] -> the same shape."""
    count, device = len(batch), batch.device
    way = _integers((count,), 0, 11, generator).to(device)
    strength = (2 * torch.rand(count, generator=generator, device=generator.device) - 1).to(device)

    def only(number: int) -> Tensor:
        return torch.where(way == number, strength, torch.zeros((), device=device))  # [B]

    batch = _transformed(batch, *(only(number) for number in range(GEOMETRIC)))
    light, contrast, colour, sharp = (only(GEOMETRIC + k).view(-1, 1, 1, 1) for k in range(4))
    mean, grey = batch.mean((1, 2, 3), keepdim=True), batch.mean(1, keepdim=True)
    batch = batch + light + 0.9 * contrast * (batch - mean)
    if batch.shape[1] == 3:
        batch = batch + 0.9 * colour * (batch - grey)
    smooth = avg_pool2d(pad(batch, (1, 1, 1, 1), "replicate"), 3, 1)
    batch = batch + 0.9 * sharp * (batch - smooth)
    threshold = 2 * strength.abs().view(-1, 1, 1, 1)
    solar = (way == 9).view(-1, 1, 1, 1) & (batch > threshold)
    batch = torch.where(solar, 2 * threshold - batch, batch)
    levels = 1 + 4 * strength.abs().view(-1, 1, 1, 1)  # per standard deviation
    return torch.where((way == 10).view(-1, 1, 1, 1), torch.round(batch * levels) / levels, batch)


def _transformed(
    batch: Tensor, shear_x: Tensor, shear_y: Tensor, move_x: Tensor, move_y: Tensor, turn: Tensor
) -> Tensor:
    """Sheared by up to 0.5, moved by up to a quarter, turned by up to 30 degrees; zeros come in."""
    angle = turn * (torch.pi / 6)
    rows = [
        torch.stack([angle.cos(), 0.5 * shear_x - angle.sin(), 0.5 * move_x], 1),
        torch.stack([0.5 * shear_y + angle.sin(), angle.cos(), 0.5 * move_y], 1),
    ]
    theta = torch.stack(rows, 1).to(batch.dtype)  # [B, 2, 3]
    grid = affine_grid(theta, list(batch.shape), align_corners=False)
    return grid_sample(batch, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _integers(shape: tuple[int, ...], low: int, high: int, generator: torch.Generator) -> Tensor:
    return torch.randint(low, high + 1, shape, generator=generator, device=generator.device)


def _coins(count: int, generator: torch.Generator) -> Tensor:
    return torch.rand(count, generator=generator, device=generator.device) < 0.5


def _beta(alpha: float, generator: torch.Generator) -> Tensor:
    """One draw of Beta(alpha, alpha), float64 []; torch's own Beta takes no generator."""
    shape = torch.full((2,), alpha, dtype=torch.float64, device=generator.device)
    draws = torch._standard_gamma(shape, generator=generator)
    return draws[0] / draws.sum().clamp_min(torch.finfo(torch.float64).tiny)

"""Initial weights that shorten training: a whitening first convolution, and identities.

Source: KellerJordan/cifar10-airbench (2024), whose first layer and initialisation these follow; there for
one network, here for whatever first convolution a network has.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from smash_search.model.interpreter import Network

if TYPE_CHECKING:
    from smash_search.data import Dataset
    from smash_search.model.supernet import Supernet

PATCH_IMAGES = 2000
PATCH_VALUES = 2**23  # of the images whose patches are in memory together, all 2,000 of CIFAR-10's size
EPSILON = 5e-4  # added to the variances, which are 0 for patches that never vary


def first_convolution(network: nn.Module) -> nn.Parameter | None:
    """The filters [O, C, *k] that see the images; None where a network has no convolution."""
    if isinstance(network, Network):
        stem: nn.Parameter = network.weights["stem"]
        return stem
    kinds = (nn.Conv2d, nn.Conv3d)
    found = (module for module in network.modules() if isinstance(module, kinds))
    first = next(found, None)
    weight = None if first is None else first.weight
    assert weight is None or isinstance(weight, nn.Parameter)
    return weight


@torch.no_grad()
def whiten(network: nn.Module, dataset: Dataset) -> None:
    """Set the first convolution to whiten patches of training images, and let it stay so.

    Filters are the eigenvectors of the patches' covariance, largest first, over the root of their variance;
    as many again with the other sign. What is left of the channels keeps its random filters. Volumes, images
    with a side below the filters', and networks without a convolution, or whose first one does not see all
    channels of the images, are left as they are.
    """
    weight = first_convolution(network)
    if weight is None or not _sees_patches(weight, dataset):
        return
    kernel = (weight.shape[2], weight.shape[3])
    filters = whitening_filters(_patch_images(dataset), kernel)  # [C k k, C, k, k]
    half = min(len(filters), len(weight) // 2)
    both = torch.cat([filters[:half], -filters[:half]])
    weight[: 2 * half] = both.to(weight)
    weight.requires_grad_(False)


@torch.no_grad()
def whiten_stems(supernet: Supernet, dataset: Dataset) -> None:
    """The same for every stem that networks of a space share, which take the first channels of it.

    So the two signs of a filter stand side by side, and channels that are left are random mixtures of the
    filters, which whiten as well. Volumes, and images with a side below the filters', are left as they are.
    """
    stems = {name: weight for name, weight in supernet.filters.items() if name.startswith("stem")}
    for name in sorted(stems):
        weight = stems[name]
        if not _sees_patches(weight, dataset):
            continue
        filters = whitening_filters(_patch_images(dataset), (weight.shape[2], weight.shape[3]))
        pairs = torch.stack([filters, -filters], 1).flatten(0, 1)[: len(weight)]
        generator = torch.Generator().manual_seed(0)
        mixture = torch.randn(len(weight) - len(pairs), len(filters), generator=generator)
        mixed = torch.einsum("on,n...->o...", mixture / mixture.norm(dim=1, keepdim=True), filters)
        weight.copy_(torch.cat([pairs, mixed]))
        weight.requires_grad_(False)


def _sees_patches(weight: Tensor, dataset: Dataset) -> bool:
    """Whether the images are pictures that a patch of the size of filters [O, C, *k] fits into, of their
    channels: the first convolution of somebody's network may see fewer of them, or features.
    """
    images = dataset.train.images
    is_picture = weight.dim() == images.ndim == 4 and weight.shape[1] == images.shape[3]
    return is_picture and all(np.less_equal(weight.shape[2:], images.shape[1:3]))


def _patch_images(dataset: Dataset) -> Iterator[Tensor]:
    """Some training images, normalised, in batches of bounded memory: [B, C, *S] each."""
    images = dataset.train.images
    chosen = np.sort(np.random.default_rng(0).permutation(len(images))[:PATCH_IMAGES])
    step = max(1, PATCH_VALUES // int(np.prod(images.shape[1:])))
    for start in range(0, len(chosen), step):
        batch: Tensor = dataset.preprocessing.normalise(
            torch.from_numpy(images[chosen[start : start + step]])
        )
        yield batch


def whitening_filters(batches: Iterable[Tensor], kernel: tuple[int, int]) -> Tensor:
    """Eigenvectors of patches over the root of their variance, largest first: [C k k, C, k, k].

    Args:
        batches: Pictures [B, C, H, W] each, no side below the kernel's.
        kernel: Height and width of a patch.
    """
    products, count, channels = torch.zeros(()), 0, 0
    for images in batches:
        patches = nn.functional.unfold(images, kernel, stride=kernel).movedim(1, 2).flatten(0, 1).double()
        products = products + patches.T @ patches
        count, channels = count + len(patches), images.shape[1]
    variance, vectors = torch.linalg.eigh(products / count)
    scaled: Tensor = vectors / torch.sqrt(variance.clamp_min(0) + EPSILON)
    filters: Tensor = scaled.T.flip(0).reshape(-1, channels, *kernel).float()
    return filters


@torch.no_grad()
def begin_as_identity(network: nn.Module) -> None:
    """Let every convolution pass its channels on unchanged at the centre of its kernel.

    Those of as many outputs as it has inputs; the other outputs keep their random filters. Convolutions in
    groups and the first one are left as they are.
    """
    first = first_convolution(network)
    for weight in _filters(network):
        if weight is not first and weight.dim() >= 4:
            nn.init.dirac_(weight[: weight.shape[1]])


def _filters(network: nn.Module) -> list[Tensor]:
    if isinstance(network, Network):
        grouped = {
            f"blocks__{i}__ops__{j}__convs__{slot}"
            for i, block in enumerate(network.architecture.blocks)
            for j, op in enumerate(block.ops)
            for slot, conv in enumerate(op.convs)
            if conv is not None and conv.groups > 1
        }
        return [value for name, value in network.weights.items() if name not in grouped]
    kinds = (nn.Conv2d, nn.Conv3d)
    modules = [module for module in network.modules() if isinstance(module, kinds) and module.groups == 1]
    return [module.weight for module in modules]

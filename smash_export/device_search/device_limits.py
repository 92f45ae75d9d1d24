"""Limits of devices as smaller search spaces, so that a device runs what is found and hands nothing back.

For a DLA these are its limits on convolutions, activations and pooling. Splitting a bank and the classifier
stay with the GPU in any network of these spaces; ``smash-export check`` names them. The limits come from
:mod:`deploy_targets`; the search is only given a smaller space and knows no device.
"""

from __future__ import annotations

from dataclasses import replace

from smash_base.errors import GateError, UsageError
from smash_search.space.architecture import InputSpec
from smash_search.space.cost import block_sizes
from smash_search.space.prior import Prior
from smash_search.space.space import Space
from smash_targets.tensorrt.check import DlaLimits

REQUIREMENTS = ("tensorrt-dla",)


def limited_space(space: Space, input_spec: InputSpec, requirement: str) -> Space:
    """The part of a space that meets a requirement.

    Args:
        space: Space that fits the input.
        input_spec: Input of the networks.
        requirement: One of :data:`REQUIREMENTS`.

    Raises:
        UsageError: an unknown requirement.
        GateError: no network of the space can meet it.
    """
    if requirement not in REQUIREMENTS:
        raise UsageError("--require", expected=" or ".join(REQUIREMENTS), received=requirement)
    return _for_dla(space, input_spec, DlaLimits())


def _for_dla(space: Space, input_spec: InputSpec, limits: DlaLimits) -> Space:
    if input_spec.dims != limits.dimensions:
        raise GateError(
            "a DLA has convolutions over two axes only",
            expected="images",
            received=f"inputs with {input_spec.dims} axes",
        )
    dilations = dict(space.dilations)
    kernels = tuple(k for k in space.kernels if _inside(k, limits.kernel))
    allowed = {kernel: _largest_dilation(kernel, dilations[kernel], limits) for kernel in kernels}
    kernels = tuple(kernel for kernel in kernels if allowed[kernel])
    groups = tuple(count for count in space.groups if _inside(count, limits.groups))
    activations = tuple(name for name in space.activations if name in limits.activations)
    if not kernels or not activations or not _inside(max(space.stem_strides), limits.stride):
        raise GateError(f"no network of the space {space.name} fits a DLA", hint="Choose another --space.")
    space = replace(
        space, kernels=kernels, dilations=tuple(allowed.items()), groups=groups, activations=activations
    )
    return _with_small_averages(space, input_spec, limits)


def _with_small_averages(space: Space, input_spec: InputSpec, limits: DlaLimits) -> Space:
    """As many strides of the stem and windows between blocks as leave a last map that can be averaged in
    every network; squeeze-excitation, which averages the maps of its block, only where all of them can be.
    """
    choices = [
        (space.stem_strides[drop:], pools)
        for drop in range(len(space.stem_strides))
        for pools in {space.pools, tuple(window for window in space.pools if window > 1)}
    ]
    choices.sort(key=lambda choice: (-len(choice[0]) * len(choice[1]), choice))
    for strides, pools in choices:
        part = replace(
            space, stem_strides=strides, pools=pools, prior=_prior_without(space, strides), squeeze=False
        )
        sizes = _largest_maps(part, input_spec)
        if not all(_inside(size, limits.pool) for size in sizes[-1]):
            continue
        squeezed = all(_inside(size, limits.pool) for size in sizes[0])
        return replace(part, squeeze=space.squeeze and squeezed)
    smallest = replace(space, stem_strides=space.stem_strides[-1:], pools=(max(space.pools),))
    raise GateError(
        "the average over the last feature map does not fit a DLA",
        expected=f"a window of at most {limits.pool[1]} along each axis",
        received="x".join(map(str, _largest_maps(smallest, input_spec)[-1])),
        hint="Choose a --space with more blocks, or smaller images.",
    )


def _prior_without(space: Space, strides: tuple[int, ...]) -> Prior:
    """The prior of a space whose stem has only the largest strides."""
    stems = space.prior.stems[len(space.stem_strides) - len(strides) :]
    possible = any(share > 0 for share in stems[: len(strides)])
    return replace(space.prior, stems=stems if possible else (1.0,) * len(strides))


def _largest_maps(space: Space, input_spec: InputSpec) -> list[tuple[int, ...]]:
    """Size of the feature maps of each block, in the network of the space where they are largest."""
    drawn = space.draw(0, 0)
    first, *others = drawn.blocks
    blocks = (first, *(replace(block, pool=min(space.pools)) for block in others))
    return block_sizes(
        replace(drawn, stem=space.stem(min(space.stem_strides)), blocks=blocks), input_spec.size
    )


def _largest_dilation(kernel: int, most: int, limits: DlaLimits) -> int:
    """Largest dilation whose padding stays below the kernel and inside the limits; 0 for none."""
    return max(
        (
            dilation
            for dilation in range(1, most + 1)
            if _inside(dilation, limits.dilation)
            and dilation * (kernel // 2) < kernel
            and _inside(dilation * (kernel // 2), limits.padding)
        ),
        default=0,
    )


def _inside(value: int, bounds: tuple[int, int]) -> bool:
    return bounds[0] <= value <= bounds[1]

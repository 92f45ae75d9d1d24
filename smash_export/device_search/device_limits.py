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
    last = block_sizes(space.draw(0, 0), input_spec.size)[-1]
    if not all(_inside(size, limits.pool) for size in last):
        raise GateError(
            "the average over the last feature map does not fit a DLA",
            expected=f"a window of at most {limits.pool[1]} along each axis",
            received="x".join(map(str, last)),
            hint="Choose a --space with more blocks, or smaller images.",
        )
    return replace(
        space, kernels=kernels, dilations=tuple(allowed.items()), groups=groups, activations=activations
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

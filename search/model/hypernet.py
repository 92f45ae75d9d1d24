"""The HyperNet: c -> the 1x1 filters of an architecture (SMASH paper, section 3.2).

A DenseNet without down-sampling over c: 3x3 convolutions, LeakyReLU before each but the first, no
bias, no BatchNorm, every filter divided by its whole norm, 1x1 at the end. At each place of c it gives
one tile of N output by N dc input channels; an op's tiles side by side are its filter, cropped to
exactly the channels that the op asks for, and divided by its Euclidean norm. With "bases" it gives the shares
of learned filters instead, whose sum is the op's filter.

    N   channels of a unit   dc  depth compression   H, W  size of c   M  bottleneck   I  inputs of an op
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smash_base.errors import InvalidInputError
from smash_search.model.interpreter import Norm
from smash_search.space.architecture import Architecture
from smash_search.space.encoding import Layout, Tile
from smash_search.space.space import Space

LEAKY_SLOPE = 0.02
LARGE = 4096  # places of c from which bfloat16 pays on a CPU
MOMENT_DRAWS = 64  # over which the mean of c is taken
MOMENT_FLOOR = 0.2  # added to the deviation of a channel of c, so that rare marks do not become huge


@dataclass(frozen=True)
class HyperNetConfig:
    """Size of a HyperNet.

    Attributes:
        depths: dense layers of each stage; halving 3x3 layers stand between the stages.
        growth: channels that each dense layer adds.
        compression: units of input per column of c (dc).
        noise: whether the noise channel of c is drawn, or 0.
        norm: "none" normalises at the end of blocks only, as the paper does; "sandwich" wherever the network
            does that is trained from scratch.
        sharing: How the other filters are shared: "block" gives all ops of a block the same ones, as the
            paper does; "position" gives each op of a block its own.
        centred: whether c is shifted and scaled to what its channels are on average over draws of the space.
        gain: "whole" leaves a generated filter's whole norm at 1, as the paper does; "rows" scales it to unit
            norm per output channel on average, so that activations keep their size.
        bases: learned filters of full rank that c mixes into an op's filter: those of its block, or, where
            sharing is by position, its own. 0 lays tiles side by side, as the paper does.
        whiten: whether the first convolution that networks share whitens patches of the training images and
            stays so (:func:`smash_search.train.initial.whiten_stems`).
    """

    depths: tuple[int, ...] = (8, 10, 4)
    growth: int = 10
    compression: int = 1
    noise: bool = True
    norm: Norm = "none"
    sharing: Literal["block", "position"] = "block"
    centred: bool = False
    gain: Literal["rows", "whole"] = "whole"
    bases: int = 0
    whiten: bool = False

    def __post_init__(self) -> None:
        if not self.depths or min(*self.depths, self.bases) < 0 or min(self.growth, self.compression) < 1:
            raise InvalidInputError(
                "HyperNet configuration",
                expected="depths and bases of 0 and more, growth and compression of 1 and more",
                received=self,
            )


def normalised(weight: Tensor, gain: Literal["rows", "whole"] = "whole") -> Tensor:
    """A filter [outputs, ...] divided by its whole Euclidean norm (a simplified WeightNorm).

    With gain "rows" it is then scaled by sqrt(outputs): unit norm per output channel on average. Filters of
    norm 1, the paper's, add little to what a bank holds until their gains have grown, and train faster: 600
    steps in the medium space at 1e-2 ended at a loss of 0.57 (the HyperNet at a fifth of it), and at 0.90
    where all filters had norms by rows (and all the same rate).
    """
    scale = math.sqrt(weight.shape[0]) if gain == "rows" else 1.0
    scaled: Tensor = weight * (scale / (weight.norm() + 1e-12))
    return scaled


def cut(whole: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The first channels and the centre of the kernel; channels that are not there repeat those that are.

    A kernel larger than the whole one is surrounded by zeros.
    """
    for axis, wanted in enumerate(shape[:2]):
        have = whole.shape[axis]
        if wanted <= have:
            whole = whole.narrow(axis, 0, wanted)
        else:
            whole = whole.index_select(axis, torch.arange(wanted, device=whole.device) % have)
    padding: list[int] = []
    for axis, wanted in enumerate(shape[2:], start=2):
        have = whole.shape[axis]
        if wanted < have:
            whole = whole.narrow(axis, (have - wanted) // 2, wanted)
        padding = [max(0, wanted - have) // 2] * 2 + padding
    return F.pad(whole, padding) if any(padding) else whole


class HyperNet(nn.Module):
    """c -> filters.

    Args:
        layout: Layout of the space's c.
        config: size.
    """

    def __init__(self, layout: Layout, config: HyperNetConfig) -> None:
        super().__init__()
        if layout.compression != config.compression:
            raise InvalidInputError(
                "layout and HyperNet differ in compression",
                expected=config.compression,
                received=layout.compression,
            )
        self.layout, self.config = layout, config
        self.c_mean: Tensor
        self.c_deviation: Tensor
        if config.centred:
            mean, deviation = _moments(layout)
            self.register_buffer("c_mean", mean[:, None, None])
            self.register_buffer("c_deviation", deviation[:, None, None])
        self.layers = nn.ParameterList()
        channels = 4 * config.growth
        self._add(channels, layout.channels, 3)  # first layer
        for stage, depth in enumerate(config.depths):
            if stage:
                self._add(channels // 2, channels, 3)  # halving
                channels //= 2
            for _ in range(depth):
                self._add(config.growth, channels, 3)
                channels += config.growth
        unit = layout.space.unit
        self._add(config.bases or unit * unit * config.compression, channels, 1)
        self.bases = nn.ParameterDict()
        if config.bases:
            for key, (outputs, inputs) in _widest(layout.space, config.sharing).items():
                filters = torch.randn(outputs, inputs, config.bases) / math.sqrt(inputs)
                self.bases[key] = nn.Parameter(filters)

    def _add(self, outputs: int, inputs: int, kernel: int) -> None:
        weight = torch.empty(outputs, inputs, kernel, kernel)
        nn.init.orthogonal_(weight)
        self.layers.append(nn.Parameter(weight))

    def forward(self, c: Tensor) -> Tensor:
        """[1, channels, H, W] -> [1, N N dc, H, W], or [1, bases, H, W]."""
        # A nonlinearity works on each channel by itself: what a layer adds goes through it once.
        layers = iter(self.layers)
        x = _leaky(F.conv2d(c, normalised(next(layers)), padding=1))
        for stage, depth in enumerate(self.config.depths):
            if stage:
                x = _leaky(F.conv2d(x, normalised(next(layers)), padding=1))
            for _ in range(depth):
                grown = _leaky(F.conv2d(x, normalised(next(layers)), padding=1))
                x = torch.cat([x, grown], 1)
        return F.conv2d(x, normalised(next(layers)))

    def generate(
        self, architecture: Architecture, c: Tensor | None = None, noise_seed: int | None = None
    ) -> dict[str, Tensor]:
        """Every 1x1 filter of an architecture: name -> [M, I, 1, 1] (voxels [M, I, 1, 1, 1]).

        Args:
            architecture: inside the space.
            c: [channels, H, W] in place of the architecture's own encoding, to study what the
                HyperNet reads from it.
            noise_seed: Seed of the noise channel; ignored when the configuration has no noise.
        """
        parameter = self.layers[0]
        if c is None:
            seed = noise_seed if self.config.noise else None
            c = torch.from_numpy(self.layout.encode(architecture, seed))
        if not c.shape[-1]:  # nothing of this architecture is generated
            return {}
        c = c.to(parameter.device, parameter.dtype)
        if self.config.centred:
            c = (c - self.c_mean) / self.c_deviation
        c = c[None]
        # On a CPU in float32 whatever the rest runs in, unless c is large: every width of c is new, and
        # preparing small bfloat16 convolutions for it takes longer than they save.
        low = torch.is_autocast_enabled("cpu") and math.prod(c.shape[2:]) >= LARGE
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            out = self(c.contiguous(memory_format=torch.channels_last))[0].float()  # [N N dc or bases, H, W]
        raw = self._mixed if self.config.bases else self._tiled
        ones = (1,) * architecture.dims
        return {
            tile.name: normalised(weight, self.config.gain).reshape(*weight.shape, *ones)
            for tile, weight in raw(out, self.layout.tiles(architecture))
        }

    def _tiled(self, out: Tensor, tiles: list[Tile]) -> Iterator[tuple[Tile, Tensor]]:
        """[N N dc, H, W] -> filters of tiles side by side, [M, I] each."""
        unit, step = self.layout.space.unit, self.layout.space.unit * self.config.compression
        grid = out.reshape(unit, step, *out.shape[1:]).permute(2, 0, 3, 1)  # [H, N, W, N dc]
        for tile in tiles:
            part = grid[: tile.rows, :, tile.left : tile.left + tile.columns]
            whole = part.reshape(tile.rows * unit, tile.columns * step)
            yield tile, whole[: tile.outputs, : tile.inputs]

    def _mixed(self, out: Tensor, tiles: list[Tile]) -> Iterator[tuple[Tile, Tensor]]:
        """[bases, H, W] -> filters that are sums of learned ones, [M, I] each."""
        for tile in tiles:
            shares = out[:, : tile.rows, tile.left : tile.left + tile.columns].mean((1, 2))
            filters = self.bases[_basis(tile.name, self.config.sharing)]
            yield tile, cut(filters, (tile.outputs, tile.inputs, len(shares))) @ shares


def _basis(name: str, sharing: Literal["block", "position"]) -> str:
    """Which learned filters a filter is mixed of."""
    _, block, _, number, role = name.split(".")
    return f"{block}-{role}" if sharing == "block" else f"{block}-{number}-{role}"


def _widest(space: Space, sharing: Literal["block", "position"]) -> dict[str, tuple[int, int]]:
    """Outputs and inputs of the learned filters, as large as most networks need them."""
    inside, units = space.max_bottleneck * space.unit, space.max_units * space.unit
    shapes = {"reduce": (inside, inside), "project": (units, inside)}
    return {
        _basis(f"blocks.{block}.ops.{number}.{role}", sharing): shape
        for block in range(space.blocks)
        for number in range(space.max_ops)
        for role, shape in shapes.items()
    }


def _moments(layout: Layout) -> tuple[Tensor, Tensor]:
    """Mean and deviation of every channel of c over the filters of draws; the same for every process."""
    inside = layout.sections["inside"].start
    total, squares, count = np.zeros(layout.channels), np.zeros(layout.channels), 0
    for slot in range(MOMENT_DRAWS):
        c = layout.encode(layout.space.draw(0, slot)).astype(np.float64)
        values = c[:, c[inside] > 0]
        total, squares, count = total + values.sum(1), squares + (values**2).sum(1), count + values.shape[1]
    mean = total / max(1, count)
    deviation = np.sqrt(np.maximum(squares / max(1, count) - mean**2, 0)) + MOMENT_FLOOR
    return torch.from_numpy(mean).float(), torch.from_numpy(deviation).float()


def _leaky(x: Tensor) -> Tensor:
    return F.leaky_relu(x, LEAKY_SLOPE)

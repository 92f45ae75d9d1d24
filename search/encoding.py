"""Architecture -> c, the tensor that the HyperNet reads. No torch.

As in section 3.2 of the SMASH paper: c is [1, channels, H, W]; its channels describe, at each place,
the op whose weights are generated there. Along the width stand the incoming slices of all 1x1
convolutions, op after op; along the height the units of their output. The background is -1, a mark
is +1. Every choice of the space has a channel of its own, in one layout that never changes during
training (:class:`Layout`).

    N   channels of a unit           dc  depth compression: input units per column, times 1
    H   most output units of any op  W   sum over ops of ceil(input channels / (N dc))
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from search.architecture import SLOTS, Architecture, Block, Op
from search.space import Space

BACKGROUND, MARK = -1.0, 1.0


class Tile(NamedTuple):
    """Where one op's filter stands in c and in the HyperNet's output.

    ``rows`` x ``columns`` tiles from column ``left`` on hold the filter [outputs, inputs], whose last
    tiles are cropped when the channels do not fill them.
    """

    name: str
    left: int
    rows: int
    columns: int
    outputs: int
    inputs: int


@dataclass(frozen=True)
class Layout:
    """Named channels of c for one space.

    Sections, in this order: ``read`` (banks the op reads), ``source`` (bank of this column's slice),
    ``write``, ``block``, ``bank`` (bank size), ``units``, ``bottleneck``, ``row`` (this output unit),
    ``inside`` (whether the place belongs to the filter), ``place`` (position of the op in its block and
    of the column in its op, from -1 to 1), then for each of the four slots ``active``, ``kernel`` and
    ``dilation`` per axis, ``groups``, ``activation``, and last ``gate`` and ``noise``.
    """

    space: Space
    compression: int = 1
    sections: dict[str, slice] = field(init=False, compare=False)
    channels: int = field(init=False, compare=False)

    def __post_init__(self) -> None:
        space = self.space
        most_dilation = max(top for _, top in space.dilations)
        sizes = {
            "read": space.max_banks,
            "source": space.max_banks,
            "write": space.max_banks,
            "block": space.blocks,
            "bank": len(space.bank_units),
            "units": space.max_units,
            "bottleneck": space.max_bottleneck,
            "row": space.max_bottleneck,
            "inside": 1,
            "place": 2,
        }
        for slot in range(SLOTS):
            sizes[f"active{slot}"] = 1
            for axis in range(space.dims):
                sizes[f"kernel{slot}.{axis}"] = len(space.kernels)
                sizes[f"dilation{slot}.{axis}"] = most_dilation
            sizes[f"groups{slot}"] = len(space.groups)
            sizes[f"activation{slot}"] = len(space.activations)
        sizes |= {"gate": 1, "noise": 1}
        sections, start = {}, 0
        for name, size in sizes.items():
            sections[name] = slice(start, start + size)
            start += size
        object.__setattr__(self, "sections", sections)
        object.__setattr__(self, "channels", start)

    def tiles(self, architecture: Architecture) -> list[Tile]:
        """Every op's place in c, from left to right."""
        unit, left, tiles = self.space.unit, 0, []
        for i, block in enumerate(architecture.blocks):
            for j, op in enumerate(block.ops):
                inputs = len(op.reads) * block.bank_channels
                columns = math.ceil(inputs / (unit * self.compression))
                rows = math.ceil(op.bottleneck / unit)
                name = f"blocks.{i}.ops.{j}.reduce"
                tiles.append(Tile(name, left, rows, columns, op.bottleneck, inputs))
                left += columns
        return tiles

    def encode(self, architecture: Architecture, noise_seed: int | None = None) -> np.ndarray:
        """c of an architecture of the space: float32 [channels, H, W].

        Args:
            architecture: inside the space (:meth:`Space.check`).
            noise_seed: seed of the noise channel, z ~ N(0, 1); None leaves it 0.
        """
        tiles = self.tiles(architecture)
        height = max(tile.rows for tile in tiles)
        width = tiles[-1].left + tiles[-1].columns
        flat = np.full((self.channels, width), BACKGROUND, np.float32)  # what is equal in all rows
        position = 0
        for i, block in enumerate(architecture.blocks):
            for j, op in enumerate(block.ops):
                tile = tiles[position]
                position += 1
                at = slice(tile.left, tile.left + tile.columns)
                flat[self._marks(i, block, op), at] = MARK
                first, second = self.sections["place"].start, self.sections["place"].start + 1
                flat[first, at] = 2 * (j + 1) / len(block.ops) - 1
                flat[second, at] = np.linspace(-1, 1, tile.columns)
                step = self.space.unit * self.compression
                source = np.asarray(op.reads)[np.arange(tile.columns) * step // block.bank_channels]
                columns = np.arange(tile.left, tile.left + tile.columns)
                flat[self.sections["source"].start + source, columns] = MARK
        c = np.repeat(flat[:, None, :], height, axis=1)  # [channels, H, W]
        rows = np.repeat([tile.rows for tile in tiles], [tile.columns for tile in tiles])
        c[self.sections["inside"].start] = np.where(
            np.arange(height)[:, None] < rows[None, :], MARK, BACKGROUND
        )
        row = self.sections["row"].start
        c[np.arange(row, row + height), np.arange(height)] = MARK
        noise = self.sections["noise"].start
        c[noise] = (
            0.0
            if noise_seed is None
            else np.random.default_rng(noise_seed).standard_normal((height, width), np.float32)
        )
        return c

    def _marks(self, index: int, block: Block, op: Op) -> list[int]:
        """Channels that are +1 in every place of an op."""
        space, unit = self.space, self.space.unit
        marks = [self._at("block", index)]
        marks += [self._at("read", bank) for bank in op.reads]
        marks += [self._at("write", bank) for bank in op.writes]
        marks.append(self._at("bank", space.bank_units.index(block.bank_channels // unit)))
        marks.append(self._at("units", op.units // unit - 1))
        marks.append(self._at("bottleneck", op.bottleneck // unit - 1))
        for slot, conv in enumerate(op.convs):
            if conv is None:
                continue
            marks.append(self._at(f"active{slot}", 0))
            for axis, (size, step) in enumerate(zip(conv.kernel, conv.dilation, strict=True)):
                marks.append(self._at(f"kernel{slot}.{axis}", space.kernels.index(size)))
                marks.append(self._at(f"dilation{slot}.{axis}", step - 1))
            marks.append(self._at(f"groups{slot}", space.groups.index(conv.groups)))
            marks.append(self._at(f"activation{slot}", space.activations.index(conv.activation)))
        if op.gate:
            marks.append(self._at("gate", 0))
        return marks

    def _at(self, section: str, offset: int) -> int:
        return self.sections[section].start + offset

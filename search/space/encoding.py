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

from smash_search.space.architecture import SLOTS, Architecture, Block, Op
from smash_search.space.space import Space

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
    _starts: dict[str, int] = field(init=False, compare=False, repr=False)

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
        object.__setattr__(self, "_starts", {name: part.start for name, part in sections.items()})

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
        ops = [
            (i, block, j, op) for i, block in enumerate(architecture.blocks) for j, op in enumerate(block.ops)
        ]
        marks = [(mark, n) for n, (i, block, _, op) in enumerate(ops) for mark in self._marks(i, block, op)]
        each = np.full((self.channels, len(ops)), BACKGROUND, np.float32)  # what is equal in an op's tiles
        each[tuple(np.asarray(marks).T)] = MARK
        place = self.sections["place"].start
        each[place] = [2 * (j + 1) / len(block.ops) - 1 for _, block, j, _ in ops]
        columns = np.asarray([tile.columns for tile in tiles])
        owner = np.repeat(np.arange(len(ops)), columns)  # op of each column, [W]
        flat = each[:, owner]  # what is equal in all rows, [channels, W]
        offset = np.arange(width) - np.asarray([tile.left for tile in tiles])[owner]
        flat[place + 1] = 2 * offset / np.maximum(columns - 1, 1)[owner] - 1
        reads = np.asarray([bank for _, _, _, op in ops for bank in op.reads])
        first = np.cumsum([0, *(len(op.reads) for _, _, _, op in ops)])[owner]
        banks = np.asarray([block.bank_channels for _, block, _, _ in ops])[owner]
        source = reads[first + offset * (self.space.unit * self.compression) // banks]
        flat[self.sections["source"].start + source, np.arange(width)] = MARK
        c = np.empty((self.channels, height, width), np.float32)
        c[:] = flat[:, None, :]
        rows = np.asarray([tile.rows for tile in tiles])[owner]
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
        space, at = self.space, self._starts
        unit = space.unit
        marks = [at["block"] + index]
        marks += [at["read"] + bank for bank in op.reads]
        marks += [at["write"] + bank for bank in op.writes]
        marks.append(at["bank"] + space.bank_units.index(block.bank_channels // unit))
        marks.append(at["units"] + op.units // unit - 1)
        marks.append(at["bottleneck"] + op.bottleneck // unit - 1)
        for slot, conv in enumerate(op.convs):
            if conv is None:
                continue
            marks.append(at[f"active{slot}"])
            for axis, (size, step) in enumerate(zip(conv.kernel, conv.dilation, strict=True)):
                marks.append(at[f"kernel{slot}.{axis}"] + space.kernels.index(size))
                marks.append(at[f"dilation{slot}.{axis}"] + step - 1)
            marks.append(at[f"groups{slot}"] + space.groups.index(conv.groups))
            marks.append(at[f"activation{slot}"] + space.activations.index(conv.activation))
        if op.gate:
            marks.append(at["gate"])
        return marks

"""Architecture -> c, the tensor that the HyperNet reads. No torch.

As in section 3.2 of the SMASH paper: c is [1, channels, H, W]; its channels describe, at each place,
the op whose weights are generated there. Along the width stand the incoming slices of all generated 1x1
convolutions, op after op; along the height the units of their output. The background is -1, a mark
is +1. Every choice of the space has a channel of its own (but no activation, which is no mark), in one layout
that never changes during training (:class:`Layout`).

    N   channels of a unit           dc  depth compression: input units per column, times 1
    H   most output units of any op  W   sum over ops of ceil(input channels / (N dc))
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from smash_search.space.architecture import SLOTS, Architecture, Block, Conv, Op
from smash_search.space.prior import FORMS
from smash_search.space.space import Space, form_of

BACKGROUND, MARK = -1.0, 1.0
ROLES = ("reduce", "project")  # of the convolutions that are generated


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

    Sections, in this order: ``read`` (banks the op reads), ``source`` (bank of this column's slice; none
    for a projection, which reads the op's own channels), ``write``, ``block``, ``bank`` (bank size),
    ``units``, ``bottleneck``, ``row`` (this output unit), ``inside`` (whether the place belongs to the
    filter), ``place`` (position of the op in its block and of the column in its op, from -1 to 1),
    ``position`` (the op's number in its block), ``role`` (first 1x1 convolution, or projection), then for
    each of the four slots ``active``, ``kernel`` and ``dilation`` per axis, ``groups`` (the last one: each
    channel on its own), ``activation``, then ``form``, ``project`` (activation before it), ``squeeze``,
    ``stem`` and ``pool`` strides, and last ``gate`` and ``noise``. The activation "none" has no mark: the
    prior ``regular`` never draws it, so that training would leave the weights of its channel as they began.
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
            "row": self._most_rows,
            "inside": 1,
            "place": 2,
            "position": space.max_ops,
            "role": len(ROLES),
        }
        for slot in range(SLOTS):
            sizes[f"active{slot}"] = 1
            for axis in range(space.dims):
                sizes[f"kernel{slot}.{axis}"] = len(space.kernels)
                sizes[f"dilation{slot}.{axis}"] = most_dilation
            sizes[f"groups{slot}"] = len(space.groups) + 1
            sizes[f"activation{slot}"] = len(self._activations)
        sizes |= {
            "form": len(FORMS),
            "project": len(self._activations),
            "squeeze": 1,
            "stem": len(space.stem_strides),
            "pool": len(space.pools),
            "gate": 1,
            "noise": 1,
        }
        sections, start = {}, 0
        for name, size in sizes.items():
            sections[name] = slice(start, start + size)
            start += size
        object.__setattr__(self, "sections", sections)
        object.__setattr__(self, "channels", start)
        object.__setattr__(self, "_starts", {name: part.start for name, part in sections.items()})

    @property
    def _activations(self) -> tuple[str, ...]:
        return tuple(name for name in self.space.activations if name != "none")

    @property
    def _most_rows(self) -> int:
        projects = {"projected", "pointwise"} & set(self.space.forms)
        return max(self.space.max_bottleneck, self.space.max_units if projects else 0)

    def tiles(self, architecture: Architecture) -> list[Tile]:
        """The place in c of every convolution that is generated, from left to right."""
        return [tile for tile, _ in self._tiles(architecture)]

    def _tiles(self, architecture: Architecture) -> list[tuple[Tile, _Place]]:
        unit, left, tiles = self.space.unit, 0, []
        for i, block in enumerate(architecture.blocks):
            for j, op in enumerate(block.ops):
                for part in op.convolutions(len(op.reads) * block.bank_channels, architecture.dims):
                    if not part.generated:
                        continue
                    columns = math.ceil(part.inputs / (unit * self.compression))
                    rows = math.ceil(part.outputs / unit)
                    name = f"blocks.{i}.ops.{j}.{part.name}"
                    place = _Place(i, block, j, op, part.name)
                    tiles.append((Tile(name, left, rows, columns, part.outputs, part.inputs), place))
                    left += columns
        return tiles

    def encode(self, architecture: Architecture, noise_seed: int | None = None) -> np.ndarray:
        """c of an architecture of the space: float32 [channels, H, W]; W is 0 where nothing is generated.

        Args:
            architecture: inside the space (:meth:`Space.check`).
            noise_seed: seed of the noise channel, z ~ N(0, 1); None leaves it 0.
        """
        pairs = self._tiles(architecture)
        if not pairs:
            return np.empty((self.channels, 1, 0), np.float32)
        tiles, places = [tile for tile, _ in pairs], [place for _, place in pairs]
        height = max(tile.rows for tile in tiles)
        width = tiles[-1].left + tiles[-1].columns
        marks = [(mark, n) for n, at in enumerate(places) for mark in self._marks(architecture, at)]
        each = np.full((self.channels, len(tiles)), BACKGROUND, np.float32)  # what is equal in a tile
        each[tuple(np.asarray(marks).T)] = MARK
        place = self.sections["place"].start
        each[place] = [2 * (at.number + 1) / len(at.block.ops) - 1 for at in places]
        columns = np.asarray([tile.columns for tile in tiles])
        owner = np.repeat(np.arange(len(tiles)), columns)  # tile of each column, [W]
        flat = each[:, owner]  # what is equal in all rows, [channels, W]
        offset = np.arange(width) - np.asarray([tile.left for tile in tiles])[owner]
        flat[place + 1] = 2 * offset / np.maximum(columns - 1, 1)[owner] - 1
        self._mark_sources(flat, places, owner, offset)
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

    def _mark_sources(
        self, flat: np.ndarray, places: list[_Place], owner: np.ndarray, offset: np.ndarray
    ) -> None:
        """The bank of each column's slice."""
        reads = np.asarray([bank for at in places for bank in at.op.reads])
        first = np.cumsum([0, *(len(at.op.reads) for at in places)])[owner]
        banks = np.asarray([at.block.bank_channels for at in places])[owner]
        reading = np.asarray([at.role == "reduce" for at in places])[owner]
        slices = np.where(reading, offset * (self.space.unit * self.compression) // banks, 0)
        source = reads[first + slices]
        columns = np.flatnonzero(reading)
        flat[self.sections["source"].start + source[columns], columns] = MARK

    def _marks(self, architecture: Architecture, place: _Place) -> list[int]:
        """Channels that are +1 in every place of a filter."""
        space, at, block, op = self.space, self._starts, place.block, place.op
        unit = space.unit
        marks = [at["block"] + place.block_number]
        marks += [at["read"] + bank for bank in op.reads]
        marks += [at["write"] + bank for bank in op.writes]
        marks.append(at["bank"] + space.bank_units.index(block.bank_channels // unit))
        marks.append(at["units"] + op.units // unit - 1)
        marks.append(at["bottleneck"] + min(op.bottleneck // unit, space.max_bottleneck) - 1)
        marks.append(at["position"] + place.number)
        marks.append(at["role"] + ROLES.index(place.role))
        marks.append(at["form"] + FORMS.index(form_of(op)))
        marks.append(at["stem"] + space.stem_strides.index(architecture.stem.stride[0]))
        if place.block_number:
            marks.append(at["pool"] + space.pools.index(block.pool))
        for slot, conv in enumerate(op.convs):
            if conv is not None:
                marks += self._conv_marks(slot, conv)
        if op.project is not None and op.project != "none":
            marks.append(at["project"] + self._activations.index(op.project))
        if op.squeeze:
            marks.append(at["squeeze"])
        if op.gate:
            marks.append(at["gate"])
        return marks

    def _conv_marks(self, slot: int, conv: Conv) -> list[int]:
        space, at = self.space, self._starts
        marks = [at[f"active{slot}"]]
        for axis, (size, step) in enumerate(zip(conv.kernel, conv.dilation, strict=True)):
            marks.append(at[f"kernel{slot}.{axis}"] + space.kernels.index(size))
            marks.append(at[f"dilation{slot}.{axis}"] + step - 1)
        known = conv.groups in space.groups
        marks.append(at[f"groups{slot}"] + (space.groups.index(conv.groups) if known else len(space.groups)))
        if conv.activation != "none":
            marks.append(at[f"activation{slot}"] + self._activations.index(conv.activation))
        return marks


class _Place(NamedTuple):
    """Whose filter a tile is: number and value of block and op, and the name of the convolution."""

    block_number: int
    block: Block
    number: int
    op: Op
    role: str

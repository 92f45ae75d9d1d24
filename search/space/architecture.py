"""Architectures of the memory-bank space as plain, hashable values, and their JSON (schema 1).

The space is that of SMASH (Brock et al. 2017, section 3.1). A network is a stem and a sequence of
*blocks* at successively halved resolution. Each block owns *memory banks*: the first ones hold the
block's input, the others start as zeros. An *op* reads some banks (concatenated along channels),
reduces or expands them by a 1x1 convolution with generated weights, runs up to four convolutions in two
branches of two, and adds its output to the banks it writes. A bank that nothing wrote reads as zeros.

Beyond the paper an op may leave out the first 1x1 convolution, project by a second one (with the first one
wide and a depthwise convolution between them: MobileNetV2's block), and weigh its channels
(squeeze-excitation). What an op consists of is written down once, in :meth:`Op.convolutions` and
:meth:`Op.norms`; everything that counts, normalises, generates, exports or draws derives from them.

Torch-free: a hand-written ``best.json`` can be checked on any machine. Files are untrusted: limits are
checked before anything is allocated.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from smash_base.errors import InvalidInputError
from smash_base.json_values import JsonObject
from smash_search.space.checks import check_int, check_integers, check_list, check_object

SLOTS = 4  # convolutions of an op: branch A is slots 0 -> 1, branch B is slots 2 -> 3
ACTIVATIONS = ("relu", "leaky_relu", "tanh", "none", "relu6", "hard_swish")
LEAKY_SLOPE = 0.02  # of "leaky_relu"
ACTIVE_PATTERNS = ("0000", "1000", "1010", "1100", "1110", "1111")
POOL = 2  # window of the average between blocks, unless a block says otherwise

# Limits of what a file may ask for; far above any network that this project would search.
MAX_BLOCKS = 16
MAX_OPS = 512  # per network
MAX_BANKS = 256
MAX_CHANNELS = 4096  # of a bank, an op, a block input
MAX_KERNEL = 15
MAX_DILATION = 16
MAX_PARAMETERS = 500_000_000
MAX_SIZE = 4096


@dataclass(frozen=True)
class InputSpec:
    """What the network is shown: ``channels`` and ``size`` = (H, W), or (D, H, W) for voxels."""

    channels: int
    size: tuple[int, ...]

    def __post_init__(self) -> None:
        check_int("input.channels", self.channels, 1, MAX_CHANNELS)
        if len(self.size) not in (2, 3):
            raise InvalidInputError("input size", expected="2 or 3 axes", received=self.size)
        for value in self.size:
            check_int("input size", value, 1, MAX_SIZE)

    @property
    def dims(self) -> int:
        """2 for images, 3 for voxels."""
        return len(self.size)

    def to_json(self) -> dict[str, int]:
        """``{"channels", "height", "width"}``, with ``"depth"`` for voxels."""
        names = ("height", "width") if self.dims == 2 else ("depth", "height", "width")
        return {"channels": self.channels, **dict(zip(names, self.size, strict=True))}

    @classmethod
    def from_json(cls, value: Any) -> InputSpec:
        """Read :meth:`to_json` back; raises InvalidInputError naming the field."""
        block = check_object("input", value, {"channels", "height", "width"}, {"depth"})
        axes = (["depth"] if "depth" in block else []) + ["height", "width"]
        return cls(block["channels"], tuple(block[axis] for axis in axes))


@dataclass(frozen=True)
class Conv:
    """One spatial convolution with same padding; ``activation`` is applied to its input."""

    kernel: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1
    activation: str = "relu"


class Convolution(NamedTuple):
    """One convolution of an op or a network, with everything that its weight's shape and its cost need.

    Attributes:
        name: in the frozen weights, for example "reduce" or "convs.0"; :meth:`Architecture.convolutions`
            puts the place before it.
        inputs, outputs: channels.
        kernel, dilation, groups: as in :class:`Conv`.
        generated: whether the HyperNet makes its weights.
        pooled: whether it runs on one pixel (after an average over all of them).
    """

    name: str
    inputs: int
    outputs: int
    kernel: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1
    generated: bool = False
    pooled: bool = False

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """[outputs, inputs / groups, *kernel]."""
        return (self.outputs, self.inputs // self.groups, *self.kernel)

    @property
    def weights(self) -> int:
        """Numbers in the weight, without the bias."""
        return math.prod(self.weight_shape)


class NormPlace(NamedTuple):
    """Where a network that is trained from scratch has a BatchNorm, and into what it folds.

    Attributes:
        name: for example "norm_in"; the place is put before it.
        channels: Number of channels that it normalises.
        before: convolutions whose (summed) output it normalises; empty where it normalises what was read.
        after: the 1x1 convolution that it precedes directly, where ``before`` is empty.
    """

    name: str
    channels: int
    before: tuple[str, ...] = ()
    after: str = ""


@dataclass(frozen=True)
class Op:
    """One layer: read banks, reduce to ``bottleneck`` channels, convolve to ``units``, write banks.

    ``units`` is m chunks of a bank's channels; the i-th bank of ``writes`` gets chunk i mod m. The branches
    meet in branch A + branch B; A alone when slots 2 and 3 are empty, the reduced tensor itself when all are;
    A * sigmoid(B) when ``gate`` is set.

    Attributes:
        reads, writes: banks.
        bottleneck: channels after the first 1x1 convolution; more than are read is an expansion.
        units: channels of the output.
        convs: slots 0 -> 1 are branch A, 2 -> 3 branch B.
        gate: see above.
        reduce: whether there is a first 1x1 convolution; without it ``bottleneck`` is what is read.
        project: activation before a last 1x1 convolution to ``units``, or None for no such convolution.
            With it the branches work on ``bottleneck`` channels throughout.
        squeeze: hidden channels of squeeze-excitation (Hu et al. 2018) before that convolution, 0 for none.
    """

    reads: tuple[int, ...]
    writes: tuple[int, ...]
    bottleneck: int
    units: int
    convs: tuple[Conv | None, ...]
    gate: bool = False
    reduce: bool = True
    project: str | None = None
    squeeze: int = 0

    @property
    def pattern(self) -> str:
        """Which slots are active, for example "1010"."""
        return "".join("0" if conv is None else "1" for conv in self.convs)

    @property
    def width(self) -> int:
        """Channels of the branches' outputs."""
        return self.units if self.project is None else self.bottleneck

    def branches(self) -> tuple[tuple[int, ...], ...]:
        """Active slots of each active branch, in order: ((0, 1), (2,)) for "1110"."""
        pairs = (tuple(slot for slot in pair if self.convs[slot] is not None) for pair in ((0, 1), (2, 3)))
        return tuple(pair for pair in pairs if pair)

    def convolutions(self, inputs: int, dims: int) -> Iterator[Convolution]:
        """Every convolution, in the order in which they run.

        Args:
            inputs: channels that are read.
            dims: spatial axes.
        """
        ones = (1,) * dims
        if self.reduce:
            yield Convolution("reduce", inputs, self.bottleneck, ones, ones, generated=True)
        for branch in self.branches():
            channels = self.bottleneck
            for slot in branch:
                conv = self.convs[slot]
                assert conv is not None  # active
                yield Convolution(
                    f"convs.{slot}", channels, self.width, conv.kernel, conv.dilation, conv.groups
                )
                channels = self.width
        if self.squeeze:
            yield Convolution("squeeze", self.width, self.squeeze, ones, ones, pooled=True)
            yield Convolution("excite", self.squeeze, self.width, ones, ones, pooled=True)
        if self.project is not None:
            yield Convolution("project", self.bottleneck, self.units, ones, ones, generated=True)

    def norms(self, inputs: int) -> Iterator[NormPlace]:
        """Every BatchNorm of a network that is trained from scratch, in the order in which they run.

        An op of the paper's form is normalised as its program does when it trains the winner: around the 1x1
        convolution and between stacked ones. The other forms have one after every convolution, as the
        networks that they come from. All of them fold into convolutions.
        """
        paper = self.reduce and self.project is None and bool(self.branches())
        if paper:
            yield NormPlace("norm_in", inputs, after="reduce")
        if self.reduce:
            yield NormPlace("norm_reduced", self.bottleneck, before=("reduce",))
        for branch in self.branches():
            for first, second in itertools.pairwise(branch):
                yield NormPlace(f"convs.{second}.norm", self.width, before=(f"convs.{first}",))
        ends = tuple(f"convs.{branch[-1]}" for branch in self.branches())
        if not paper and ends and not self.gate:
            yield NormPlace("norm_convolved", self.width, before=ends)
        if self.project is not None:
            yield NormPlace("norm_out", self.units, before=("project",))


@dataclass(frozen=True)
class Block:
    """Ops over ``banks`` banks of ``bank_channels`` channels; the first banks hold the input.

    ``pool`` is the window of the average before the block: 2 halves the resolution, 1 keeps it. The first
    block has none before it.
    """

    channels_in: int
    bank_channels: int
    banks: int
    ops: tuple[Op, ...]
    pool: int = POOL

    @property
    def input_banks(self) -> int:
        """How many banks hold the block's input at the start."""
        return self.channels_in // self.bank_channels

    @property
    def channels_out(self) -> int:
        """Channels of all banks together: what the transition or the head takes."""
        return self.banks * self.bank_channels


@dataclass(frozen=True)
class Stem:
    """First convolution, from the image to the first block's input; followed by ReLU."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class Architecture:
    """A whole network but for its input size and class count, which
    :class:`smash_search.space.best.BestFile` adds.

    Raises:
        InvalidInputError: anything that no network could be built from, with the field named.
    """

    stem: Stem
    blocks: tuple[Block, ...]

    def __post_init__(self) -> None:
        _validate(self)

    @property
    def dims(self) -> int:
        """Spatial axes: 2 for images, 3 for voxels."""
        return len(self.stem.kernel)

    @property
    def op_count(self) -> int:
        """Ops over all blocks."""
        return sum(len(block.ops) for block in self.blocks)

    def ops(self) -> Iterator[tuple[str, Block, Op]]:
        """Every op with the block it belongs to, under its name in the frozen weights."""
        for i, block in enumerate(self.blocks):
            for j, op in enumerate(block.ops):
                yield f"blocks.{i}.ops.{j}", block, op

    def convolutions(self, channels: int, classes: int) -> Iterator[Convolution]:
        """Every convolution, and the linear layer "head" (kernel ()), in the order in which they run.

        Args:
            channels: Number of channels of the image.
            classes: outputs of the linear layer.
        """
        dims, ones, blocks = self.dims, (1,) * self.dims, self.blocks
        yield Convolution("stem", channels, blocks[0].channels_in, self.stem.kernel, ones)
        for i, block in enumerate(blocks):
            for j, op in enumerate(block.ops):
                for part in op.convolutions(len(op.reads) * block.bank_channels, dims):
                    yield part._replace(name=f"blocks.{i}.ops.{j}.{part.name}")
            if i + 1 < len(blocks):
                wanted = blocks[i + 1].channels_in
                yield Convolution(f"blocks.{i}.transition", block.channels_out, wanted, ones, ones)
        yield Convolution("head", blocks[-1].channels_out, classes, (), (), pooled=True)

    def norms(self) -> Iterator[NormPlace]:
        """Every BatchNorm of a network that is trained from scratch; those that end blocks do not fold."""
        yield NormPlace("stem.norm", self.blocks[0].channels_in, before=("stem",))
        for i, block in enumerate(self.blocks):
            for j, op in enumerate(block.ops):
                where = f"blocks.{i}.ops.{j}."
                for place in op.norms(len(op.reads) * block.bank_channels):
                    yield NormPlace(
                        where + place.name,
                        place.channels,
                        tuple(where + name for name in place.before),
                        where + place.after if place.after else "",
                    )
            end = "head" if i + 1 == len(self.blocks) else f"blocks.{i}.transition"
            yield NormPlace(f"{end}.norm", block.channels_out)

    @cached_property
    def key(self) -> str:
        """First 16 hexadecimal digits of the SHA-256 of the canonical JSON: the name of a result."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_json(self) -> JsonObject:
        """Plain lists and numbers; :meth:`from_json` gives an equal value back."""
        return {
            "stem": {"kernel": list(self.stem.kernel), "stride": list(self.stem.stride)},
            "blocks": [
                {
                    "channels_in": block.channels_in,
                    "bank_channels": block.bank_channels,
                    "banks": block.banks,
                    "ops": [_op_to_json(op) for op in block.ops],
                    **({} if block.pool == POOL else {"pool": block.pool}),
                }
                for block in self.blocks
            ],
        }

    @classmethod
    def from_json(cls, value: Any) -> Architecture:
        """Read an ``architecture`` object; raises InvalidInputError naming the field."""
        top = check_object("architecture", value, {"stem", "blocks"})
        stem = check_object("stem", top["stem"], {"kernel", "stride"})
        blocks = check_list("blocks", top["blocks"], MAX_BLOCKS)
        total = sum(
            len(block["ops"])
            for block in blocks
            if isinstance(block, Mapping) and isinstance(block.get("ops"), Sequence)
        )
        if total > MAX_OPS:
            raise InvalidInputError(
                "architecture has too many ops", expected=f"at most {MAX_OPS}", received=total
            )
        return cls(
            Stem(_axes("stem.kernel", stem["kernel"]), _axes("stem.stride", stem["stride"])),
            tuple(_block_from_json(f"blocks[{index}]", block) for index, block in enumerate(blocks)),
        )


def _op_to_json(op: Op) -> JsonObject:
    """What the paper's ops do not have stands there only where it is used: keys of old networks stay."""
    beyond: JsonObject = {} if op.reduce else {"reduce": False}
    beyond |= {} if op.project is None else {"project": op.project}
    beyond |= {"squeeze": op.squeeze} if op.squeeze else {}
    return {
        "reads": list(op.reads),
        "writes": list(op.writes),
        "bottleneck": op.bottleneck,
        "units": op.units,
        "convs": [
            None
            if conv is None
            else {
                "kernel": list(conv.kernel),
                "dilation": list(conv.dilation),
                "groups": conv.groups,
                "activation": conv.activation,
            }
            for conv in op.convs
        ],
        "gate": op.gate,
        **beyond,
    }


def _block_from_json(where: str, value: Any) -> Block:
    block = check_object(where, value, {"channels_in", "bank_channels", "banks", "ops"}, {"pool"})
    ops = check_list(f"{where}.ops", block["ops"], MAX_OPS)
    return Block(
        channels_in=block["channels_in"],
        bank_channels=block["bank_channels"],
        banks=block["banks"],
        ops=tuple(_op_from_json(f"{where}.ops[{index}]", op) for index, op in enumerate(ops)),
        pool=block.get("pool", POOL),
    )


def _op_from_json(where: str, value: Any) -> Op:
    required = {"reads", "writes", "bottleneck", "units", "convs"}
    op = check_object(where, value, required, {"gate", "reduce", "project", "squeeze"})
    slots = check_list(f"{where}.convs", op["convs"], SLOTS)
    convs: list[Conv | None] = []
    for index, slot in enumerate(slots):
        if slot is None:
            convs.append(None)
            continue
        name = f"{where}.convs[{index}]"
        conv = check_object(name, slot, {"kernel", "dilation"}, {"groups", "activation"})
        convs.append(
            Conv(
                kernel=_axes(f"{name}.kernel", conv["kernel"]),
                dilation=_axes(f"{name}.dilation", conv["dilation"]),
                groups=conv.get("groups", 1),
                activation=conv.get("activation", "relu"),
            )
        )
    return Op(
        reads=check_integers(f"{where}.reads", op["reads"], MAX_BANKS),
        writes=check_integers(f"{where}.writes", op["writes"], MAX_BANKS),
        bottleneck=op["bottleneck"],
        units=op["units"],
        convs=tuple(convs),
        gate=op.get("gate", False),
        reduce=op.get("reduce", True),
        project=op.get("project"),
        squeeze=op.get("squeeze", 0),
    )


# --------------------------------------------------------------------------------------- validation


def _validate(architecture: Architecture) -> None:
    stem, blocks = architecture.stem, architecture.blocks
    dims = len(stem.kernel)
    if dims not in (2, 3):
        raise InvalidInputError("stem.kernel", expected="2 or 3 axes", received=stem.kernel)
    _check_kernel("stem.kernel", stem.kernel, dims)
    if len(stem.stride) != dims:
        raise InvalidInputError("stem.stride", expected=f"{dims} axes", received=stem.stride)
    for value in stem.stride:
        check_int("stem.stride", value, 1, 8)
    if not 1 <= len(blocks) <= MAX_BLOCKS:
        raise InvalidInputError("blocks", expected=f"1 to {MAX_BLOCKS} blocks", received=len(blocks))
    if architecture.op_count > MAX_OPS:
        raise InvalidInputError(
            "architecture has too many ops",
            expected=f"at most {MAX_OPS}",
            received=architecture.op_count,
        )
    for index, block in enumerate(blocks):
        _validate_block(f"blocks[{index}]", block, dims)
    if blocks[0].pool != POOL:
        raise InvalidInputError(
            "blocks[0].pool",
            expected="none: nothing is averaged before the first block",
            received=blocks[0].pool,
        )
    weights = _weights_at_most(architecture)
    if weights > MAX_PARAMETERS:
        raise InvalidInputError(
            "architecture is too large",
            expected=f"at most {MAX_PARAMETERS} parameters",
            received=weights,
        )


def _validate_block(where: str, block: Block, dims: int) -> None:
    check_int(f"{where}.channels_in", block.channels_in, 1, MAX_CHANNELS)
    check_int(f"{where}.bank_channels", block.bank_channels, 1, MAX_CHANNELS)
    check_int(f"{where}.banks", block.banks, 1, MAX_BANKS)
    check_int(f"{where}.pool", block.pool, 1, 8)
    if block.channels_in % block.bank_channels:
        raise InvalidInputError(
            f"{where}.channels_in does not fill whole banks",
            expected=f"a multiple of bank_channels = {block.bank_channels}",
            received=block.channels_in,
        )
    if block.input_banks > block.banks:
        raise InvalidInputError(
            f"{where}.banks cannot hold the block's input",
            expected=f"at least {block.input_banks}",
            received=block.banks,
        )
    for index, op in enumerate(block.ops):
        _validate_op(f"{where}.ops[{index}]", op, block, dims)


def _validate_op(where: str, op: Op, block: Block, dims: int) -> None:
    for name, banks in (("reads", op.reads), ("writes", op.writes)):
        if not banks or len(set(banks)) != len(banks):
            raise InvalidInputError(
                f"{where}.{name}", expected="one or more different banks", received=list(banks)
            )
        for bank in banks:
            if isinstance(bank, bool) or not isinstance(bank, int) or not 0 <= bank < block.banks:
                raise InvalidInputError(
                    f"{where}.{name} names a bank that does not exist",
                    expected=f"0 to {block.banks - 1}",
                    received=bank,
                )
    check_int(f"{where}.bottleneck", op.bottleneck, 1, MAX_CHANNELS)
    check_int(f"{where}.units", op.units, 1, MAX_CHANNELS)
    if op.units % block.bank_channels:
        raise InvalidInputError(
            f"{where}.units does not fill whole banks",
            expected=f"a multiple of bank_channels = {block.bank_channels}",
            received=op.units,
        )
    if op.units // block.bank_channels > len(op.writes):
        raise InvalidInputError(
            f"{where}.units is more than the written banks hold",
            expected=f"at most {len(op.writes) * block.bank_channels}",
            received=op.units,
        )
    if len(op.convs) != SLOTS:
        raise InvalidInputError(f"{where}.convs", expected=f"{SLOTS} slots", received=len(op.convs))
    if op.pattern not in ACTIVE_PATTERNS:
        raise InvalidInputError(
            f"{where}.convs: active slots",
            expected=" or ".join(ACTIVE_PATTERNS),
            received=op.pattern,
        )
    if not isinstance(op.gate, bool):
        raise InvalidInputError(f"{where}.gate", expected="true or false", received=op.gate)
    if op.gate and op.convs[2] is None:
        raise InvalidInputError(
            f"{where}.gate multiplies two branches", expected="slot 2 active", received=op.pattern
        )
    _validate_form(where, op, len(op.reads) * block.bank_channels)
    for branch in op.branches():
        channels = op.bottleneck
        for slot in branch:
            conv = op.convs[slot]
            assert conv is not None  # active
            _validate_conv(f"{where}.convs[{slot}]", conv, channels, op.width, dims)
            channels = op.width


def _validate_form(where: str, op: Op, inputs: int) -> None:
    """What the parts of an op ask of each other."""
    if not isinstance(op.reduce, bool):
        raise InvalidInputError(f"{where}.reduce", expected="true or false", received=op.reduce)
    if not op.reduce and op.bottleneck != inputs:
        raise InvalidInputError(
            f"{where}.bottleneck without a first 1x1 convolution", expected=inputs, received=op.bottleneck
        )
    if op.project is not None and op.project not in ACTIVATIONS:
        raise InvalidInputError(f"{where}.project", expected=" or ".join(ACTIVATIONS), received=op.project)
    if not op.branches() and op.project is None:
        if not op.reduce:
            raise InvalidInputError(f"{where} computes nothing", expected="a convolution", received="none")
        if op.bottleneck != op.units:
            raise InvalidInputError(
                f"{where}.units of an op that is one 1x1 convolution",
                expected=f"bottleneck = {op.bottleneck}",
                received=op.units,
            )
    check_int(f"{where}.squeeze", op.squeeze, 0, MAX_CHANNELS)


def _validate_conv(where: str, conv: Conv, channels_in: int, units: int, dims: int) -> None:
    _check_kernel(f"{where}.kernel", conv.kernel, dims)
    if len(conv.dilation) != dims:
        raise InvalidInputError(f"{where}.dilation", expected=f"{dims} axes", received=conv.dilation)
    for value in conv.dilation:
        check_int(f"{where}.dilation", value, 1, MAX_DILATION)
    check_int(f"{where}.groups", conv.groups, 1, MAX_CHANNELS)
    if channels_in % conv.groups or units % conv.groups:
        raise InvalidInputError(
            f"{where}.groups does not divide the channels",
            expected=f"a divisor of {channels_in} (in) and {units} (out)",
            received=conv.groups,
        )
    if conv.activation not in ACTIVATIONS:
        raise InvalidInputError(
            f"{where}.activation", expected=" or ".join(ACTIVATIONS), received=conv.activation
        )


def _weights_at_most(architecture: Architecture) -> int:
    """Weights of the convolutions between image and classes, without bias: guards allocation."""
    return sum(part.weights for part in architecture.convolutions(1, 1))


def _check_kernel(where: str, kernel: tuple[int, ...], dims: int) -> None:
    if len(kernel) != dims:
        raise InvalidInputError(where, expected=f"{dims} axes", received=kernel)
    for value in kernel:
        check_int(where, value, 1, MAX_KERNEL)
        if value % 2 == 0:
            raise InvalidInputError(where, expected="odd sizes", received=kernel)


def _axes(where: str, value: Any) -> tuple[int, ...]:
    return check_integers(where, value, 3)

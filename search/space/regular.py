"""Networks of regular structure: the draws of the regular prior, and moves that keep the structure.

A *motif* is what one op is, but for the banks that it reads and writes. A regular block repeats one motif
over one wiring. A block that is regular can be widened, deepened or given another motif as a whole, which is
how most steps between good networks look; :meth:`smash_search.space.space.Space.mutate` mixes these moves
with changes of single choices.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from smash_search.space.architecture import POOL, Architecture, Block, Conv, Op
from smash_search.space.draws import Draws
from smash_search.space.prior import Form

if TYPE_CHECKING:
    from smash_search.space.space import Space

SQUEEZE_SHARE = 4  # hidden channels of squeeze-excitation are the width divided by this


@dataclass(frozen=True)
class Motif:
    """What an op is, whatever it reads and writes.

    Attributes:
        form: see :class:`smash_search.space.prior.Prior`.
        ratio: channels of the bottleneck over those that are read.
        convs: kernel, dilation and activation of each slot; their groups are set by the block.
        depthwise: whether a projected op convolves each channel on its own.
        activation: Activation before the projection.
        squeeze: whether there is squeeze-excitation.
    """

    form: Form
    ratio: float
    convs: tuple[Conv | None, ...]
    depthwise: bool
    activation: str
    squeeze: bool


def draw_regular(space: Space, draws: Draws) -> Architecture:
    """A network of the regular prior."""
    prior = space.prior
    stride = draws.weighted("stem.stride", list(zip(space.stem_strides, prior.stems, strict=False)))
    size = -(-space.size // stride) if space.size else 0
    first = space.widths[0]
    if stride > space.stem_strides[0] and not draws.chance("narrow", prior.narrow):
        least = min(max(first), min(first) * stride // space.stem_strides[0])
        first = tuple(width for width in first if width >= least)
    choices_of = (first, *space.widths[1:])
    widths = [draws.pick(f"block{index}.width", choices) for index, choices in enumerate(choices_of)]
    if draws.chance("growing", prior.growing):
        widths = _growing(space, widths)
    shares = [(depth, share) for depth, share in prior.depths if depth <= space.max_ops]
    depths = [draws.weighted(f"block{index}.depth", shares) for index in range(space.blocks)]
    if draws.chance("deepening", prior.deepening):
        depths.sort()
    blocks: list[Block] = []
    motif: Motif | None = None
    for index, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        pool = _draw_pool(space, draws, index)
        size = max(1, size // pool) if index and size else size
        if motif is None or not draws.chance(f"block{index}.same", prior.same):
            motif = draw_motif(space, draws, f"block{index}", size)
        motif = _fitted(space, motif, size)
        block = draw_block(space, draws, f"block{index}", width, depth, motif, size)
        blocks.append(replace(block, pool=pool) if index else block)
    return Architecture(space.stem(stride), tuple(blocks))


def _growing(space: Space, widths: list[int]) -> list[int]:
    """The next possible width wherever a block is narrower than the one before."""
    grown: list[int] = []
    for width, choices in zip(widths, space.widths, strict=True):
        least = grown[-1] if grown else 0
        grown.append(min((choice for choice in choices if choice >= max(width, least)), default=max(choices)))
    return grown


def _draw_pool(space: Space, draws: Draws, index: int) -> int:
    if index and 1 in space.pools and draws.chance(f"block{index}.keep", space.prior.keep_size):
        return 1
    return draws.pick(f"block{index}.pool", [window for window in space.pools if window > 1])


def draw_motif(space: Space, draws: Draws, where: str, size: int) -> Motif:
    """What the ops of a block are; ``size`` is that of its feature map, 0 where it is not known."""
    prior = space.prior
    form: Form = draws.weighted(
        f"{where}.form", [(form, share) for form, share in prior.forms if form in space.forms]
    )
    activation = draws.weighted(
        f"{where}.activation", [pair for pair in prior.activations if pair[0] in space.activations]
    )
    ratio = 1.0
    if form in ("projected", "pointwise"):
        ratio = float(draws.weighted(f"{where}.expansion", prior.expansions))
    elif form == "reduced":
        ratio = float(draws.weighted(f"{where}.reduction", prior.reductions))
    pattern = _draw_pattern(space, draws, where, form)
    convs = tuple(
        _draw_conv(space, draws, f"{where}.motif{slot}", activation, size) if active == "1" else None
        for slot, active in enumerate(pattern)
    )
    depthwise = form == "projected" and draws.chance(f"{where}.depthwise", prior.depthwise)
    squeeze = prior.squeeze if form == "projected" else prior.squeeze / 2
    wanted = space.squeeze and draws.chance(f"{where}.squeeze", squeeze)
    return Motif(form, ratio, convs, depthwise, activation, wanted)


def _fitted(space: Space, motif: Motif, size: int) -> Motif:
    """The motif for a smaller feature map: no kernel wider than it."""
    if not size:
        return motif
    convs = tuple(
        conv
        if conv is None or max(conv.kernel) <= max(3, size)
        else replace(conv, kernel=(min(space.kernels),) * space.dims, dilation=(1,) * space.dims)
        for conv in motif.convs
    )
    return replace(motif, convs=convs)


def _draw_pattern(space: Space, draws: Draws, where: str, form: Form) -> str:
    if form == "pointwise":
        return "0000"
    if form == "projected":
        return "1000"
    allowed = {pattern for pattern, share in space.patterns if share > 0}
    pattern: str = draws.weighted(
        f"{where}.pattern", [pair for pair in space.prior.patterns if pair[0] in allowed]
    )
    return pattern


def _draw_conv(space: Space, draws: Draws, where: str, activation: str, size: int) -> Conv:
    """Square and undilated, as a rule, and no wider than the map."""
    fits = [
        (kernel, share)
        for kernel, share in space.prior.kernels
        if share > 0 and kernel in space.kernels and (not size or kernel <= max(3, size))
    ] or [(min(space.kernels), 1.0)]
    if draws.chance(f"{where}.odd", space.prior.odd):
        conv = space.draw_conv(draws, where, 1, 1, tuple(kernel for kernel, _ in fits))
        return replace(conv, groups=1, activation=activation)
    kernel = draws.weighted(f"{where}.kernel", fits)
    return Conv((kernel,) * space.dims, (1,) * space.dims, 1, activation)


def draw_block(
    space: Space, draws: Draws, where: str, width: int, depth: int, motif: Motif, size: int
) -> Block:
    """A block of ``depth`` ops, most of them of one motif; ``width`` in units."""
    wiring = draws.weighted(f"{where}.wiring", space.prior.wirings)
    if wiring == "dense":
        growths = [bank for bank in space.bank_units if width % bank == 0 and bank <= max(1, width // 2)]
        growth = draws.pick(f"{where}.growth", growths)
        bank, held = growth, width // growth
        depth = min(depth, space.max_banks - held)
    elif wiring == "residual":
        bank = bank_of(space, width)
        held = width // bank
    else:
        bank = draws.pick(f"{where}.bank", [units for units in space.bank_units if width % units == 0])
        held = width // bank
    inputs, ops = held, list[Op]()
    for number in range(depth):
        name = f"{where}.op{number}"
        part = motif
        if not draws.chance(f"{name}.repeat", space.prior.repeat):
            part = draw_motif(space, draws, name, size)
        if wiring == "free":
            reads = space.draw_reads(draws, name, held, held)
            chunks, writes, held = space.draw_writes(draws, name, bank, held)
        else:
            chunks, reads = (1 if wiring == "dense" else inputs), tuple(range(held))
            writes = (held,) if wiring == "dense" else reads
            held += wiring == "dense"
        ops.append(op_of(space, part, reads, writes, bank, chunks))
    ops = space.read_every_input(draws, where, ops, inputs, bank)
    return Block(width * space.unit, bank * space.unit, held, tuple(ops))


def bank_of(space: Space, width: int) -> int:
    """The widest bank, in units, that divides a width: wide banks are never split or joined."""
    return max(units for units in space.bank_units if width % units == 0)


def op_of(
    space: Space, motif: Motif, reads: tuple[int, ...], writes: tuple[int, ...], bank: int, chunks: int
) -> Op:
    """An op of a motif between banks; ``bank`` in units. Bottlenecks and outputs stay within the space, whose
    chunks are added to several banks where there are fewer of them.
    """
    inputs, units = len(reads) * bank, min(chunks, space.max_units // bank) * bank
    bottleneck = max(1, min(space.max_bottleneck, round(inputs * motif.ratio)))
    if motif.form == "plain":
        bottleneck = inputs
    project = motif.activation if motif.form in ("projected", "pointwise") else None
    width = bottleneck if project else units
    convs = []
    for slot, conv in enumerate(motif.convs):
        alone = motif.depthwise and (slot % 2 or bottleneck == width)
        convs.append(None if conv is None else replace(conv, groups=width * space.unit if alone else 1))
    return Op(
        reads,
        writes,
        bottleneck * space.unit,
        units * space.unit,
        tuple(convs),
        reduce=motif.form != "plain",
        project=project,
        squeeze=squeeze_of(space, width) if motif.squeeze else 0,
    )


def squeeze_of(space: Space, width: int) -> int:
    """Hidden channels of squeeze-excitation at a width in units."""
    return max(1, width * space.unit // SQUEEZE_SHARE)


def smallest(space: Space) -> Architecture:
    """A network with next to nothing in it: one narrow op in each block, behind the largest stride."""
    blocks: list[Block] = []
    for choices in space.widths:
        width = min(choices)
        bank = bank_of(space, width)
        banks = tuple(range(width // bank))
        smallest_first: tuple[Form, ...] = ("pointwise", "reduced", "plain", "projected")
        form = next(form for form in smallest_first if form in space.forms)
        pattern = "1000" if "1000" in dict(space.patterns) else space.patterns[0][0]
        pattern = "0000" if form == "pointwise" else pattern
        conv = Conv((min(space.kernels),) * space.dims, (1,) * space.dims, 1, space.activations[0])
        convs = tuple(conv if active == "1" else None for active in pattern)
        motif = Motif(form, 1 / width, convs, False, space.activations[0], False)
        op = op_of(space, motif, banks, banks, bank, len(banks))
        pool = max(space.pools) if blocks else POOL
        blocks.append(Block(width * space.unit, bank * space.unit, len(banks), (op,), pool))
    return Architecture(space.stem(max(space.stem_strides)), tuple(blocks))


# -------------------------------------------------------------------------- moves that keep structure


def motif_of(op: Op, block: Block) -> Motif:
    """The motif of an op, as :func:`op_of` reads it."""
    form: Form = "plain"
    if op.project is not None:
        form = "projected" if op.branches() else "pointwise"
    elif op.reduce:
        form = "reduced"
    inputs = len(op.reads) * block.bank_channels
    depthwise = any(conv is not None and conv.groups == op.width > 1 for conv in op.convs)
    convs = tuple(None if conv is None else replace(conv, groups=1) for conv in op.convs)
    first = next((conv.activation for conv in op.convs if conv is not None), "relu")
    return Motif(form, op.bottleneck / inputs, convs, depthwise, op.project or first, op.squeeze > 0)


def is_regular(block: Block) -> bool:
    """Whether all ops of a block add to all of its banks, by one motif, without gates."""
    banks = tuple(range(block.banks))
    if block.banks != block.input_banks or any(op.gate for op in block.ops):
        return False
    if any((op.reads, op.writes) != (banks, banks) for op in block.ops):
        return False
    return len(set(block.ops)) == 1


def vary(space: Space, architecture: Architecture, draws: Draws) -> Architecture:
    """One structural change: a width, a depth, a motif, a resolution, or the stem's stride."""
    blocks = list(architecture.blocks)
    index = draws.pick("vary.block", range(len(blocks)))
    block = blocks[index]
    move = draws.pick("vary.move", ("width", "depth", "depth", "motif", "stride", "pool"))
    stem = architecture.stem
    if move == "stride" and len(space.stem_strides) > 1:
        others = [stride for stride in space.stem_strides if stride != stem.stride[0]]
        stem = space.stem(draws.pick("vary.stride", others))
    elif move == "pool" and index and len(space.pools) > 1:
        others = [window for window in space.pools if window != block.pool]
        blocks[index] = replace(block, pool=draws.pick("vary.pool", others))
    elif is_regular(block):
        blocks[index] = _varied(space, draws, index, block, move)
    return Architecture(stem, tuple(blocks))


def _varied(space: Space, draws: Draws, index: int, block: Block, move: str) -> Block:
    """A regular block with another width, depth or motif."""
    width, depth = block.channels_in // space.unit, len(block.ops)
    motif = motif_of(block.ops[0], block)
    if move == "width":
        choices = sorted(space.widths[index])
        place = choices.index(width) if width in choices else 0
        step = draws.pick("vary.step", (-1, 1))
        width = choices[min(len(choices) - 1, max(0, place + step))]
    elif move == "motif":
        motif = draw_motif(space, draws, "vary", 0)
    else:
        depth = min(space.max_ops, max(1, depth + draws.pick("vary.step", (-1, 1, 2))))
    bank = bank_of(space, width)
    banks = tuple(range(width // bank))
    op = op_of(space, motif, banks, banks, bank, len(banks))
    return Block(width * space.unit, bank * space.unit, len(banks), (op,) * depth, block.pool)

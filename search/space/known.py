"""Well-known networks as architectures of the memory-bank space (SMASH paper, figure 1).

Residual, dense and fractal connections are patterns of reading and writing banks. What differs from the
original networks is what the paper's ops have, a 1x1 convolution at the start, and that a block ends by
handing all its banks on. Blocks of plain convolutions and of inverted bottlenecks are what they are elsewhere
(with the norm before the activation of the next op). The names are those of the networks whose pattern and
size they have.

:func:`known_networks` gives the regular networks that are inside a space: a search scores some of them
among its draws, because patterns that a decade of hand-made networks settled on are hard to draw by chance.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from smash_base.errors import InvalidInputError, UsageError
from smash_search.space.architecture import POOL, Architecture, Block, Conv, InputSpec, Op, Stem
from smash_search.space.regular import SQUEEZE_SHARE
from smash_search.space.space import Space


def resnet_block(width: int, layers: int, dims: int = 2, convolutions: int = 2) -> Block:
    """One bank, read and added to by every op: x + f(x) (He et al. 2016), one or two 3x3 convolutions."""
    conv = _conv(dims)
    op = Op((0,), (0,), width, width, (conv, conv if convolutions == 2 else None, None, None))
    return Block(width, width, 1, (op,) * layers)


def densenet_block(channels_in: int, growth: int, layers: int, dims: int = 2) -> Block:
    """Every op reads all banks before it and writes a new one (Huang et al. 2017, bottleneck 4 growth)."""
    inputs = channels_in // growth
    ops = tuple(
        Op(tuple(range(inputs + i)), (inputs + i,), 4 * growth, growth, (_conv(dims), None, None, None))
        for i in range(layers)
    )
    return Block(channels_in, growth, inputs + layers, ops)


def fractal_block(width: int, columns: int, dims: int = 2) -> Block:
    """Columns of 1, 2, 4, ... ops over the same stretch, joined where they meet (Larsson et al. 2017).

    Bank t is the join after t of 2^(columns - 1) steps; column c has ops from s to s + 2^c. Joined
    outputs are added here and averaged there, a constant that the following weights hold.
    """
    length = 2 ** (columns - 1)
    steps = [(start, 2**c) for c in range(columns) for start in range(0, length, 2**c)]
    steps.sort()  # by start: a bank is read after all that is added to it
    ops = tuple(
        Op((start,), (start + reach,), width, width, (_conv(dims), None, None, None))
        for start, reach in steps
    )
    return Block(width, width, length + 1, ops)


def plain_block(width: int, layers: int, dims: int = 2, pool: int = POOL) -> Block:
    """x + f(x) of two 3x3 convolutions without a 1x1, each after its activation (He et al. 2016b)."""
    conv = _conv(dims)
    op = Op((0,), (0,), width, width, (conv, conv, None, None), reduce=False)
    return Block(width, width, 1, (op,) * layers, pool)


def inverted_block(
    width: int,
    layers: int,
    expansion: int,
    dims: int = 2,
    *,
    kernel: int = 3,
    activation: str = "relu6",
    squeeze: bool = False,
    pool: int = POOL,
) -> Block:
    """Inverted bottlenecks: expand, convolve each channel, project, add (Sandler et al. 2018).

    With "hard_swish" and squeeze-excitation they are those of MobileNetV3 and, but for the exact activation,
    of EfficientNet.
    """
    wide = width * expansion
    conv = Conv((kernel,) * dims, (1,) * dims, wide, activation)
    op = Op(
        (0,),
        (0,),
        wide,
        width,
        (conv, None, None, None),
        project=activation,
        squeeze=wide // SQUEEZE_SHARE if squeeze else 0,
    )
    return Block(width, width, 1, (op,) * layers, pool)


def resnet(widths: Sequence[int], layers: int, dims: int = 2) -> Architecture:
    """A residual network: ``layers`` ops in each block, one block per width."""
    return Architecture(_stem(dims), tuple(resnet_block(width, layers, dims) for width in widths))


def densenet(growth: int, layers: int, blocks: int = 3, dims: int = 2) -> Architecture:
    """A DenseNet-BC: ``layers`` ops in each block; transitions halve the channels to whole banks."""
    found, channels = [], 2 * growth
    for _ in range(blocks):
        found.append(densenet_block(channels, growth, layers, dims))
        channels = max(1, found[-1].channels_out // 2 // growth) * growth
    return Architecture(_stem(dims), tuple(found))


def fractalnet(widths: Sequence[int], columns: int, dims: int = 2) -> Architecture:
    """A FractalNet: one fractal block per width."""
    return Architecture(_stem(dims), tuple(fractal_block(width, columns, dims) for width in widths))


def plain_resnet(widths: Sequence[int], layers: int, dims: int = 2) -> Architecture:
    """A residual network of plain 3x3 convolutions: MLPerf Tiny's ResNet-8 and ResNet-20 by their sizes."""
    return Architecture(_stem(dims), tuple(plain_block(width, layers, dims) for width in widths))


def mobilenet(
    widths: Sequence[int], layers: int, expansion: int, dims: int = 2, *, squeeze: bool = False
) -> Architecture:
    """A MobileNetV2 of one width per block; with ``squeeze`` in the manner of EfficientNet."""
    activation = "hard_swish" if squeeze else "relu6"
    blocks = (
        inverted_block(width, layers, expansion, dims, activation=activation, squeeze=squeeze)
        for width in widths
    )
    return Architecture(_stem(dims), tuple(blocks))


PRESETS: dict[str, Callable[[int], Architecture]] = {
    "resnet": lambda dims: resnet((16, 32, 64), 3, dims),
    "resnet-8": lambda dims: plain_resnet((16, 32, 64), 1, dims),
    "resnet-20": lambda dims: plain_resnet((16, 32, 64), 3, dims),
    "mobilenetv2": lambda dims: mobilenet((16, 32, 64), 3, 6, dims),
    "efficientnet": lambda dims: mobilenet((16, 32, 64), 3, 4, dims, squeeze=True),
    "densenet": lambda dims: densenet(12, 6, dims=dims),
    "fractalnet": lambda dims: fractalnet((16, 32, 64), 3, dims),
    "wide-resnet-40-4": lambda dims: resnet((64, 128, 256), 6, dims),
    "densenet-bc-100-12": lambda dims: densenet(12, 16, dims=dims),
}


def preset(name: str, input_spec: InputSpec | None = None) -> Architecture:
    """The preset of that name, with three axes for voxels.

    Raises:
        UsageError: no preset of that name.
    """
    if name not in PRESETS:
        raise UsageError(f"there is no preset {name!r}", expected=", ".join(PRESETS), received=name)
    return PRESETS[name](2 if input_spec is None else input_spec.dims)


# --------------------------------------------------------------------- the known ones of a space


@functools.lru_cache(maxsize=8)  # a run asks six times; they take seconds
def known_networks(space: Space) -> tuple[Architecture, ...]:
    """Residual, dense and fractal networks inside a space, in an order whose every start is diverse.

    Blocks of a network share the pattern. They are equally deep, or each one layer deeper than the one
    before; their widths are together at the narrow end, in the middle or at the wide end of what the space
    allows. One wide bank is written as several that are read and written together, which is the same
    network. What the space does not hold is left out.

    Behind these come others with widths in between, and inverted bottlenecks of other expansions, so that
    there is one near any limit: the largest inverted network within ResNet-8's latency has 5 million
    multiply-accumulates among the first, 9 million among the others.
    """
    usual = _in_turns(space, LEVELS, (USUAL_EXPANSION,))
    return tuple(dict.fromkeys((*usual, *_in_turns(space, FINER_LEVELS, EXPANSIONS))))


LEVELS, FINER_LEVELS = (0.0, 0.5, 1.0), (0.0, 0.25, 0.5, 0.75, 1.0)  # of widths within the choices of a space
USUAL_EXPANSION, EXPANSIONS = 4, (2, 3, 4, 6)  # of inverted bottlenecks
_PATTERNS = (
    "plain",
    "inverted",
    "residual",
    "inverted, squeezed",
    "residual, one convolution",
    "dense",
    "fractal",
)


def _in_turns(space: Space, levels: Sequence[float], expansions: Sequence[int]) -> Iterator[Architecture]:
    """Networks of all patterns in turns, those of each in an order of chance."""
    patterns: list[list[Architecture]] = []
    for pattern in _PATTERNS:
        found: dict[str, Architecture] = {}
        wide = expansions if pattern.startswith("inverted") else (USUAL_EXPANSION,)
        for depth in range(1, space.max_ops + 1):
            ways = itertools.product(space.stem_strides[:2], levels, (0, 1), wide)
            for stride, level, deeper, expansion in ways:
                depths = [depth + deeper * index for index in range(space.blocks)]
                for architecture in _regular(space, pattern, depths, level, stride, expansion):
                    found[architecture.key] = architecture
        order = np.random.default_rng(0).permutation(len(found))
        patterns.append([list(found.values())[index] for index in order])
    longest = max(map(len, patterns))  # those that the space does not hold are empty
    return (entries[place] for place in range(longest) for entries in patterns if place < len(entries))


def _regular(
    space: Space, pattern: str, depths: Sequence[int], level: float, stride: int, expansion: int
) -> Iterator[Architecture]:
    """Networks of one pattern with so many layers in each block (columns, of a fractal); none or several."""
    if (2 ** max(depths) - 1 if pattern == "fractal" else max(depths)) > space.max_ops:
        return
    for growth in [size for size in space.bank_units if size <= 4] if pattern == "dense" else (None,):
        blocks = []
        for choices, depth in zip(space.widths, depths, strict=True):
            if growth is None:  # ops write a whole width
                widths = [width for width in sorted(choices) if width <= space.max_units]
            else:
                widths = [width for width in sorted(choices) if width % growth == 0]
            if not widths:
                break
            width = widths[round(level * (len(widths) - 1))]
            blocks.append(_inside(space, _regular_block(space, pattern, depth, width, growth, expansion)))
        if len(blocks) < len(space.widths):
            continue
        try:
            architecture = Architecture(space.stem(stride), tuple(blocks))
            space.check(architecture)
        except InvalidInputError:
            continue
        yield architecture


def _regular_block(
    space: Space, pattern: str, depth: int, width: int, growth: int | None, expansion: int
) -> Block:
    """A block ``width`` units wide; ``growth``, in units, is of a dense one.

    ``expansion`` is of an inverted one: halved, to 2 at least, where the space has no bottleneck so wide.
    """
    channels = width * space.unit
    if growth is not None:
        return densenet_block(channels, growth * space.unit, depth, space.dims)
    if pattern == "plain":
        return plain_block(channels, depth, space.dims)
    if pattern.startswith("inverted"):
        squeezed = pattern.endswith("squeezed")
        activation = "hard_swish" if squeezed else "relu6"
        while expansion > 2 and expansion * width > space.max_bottleneck:
            expansion = max(2, expansion // 2)
        return inverted_block(channels, depth, expansion, space.dims, activation=activation, squeeze=squeezed)
    if pattern == "fractal":
        return fractal_block(channels, depth, space.dims)
    return resnet_block(channels, depth, space.dims, convolutions=2 if pattern == "residual" else 1)


def _inside(space: Space, block: Block) -> Block:
    """The same block in banks of the space's sizes, bottlenecks as wide as it allows."""
    width = block.bank_channels // space.unit
    size = max(choice for choice in space.bank_units if width % choice == 0)
    parts = width // size

    def split(banks: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(bank * parts + part for bank in banks for part in range(parts))

    def fitted(op: Op) -> Op:
        if not op.reduce or op.project is not None:
            return replace(op, reads=split(op.reads), writes=split(op.writes))
        read = len(op.reads) * block.bank_channels
        bottleneck = min(op.bottleneck, read, space.max_bottleneck * space.unit)
        return replace(op, reads=split(op.reads), writes=split(op.writes), bottleneck=bottleneck)

    ops = tuple(fitted(op) for op in block.ops)
    return replace(block, bank_channels=size * space.unit, banks=block.banks * parts, ops=ops)


def _conv(dims: int) -> Conv:
    return Conv((3,) * dims, (1,) * dims)


def _stem(dims: int) -> Stem:
    return Stem((3,) * dims, (1,) * dims)

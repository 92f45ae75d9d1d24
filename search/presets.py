"""Well-known networks as architectures of the memory-bank space (SMASH paper, figure 1).

Residual, dense and fractal connections are patterns of reading and writing banks. What differs from the
original networks is what every op of this space has: it starts with a 1x1 convolution, and a block ends
by handing all its banks on. The names are those of the networks whose pattern and size they have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from search.architecture import Architecture, Block, Conv, InputSpec, Op, Stem
from smash_base.errors import UsageError


def resnet_block(width: int, layers: int, dims: int = 2) -> Block:
    """One bank, read and added to by every op: x + f(x) (He et al. 2016), two 3x3 convolutions each."""
    conv = _conv(dims)
    op = Op((0,), (0,), width, width, (conv, conv, None, None))
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


PRESETS: dict[str, Callable[[int], Architecture]] = {
    "resnet": lambda dims: resnet((16, 32, 64), 3, dims),
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


def _conv(dims: int) -> Conv:
    return Conv((3,) * dims, (1,) * dims)


def _stem(dims: int) -> Stem:
    return Stem((3,) * dims, (1,) * dims)

"""Where networks with the pattern of ResNet, DenseNet and FractalNet rank among random ones.

The published sizes are outside a space that a HyperNet was trained for, so the patterns are built from the
space's own units and limits: everything that is not the pattern (kernel 3, dense convolutions) is plain. They
are as wide as the space allows, or as the band does where all networks of an experiment have about one cost.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np

from smash_base.errors import InvalidInputError
from smash_base.json_values import JsonObject
from smash_search.experiments.workbench import Workbench
from smash_search.space.architecture import Architecture, Block, Conv, Op
from smash_search.space.space import Space

_Builder = Callable[..., Block]
"""A block by its index and how many of the widths that it could have are passed over."""


def presets(bench: Workbench) -> JsonObject:
    """Score and train the patterns as the random networks were; rank them among those."""
    population = bench.population()
    random_errors = np.asarray([record.error for _, record in population])
    scores = bench.scores_of(architecture for architecture, _ in population)
    random_scores = np.asarray([score.error for score in scores])
    random_macs = np.asarray([bench.cost(architecture).macs for architecture, _ in population])
    most = math.inf if bench.config.macs is None else bench.config.macs[1]
    found = patterns(bench.space, lambda architecture: bench.cost(architecture).macs, most)
    rows = []
    with bench.progress("patterns", len(found)) as advance:
        for name, architecture in found.items():
            trained = [record for seed in (0, 1) if (record := bench.trained(architecture, seed))]
            advance(1)
            if not trained:
                continue
            error = float(np.mean([record.error for record in trained]))
            score, cost = bench.score(architecture).error, bench.cost(architecture)
            near = np.abs(np.log(random_macs / cost.macs)) < np.log(2)  # half to twice the MACs
            rows.append(
                {
                    "name": name,
                    "key": architecture.key,
                    "parameters": cost.parameters,
                    "macs": cost.macs,
                    "score": score,
                    "error": error,
                    "seeds": len(trained),
                    "beats_by_error": float((error < random_errors).mean()),
                    "beats_by_score": float((score < random_scores).mean()),
                    "alike": int(near.sum()),
                    "beats_alike": float((error < random_errors[near]).mean()) if near.any() else None,
                }
            )
    return {
        "networks": len(population),
        "random_errors": random_errors.tolist(),
        "random_scores": random_scores.tolist(),
        "random_macs": random_macs.tolist(),
        "patterns": rows,
    }


def patterns(
    space: Space, cost: Callable[[Architecture], float] = lambda _: 0.0, most: float = math.inf
) -> dict[str, Architecture]:
    """ResNet, DenseNet and FractalNet patterns inside a space, each shallow and deep where that differs.

    Args:
        space: what they are built in.
        cost: cost of an architecture.
        most: bound of that cost: the dearest within it of all widths and stem strides, or the cheapest where
            none is within it. Without one the widest, with the usual stem.

    Raises:
        InvalidInputError: the space has no 3x3 convolution or no single-convolution op.
    """
    names = [name for name, weight in space.patterns if weight > 0]
    if 3 not in space.kernels or "1000" not in names:
        raise InvalidInputError("patterns need kernel 3 and ops of one convolution", received=space.name)
    two = "1100" if "1100" in names else "1000"
    columns = 1
    while 2 ** (columns + 1) - 1 <= space.max_ops:  # 1 + 2 + 4 + ... ops
        columns += 1
    builders: dict[str, _Builder] = {}
    for depth in sorted({max(1, space.max_ops // 2), space.max_ops}):
        builders[f"resnet, {depth} ops"] = lambda i, narrower, n=depth: _residual(space, i, narrower, n, two)
        builders[f"densenet, {depth} ops"] = lambda i, narrower, n=depth: _dense(space, i, narrower, n)
    builders[f"fractalnet, {columns} columns"] = lambda i, narrower: _fractal(space, i, narrower, columns)
    made = {name: _within(space, build, cost, most) for name, build in builders.items()}
    for architecture in made.values():
        space.check(architecture)
    return made


def _within(
    space: Space, block: _Builder, cost: Callable[[Architecture], float], most: float
) -> Architecture:
    if math.isinf(most):
        return _network(space, block, space.stem_stride, 0)
    steps = range(max(map(len, space.widths)))
    made = [
        _network(space, block, stride, step) for stride, step in itertools.product(space.stem_strides, steps)
    ]
    fitting = [architecture for architecture in made if cost(architecture) <= most]
    return max(fitting, key=cost) if fitting else min(made, key=cost)


def _network(space: Space, block: _Builder, stride: int, narrower: int) -> Architecture:
    blocks = tuple(block(index, narrower) for index in range(space.blocks))
    return Architecture(space.stem(stride), blocks)


def _conv(space: Space) -> Conv:
    return Conv((3,) * space.dims, (1,) * space.dims, activation=space.activations[0])


def _width(space: Space, index: int, narrower: int, copies: int) -> tuple[int, int, int]:
    """Width of a block's input, its bank size, and an op's units, with room for ``copies`` of the input.

    The widest input that one op writes whole, but for so many wider ones, or the narrowest of these. Where
    even the narrowest is wider than any op, the op's output is added to the banks in turn, so that every bank
    gets some.
    """
    possible = [
        (width, bank)
        for width in space.widths[index]
        for bank in space.bank_units
        if width % bank == 0 and copies * width // bank <= space.max_banks
    ]
    if not possible:
        raise InvalidInputError(f"block {index} has too few banks for the pattern", received=space.name)
    whole = [entry for entry in possible if entry[0] <= space.max_units]
    narrowest = min(width for width, _ in possible)
    choice = whole or [entry for entry in possible if entry[0] == narrowest]
    widths = sorted({width for width, _ in choice}, reverse=True)
    width, bank = max(entry for entry in choice if entry[0] == widths[: narrower + 1][-1])
    return width, bank, min(width, space.max_units // bank * bank)


def _residual(space: Space, index: int, narrower: int, layers: int, pattern: str) -> Block:
    """x + f(x): every op reads and adds to all banks."""
    width, bank, units = _width(space, index, narrower, 1)
    banks = tuple(range(width // bank))
    second = _conv(space) if pattern == "1100" else None
    bottleneck = min(width, space.max_bottleneck)
    op = Op(
        banks,
        banks,
        bottleneck * space.unit,
        units * space.unit,
        (_conv(space), second, None, None),
    )
    return Block(width * space.unit, bank * space.unit, len(banks), (op,) * layers)


def _dense(space: Space, index: int, narrower: int, layers: int) -> Block:
    """Every op reads all banks before it and writes a new one."""
    width, _, _ = _width(space, index, narrower, 1)
    possible = [
        bank
        for bank in space.bank_units
        if width % bank == 0 and bank <= space.max_units and width // bank + layers <= space.max_banks
    ]
    bank = min(possible, key=lambda size: abs(size - 2))
    inputs = width // bank
    ops = []
    for number in range(layers):
        reads = tuple(range(inputs + number))
        bottleneck = min(4 * bank, space.max_bottleneck, len(reads) * bank)
        convs = (_conv(space), None, None, None)
        ops.append(Op(reads, (inputs + number,), bottleneck * space.unit, bank * space.unit, convs))
    return Block(width * space.unit, bank * space.unit, inputs + layers, tuple(ops))


def _fractal(space: Space, index: int, narrower: int, columns: int) -> Block:
    """Columns of 1, 2, 4, ... ops over the same stretch; a join is a group of banks as wide as the input."""
    length = 2 ** (columns - 1)
    width, bank, units = _width(space, index, narrower, length + 1)
    group = width // bank
    steps = sorted((start, 2**c) for c in range(columns) for start in range(0, length, 2**c))
    ops = tuple(
        Op(
            tuple(range(start * group, (start + 1) * group)),
            tuple(range((start + reach) * group, (start + reach + 1) * group)),
            min(width, space.max_bottleneck) * space.unit,
            units * space.unit,
            (_conv(space), None, None, None),
        )
        for start, reach in steps
    )
    return Block(width * space.unit, bank * space.unit, (length + 1) * group, ops)

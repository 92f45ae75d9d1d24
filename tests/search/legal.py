"""Hypothesis strategies over architectures: the space itself is the best fuzzer."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from smash_search.space.architecture import (
    ACTIVATIONS,
    ACTIVE_PATTERNS,
    Architecture,
    Block,
    Conv,
    InputSpec,
    Op,
    Stem,
)
from smash_search.space.prior import FORMS, REGULAR
from smash_search.space.space import SPACES, Space

TINY = SPACES["tiny"]
RICH = replace(TINY, name="rich", activations=("relu", "leaky_relu", "tanh", "none"), gate=0.3)
VOXELS = replace(RICH, name="voxels", dims=3, kernels=(3,), dilations=((3, 2),))

EVERY_FORM = replace(
    RICH,
    name="every form",
    activations=ACTIVATIONS,
    forms=FORMS,
    squeeze=True,
    stem_strides=(1, 2, 4),
    pools=(1, 2, 3),
    bank_units=(1, 2, 4, 8),
    max_units=8,
    max_bottleneck=12,
    prior=REGULAR,
)

DIGITS = InputSpec(1, (8, 8))


def drawn(space: Space) -> st.SearchStrategy[Architecture]:
    """Architectures that the space draws."""
    return st.builds(space.draw, st.integers(0, 2**32), st.integers(0, 2**20))


@st.composite
def hand_written(draw: st.DrawFn, dims: int = 2) -> Architecture:
    """Any legal architecture, also such that no space draws: unread inputs, empty banks, wraps."""
    size = st.sampled_from([1, 3, 5])
    blocks = []
    for number in range(draw(st.integers(1, 3))):
        n = draw(st.integers(1, 4))
        inputs = draw(st.integers(1, 3))
        banks = inputs + draw(st.integers(0, 3))
        some = st.lists(st.integers(0, banks - 1), min_size=1, max_size=banks, unique=True)
        ops = []
        for _ in range(draw(st.integers(0, 4))):
            reads, writes = draw(some), draw(some)
            units = n * draw(st.integers(1, len(writes)))
            reduce = draw(st.booleans())
            project = draw(st.none() | st.sampled_from(ACTIVATIONS))
            bottleneck = draw(st.integers(1, 6)) if reduce else n * len(reads)
            pattern = draw(st.sampled_from(ACTIVE_PATTERNS))
            if pattern == "0000" and project is None:  # one 1x1 convolution
                reduce, bottleneck = True, units
            width = units if project is None else bottleneck
            convs: list[Conv | None] = []
            for slot, active in enumerate(pattern):
                if active == "0":
                    convs.append(None)
                    continue
                channels = bottleneck if slot in (0, 2) else width
                groups = [g for g in range(1, channels + 1) if channels % g == 0 and width % g == 0]
                convs.append(
                    Conv(
                        tuple(draw(size) for _ in range(dims)),
                        tuple(draw(st.integers(1, 3)) for _ in range(dims)),
                        draw(st.sampled_from(groups)),
                        draw(st.sampled_from(ACTIVATIONS)),
                    )
                )
            gate = convs[2] is not None and draw(st.booleans())
            squeeze = draw(st.sampled_from([0, 0, 3]))
            ops.append(
                Op(
                    tuple(reads),
                    tuple(writes),
                    bottleneck,
                    units,
                    tuple(convs),
                    gate,
                    reduce=reduce,
                    project=project,
                    squeeze=squeeze,
                )
            )
        pool = draw(st.sampled_from([1, 2, 3])) if number else 2
        blocks.append(Block(inputs * n, n, banks, tuple(ops), pool))
    stem = Stem(tuple(draw(size) for _ in range(dims)), tuple(draw(st.integers(1, 2)) for _ in range(dims)))
    return Architecture(stem, tuple(blocks))

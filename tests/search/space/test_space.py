"""The space: every draw and every move is legal, pure, and reaches every choice."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smash_base.errors import InvalidInputError, UsageError
from smash_search.space.architecture import Architecture, InputSpec
from smash_search.space.cost import cost_of
from smash_search.space.known import mobilenet
from smash_search.space.space import SPACES, Space, space_for
from tests.search.legal import RICH, TINY, VOXELS

ALL = [*SPACES.values(), RICH, VOXELS]


@pytest.mark.parametrize("space", ALL, ids=lambda space: space.name)
@given(seed=st.integers(0, 2**40), slot=st.integers(0, 2**40), progress=st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_every_draw_is_inside_the_space(space: Space, seed: int, slot: int, progress: float) -> None:
    space.check(space.draw(seed, slot, progress))


@pytest.mark.parametrize("space", ALL, ids=lambda space: space.name)
@given(seed=st.integers(0, 2**40), rate=st.floats(0.01, 1))
@settings(max_examples=40, deadline=None)
def test_moves_stay_inside_the_space(space: Space, seed: int, rate: float) -> None:
    a, b = space.draw(seed, 0), space.draw(seed, 1)
    mutant = space.mutate(a, seed, 2, rate)
    space.check(mutant)
    assert mutant != a
    space.check(space.crossover(a, b, seed, 3))


def test_a_draw_is_a_pure_function_of_seed_and_slot() -> None:
    first = [TINY.draw(1, slot) for slot in range(50)]
    assert [TINY.draw(1, slot) for slot in reversed(range(50))] == first[::-1]
    assert [TINY.draw(2, slot) for slot in range(50)] != first


def test_every_input_bank_is_read() -> None:
    for slot in range(200):
        for block in SPACES["small"].draw(5, slot).blocks:
            read = {bank for op in block.ops for bank in op.reads}
            assert set(range(block.input_banks)) <= read


def choices(architecture: Architecture) -> set[tuple[str, object]]:
    seen: set[tuple[str, object]] = set()
    for index, block in enumerate(architecture.blocks):
        seen |= {(f"width{index}", block.channels_in), ("bank", block.bank_channels)}
        for op in block.ops:
            seen |= {("pattern", op.pattern), ("gate", op.gate), ("bottleneck", op.bottleneck)}
            seen |= {("units", op.units)}
            for conv in op.convs:
                if conv is not None:
                    seen |= {("groups", conv.groups), ("activation", conv.activation)}
                    seen |= {("kernel", conv.kernel), ("dilation", conv.dilation)}
    return seen


def test_draws_reach_every_choice() -> None:
    seen = set().union(*(choices(RICH.draw(0, slot)) for slot in range(400)))
    wanted = {("pattern", pattern) for pattern, _ in RICH.patterns}
    wanted |= {("groups", groups) for groups in RICH.groups}
    wanted |= {("kernel", (a, b)) for a in (3, 5, 7) for b in (3, 5, 7)}
    wanted |= {("dilation", (a, b)) for a in (1, 2, 3) for b in (1, 2, 3)}
    wanted |= {("activation", name) for name in RICH.activations} | {("gate", True), ("gate", False)}
    wanted |= {("bottleneck", 4 * n) for n in range(1, 7)} | {("units", 4 * n) for n in range(1, 5)}
    assert wanted <= seen


def test_mutation_alone_reaches_every_choice_and_every_number_of_ops() -> None:
    at, seen, ops = RICH.draw(0, 0), set(), set()
    for step in range(1500):
        at = RICH.mutate(at, 9, step, 0.1)
        seen |= choices(at)
        ops |= {len(block.ops) for block in at.blocks}
    drawn = set().union(*(choices(RICH.draw(0, slot)) for slot in range(400)))
    assert len(drawn - seen) <= 0.02 * len(drawn)
    assert ops == set(range(1, RICH.max_ops + 1))


def test_kernels_enter_during_training() -> None:
    def largest(progress: float) -> int:
        drawn = [TINY.draw(0, slot, progress) for slot in range(100)]
        return max(
            size
            for architecture in drawn
            for block in architecture.blocks
            for op in block.ops
            for conv in op.convs
            if conv is not None
            for size in conv.kernel
        )

    assert [largest(progress) for progress in (0.0, 0.13, 0.38)] == [3, 5, 7]


def test_budgets_grow_during_training() -> None:
    spec = InputSpec(1, (8, 8))

    def mean(progress: float) -> float:
        macs = [cost_of(TINY.draw(0, slot, progress), spec, 10).macs for slot in range(200)]
        return sum(macs) / len(macs)

    tiny = replace(TINY, kernels=(3,))
    assert tiny.kernels == (3,)
    assert mean(0.0) < mean(1.0)


def test_networks_of_the_small_space_spread_over_more_than_a_factor_of_ten() -> None:
    spec = InputSpec(1, (28, 28))
    space = space_for(spec)
    costs = [cost_of(space.draw(0, slot), spec, 10) for slot in range(200)]
    for values in ([cost.parameters for cost in costs], [cost.macs for cost in costs]):
        assert max(values) > 10 * min(values)


def test_balanced_draws_use_every_choice_equally_often() -> None:
    space = replace(TINY, balanced=True, name="balanced")
    widths = Counter(space.draw(0, slot).blocks[0].channels_in for slot in range(300))
    assert set(widths.values()) == {100}


def test_the_size_of_the_space_is_that_of_its_choices() -> None:
    one = replace(
        TINY,
        widths=((1,),),
        reference_reads=(1,),
        bank_units=(1,),
        max_ops=1,
        max_units=1,
        max_bottleneck=1,
        kernels=(3,),
        dilations=((3, 1),),
        groups=(1,),
        patterns=(("1000", 1.0),),
    )
    # What is left: the op writes its input bank or a new one, weighted e^-1 : e^-1 over one bank.
    assert one.log10_size(200) == pytest.approx(0.301, abs=0.05)
    assert TINY.log10_size(50) > 30


def test_spaces_survive_json() -> None:
    for space in ALL:
        assert Space.from_json(space.to_json()) == space


def test_a_malformed_space_is_refused() -> None:
    with pytest.raises(InvalidInputError):
        Space.from_json({**TINY.to_json(), "extra": 1})
    with pytest.raises(InvalidInputError, match="widths"):
        replace(TINY, widths=())
    with pytest.raises(UsageError, match="no space"):
        space_for(InputSpec(1, (8, 8)), "huge")


@pytest.mark.parametrize("change", [{"kernels": (3,)}, {"groups": (1,)}, {"max_ops": 1}, {"max_banks": 9}])
def test_check_names_what_is_outside(change: dict[str, object]) -> None:
    narrow = replace(TINY, **change)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="outside the space"):  # noqa: PT012 - any of the fifty
        for slot in range(50):
            narrow.check(TINY.draw(0, slot))


def test_a_bottleneck_expands_what_an_op_reads_six_times_at_most() -> None:
    space = space_for(InputSpec(3, (32, 32)), "edge")
    space.check(mobilenet((16, 24, 32), 1, 6))
    with pytest.raises(InvalidInputError, match=r"ops\[0\]\.bottleneck.* at most 96; received 128"):
        space.check(mobilenet((16, 24, 32), 1, 8))


@pytest.mark.parametrize(
    ("size", "stride"), [(8, 1), (28, 1), (47, 1), (48, 2), (64, 2), (95, 2), (96, 4), (224, 4)]
)
def test_large_images_get_a_stem_with_a_stride(size: int, stride: int) -> None:
    space = space_for(InputSpec(3, (size, size)))
    assert space.stem_stride == stride
    space.check(space.draw(0, 0))

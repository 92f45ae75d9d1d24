"""Regular draws are regular, moves keep them inside the space, and the prior is data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smash_base.errors import InvalidInputError, UsageError
from smash_search.space.architecture import Architecture, InputSpec
from smash_search.space.cost import cost_of
from smash_search.space.encoding import Layout
from smash_search.space.known import known_networks
from smash_search.space.prior import FORMS, PAPER, REGULAR, Prior, prior_named
from smash_search.space.regular import is_regular, smallest
from smash_search.space.space import SPACES, Space, form_of, space_for
from tests.search.legal import EVERY_FORM

SPEC = InputSpec(3, (32, 32))
EDGE = space_for(SPEC, "edge")


def convolutions(space: Space, draws: int = 300) -> list[tuple[int, ...]]:
    return [
        conv.kernel
        for slot in range(draws)
        for _, _, op in space.draw(0, slot).ops()
        for conv in op.convs
        if conv is not None
    ]


@pytest.mark.parametrize("size", [16, 28, 32, 64, 96, 224])
@given(seed=st.integers(0, 2**32), slot=st.integers(0, 2**20))
@settings(max_examples=30, deadline=None)
def test_draws_and_mutations_are_inside_the_space(size: int, seed: int, slot: int) -> None:
    space = space_for(InputSpec(3, (size, size)), "edge")
    drawn = space.draw(seed, slot)
    space.check(drawn)
    assert drawn == space.draw(seed, slot)
    mutant = space.mutate(drawn, seed, slot, 0.2)
    space.check(mutant)
    assert mutant != drawn
    space.check(space.crossover(drawn, mutant, seed, slot))


@pytest.mark.parametrize("name", SPACES)
def test_the_regular_prior_stays_inside_every_space(name: str) -> None:
    space = replace(space_for(SPEC, name), prior=REGULAR)
    for slot in range(60):
        drawn = space.draw(0, slot)
        space.check(drawn)
        space.check(space.mutate(drawn, 1, slot, 0.3))


def test_most_convolutions_are_plain_and_most_blocks_repeat_a_motif() -> None:
    kernels = Counter(convolutions(EDGE))
    assert kernels[3, 3] > 0.7 * sum(kernels.values())
    blocks = [block for slot in range(300) for block in EDGE.draw(0, slot).blocks]
    assert sum(is_regular(block) for block in blocks) > 0.5 * len(blocks)
    paper = Counter(convolutions(space_for(SPEC, "medium"), 100))
    assert paper[3, 3] < 0.3 * sum(paper.values())


def test_widths_grow_and_no_kernel_is_wider_than_its_map() -> None:
    for slot in range(200):
        architecture = replace(EDGE, prior=replace(REGULAR, growing=1.0, odd=0.0)).draw(0, slot)
        widths = [block.channels_in for block in architecture.blocks]
        assert widths == sorted(widths)
        size = -(-32 // architecture.stem.stride[0])
        for index, block in enumerate(architecture.blocks):
            size = max(1, size // block.pool) if index else size
            kernels = [max(conv.kernel) for op in block.ops for conv in op.convs if conv is not None]
            assert max(kernels, default=0) <= max(3, size)


@pytest.mark.parametrize("size", [28, 32, 64, 96, 224])
def test_the_space_reaches_small_and_large_networks_at_every_image_size(size: int) -> None:
    spec = InputSpec(3, (size, size))
    macs = sorted(cost_of(space_for(spec, "edge").draw(0, slot), spec, 10).macs for slot in range(400))
    low, high = (macs[round(share * (len(macs) - 1))] for share in (0.02, 0.9))
    assert low < 6e6 * max(1, size / 32)
    assert high > 25e6
    assert np.median(macs) < (200e6 if size == 224 else 60e6), "a search affords the usual network"


def test_networks_of_1_to_60_million_multiply_accumulates_are_there_at_32_pixels() -> None:
    drawn = [EDGE.draw(0, slot) for slot in range(400)]
    macs = [cost_of(entry, SPEC, 10).macs for entry in drawn]
    known = [cost_of(entry, SPEC, 10).macs for entry in known_networks(EDGE)]
    assert cost_of(smallest(EDGE), SPEC, 10).macs < min(known) <= 1e6
    assert max(macs) >= 60e6
    assert {1, 2} <= {entry.stem.stride[0] for entry in drawn}


@pytest.mark.parametrize("space", [EVERY_FORM, EDGE], ids=lambda space: space.name)
def test_every_choice_is_reached_by_mutation(space: Space) -> None:
    at, seen = space.draw(0, 0), set[tuple[str, Any]]()
    for step in range(4000):
        at = space.mutate(at, 3, step, 0.1)
        seen |= set(choices(at, space.unit))
    wanted = {("form", form) for form in space.forms} | {("squeezed", yes) for yes in (True, False)}
    wanted |= {("pool", pool) for pool in space.pools} | {("stride", stride) for stride in space.stem_strides}
    wanted |= {("kernel", (a, b)) for a in space.kernels for b in space.kernels}
    wanted |= {("dilation", (a, b)) for a in (1, 2, 3) for b in (1, 2, 3)}
    wanted |= {("groups", groups) for groups in (*space.groups, "depthwise")}
    wanted |= {("activation", name) for name in space.activations}
    wanted |= {("activation before the projection", name) for name in space.activations}
    wanted |= {("expansion", times) for times in range(1, 7)}
    wanted |= {(f"width {index}", width) for index, widths in enumerate(space.widths) for width in widths}
    wanted |= {("depth", depth) for depth in range(1, space.max_ops + 1)}
    wanted |= {("bank", units) for units in space.bank_units}
    wanted |= {("pattern", pattern) for pattern, _ in space.patterns}
    wanted |= {("units", units) for units in range(1, space.max_units + 1)}
    wanted |= {("bottleneck", units) for units in range(1, space.max_bottleneck + 1)}
    assert not wanted - seen


@pytest.mark.parametrize("name", ["edge", "edge-tiny"])
def test_linear_convolutions_are_mutations_only_and_change_neither_draws_nor_codes(name: str) -> None:
    space = space_for(SPEC, name)
    without = replace(space, activations=space.activations[:-1])
    assert space.activations[-1] == "none"
    for slot in range(50):
        drawn = space.draw(0, slot)
        assert drawn == without.draw(0, slot)
        np.testing.assert_array_equal(Layout(space).encode(drawn), Layout(without).encode(drawn))
    mutants = [(space.mutate(drawn, 1, slot), without.mutate(drawn, 1, slot)) for slot in range(100)]
    assert 0.8 < np.mean([mutant == other for mutant, other in mutants]) < 1
    prior = replace(REGULAR, activations=(("none", 1.0),))  # unless somebody asks for them
    drawn = replace(space, prior=prior).draw(0, 0)
    assert {conv.activation for _, _, op in drawn.ops() for conv in op.convs if conv} == {"none"}


def choices(architecture: Architecture, unit: int) -> Iterator[tuple[str, Any]]:
    """What an architecture has of the choices of a space, sizes in units of so many channels."""
    yield "stride", architecture.stem.stride[0]
    for block in architecture.blocks[1:]:
        yield "pool", block.pool
    for index, block in enumerate(architecture.blocks):
        yield f"width {index}", block.channels_in // unit
        yield "bank", block.bank_channels // unit
        yield "depth", len(block.ops)
    for _, block, op in architecture.ops():
        yield "form", form_of(op)
        yield "units", op.units // unit
        yield "bottleneck", op.bottleneck // unit
        yield "pattern", op.pattern
        yield "squeezed", op.squeeze > 0
        if op.project is not None:
            yield "activation before the projection", op.project
            yield "expansion", op.bottleneck // (len(op.reads) * block.bank_channels)
        for conv in filter(None, op.convs):
            yield "kernel", conv.kernel
            yield "dilation", conv.dilation
            yield "groups", "depthwise" if conv.groups == op.width else conv.groups
            yield "activation", conv.activation


def test_a_prior_is_read_from_a_file_and_survives_json(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("odd = 0.0\nforms = {projected = 1.0}\nkernels = {5 = 1.0}\n")
    mine = prior_named(str(path))
    assert (mine.name, mine.odd, mine.forms) == ("mine", 0.0, (("projected", 1.0),))
    space = space_for(SPEC, "edge", mine)
    kernels = Counter(convolutions(space, 40))
    assert set(kernels) == {(5, 5), (3, 3)}  # the smallest one where the map is smaller than 5 pixels
    assert kernels[5, 5] > kernels[3, 3]
    for prior in (REGULAR, PAPER, mine):
        assert Prior.from_json(prior.to_json()) == prior
    assert Space.from_json(space.to_json()) == space


def test_a_prior_gives_shares_to_fractions_as_to_other_options(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("reductions = {0.25 = 0.2, 0.5 = 0.3, 1 = 0.5}\n")
    quoted = tmp_path / "quoted.toml"
    quoted.write_text('reductions = {"0.25" = 0.2, "0.5" = 0.3, "1.0" = 0.5}\n')
    wanted = ((0.25, 0.2), (0.5, 0.3), (1.0, 0.5))
    assert prior_named(str(path)).reductions == prior_named(str(quoted)).reductions == wanted


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("odd = 2.0", "odd"),
        ("forms = {conv = 1.0}", "forms"),
        ("kernels = {3 = 0.0}", "kernels"),
        ("kernels = {4 = 1.0}", "kernels.*odd numbers"),
        ("kernels = 3", "kernels.*table"),
        ("depths = {0 = 1.0}", "depths.*whole numbers"),
        ("expansions = {16 = 1.0}", "expansions.*whole numbers, 1 to 6; received 16"),
        ("stems = 0.5", "malformed"),
        ("stems = [inf, 1.0]", "stems.*one above 0"),
        ("forms = {plain = 1.0, reduced = nan}", "forms.*0 and more"),
        ("forms = {plain = 1.0, reduced = inf}", "forms.*0 and more"),
        ('squeeze = "yes"', "squeeze.*0 to 1"),
        ("squeeze = 2", "squeeze.*0 to 1"),
        ("squeeze = true", "squeeze.*0 to 1"),
        ("nothing = 1", "prior"),
        ("odd = [", "TOML"),
    ],
)
def test_a_wrong_prior_names_its_field(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(InvalidInputError, match=rf"wrong\.toml.*{named}"):
        prior_named(str(path))
    with pytest.raises(UsageError, match="no prior"):
        prior_named("wild")


@pytest.mark.parametrize(
    ("name", "shares"),
    [
        ("forms", (("plain", 0.0), ("reduced", 0.0), ("pointwise", 0.0), ("projected", 1.0))),
        ("depths", ((9, 1.0),)),
        ("activations", (("tanh", 1.0),)),
        ("patterns", (("0000", 1.0),)),
        ("stems", (0.0, 0.0, 0.0, 1.0)),
        ("kernels", ((11, 1.0),)),
    ],
)
def test_a_prior_of_which_a_space_has_nothing_is_refused_before_anything_is_drawn(
    name: str, shares: Any
) -> None:
    space = replace(EDGE, forms=("plain", "reduced"), prior=REGULAR)
    with pytest.raises(InvalidInputError, match=f"prior regular, field '{name}'"):
        replace(space, prior=replace(REGULAR, **{name: shares}))


def test_the_sampler_of_the_paper_is_the_prior_of_the_spaces_that_had_it() -> None:
    assert {name for name, space in SPACES.items() if space.prior.sampler == "paper"} == {
        "tiny",
        "small",
        "medium",
        "paper",
    }


@pytest.mark.parametrize("name", list(SPACES))
def test_the_smallest_network_is_inside_its_space_and_no_larger_than_its_draws(name: str) -> None:
    space = space_for(SPEC, name)
    space.check(smallest(space))
    least = min(cost_of(space.draw(0, slot), SPEC, 10).macs for slot in range(100))
    assert cost_of(smallest(space), SPEC, 10).macs <= least


def test_first_blocks_behind_a_larger_stride_are_as_many_times_as_wide_but_for_some() -> None:
    space = space_for(SPEC, "edge")
    drawn = [space.draw(0, slot) for slot in range(300)]
    narrowest = min(space.widths[0]) * space.unit
    behind = {
        stride: [entry.blocks[0].channels_in for entry in drawn if entry.stem.stride[0] == stride]
        for stride in (1, 2)
    }
    assert np.mean([width >= 2 * narrowest for width in behind[2]]) > 0.85
    assert min(behind[2]) == narrowest  # still reached
    assert np.mean([width >= 2 * narrowest for width in behind[1]]) < 0.85


@pytest.mark.parametrize("form", FORMS)
def test_a_space_of_one_form_has_a_smallest_network(form: str) -> None:
    space = replace(space_for(SPEC, "edge"), forms=(form,), prior=replace(REGULAR, forms=((form, 1.0),)))
    space.check(smallest(space))

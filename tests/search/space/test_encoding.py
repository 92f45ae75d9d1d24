"""Encoding: every choice has its own channel, and c is what the layout says."""

from __future__ import annotations

import itertools
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from smash_search.space.architecture import Architecture
from smash_search.space.encoding import BACKGROUND, MARK, ROLES, Layout
from smash_search.space.prior import REGULAR
from tests.search.legal import EVERY_FORM, RICH, VOXELS, drawn


@pytest.mark.parametrize("space", [RICH, VOXELS], ids=lambda space: space.name)
@pytest.mark.parametrize("compression", [1, 2])
def test_sections_cover_all_channels_without_overlap(space, compression: int) -> None:  # type: ignore[no-untyped-def]
    layout = Layout(space, compression)
    covered = list(itertools.chain.from_iterable(range(s.start, s.stop) for s in layout.sections.values()))
    assert covered == list(range(layout.channels))


@given(drawn(RICH))
@settings(max_examples=50, deadline=None)
def test_each_op_is_marked_channel_by_channel(architecture: Architecture) -> None:
    layout = Layout(RICH)
    c = layout.encode(architecture)
    tiles = layout.tiles(architecture)
    ops = [(i, j, block, op) for i, block in enumerate(architecture.blocks) for j, op in enumerate(block.ops)]
    assert c.shape == (layout.channels, max(t.rows for t in tiles), tiles[-1].left + tiles[-1].columns)
    for tile, (i, _, block, op) in zip(tiles, ops, strict=True):
        place = c[:, :, tile.left : tile.left + tile.columns]

        def marked(section: str, row: int = 0, column: int = 0) -> list[int]:
            part = place[layout.sections[section], row, column]  # noqa: B023
            assert set(np.unique(part)) <= {BACKGROUND, MARK}
            return np.flatnonzero(part == MARK).tolist()

        assert marked("read") == sorted(op.reads)
        assert marked("write") == sorted(op.writes)
        assert marked("block") == [i]
        assert marked("bank") == [RICH.bank_units.index(block.bank_channels // 4)]
        assert marked("units") == [op.units // 4 - 1]
        assert marked("bottleneck") == [op.bottleneck // 4 - 1]
        assert marked("gate") == ([0] if op.gate else [])
        for slot, conv in enumerate(op.convs):
            assert marked(f"active{slot}") == ([] if conv is None else [0])
            for axis in range(2):
                kernel = [] if conv is None else [RICH.kernels.index(conv.kernel[axis])]
                dilation = [] if conv is None else [conv.dilation[axis] - 1]
                assert marked(f"kernel{slot}.{axis}") == kernel
                assert marked(f"dilation{slot}.{axis}") == dilation
            assert marked(f"groups{slot}") == ([] if conv is None else [RICH.groups.index(conv.groups)])
            activation = "none" if conv is None else conv.activation
            wanted = [] if activation == "none" else [RICH.activations.index(activation)]
            assert marked(f"activation{slot}") == wanted
        for column in range(tile.columns):
            bank = op.reads[column * 4 // block.bank_channels]
            assert marked("source", 0, column) == [bank]
            for row in range(c.shape[1]):
                assert marked("row", row, column) == [row]
                assert marked("inside", row, column) == ([0] if row < tile.rows else [])


def test_tiles_hold_exactly_the_filter_of_the_op() -> None:
    for compression in (1, 2, 3):
        layout = Layout(RICH, compression)
        for slot in range(50):
            architecture = RICH.draw(0, slot)
            left = 0
            for tile in layout.tiles(architecture):
                assert tile.left == left
                assert tile.columns * 4 * compression >= tile.inputs > (tile.columns - 1) * 4 * compression
                assert tile.rows * 4 >= tile.outputs > (tile.rows - 1) * 4
                left += tile.columns


def test_different_architectures_have_different_codes() -> None:
    layout = Layout(RICH)
    a = RICH.draw(0, 0)
    op = a.blocks[0].ops[0]
    conv = op.convs[0]
    assert conv is not None
    for other in (
        replace(conv, groups=4 if conv.groups == 1 else 1),
        replace(conv, activation="tanh" if conv.activation != "tanh" else "relu"),
        replace(conv, kernel=conv.kernel[::-1], dilation=conv.dilation[::-1])
        if conv.kernel != conv.kernel[::-1]
        else replace(conv, kernel=(5, 7), dilation=(1, 1)),
    ):
        block = replace(a.blocks[0], ops=(replace(op, convs=(other, *op.convs[1:])), *a.blocks[0].ops[1:]))
        b = replace(a, blocks=(block, *a.blocks[1:]))
        assert (layout.encode(a) != layout.encode(b)).any()


def test_ops_that_differ_in_any_choice_have_different_codes() -> None:
    """Small steps change one choice; one without a channel of its own is found by the name of its field."""
    layout, at, differences = Layout(RICH), RICH.draw(0, 0), set()
    for step in range(400):
        after = RICH.mutate(at, 5, step, 0.01)
        changed = {name for name in differing_fields(at, after) if name.startswith(("Op.", "Conv."))}
        if changed:
            code, other = layout.encode(at), layout.encode(after)
            assert code.shape != other.shape or (code != other).any(), f"{changed} not in the code"
        differences |= changed
        at = after
    assert {"Op.reads", "Op.gate", "Op.bottleneck", "Conv.kernel", "Conv.activation"} <= differences


def differing_fields(a: Any, b: Any) -> set[str]:
    """Names of the fields in which two networks differ, with the class that has them."""
    if isinstance(a, tuple) and isinstance(b, tuple) and len(a) == len(b):
        return set().union(*(differing_fields(*pair) for pair in zip(a, b, strict=True)))
    if not (is_dataclass(a) and type(a) is type(b)):
        return set()
    found = set()
    for item in fields(a):
        pair = getattr(a, item.name), getattr(b, item.name)
        if pair[0] != pair[1]:
            found |= differing_fields(*pair) or {f"{type(a).__name__}.{item.name}"}
    return found


def test_noise_is_a_pure_function_of_its_seed() -> None:
    layout, a = Layout(RICH), RICH.draw(0, 0)
    noise = layout.sections["noise"]
    assert (layout.encode(a)[noise] == 0).all()
    assert (layout.encode(a, 1) == layout.encode(a, 1)).all()
    changed = layout.encode(a, 1) != layout.encode(a, 2)
    assert changed[noise].all()
    assert not np.delete(changed, noise.start, axis=0).any()


def test_both_1x1_convolutions_of_an_op_have_their_place_and_their_role() -> None:
    layout = Layout(EVERY_FORM)
    for slot in range(60):
        architecture = EVERY_FORM.draw(0, slot)
        wanted = [part for part in architecture.convolutions(1, 10) if part.generated]
        tiles = layout.tiles(architecture)
        assert [tile.name for tile in tiles] == [part.name for part in wanted]
        assert [(tile.outputs, tile.inputs) for tile in tiles] == [(p.outputs, p.inputs) for p in wanted]
        c = layout.encode(architecture)
        for tile in tiles:
            role = c[layout.sections["role"], 0, tile.left]
            assert ROLES[int(np.argmax(role))] == tile.name.rpartition(".")[2]
            if tile.name.endswith("project"):
                assert (c[layout.sections["source"], 0, tile.left] == BACKGROUND).all()


def test_an_architecture_without_generated_filters_has_a_c_of_no_width() -> None:
    plain = replace(EVERY_FORM, forms=("plain",), prior=replace(REGULAR, forms=(("plain", 1.0),)))
    assert Layout(plain).encode(plain.draw(0, 0)).shape[2] == 0

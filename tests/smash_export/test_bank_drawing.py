"""Blocks are drawn as in the paper's figure 1: which banks each op reads, and which it adds to."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

from smash_export.report.search import bank_drawing
from smash_search.space.architecture import Block
from smash_search.space.known import densenet_block, fractal_block, resnet_block

Edges = list[tuple[tuple[int, ...], tuple[int, ...]]]


def edges(block: Block) -> Edges:
    """Banks read and written by each op, as the dots of the drawing say."""
    drawing = ElementTree.fromstring(bank_drawing(block).text)
    lines = [float(line.attrib["y1"]) for line in drawing.iter("line")]
    boxes = [float(box.attrib["x"]) + float(box.attrib["width"]) / 2 for box in drawing.iter("rect")]
    found: dict[int, tuple[list[int], list[int]]] = {op: ([], []) for op in range(len(boxes))}
    for dot in drawing.iter("circle"):
        x, bank = float(dot.attrib["cx"]), lines.index(float(dot.attrib["cy"]))
        op = min(found, key=lambda index: abs(boxes[index] - x))
        hollow = dot.attrib["fill"] == "var(--paper)"
        assert hollow == (x < boxes[op]), "reads stand left of the op, writes right of it"
        found[op][0 if hollow else 1].append(bank)
    return [(tuple(sorted(reads)), tuple(sorted(writes))) for reads, writes in found.values()]


def test_a_residual_block_reads_and_adds_to_one_bank() -> None:
    assert edges(resnet_block(16, 3)) == [((0,), (0,))] * 3


def test_a_dense_block_reads_all_banks_before_and_opens_a_new_one() -> None:
    expected = [((0, 1), (2,)), ((0, 1, 2), (3,)), ((0, 1, 2, 3), (4,))]
    assert edges(densenet_block(channels_in=24, growth=12, layers=3)) == expected


def test_columns_of_a_fractal_block_meet_in_the_same_banks() -> None:
    # Steps of 1, 2 and 4 banks; what ends in a bank is added there.
    found = edges(fractal_block(16, 3))
    reach = sorted((reads[0], writes[0]) for reads, writes in found)
    assert reach == [(0, 1), (0, 2), (0, 4), (1, 2), (2, 3), (2, 4), (3, 4)]
    assert all(len(reads) == len(writes) == 1 for reads, writes in found)

"""Channels are scaled where a network answers the same, and one range then fits them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from smash_export.compiling.precision.equalisation import equalised
from smash_export.compiling.precision.int8 import Scheme, quantise
from smash_export.export.onnx_graphs import logits_of, prepared, sqnr_db
from smash_export.export.onnx_writer import onnx_from_architecture
from smash_search.model.interpreter import Network, fold
from smash_search.space.architecture import InputSpec
from tests.search.legal import RICH
from tests.search.model.test_interpreter import trained_like
from tests.smash_export.compiling.precision.banks import (
    CHANNELS,
    Graph,
    classifier,
    images,
    memory_bank,
)

UNEVEN = 4.0 ** np.arange(-4, 4)  # of eight channels: one range leaves most of them no level


def chain() -> onnx.ModelProto:
    """Dense, depthwise, dense and a residual sum; the channels between them are of very different size."""
    graph = Graph(1)
    graph.conv("input", "stem", 1, CHANNELS)
    graph.node("Relu", ["stem"], "a")
    graph.conv("a", "depthwise", CHANNELS, CHANNELS, groups=CHANNELS)
    graph.node("Relu", ["depthwise"], "b")
    graph.conv("b", "dense", CHANNELS, CHANNELS, kernel=1)
    graph.node("Add", ["dense", "a"], "sum")
    graph.node("Relu", ["sum"], "c")
    graph.conv("c", "last", CHANNELS, CHANNELS)
    graph.node("Relu", ["last"], "d")
    weights = {tensor.name: numpy_helper.to_array(tensor).copy() for tensor in graph.weights}
    column = UNEVEN.reshape(-1, 1, 1, 1)
    weights["depthwise.w"] *= column  # written uneven ...
    weights["depthwise.b"] *= UNEVEN
    weights["dense.w"] /= column.reshape(1, -1, 1, 1)  # ... and read as if it were not
    for tensor in graph.weights:
        tensor.CopyFrom(numpy_helper.from_array(weights[tensor.name].astype(np.float32), tensor.name))
    return classifier(graph, "d", CHANNELS)


def test_the_answers_stay_and_rounding_costs_less() -> None:
    model, x = chain(), images(200)
    even, scaled = equalised(prepared(model), x)
    assert scaled == 3  # a with c, which a sum ties; b; d
    exact = logits_of(model, x)
    np.testing.assert_allclose(logits_of(even, x), exact, atol=1e-4 * np.ptp(exact))
    onnx.checker.check_model(even, full_check=True)

    def noise(graph: onnx.ModelProto) -> float:
        rounded, _ = quantise(graph, x, Scheme(), method="minmax", boundary="int8", max_drop=100)
        return sqnr_db(exact, logits_of(rounded, x))

    assert noise(even) > noise(model) + 6


def test_what_is_concatenated_and_split_stays_as_it_is() -> None:
    model = prepared(memory_bank(3))
    even, _ = equalised(model, images(32))
    before = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    changed = {
        tensor.name
        for tensor in even.graph.initializer
        if not np.array_equal(before[tensor.name], numpy_helper.to_array(tensor))
    }
    inside = {f"op{op}.{layer}" for op in (0, 1) for layer in ("reduce.w", "reduce.b", "a.w", "b.w")}
    assert changed == inside  # only what a reduction hands to its two branches lies between convolutions
    np.testing.assert_allclose(logits_of(even, images(32)), logits_of(model, images(32)), atol=1e-3)


@pytest.mark.parametrize("slot", range(4))
def test_networks_of_the_space_answer_the_same(slot: int) -> None:
    spec = InputSpec(2, (10, 9))
    torch.manual_seed(slot)
    architecture = RICH.draw(5, slot)
    weights = fold(trained_like(Network(architecture, spec, 5), slot))
    model = prepared(onnx.load_model_from_string(onnx_from_architecture(architecture, weights, spec)))
    x = np.random.default_rng(slot).standard_normal((16, 2, 10, 9)).astype(np.float32)
    exact = logits_of(model, x)
    even, _ = equalised(model, x)
    np.testing.assert_allclose(logits_of(even, x), exact, atol=1e-4 * max(1.0, float(np.ptp(exact))))

"""Biases take back the mean of what rounding adds, layer by layer."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from smash_export.compiling.precision.bias_correction import _shifts, with_corrected_biases
from smash_export.compiling.precision.int8 import Scheme, _Quantiser
from smash_export.export.onnx_graphs import logits_of, prepared, sqnr_db
from tests.smash_export.compiling.precision.banks import Graph, classifier, images, memory_bank

NARROW = Scheme("u8", reduce_range=True)


def quantiser(model: onnx.ModelProto, x: np.ndarray) -> _Quantiser:
    graph = _Quantiser(prepared(model), x, NARROW)
    graph.choose_ranges(("minmax",))
    return graph


def test_the_mean_shift_of_every_layer_goes_and_the_logits_gain() -> None:
    x = images(256)
    before = quantiser(memory_bank(3), x)
    after = before.corrected(())
    exact = prepared(memory_bank(3))
    shifts, left = (_shifts(exact, graph.build(()), x) for graph in (before, after))
    assert set(shifts) == {node.name for node in exact.graph.node if node.op_type in ("Conv", "Gemm")}
    for name, shift in shifts.items():  # a bias is rounded too, to the product of two scales
        assert np.abs(left[name]).max() <= max(0.2 * np.abs(shift).max(), 5e-4), name
    assert max(np.abs(shift).max() for shift in shifts.values()) > 0.01
    logits = logits_of(exact, x)
    received = [sqnr_db(logits, logits_of(graph.build(()), x)) for graph in (before, after)]
    assert received[1] > received[0]


def test_a_layer_in_fp32_and_an_absent_bias() -> None:
    graph = Graph(2)
    graph.conv("input", "first", 1, 4)
    graph.node("Relu", ["first"], "a")
    graph.conv("a", "second", 4, 4)
    graph.nodes[-1].input.pop()  # no bias
    graph.weights.pop()
    graph.node("Relu", ["second"], "b")
    model, x = prepared(classifier(graph, "b", 4)), images(64)
    rounded = quantiser(model, x).build(("first",))
    corrected = with_corrected_biases(model, rounded, x)
    inputs = {node.name: list(node.input) for node in corrected.graph.node}
    assert inputs["first"] == ["input", "first.w", "first.b"]
    assert inputs["second"] == ["a", "second.w", "second/corrected_bias"]
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in corrected.graph.initializer}
    assert values["second/corrected_bias"].shape == (4,)
    assert values["second/corrected_bias"].any()
    onnx.checker.check_model(corrected, full_check=True)

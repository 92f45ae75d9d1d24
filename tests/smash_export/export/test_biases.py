"""Constants that move into biases change what one reader sees and nothing else."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from smash_export.export.biases import LARGEST_TAKEN_OFF, move_into_biases
from smash_export.export.onnx_graphs import session_of

CHANNELS = 4
SHIFT = np.array([1.0, -2.0, 0.5, 3.0])


class Graph:
    """Nodes over [1, 4, 5, 5] and their constants."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self._random = np.random.default_rng(0)

    def conv(self, source: str, name: str, size: int = 1) -> str:
        shape = (CHANNELS, CHANNELS, size, size)
        self.constants[f"{name}.weight"] = self._random.standard_normal(shape).astype(np.float32)
        self.constants[f"{name}.bias"] = self._random.standard_normal(CHANNELS).astype(np.float32)
        inputs = [source, f"{name}.weight", f"{name}.bias"]
        return self.node("Conv", inputs, name, kernel_shape=[size, size], pads=[size // 2] * 4)

    def node(self, kind: str, inputs: list[str], *outputs: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(kind, inputs, list(outputs), **attributes))
        return outputs[0]

    def run(self, *names: str) -> list[np.ndarray]:
        values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names]
        source = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, CHANNELS, 5, 5])
        constants = [numpy_helper.from_array(value, name) for name, value in self.constants.items()]
        graph = helper.make_graph(self.nodes, "g", [source], values, constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        x = np.random.default_rng(1).standard_normal((1, CHANNELS, 5, 5)).astype(np.float32)
        return session_of(model).run(None, {"x": x})


def moved(graph: Graph, tensor: str, shift: np.ndarray, *others: str) -> bool:
    """Move and check that ``tensor`` alone has changed, or that nothing has."""
    before = graph.run(tensor, *others)
    possible = move_into_biases(graph.nodes, graph.constants, tensor, shift)
    after = graph.run(tensor, *others)
    expected = before[0] + (shift.reshape(1, -1, 1, 1) if possible else 0)
    np.testing.assert_allclose(after[0], expected, atol=1e-4)
    for one, other in zip(before[1:], after[1:], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
    return possible


def test_the_shift_of_a_sum_goes_into_the_convolution_that_only_the_sum_reads() -> None:
    graph = Graph()
    graph.node("Add", ["x", graph.conv("x", "a", 3)], "sum")
    assert moved(graph, "sum", SHIFT)


def test_a_pointwise_convolution_and_another_sum_take_it_off_again() -> None:
    graph = Graph()
    graph.conv("x", "a", 3)
    graph.conv("a", "reader")
    graph.node("Add", ["a", graph.conv("x", "b")], "other")
    assert moved(graph, "a", SHIFT, "reader", "other")
    assert not moved(graph, "a", SHIFT * LARGEST_TAKEN_OFF, "reader", "other")  # would cost digits


@pytest.mark.parametrize("reader", ["Relu", "Conv"])
def test_a_reader_that_would_notice_forbids_the_move(reader: str) -> None:
    graph = Graph()
    graph.conv("x", "a")
    if reader == "Relu":
        graph.node("Relu", ["a"], "reader")
    else:
        graph.conv("a", "reader", 3)  # its padding is zero, not the shift
    assert not moved(graph, "a", SHIFT, "reader")


def test_one_part_of_a_split_moves_and_the_others_stay() -> None:
    graph = Graph()
    graph.node("Split", [graph.conv("x", "a")], "left", "right", axis=1, num_outputs=2)
    assert moved(graph, "left", SHIFT[:2], "right")


def test_sums_that_read_each_other_are_left_alone() -> None:
    graph = Graph()
    graph.node("Add", ["x", "x"], "double")
    graph.node("Add", ["double", "x"], "sum")
    assert not moved(graph, "sum", SHIFT, "double")
    graph = Graph()
    a, b = graph.conv("x", "a"), graph.conv("x", "b")
    graph.node("Add", [a, b], "sum")
    graph.node("Add", [a, b], "same")
    moved(graph, "sum", SHIFT, "same")


def test_a_tensor_that_is_needed_as_it_is_stays() -> None:
    graph = Graph()
    graph.node("Add", ["x", graph.conv("x", "a")], "sum")
    assert not move_into_biases(graph.nodes, graph.constants, "sum", SHIFT, {"sum", "a"})

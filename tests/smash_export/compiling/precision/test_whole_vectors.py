"""Zeros in the channels change no answer, and stand only where nothing else would notice."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from smash_export.compiling.precision.whole_vectors import fill_vectors
from smash_export.export.onnx_graphs import attribute, logits_of
from smash_export.export.onnx_writer import onnx_from_architecture
from smash_search.model.interpreter import Network, fold
from smash_search.space.architecture import Architecture, InputSpec
from smash_search.space.known import densenet, mobilenet, plain_resnet
from tests.search.legal import EVERY_FORM, RICH
from tests.search.model.test_interpreter import trained_like

SPEC = InputSpec(2, (8, 8))


def written(architecture: Architecture) -> onnx.ModelProto:
    weights = fold(trained_like(Network(architecture, SPEC, 5)))
    weights |= {name: np.abs(value) + 0.1 for name, value in weights.items() if name.endswith(".scale")}
    return onnx.load_model_from_string(onnx_from_architecture(architecture, weights, SPEC))


def assert_equal(filled: onnx.ModelProto, model: onnx.ModelProto) -> None:
    onnx.checker.check_model(filled, full_check=True)
    x = np.random.default_rng(0).standard_normal((3, 2, 8, 8)).astype(np.float32)
    expected = logits_of(model, x)
    np.testing.assert_allclose(logits_of(filled, x), expected, atol=1e-5 * max(1, np.abs(expected).max()))


def convolutions(model: onnx.ModelProto) -> list[tuple[int, int, int]]:
    """(outputs, inputs, groups) of each convolution but the first, whose input is the images."""
    shapes = {tensor.name: numpy_helper.to_array(tensor).shape for tensor in model.graph.initializer}
    found = []
    for node in [node for node in model.graph.node if node.op_type == "Conv"][1:]:
        outputs, inputs = shapes[node.input[1]][:2]
        groups = attribute(node, "group", 1)
        found.append((outputs, inputs * groups, groups))
    return found


@pytest.mark.parametrize("squeeze", [False, True])
def test_depthwise_convolutions_get_whole_vectors(squeeze: bool) -> None:
    model = written(mobilenet((8, 24), 2, 3, squeeze=squeeze))
    assert any(groups > 1 and outputs % 16 for outputs, _, groups in convolutions(model))
    filled = fill_vectors(model)
    assert all(outputs % 16 == 0 for outputs, _, groups in convolutions(filled) if groups > 1)
    assert_equal(filled, model)


def test_few_channels_of_a_residual_network_are_filled_together() -> None:
    model = written(plain_resnet((6, 10, 20), 2))
    filled = fill_vectors(model)
    # The last block is averaged for the last layer, whose inputs are what they are.
    assert {pair[:2] for pair in convolutions(filled)} >= {(16, 16), (20, 16)}
    assert_equal(filled, model)


def test_what_is_concatenated_or_wide_enough_stays() -> None:
    wide = written(plain_resnet((16, 32), 1))
    assert fill_vectors(wide).SerializeToString() == wide.SerializeToString()
    dense = written(densenet(6, 2, blocks=2))
    assert_equal(fill_vectors(dense), dense)


def test_one_channel_that_weighs_all_others_stays() -> None:
    random = np.random.default_rng(0)
    shapes = {"a": (6, 2, 3, 3), "mask": (1, 6, 1, 1), "b": (20, 6, 1, 1)}
    constants = [
        numpy_helper.from_array(random.standard_normal(shape).astype(np.float32), f"{name}.weight")
        for name, shape in shapes.items()
    ]
    nodes = [
        helper.make_node("Conv", ["input", "a.weight"], ["a"], name="a", pads=[1] * 4),
        helper.make_node("Conv", ["a", "mask.weight"], ["mask"], name="mask"),
        helper.make_node("Mul", ["a", "mask"], ["weighed"], name="weighed"),
        helper.make_node("Conv", ["weighed", "b.weight"], ["b"], name="b"),
        helper.make_node("GlobalAveragePool", ["b"], ["pooled"], name="pooled"),
        helper.make_node("Flatten", ["pooled"], ["logits"], name="logits"),
    ]
    ends = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in (("input", [3, 2, 8, 8]), ("logits", [3, 20]))
    ]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    assert_equal(fill_vectors(model), model)


@pytest.mark.parametrize("slot", range(8))
def test_drawn_networks_answer_the_same(slot: int) -> None:
    model = written((RICH if slot % 2 else EVERY_FORM).draw(5, slot))
    assert_equal(fill_vectors(model), model)


def test_images_get_a_channel_of_zeros_for_the_first_convolution() -> None:
    model = written(plain_resnet((16, 32), 1))
    filled = fill_vectors(model, images=True)
    first, second = filled.graph.node[:2]
    assert [first.op_type, second.op_type] == ["Pad", "Conv"]
    shapes = {tensor.name: list(tensor.dims) for tensor in filled.graph.initializer}
    assert shapes[second.input[1]] == [16, 4, 3, 3]
    assert_equal(filled, model)


@pytest.mark.parametrize("what", ["another reader", "too few outputs", "enough channels"])
def test_images_stay_where_a_fourth_channel_gains_nothing(what: str) -> None:
    spec = InputSpec(4, (8, 8)) if what == "enough channels" else SPEC
    architecture = densenet(6, 2, blocks=2) if what == "too few outputs" else plain_resnet((16, 32), 1)
    weights = fold(Network(architecture, spec, 5))
    model = onnx.load_model_from_string(onnx_from_architecture(architecture, weights, spec))
    if what == "another reader":
        model.graph.node.append(helper.make_node("Relu", ["input"], ["more"], name="more"))
    assert "Pad" not in {node.op_type for node in fill_vectors(model, images=True).graph.node}

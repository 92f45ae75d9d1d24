"""Rewritings for integer kernels compute the same, and leave what they cannot rewrite."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from smash_export.compiling.precision.int8 import Scheme, quantise, quantise_untrained
from smash_export.compiling.precision.integer_form import fold_pools
from smash_export.compiling.precision.whole_vectors import fill_vectors
from smash_export.export.onnx_graphs import attribute, logits_of
from smash_export.export.onnx_writer import onnx_from_architecture
from smash_search.model.interpreter import Network, fold
from smash_search.space.architecture import Architecture, InputSpec
from smash_search.space.known import PRESETS, mobilenet
from tests.search.model.test_interpreter import trained_like

SPEC = InputSpec(3, (8, 8))


@pytest.fixture(scope="module")
def resnet() -> onnx.ModelProto:
    return of_several_classes(PRESETS["resnet-20"](2))


def of_several_classes(architecture: Architecture) -> onnx.ModelProto:
    """Written with weights whose answers to noise are not all the same."""
    weights = fold(trained_like(Network(architecture, SPEC, 5)))
    weights |= {name: np.abs(value) + 0.1 for name, value in weights.items() if name.endswith(".scale")}
    weights["head.bias"] = weights["head.bias"] - logits_of(written(architecture, weights), noise(64)).mean(0)
    return written(architecture, weights)


def written(architecture: Architecture, weights: dict[str, np.ndarray]) -> onnx.ModelProto:
    return onnx.load_model_from_string(onnx_from_architecture(architecture, weights, SPEC))


def noise(images: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((images, 3, 8, 8)).astype(np.float32)


def fused(model: onnx.ModelProto, folder: Path) -> Counter[str]:
    """Operators that ONNX Runtime really runs."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node)


def test_a_pool_and_the_pointwise_convolution_behind_it_are_one(resnet: onnx.ModelProto) -> None:
    folded = fold_pools(resnet)
    onnx.checker.check_model(folded, full_check=True)
    assert Counter(node.op_type for node in resnet.graph.node)["AveragePool"] == 2
    assert "AveragePool" not in {node.op_type for node in folded.graph.node}
    x = noise(3)
    expected = logits_of(resnet, x)
    np.testing.assert_allclose(logits_of(folded, x), expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("what", ["overlapping windows", "padding", "another reader", "a wide kernel"])
def test_pools_that_would_change_stay(resnet: onnx.ModelProto, what: str) -> None:
    model = onnx.ModelProto.FromString(resnet.SerializeToString())
    pool = next(node for node in model.graph.node if node.op_type == "AveragePool")
    after = next(node for node in model.graph.node if pool.output[0] in node.input)
    changed = {"overlapping windows": ("strides", [1, 1]), "padding": ("pads", [1, 1, 1, 1])}
    if what in changed:
        name, value = changed[what]
        for item in [item for item in pool.attribute if item.name == name]:
            pool.attribute.remove(item)
        pool.attribute.append(helper.make_attribute(name, value))
    elif what == "another reader":
        model.graph.node.append(helper.make_node("Relu", [pool.output[0]], ["more"], name="more"))
    else:
        next(item for item in after.attribute if item.name == "strides").ints[:] = [2, 2]
    kept = [node for node in fold_pools(model).graph.node if node.op_type == "AveragePool"]
    assert pool.output[0] in {node.output[0] for node in kept}


def test_relus_of_shared_tensors_are_integer_comparisons(resnet: onnx.ModelProto, tmp_path: Path) -> None:
    scheme = Scheme("u8", reduce_range=True, clips=True)
    model, _ = quantise(
        fold_pools(resnet), noise(128), scheme, method="minmax", boundary="int8", max_drop=100
    )
    onnx.checker.check_model(model, full_check=True)
    clips = [node for node in model.graph.node if node.op_type == "Clip"]
    assert len(clips) == 8  # one for each residual op but the first, whose input the stem has rectified
    operators = fused(model, tmp_path)
    assert operators["QLinearConv"] == 21
    assert operators["DequantizeLinear"] == operators["Conv"] == operators["Relu"] == 0
    plain, _ = quantise(resnet, noise(128), Scheme("u8", reduce_range=True), method="minmax", max_drop=100)
    x = noise(64)
    signal = np.square(logits_of(resnet, x)).sum()
    for quantised in (model, plain):
        assert np.square(logits_of(quantised, x) - logits_of(resnet, x)).sum() < 0.1 * signal


def test_graphs_for_timing_have_the_operators_of_calibrated_ones(
    resnet: onnx.ModelProto, tmp_path: Path
) -> None:
    scheme = Scheme("u8", clips=True)
    timed = quantise_untrained(resnet, scheme)
    shipped, _ = quantise(resnet, noise(128), scheme, method="minmax", boundary="int8", max_drop=100)
    assert fused(timed, tmp_path) == fused(shipped, tmp_path)
    pools = [attribute(node, "kernel_shape") for node in timed.graph.node if node.op_type == "AveragePool"]
    assert pools == [[2, 2], [2, 2]]


@pytest.fixture(scope="module")
def swishing() -> onnx.ModelProto:
    return of_several_classes(mobilenet((16, 32), 2, 2, squeeze=True))


def test_hard_swishes_are_computed_on_bytes(swishing: onnx.ModelProto, tmp_path: Path) -> None:
    def quantised(clips: bool) -> onnx.ModelProto:
        scheme = Scheme("u8", reduce_range=True, clips=clips)
        return quantise(swishing, noise(128), scheme, method="minmax", boundary="int8", max_drop=100)[0]

    count = Counter(node.op_type for node in swishing.graph.node)["HardSwish"]
    assert count
    integers, floats = quantised(clips=True), quantised(clips=False)
    onnx.checker.check_model(integers, full_check=True)
    before, after = fused(floats, tmp_path), fused(integers, tmp_path)
    assert before["HardSigmoid"] + before["HardSwish"] == count
    assert after["HardSigmoid"] + after["HardSwish"] + after["DequantizeLinear"] == 0
    assert after["QLinearMul"] == before["QLinearMul"] + count
    expected = logits_of(swishing, noise(64))
    errors = [np.square(logits_of(model, noise(64)) - expected).sum() for model in (integers, floats)]
    assert errors[0] < 2 * errors[1]  # hardly more than other rounding


def test_hard_swishes_of_signed_bytes_and_kept_ones_stay(swishing: onnx.ModelProto) -> None:
    hard = [node.name for node in swishing.graph.node if node.op_type == "HardSwish"]
    signed = quantise_untrained(swishing, Scheme("s8", symmetric=True, clips=True))
    kept = quantise_untrained(swishing, Scheme("u8", clips=True), hard[:1])
    assert [node.name for node in signed.graph.node if node.op_type == "HardSwish"] == hard
    assert [node.name for node in kept.graph.node if node.op_type == "HardSwish"] == hard[:1]


def test_padded_images_are_bytes_and_answer_the_same(resnet: onnx.ModelProto, tmp_path: Path) -> None:
    scheme = Scheme("u8", clips=True)
    padded = quantise_untrained(fill_vectors(resnet, images=True), scheme)
    onnx.checker.check_model(padded, full_check=True)
    pad = next(node for node in padded.graph.node if node.op_type == "Pad")
    assert next(node for node in padded.graph.node if pad.input[0] in node.output).op_type == "QuantizeLinear"
    assert fused(padded, tmp_path)["QuantizeLinear"] == 1
    plain = quantise_untrained(fill_vectors(resnet), scheme)
    np.testing.assert_array_equal(logits_of(padded, noise(3)), logits_of(plain, noise(3)))

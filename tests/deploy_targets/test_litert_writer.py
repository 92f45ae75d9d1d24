"""LiteRT files that are written from ONNX graphs, run in LiteRT and compared with ONNX Runtime."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from smash_base.errors import UsageError
from smash_export.compiling.precision.int8 import TENSORRT, WHOLE, Scheme, _Quantiser
from smash_export.device_search.latency import random_weights
from smash_export.export.onnx_graphs import logits_of, prepared, sqnr_db
from smash_export.export.onnx_writer import onnx_from_architecture
from smash_search.space.architecture import InputSpec
from smash_search.space.space import space_for
from smash_targets.base import CompileRequest, ModelSignature, SessionOptions, get_target
from smash_targets.isolation.parent import compile_isolated
from smash_targets.litert_writer import UnknownOperatorError, write
from tests.deploy_targets.inputs import IMAGES, SIGNATURE
from tests.deploy_targets.networks import Sources

LITERT = get_target("litert")
ONE_THREAD = SessionOptions(threads=1)
SPEC, CLASSES = InputSpec(3, (16, 16)), 10
DRAWN = ModelSignature("input", "logits", (3, 16, 16), CLASSES)

pytestmark = pytest.mark.skipif(not LITERT.availability().available, reason="litert is not installed")


def answers(model: onnx.ModelProto, images: np.ndarray, signature: ModelSignature, path: Path) -> np.ndarray:
    """Logits of the graph in LiteRT."""
    path.write_bytes(write(model, 1))
    with LITERT.open(path, signature, ONE_THREAD) as session:
        return session.run(images)


def rounded(model: onnx.ModelProto, images: np.ndarray, scheme: Scheme = WHOLE) -> onnx.ModelProto:
    """The graph at int8, ranges by the extremes."""
    quantiser = _Quantiser(prepared(model), images, scheme)
    quantiser.choose_ranges(("minmax",))
    return quantiser.build(())


def operators(path: Path) -> Counter[str]:
    """Names of the operators in a file, and how many of each."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    plain = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = Interpreter(model_path=str(path), experimental_op_resolver_type=plain)
    return Counter(operator["op_name"] for operator in interpreter._get_ops_details())


@pytest.fixture
def network(sources: Sources) -> onnx.ModelProto:
    return onnx.load_model_from_string(sources.onnx.read_bytes())


def test_int8_computes_what_the_rounded_graph_says(network: onnx.ModelProto, tmp_path: Path) -> None:
    model = rounded(network, IMAGES)
    path = tmp_path / "model.tflite"
    received = answers(model, IMAGES, SIGNATURE, path)
    expected = logits_of(model, IMAGES)
    assert sqnr_db(expected, received) > 30
    with LITERT.open(path, SIGNATURE, ONE_THREAD) as session:
        assert session.info.precision == "int8"
    assert not operators(path)["TRANSPOSE"]


def test_images_and_answers_are_bytes_with_channels_last(network: onnx.ModelProto, tmp_path: Path) -> None:
    from ai_edge_litert.interpreter import Interpreter

    path = tmp_path / "model.tflite"
    path.write_bytes(write(rounded(network, IMAGES), 4))
    interpreter = Interpreter(model_path=str(path))
    (images,), (logits,) = interpreter.get_input_details(), interpreter.get_output_details()
    assert (images["dtype"], list(images["shape"])) == (np.int8, [4, 12, 12, 3])
    assert (logits["dtype"], list(logits["shape"])) == (np.int8, [4, 10])
    assert interpreter.get_signature_list() == {
        "serving_default": {"inputs": ["input"], "outputs": ["logits"]}
    }


@pytest.mark.parametrize(
    "scheme", [Scheme("u8"), Scheme("s8", symmetric=True), TENSORRT], ids=["u8", "s8", "tensorrt"]
)
def test_other_roundings_are_written_too(scheme: Scheme, network: onnx.ModelProto, tmp_path: Path) -> None:
    model = rounded(network, IMAGES, scheme)
    received = answers(model, IMAGES, SIGNATURE, tmp_path / "model.tflite")
    assert sqnr_db(logits_of(model, IMAGES), received) > 30


def test_layers_that_stay_in_fp32(network: onnx.ModelProto, tmp_path: Path) -> None:
    graph = prepared(network)
    quantiser = _Quantiser(graph, IMAGES, WHOLE)
    quantiser.choose_ranges(("minmax",))
    convolutions = [node.name for node in graph.graph.node if node.op_type == "Conv"]
    for kept in ([convolutions[0]], convolutions[2:4], convolutions):
        model = quantiser.build(kept)
        received = answers(model, IMAGES, SIGNATURE, tmp_path / "model.tflite")
        assert sqnr_db(logits_of(model, IMAGES), received) > 30


def test_every_draw_is_written(tmp_path: Path) -> None:
    """At fp32; forty at int8 are tested with the other runtimes (test_runtimes_int8.py)."""
    space = space_for(SPEC, "edge")
    images = np.random.default_rng(0).standard_normal((4, 3, 16, 16)).astype(np.float32)
    for slot in range(5):
        architecture = space.draw(6, slot)
        weights = random_weights(architecture, SPEC, CLASSES)
        model = onnx.load_model_from_string(onnx_from_architecture(architecture, weights, SPEC))
        received = answers(model, images, DRAWN, tmp_path / "model.tflite")
        assert sqnr_db(logits_of(model, images), received) > 90, slot


def graph_of(nodes: list[Any], shape: list[int], **constants: np.ndarray) -> onnx.ModelProto:
    """One input "x" of a shape, one output "y", opset 20."""
    initialisers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", *shape])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["b", None])],
        initialisers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def weights(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


HEAD = [
    helper.make_node("Flatten", ["h"], ["f"]),
    helper.make_node("Gemm", ["f", "w"], ["y"]),
]
CASES = {
    "an order of numbers": (HEAD, {"w": weights(4 * 6 * 6, 5)}),
    "same padding with stride": (
        [
            helper.make_node("Conv", ["x", "k"], ["h"], strides=[2, 2], auto_pad="SAME_UPPER"),
            *HEAD,
        ],
        {"k": weights(4, 4, 3, 3), "w": weights(36, 5)},
    ),
    "padding on one side": (
        [helper.make_node("Conv", ["x", "k"], ["h"], strides=[2, 2], pads=[1, 0, 0, 1]), *HEAD],
        {"k": weights(4, 4, 2, 2), "w": weights(36, 5)},
    ),
    "two outputs for each channel": (
        [helper.make_node("Conv", ["x", "k"], ["h"], group=4), *HEAD],
        {"k": weights(8, 1, 3, 3), "w": weights(8 * 16, 5)},
    ),
    "unequal parts": (
        [
            helper.make_node("Split", ["x", "s"], ["a", "c"], axis=1),
            helper.make_node("Tanh", ["a"], ["t"]),
            helper.make_node("LeakyRelu", ["c"], ["l"], alpha=0.2),
            helper.make_node("Concat", ["l", "t"], ["h"], axis=1),
            *HEAD,
        ],
        {"s": np.array([1, 3]), "w": weights(4 * 36, 5)},
    ),
    "rows of a picture": (
        [helper.make_node("Slice", ["x", "a", "e", "n"], ["h"]), *HEAD],
        {"a": np.array([-5]), "e": np.array([5]), "n": np.array([2]), "w": weights(4 * 4 * 6, 5)},
    ),
    "largest of windows": (
        [
            helper.make_node("MaxPool", ["x"], ["m"], kernel_shape=[2, 2], strides=[2, 2]),
            helper.make_node("Clip", ["m", "low", "high"], ["h"]),
            *HEAD,
        ],
        {"low": np.float32(0).reshape(()), "high": np.float32(6).reshape(()), "w": weights(36, 5)},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_operators(case: str, tmp_path: Path) -> None:
    nodes, constants = CASES[case]
    model = graph_of(
        [helper.make_node("Identity", ["x"], ["h"]), *nodes] if "h" not in _written(nodes) else nodes,
        [4, 6, 6],
        **constants,
    )
    images = np.random.default_rng(2).standard_normal((8, 4, 6, 6)).astype(np.float32)
    signature = ModelSignature("x", "y", (4, 6, 6), 5)
    expected = logits_of(model, images)
    np.testing.assert_allclose(
        answers(model, images, signature, tmp_path / "model.tflite"), expected, rtol=0, atol=1e-4
    )
    model = rounded(model, images)
    received = answers(model, images, signature, tmp_path / "model.tflite")
    assert sqnr_db(logits_of(model, images), received) > 30


def _written(nodes: list[Any]) -> set[str]:
    return {name for node in nodes for name in node.output}


UNKNOWN = {
    "Sin": [helper.make_node("Sin", ["x"], ["h"]), *HEAD],
    "other bounds": [helper.make_node("Clip", ["x", "low", "high"], ["h"]), *HEAD],
    "SAME_LOWER": [helper.make_node("Conv", ["x", "k"], ["h"], auto_pad="SAME_LOWER"), *HEAD],
    "padding": [helper.make_node("MaxPool", ["x"], ["h"], kernel_shape=[2, 2], pads=[1, 0, 0, 1]), *HEAD],
}


@pytest.mark.parametrize("what", UNKNOWN)
def test_what_is_not_known_is_said_and_not_guessed(what: str, tmp_path: Path) -> None:
    constants = {
        "w": weights(144, 5),
        "k": weights(4, 4, 2, 2),
        "low": np.float32(-1).reshape(()),
        "high": np.float32(1).reshape(()),
    }
    model = graph_of(UNKNOWN[what], [4, 6, 6], **constants)
    with pytest.raises(UnknownOperatorError, match=what):
        write(model, 1)
    onnx.save(model, tmp_path / "model.onnx")
    assert LITERT.starts_from_program(tmp_path / "model.onnx")
    request = CompileRequest(tmp_path / "model.onnx", None, ModelSignature("x", "y", (4, 6, 6), 5))
    with pytest.raises(UsageError, match=f"{what}.*choose onnxruntime"):
        LITERT.compile(request, tmp_path)


def test_what_is_not_known_is_no_failed_verification_in_a_process_of_its_own(tmp_path: Path) -> None:
    onnx.save(graph_of(UNKNOWN["Sin"], [4, 6, 6], w=weights(144, 5)), tmp_path / "model.onnx")
    request = CompileRequest(tmp_path / "model.onnx", None, ModelSignature("x", "y", (4, 6, 6), 5))
    with pytest.raises(UsageError, match="Sin"):
        compile_isolated("litert", request, tmp_path)


def test_a_batch_size_of_its_own(network: onnx.ModelProto, sources: Sources, tmp_path: Path) -> None:
    result = LITERT.compile(sources.request(batch=8), tmp_path)
    with LITERT.open(tmp_path / result.main, SIGNATURE, ONE_THREAD) as session:
        np.testing.assert_allclose(session.run(IMAGES), sources.logits, rtol=0, atol=1e-4)
    network.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    with pytest.raises(UnknownOperatorError, match="batch=2"):
        write(network, 1)


def test_another_shape_of_images_is_refused(compiled: Callable[..., Path]) -> None:
    from smash_base.errors import InvalidInputError

    with pytest.raises(InvalidInputError, match="its input is"):
        LITERT.open(compiled("litert"), replace(SIGNATURE, input_shape=(12, 12, 3)), ONE_THREAD)

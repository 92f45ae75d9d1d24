"""fp16: fp32 outside, fp16 inside, and fp32 where numbers would not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from smash_base.errors import InvalidInputError
from smash_export.compiling.compile import compile_bundle
from smash_export.compiling.precision.fp16 import _cast, cast_to_fp16
from smash_export.export.onnx_graphs import logits_of, prepared
from tests.smash_export.compiling.precision.banks import CHANNELS, Graph, classifier, images, memory_bank


def overflowing() -> onnx.ModelProto:
    """Two convolutions in a row whose values reach 1e6, scaled back before the classifier."""
    graph = Graph(3)
    graph.conv("input", "stem", 1, CHANNELS)
    graph.node("Relu", ["stem"], "stem.relu")
    graph.node("Mul", ["stem.relu", graph.constant("up", np.full((1, CHANNELS, 1, 1), 3e5))], "scaled")
    graph.conv("scaled", "large", CHANNELS, CHANNELS)
    graph.node("Relu", ["large"], "large.relu")
    graph.node("Mul", ["large.relu", graph.constant("down", np.full((1, CHANNELS, 1, 1), 1e-5))], "back")
    graph.conv("back", "after", CHANNELS, CHANNELS)
    graph.node("Relu", ["after"], "after.relu")
    return classifier(graph, "after.relu", CHANNELS)


def in_true_fp16(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    """Logits by the reference evaluator, which rounds every tensor; ONNX Runtime's CPU kernels do not."""
    logits = ReferenceEvaluator(model).run(None, {"input": x})[0]
    assert isinstance(logits, np.ndarray)
    return logits


def test_digits_compile_and_keep_their_labels(digits_bundle_copy: Path) -> None:
    file = compile_bundle(digits_bundle_copy, "onnxruntime", "fp16")
    assert file.evidence["parity"]["agreement"] >= 0.999
    assert file.notes["kept_fp32"] == []
    model = onnx.load(file.main)
    for value in (model.graph.input[0], model.graph.output[0]):
        assert value.type.tensor_type.elem_type == TensorProto.FLOAT
    assert {tensor.data_type for tensor in model.graph.initializer} == {TensorProto.FLOAT16}
    assert [node.op_type for node in model.graph.node].count("Cast") == 2


def test_memory_bank_casts_at_its_ends_only() -> None:
    x = images(64)
    model, notes = cast_to_fp16(memory_bank(3), x)
    assert [node.op_type for node in model.graph.node].count("Cast") == 2
    assert notes["kept_fp32"] == []
    received, exact = in_true_fp16(model, x[:8]), logits_of(memory_bank(3), x[:8])
    np.testing.assert_allclose(received, exact, atol=0.3)
    assert (received.argmax(1) == exact.argmax(1)).all()


def test_nodes_that_would_overflow_stay_in_fp32_and_are_named() -> None:
    x = images(64)
    exact = overflowing()
    model, notes = cast_to_fp16(exact, x)
    kept = {row["node"] for row in notes["kept_fp32"]}
    assert {"scaled", "large", "large.relu", "back"} <= kept
    assert kept.isdisjoint({"stem", "after", "after.relu", "logits"})
    assert all("reaches" in row["reason"] for row in notes["kept_fp32"])
    received = in_true_fp16(model, x[:8])
    assert np.isfinite(received).all()
    assert (received.argmax(1) == logits_of(exact, x[:8]).argmax(1)).all()
    # Large tensors never pass through fp16 between two kept nodes: casts stand at the ends only.
    casts = [node.input[0] for node in model.graph.node if node.op_type == "Cast"]
    assert set(casts) == {"input", "stem.relu", "back", "logits/half"}


def test_a_plain_cast_of_that_network_would_be_infinite() -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        logits = in_true_fp16(_cast(prepared(overflowing()), set())[0], images(4))
    assert not np.isfinite(logits).all()


def test_sums_behind_averages_are_watched() -> None:
    graph = Graph(1)
    graph.conv("input", "stem", 1, CHANNELS)
    graph.node("Relu", ["stem"], "rectified")
    graph.node("Mul", ["rectified", graph.constant("up", np.full((1, CHANNELS, 1, 1), 1e3))], "scaled")
    _, notes = cast_to_fp16(classifier(graph, "scaled", CHANNELS), images(64))
    assert {row["node"] for row in notes["kept_fp32"]} == {"pool"}
    assert "sum" in notes["kept_fp32"][0]["reason"]


def test_weights_lost_to_zero_are_counted() -> None:
    model = memory_bank(3)
    for tensor in model.graph.initializer:
        if tensor.name == "stem.b":
            tensor.CopyFrom(numpy_helper.from_array(np.full(CHANNELS, 1e-9, np.float32), "stem.b"))
    _, notes = cast_to_fp16(model, images(16))
    assert notes["weights_flushed_to_zero"] == CHANNELS


def test_control_flow_is_refused() -> None:
    branch = helper.make_graph(
        [helper.make_node("Identity", ["logits0"], ["branch"])],
        "branch",
        [],
        [helper.make_tensor_value_info("branch", TensorProto.FLOAT, None)],
    )
    model = memory_bank(3)
    model.graph.node[-1].output[0] = "logits0"
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "condition"))
    node = helper.make_node("If", ["condition"], ["logits"], then_branch=branch, else_branch=branch)
    model.graph.node.append(node)
    with pytest.raises(InvalidInputError, match="control flow"):
        cast_to_fp16(model, images(4))

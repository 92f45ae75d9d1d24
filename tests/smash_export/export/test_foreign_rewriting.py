"""Whatever a foreign file is made of, the bundle answers as the file does: random graphs of every opset."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from smash_base.errors import VerificationError
from smash_base.preprocess import Preprocessing
from smash_export.export.adopt import Images, adopt
from smash_export.export.foreign_rewriting import Reference, check_same, computes_in
from smash_export.export.onnx_graphs import session_of
from tests.smash_export.export.random_graphs import CHANNELS, CLASSES, NEWEST, SIDE, random_classifier

PREPROCESSING = Preprocessing(SIDE, SIDE, CHANNELS, (0.5,) * CHANNELS, (0.25,) * CHANNELS)


def answers_of_file(path: Path, tensors: np.ndarray) -> np.ndarray:
    """What the file answers, as it is, in the batch that it declares."""
    model = onnx.load(path)
    declared = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value
    size = declared if declared > 0 else len(tensors)
    session = session_of(path.read_bytes())
    name = session.get_inputs()[0].name
    parts = [session.run(None, {name: tensors[i : i + size]})[0] for i in range(0, len(tensors), size)]
    return np.concatenate(parts)


@pytest.mark.parametrize("opset", range(7, NEWEST + 1))
def test_file_and_bundle_answer_the_same(opset: int, tmp_path: Path) -> None:
    random = np.random.default_rng(opset)
    images = random.integers(0, 256, (8, SIDE, SIDE, CHANNELS), dtype=np.uint8)
    tensors = random.normal(size=(8, CHANNELS, SIDE, SIDE)).astype(np.float32) * 2
    for seed in range(2):
        path = tmp_path / f"{seed}.onnx"
        path.write_bytes(random_classifier(seed, opset).SerializeToString())
        expected = answers_of_file(path, tensors)
        found = adopt(
            path,
            tmp_path / f"b{seed}",
            labels=tuple("abcde")[:CLASSES],
            preprocessing=PREPROCESSING,
            images=Images(images, np.zeros(8, np.int64), None, {}),
        )
        received = answers_of_file(found.bundle.onnx, tensors)
        assert np.abs(received - expected).max() <= 1e-4 * np.abs(expected).max()


def test_what_rounding_does_not_explain_is_refused_at_every_precision() -> None:
    def file(tensors: np.ndarray) -> np.ndarray:
        answers: np.ndarray = tensors.reshape(len(tensors), -1)[:, :5] * 10
        return answers

    samples = np.random.default_rng(0).normal(size=(200, 3, 4, 4)).astype(np.float32)
    reference = Reference(file, samples, "a file")

    def rounded(tensors: np.ndarray) -> np.ndarray:
        return file(tensors.astype(np.float16)).astype(np.float32)

    def swapped(tensors: np.ndarray) -> np.ndarray:
        answers = file(tensors)
        answers[:4] = answers[:4, ::-1] if len(answers) < len(samples) else answers[:4]
        return answers

    check_same(reference, rounded, "fp16", "a file")
    with pytest.raises(VerificationError, match=r"within 0\.0001 of the largest one.*opset 17"):
        check_same(reference, rounded, "fp32", "a file")
    with pytest.raises(
        VerificationError, match=r"rounding to fp16 explains; received 5\.\d+%\. Adopt the fp32"
    ):
        check_same(reference, lambda tensors: file(tensors) * 1.05, "fp16", "a file")
    for precision in ("fp32", "fp16", "bf16"):
        with pytest.raises(VerificationError, match="does not do what the file does"):
            check_same(reference, swapped, precision, "a file")


@pytest.mark.parametrize(("rounded", "computes"), [("image", "int8"), ("weight", "fp32")])
def test_weights_in_int8_alone_do_not_make_a_network_compute_in_it(rounded: str, computes: str) -> None:
    weights = [
        numpy_helper.from_array(np.float32(0.1), "scale"),
        numpy_helper.from_array(np.int8(0), "zero"),
        numpy_helper.from_array(np.ones((4, 5), np.float32 if rounded == "image" else np.int8), "weight"),
    ]
    facts = ["scale", "zero"]
    nodes = [helper.make_node("DequantizeLinear", ["weight", *facts], ["matrix"])]
    operands = ["image", "matrix"]
    if rounded == "image":
        nodes = [helper.make_node("QuantizeLinear", ["image", *facts], ["bytes"])]
        nodes.append(helper.make_node("DequantizeLinear", ["bytes", *facts], ["floats"]))
        operands = ["floats", "weight"]
    nodes.append(helper.make_node("MatMul", operands, ["scores"]))
    image, scores = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size])
        for name, size in (("image", 4), ("scores", 5))
    )
    graph = helper.make_graph(nodes, "network", [image], [scores], weights)
    assert computes_in(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])) == computes

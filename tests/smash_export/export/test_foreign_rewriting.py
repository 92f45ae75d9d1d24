"""Whatever a foreign file is made of, the bundle answers as the file does: random graphs of every opset."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from smash_base.preprocess import Preprocessing
from smash_export.export.adopt import Images, adopt
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

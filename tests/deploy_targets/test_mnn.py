"""MNN in fp32 computes what the network says: no transform that trades exactness for speed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import onnx
import pytest

from smash_export.device_search.latency import random_weights
from smash_export.export.onnx_graphs import logits_of
from smash_export.export.onnx_writer import onnx_from_architecture
from smash_search.space.architecture import InputSpec
from smash_search.space.space import space_for
from smash_targets.base import CompileRequest, ModelSignature, SessionOptions, get_target

pytestmark = pytest.mark.skipif(importlib.util.find_spec("MNN") is None, reason="MNN is not here")
SPEC, CLASSES = InputSpec(1, (28, 28)), 10


def test_fp32_is_exact_to_rounding_on_networks_of_many_3x3_convolutions(tmp_path: Path) -> None:
    images = np.random.default_rng(0).standard_normal((8, 1, 28, 28)).astype(np.float32)
    signature = ModelSignature("input", "logits", (1, 28, 28), CLASSES, (1, 1, 64))
    for slot in range(3):
        architecture = space_for(SPEC, "small").draw(11, slot)
        model = onnx_from_architecture(architecture, random_weights(architecture, SPEC, CLASSES), SPEC)
        source, folder = tmp_path / f"{slot}.onnx", tmp_path / str(slot)
        source.write_bytes(model)
        folder.mkdir()
        target = get_target("mnn")
        result = target.compile(CompileRequest(source, None, signature, "fp32"), folder)
        expected = logits_of(onnx.load_model_from_string(model), images)
        with target.open(folder / result.main, signature, SessionOptions(threads=1)) as session:
            found = np.concatenate([session.run(image[np.newaxis]) for image in images])
        assert np.abs(found - expected).max() < 2e-6 * np.abs(expected).max()

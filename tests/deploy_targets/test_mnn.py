"""MNN in fp32 computes what the network says: no transform that trades exactness for speed."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
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


_OPEN = (
    "import sys; from smash_targets.mnn import open_module; open_module(sys.argv[1], ('input',), ('logits',))"
)


def test_opening_a_file_prints_nothing_and_one_that_cannot_be_opened_what_mnn_says(tmp_path: Path) -> None:
    architecture = space_for(SPEC, "tiny").draw(0, 0)
    source = tmp_path / "network.onnx"
    source.write_bytes(
        onnx_from_architecture(architecture, random_weights(architecture, SPEC, CLASSES), SPEC)
    )
    signature = ModelSignature("input", "logits", (1, 28, 28), CLASSES, (1, 1, 64))
    file = (
        tmp_path / get_target("mnn").compile(CompileRequest(source, None, signature, "fp32"), tmp_path).main
    )
    (tmp_path / "half.mnn").write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    def opened(path: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", _OPEN, str(path)], capture_output=True, text=True, check=False
        )

    whole, half = opened(file), opened(tmp_path / "half.mnn")
    assert (whole.returncode, whole.stdout, whole.stderr) == (0, "", "")
    assert (half.returncode != 0, half.stdout) == (True, "")
    before, _, error = half.stderr.partition("Traceback")
    assert before.strip(), "what MNN said"
    assert "InvalidInputError" in error


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

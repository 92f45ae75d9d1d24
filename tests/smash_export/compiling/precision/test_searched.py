"""Networks as the space draws them, gates, tanh and leaky ReLU included, at lower precision."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

from smash_export.compiling.precision.fp16 import cast_to_fp16
from smash_export.compiling.precision.int8 import TENSORRT, Scheme, quantise
from smash_export.export.onnx_graphs import logits_of, sqnr_db
from smash_export.export.onnx_writer import onnx_from_architecture
from smash_search.model.interpreter import Network, fold
from smash_search.space.architecture import InputSpec
from tests.search.legal import RICH
from tests.search.model.test_interpreter import trained_like

SPEC = InputSpec(2, (10, 9))


@pytest.mark.parametrize("seed", range(2))
def test_drawn_networks_are_cast_and_quantised(seed: int) -> None:
    architecture = RICH.draw(seed, 0)
    torch.manual_seed(seed)
    weights = fold(trained_like(Network(architecture, SPEC, 5), seed))
    x = np.random.default_rng(seed).standard_normal((96, 2, 10, 9)).astype(np.float32)

    def written() -> onnx.ModelProto:
        return onnx.load_model_from_string(onnx_from_architecture(architecture, weights, SPEC))

    # Random weights favour one class; without that bias the images are of several classes.
    common = logits_of(written(), x).mean(axis=0)
    weights["head.bias"] = weights["head.bias"] - common
    model = written()
    exact = logits_of(model, x)
    half, notes = cast_to_fp16(model, x)
    assert notes["kept_fp32"] == []
    onnx.checker.check_model(half, full_check=True)
    for scheme in (Scheme("u8", reduce_range=True), TENSORRT):
        quantised, notes = quantise(model, x, scheme, method="minmax", max_drop=100)
        onnx.checker.check_model(quantised, full_check=True)
        # The last layer cancels what random features have in common; every other node keeps its signal.
        noise = {row["node"]: row["sqnr_db"] for row in notes["noise_by_node"] if row["node"] != "logits"}
        # A gate multiplies the noise of two tensors: 15.7 dB seen, where sums and convolutions stay above 25.
        assert min(noise.values()) > 15, notes["noise_by_node"][:5]
        assert sqnr_db(exact + common, logits_of(quantised, x) + common) > 15

"""Forty random networks at int8 in the CPU runtimes that take Q/DQ graphs: they load, answer as the rounded
graph says, and most of them would pass the gate.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from smash_export.compiling.precision.int8 import Scheme, _Quantiser
from smash_export.compiling.precision.placements import Placement, usual
from smash_export.export.onnx_graphs import logits_of, prepared, sqnr_db
from smash_export.export.onnx_writer import onnx_from_architecture
from smash_export.measure.gates import GATES, accuracy_loss
from smash_search.model.interpreter import Network, fold
from smash_search.space.architecture import InputSpec
from smash_search.space.space import space_for
from smash_targets.base import CompileRequest, ModelSignature, SessionOptions, get_target
from tests.search.legal import RICH
from tests.search.model.test_interpreter import trained_like

SHAPE, CLASSES, IMAGES = (2, 10, 10), 5, 64
SPEC = InputSpec(SHAPE[0], SHAPE[1:])
SIGNATURE = ModelSignature("input", "logits", SHAPE, CLASSES, (1, IMAGES, IMAGES))
SLOTS = {"rich": range(2, 10), "edge": range(2, 30)}  # and the first two of each
CASES = [
    *((kind, range(2)) for kind in SLOTS),
    *(pytest.param(kind, slots, marks=pytest.mark.slow) for kind, slots in SLOTS.items()),
]
# 7-bit weights: without VNNI, x86 adds two products in 16 bits, and 8-bit weights would saturate.
SCHEME = Scheme("u8", reduce_range=True)


@cache
def network(kind: str, slot: int) -> tuple[onnx.ModelProto, np.ndarray]:
    """A graph of which no class is favoured, and images."""
    space = RICH if kind == "rich" else space_for(SPEC, "edge-tiny")
    architecture = space.draw(3, slot)
    torch.manual_seed(slot)
    weights = fold(trained_like(Network(architecture, SPEC, CLASSES), slot))
    x = np.random.default_rng(slot).standard_normal((IMAGES, *SHAPE)).astype(np.float32)
    model = onnx.load_model_from_string(onnx_from_architecture(architecture, weights, SPEC))
    weights["head.bias"] = weights["head.bias"] - logits_of(model, x).mean(axis=0)
    return onnx.load_model_from_string(onnx_from_architecture(architecture, weights, SPEC)), x


@cache
def quantised(kind: str, slot: int, form: Placement) -> onnx.ModelProto:
    """The network with all layers at int8."""
    model, x = network(kind, slot)
    graph = _Quantiser(prepared(form.graph(model)), x, form.scheme(SCHEME))
    graph.choose_ranges(("minmax",))
    return graph.build(())


@pytest.mark.parametrize("target", ["onnxruntime", "openvino", "litert"])
@pytest.mark.parametrize(("kind", "slots"), CASES)
def test_random_networks_at_int8(kind: str, slots: range, target: str, tmp_path: Path) -> None:
    runtime = get_target(target)
    if not runtime.availability().available:
        pytest.skip(f"{target} is not installed")
    form = usual("onnxruntime" if (target, kind) == ("onnxruntime", "edge") else "openvino")
    kept = 0
    for slot in slots:
        model, x = network(kind, slot)
        rounded = quantised(kind, slot, form)
        folder = tmp_path / str(slot)
        (folder / "compiled").mkdir(parents=True)
        (folder / "model.onnx").write_bytes(rounded.SerializeToString())
        request = CompileRequest(folder / "model.onnx", None, SIGNATURE, "int8")
        main = runtime.compile(request, folder / "compiled").main
        options = SessionOptions(threads=1)
        with runtime.open(folder / "compiled" / main, SIGNATURE, options) as session:
            received = session.run(x)
        emulated, exact = logits_of(rounded, x), logits_of(model, x)
        # A runtime that fuses rounds less often or elsewhere; one that computes nonsense is at 0 dB.
        assert sqnr_db(exact, received) > min(12, sqnr_db(exact, emulated) - 6), (kind, slot)
        # Random networks answer with small margins; a trained one loses less.
        kept += accuracy_loss(exact, received, exact.argmax(axis=1)).expected <= 2 * GATES["int8"].drop
    assert kept >= 0.5 * len(slots)

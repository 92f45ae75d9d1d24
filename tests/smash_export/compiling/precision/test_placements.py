"""The form of an int8 file is the fastest of those that were measured, and all of them compute the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from smash_export.bundle.bundle import Bundle
from smash_export.compiling.compile import compile_bundle
from smash_export.compiling.precision import PLACEMENT_NAMES
from smash_export.compiling.precision.int8 import Scheme
from smash_export.compiling.precision.placements import (
    PLACEMENTS,
    candidates,
    in_order,
    measured,
    named,
    usual,
)
from smash_export.export.onnx_graphs import logits_of, prepared
from smash_export.export.onnx_writer import onnx_from_architecture
from smash_search.model.interpreter import Network, fold
from smash_search.space.architecture import InputSpec
from smash_search.space.known import PRESETS
from smash_targets.base import ModelSignature, get_target

SPEC = InputSpec(3, (8, 8))


def network(name: str) -> onnx.ModelProto:
    architecture = PRESETS[name](2)
    return onnx.load_model_from_string(
        onnx_from_architecture(architecture, fold(Network(architecture, SPEC, 5)), SPEC)
    )


def test_forms_that_do_not_differ_are_not_measured_twice() -> None:
    assert [form.name for form in candidates(network("resnet-20"), "onnxruntime")] == list(PLACEMENT_NAMES)
    assert [form.name for form in candidates(network("resnet-20"), "openvino")] == list(PLACEMENT_NAMES[:3])
    without = prepared(network("resnet-20"))
    for node in without.graph.node:
        if node.op_type == "AveragePool":
            node.op_type = "MaxPool"
    assert not any(form.folds for form in candidates(without, "openvino"))


def test_every_form_computes_the_same_network() -> None:
    model = network("resnet-8")
    x = np.random.default_rng(0).standard_normal((3, 3, 8, 8)).astype(np.float32)
    for form in PLACEMENTS:
        np.testing.assert_allclose(logits_of(form.graph(model), x), logits_of(model, x), atol=1e-5)
    assert named("folded_first_fp32").fp32_nodes(prepared(model)) == ["stem", "stem.relu"]
    assert named("folded").fp32_nodes(prepared(model)) == []


def test_the_fastest_form_wins_and_a_tie_goes_to_the_simplest() -> None:
    forms = list(PLACEMENTS[:3])
    names = [form.name for form in forms]
    assert in_order(forms, dict(zip(names, (1.5, 1.0, 1.2), strict=True)))[0].name == "folded"
    assert in_order(forms, dict(zip(names, (1.01, 1.0, 1.2), strict=True)))[0].name == "plain"
    assert [form.name for form in in_order(forms, dict(zip(names, (3.0, 2.0, 1.0), strict=True)))] == [
        "folded_first_fp32", "folded", "plain",
    ]  # fmt: skip


@pytest.mark.parametrize("target", ["onnxruntime", "openvino", "litert"])
def test_forms_are_timed_through_the_session_of_the_target(target: str) -> None:
    runtime = get_target(target)
    if not runtime.availability().available:
        pytest.skip(f"{target} is not installed")
    signature = ModelSignature("input", "logits", (3, 8, 8), 5)
    forms, times = measured(network("resnet-8"), Scheme("u8"), runtime, signature)
    assert (
        set(times)
        == {form.name for form in forms}
        == {form.name for form in candidates(network("resnet-8"), target)}
    )
    assert all(value > 0 for value in times.values())
    assert times[forms[0].name] <= 1.1 * min(times.values())
    assert usual(target).clips == (target == "onnxruntime")
    if target == "litert":  # its files take bytes
        assert not any(form.first_fp32 for form in forms)


def test_a_bundle_tells_which_form_it_ships(digits_bundle_copy: Path) -> None:
    options = {"placement": "folded_first_fp32", "calibration_method": "minmax", "boundary": "int8"}
    file = compile_bundle(digits_bundle_copy, "onnxruntime", "int8", options)
    assert file.notes["placement"] == "folded_first_fp32"
    reasons = {row["reason"] for row in file.notes["kept_fp32"]}
    assert "faster in fp32 on this machine" in reasons
    measured_file = compile_bundle(
        digits_bundle_copy, "onnxruntime", "int8", {"calibration_method": "minmax"}
    )
    times = measured_file.notes["placements_ms"]
    assert times[measured_file.notes["placement"]] <= 1.1 * min(times.values())
    assert Bundle.open(digits_bundle_copy).find_compiled("onnxruntime", "int8") is not None

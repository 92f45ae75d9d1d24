"""``smash-export check`` and ``compile --target tensorrt`` on a machine without TensorRT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from smash_base.errors import MissingRuntimeError
from smash_export import cli
from smash_export.bundle.bundle import Bundle
from smash_export.deploy.trtexec import emulate, graph_for_tensorrt
from smash_targets.base import get_target

PRECISIONS = ("fp32", "tf32", "fp16", "int8")
no_tensorrt = pytest.mark.skipif(get_target("tensorrt").availability().available, reason="TensorRT is here")


def check(capsys: pytest.CaptureFixture[str], *words: object, code: int = 0) -> Any:
    capsys.readouterr()
    assert cli.run(["check", *map(str, words), "--json", "-q"]) == code, capsys.readouterr().err
    text = capsys.readouterr().out
    return json.loads(text) if text.strip() else None


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_graph_is_judged_and_run_on_the_cpu(
    precision: str, digits_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = check(capsys, digits_bundle, "--target", "tensorrt:10", "--precision", precision)
    assert found["counts"].get("error", 0) == 0
    assert found["parity"]["images"] == 597
    assert found["status"] == "checked by rules, not by TensorRT"
    operators = {item["operator"] for item in found["verdicts"]}
    assert "Conv" in operators
    assert ("QuantizeLinear" in operators) == (precision == "int8")
    assert ("Cast" in operators) == (precision == "fp16")


def test_the_graph_has_the_documented_form(digits_bundle: Path, tmp_path: Path) -> None:
    """fp32 inputs and outputs; int8 with zero point 0 and activations with one scale."""
    bundle = Bundle.open(digits_bundle)
    for precision in ("fp16", "int8"):
        path, _ = graph_for_tensorrt(bundle, precision, tmp_path)
        graph = onnx.load(path).graph
        for end in (*graph.input, *graph.output):
            assert end.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        values = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
        assert (precision == "fp16") == any(value.dtype == np.float16 for value in values.values())
        for node in graph.node:
            if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                scale, zero = values[node.input[1]], values[node.input[2]]
                assert zero.dtype == np.int8
                assert not zero.any()
                assert (scale > 0).all()
                if node.op_type == "QuantizeLinear" and node.input[0] not in values:
                    assert scale.size == 1


def test_numbers_that_miss_their_gate_are_refused(digits_bundle: Path, tmp_path: Path) -> None:
    from smash_base.errors import VerificationError

    bundle = Bundle.open(digits_bundle)
    model = onnx.load(bundle.onnx)
    bias = next(item for item in model.graph.initializer if item.name.endswith("8.bias"))
    spoiled = numpy_helper.to_array(bias)[::-1] + np.arange(10, dtype=np.float32)
    bias.CopyFrom(numpy_helper.from_array(spoiled.astype(np.float32), bias.name))
    onnx.save(model, tmp_path / "spoiled.onnx")
    for precision in PRECISIONS:
        with pytest.raises(
            VerificationError, match=f"the {precision} graph for TensorRT, run by ONNX Runtime"
        ):
            emulate(bundle, tmp_path / "spoiled.onnx", precision)


def test_a_release_that_reads_no_such_opset(digits_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = check(capsys, digits_bundle, "--target", "tensorrt:8.6")
    (opset,) = [item for item in found["verdicts"] if item["operator"] == "opset"]
    assert (opset["level"], "opset 20" in opset["reason"]) == ("warn", True)
    check(capsys, digits_bundle, "--target", "tensorrt:9", code=2)
    check(capsys, digits_bundle, "--target", "openvino", code=2)
    check(capsys, digits_bundle, "--target", "tensorrt_rtx:1", code=2)


def test_check_says_whether_the_builder_saw_the_graph(
    digits_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = check(capsys, digits_bundle, "--target", "tensorrt_rtx", "--precision", "int8")
    assert found["counts"].get("error", 0) == 0
    built = found["status"] == "built by NVIDIA's builder (RTX), not run on hardware"
    assert built == (found["engine_bytes"] is not None)
    assert built == get_target("tensorrt_rtx").installed().available  # type: ignore[attr-defined]


def test_dla_without_a_fallback_refuses_what_it_does_not_have(
    digits_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (digits_bundle, "--precision", "fp16", "--dla", "orin")
    strict = check(capsys, *words, code=4)
    refused = {item["operator"] for item in strict["verdicts"] if item["level"] == "error"}
    assert refused >= {"Gemm", "input or output"}
    loose = check(capsys, *words, "--gpu-fallback")
    assert loose["counts"].get("error", 0) == 0
    where = [item["reason"] for item in loose["verdicts"] if item["operator"] == "DLA"]
    assert "10.7 is the last 10.x with DLA" in where[0]
    for release, text in (("11", "11.4.1"), ("10.3", "10.7")):
        found = check(capsys, *words, "--gpu-fallback", "--target", f"tensorrt:{release}")
        assert any(text in item["reason"] for item in found["verdicts"])
    check(capsys, *words, "--gpu-fallback", "--target", "tensorrt:11.1", code=4)
    check(capsys, digits_bundle, "--gpu-fallback", code=2)
    check(capsys, digits_bundle, "--dla", "orin", code=4)  # fp32


@no_tensorrt
@pytest.mark.parametrize("precision", PRECISIONS)
def test_compile_without_tensorrt_ends_with_the_command_and_leaves_nothing(
    precision: str, digits_bundle_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(path.relative_to(digits_bundle_copy) for path in digits_bundle_copy.rglob("*"))
    words = ["compile", str(digits_bundle_copy), "--target", "tensorrt", "--precision", precision]
    assert cli.run(words) == 3
    (line,) = [text for text in capsys.readouterr().err.splitlines() if "pip install" in text]
    assert "pip install tensorrt cuda-python" in line
    after = sorted(path.relative_to(digits_bundle_copy) for path in digits_bundle_copy.rglob("*"))
    assert after == before


@no_tensorrt
def test_options_are_refused_before_tensorrt_is_asked_for(digits_bundle_copy: Path, tmp_path: Path) -> None:
    from smash_base.errors import UsageError
    from smash_targets.base import CompileRequest

    bundle = Bundle.open(digits_bundle_copy)
    target = get_target("tensorrt")
    for options in ({"batch": [8, 1, 2]}, {"wrong": 1}, {"hardware": "volta"}):
        request = CompileRequest(bundle.onnx, None, bundle.signature, "fp16", options=options)
        with pytest.raises(UsageError):
            target.compile(request, tmp_path)
    request = CompileRequest(bundle.onnx, None, bundle.signature, "fp16")
    with pytest.raises(MissingRuntimeError, match="pip install tensorrt"):
        target.compile(request, tmp_path)
    assert not list(tmp_path.glob("model.*"))

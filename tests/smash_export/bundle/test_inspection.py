"""inspect says what a file is, and takes nothing that it is given for granted."""

from __future__ import annotations

import contextlib
import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from smash_base.errors import InvalidInputError, SmashError
from smash_export import cli
from smash_export.bundle.inspection import inspect
from smash_export.bundle.stored_cost import cost_words
from smash_export.export.onnx_writer import regroup

BEST: dict[str, Any] = {
    "schema": 1,
    "architecture": {
        "stem": {"kernel": [3, 3], "stride": [1, 1]},
        "blocks": [
            {
                "channels_in": 8,
                "bank_channels": 4,
                "banks": 3,
                "ops": [
                    {
                        "reads": [0, 1],
                        "writes": [2],
                        "bottleneck": 8,
                        "units": 4,
                        "convs": [{"kernel": [3, 3], "dilation": [1, 1]}, None, None, None],
                    }
                ],
            }
        ],
    },
    "input": {"channels": 1, "height": 8, "width": 8},
    "classes": ["cat", "dog"],
}


def onnx_model(**changes: Any) -> onnx.ModelProto:
    weight = numpy_helper.from_array(np.ones((2, 4), np.float32), "weight")
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["input", "weight"], ["logits"], transB=1)],
        "g",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], producer_name="test")
    model.metadata_props.add(key="labels", value='["cat","dog"]')
    return model


def test_an_architecture_is_described_with_its_cost(tmp_path: Path) -> None:
    path = tmp_path / "best.json"
    path.write_text(json.dumps(BEST))
    facts = inspect(path)
    assert facts["kind"] == "architecture (best.json)"
    assert facts["classes"] == ["cat", "dog"]
    # stem 1*9*8+8, op 8*8+8 and 8*4*9+4, scale and shift 2*12, head 12*2+2
    assert facts["parameters"] == 80 + 72 + 292 + 24 + 26
    assert facts["blocks"] == ["3 banks x 4 channels, 1 ops"]

    (tmp_path / "bare.json").write_text(json.dumps(BEST["architecture"]))
    assert inspect(tmp_path / "bare.json")["kind"] == "bare architecture"


def test_a_bundle_and_its_manifest_are_described(digits_bundle: Path) -> None:
    facts = inspect(digits_bundle)
    assert facts["kind"] == "bundle"
    assert facts["classes"] == [str(digit) for digit in range(10)]
    assert facts["input"] == "input float32 [batch, 1, 8, 8]"
    assert "model.onnx" in facts["files"]
    assert facts["provenance"]["accuracy"] > 0.9
    assert inspect(digits_bundle / "manifest.json")["kind"] == "bundle manifest"
    assert inspect(digits_bundle / "model.onnx")["opset"] == {"ai.onnx": 20}
    assert inspect(digits_bundle / "model.torchscript.pt")["kind"] == "TorchScript"
    assert inspect(digits_bundle / "samples.npz")["arrays"] == ["images", "labels", "logits"]


def test_a_bundle_with_a_flipped_byte_is_refused(digits_bundle_copy: Path) -> None:
    path = digits_bundle_copy / "model.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(InvalidInputError, match=r"model\.onnx"):
        inspect(digits_bundle_copy)


def test_a_run_folder_is_described(tmp_path: Path) -> None:
    (tmp_path / "best.json").write_text(json.dumps(BEST))
    (tmp_path / "scores.jsonl").write_text('{"error": 0.5}\n{"error": 0.4}\n{"torn')
    facts = inspect(tmp_path)
    assert facts["kind"] == "search run"
    assert facts["scores"] == 2
    assert facts["best"]["classes"] == ["cat", "dog"]


def test_the_folder_of_a_whole_run_is_described(tmp_path: Path) -> None:
    state: dict[str, Any] = {
        "schema": 1,
        "request": {"data": "digits", "target": "ncnn", "seconds": None, "elsewhere": []},
        "plan": {"images": {"images": "1,797"}, "stages": [{"name": "search"}, {"name": "freeze"}]},
        "done": [{"stage": {}, "seconds": 12.34, "result": {}}],
    }
    (tmp_path / "run.json").write_text(json.dumps(state))
    (tmp_path / "search").mkdir()
    facts = inspect(tmp_path)
    assert facts == {**inspect(tmp_path / "run.json"), "path": str(tmp_path)}
    assert facts["kind"] == "run"
    assert facts["asked"] == {"data": "digits", "target": "ncnn"}
    assert facts["stages"] == {"search": "12.3 s", "freeze": "not done"}
    assert facts["folders"] == ["search"]
    for name, value in (("plan", []), ("done", [1]), ("request", None)):
        (tmp_path / "run.json").write_text(json.dumps({**state, name: value}))
        with pytest.raises(InvalidInputError, match="damaged"):
            inspect(tmp_path)


def test_an_onnx_file_is_described(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(onnx_model(), path)
    facts = inspect(path)
    assert facts["inputs"] == ["input float [batch, 4]"]
    assert facts["operators"] == {"Gemm": 1}
    assert facts["parameters"] == 8
    assert facts["metadata"] == {"labels": '["cat","dog"]'}
    assert "external_data" not in facts


def test_external_data_is_named_and_never_followed(tmp_path: Path) -> None:
    model = onnx_model()
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="../../../../etc/passwd")
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    assert "weight" in inspect(path)["external_data"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.onnx", b"not protobuf at all"),
        ("model.onnx", b""),
        ("model.onnx", b"\x08\x0a"),
        ("model.pt", b"PK\x03\x04 torn"),
        ("weights.safetensors", struct.pack("<Q", 2**60) + b"{}"),
        ("weights.safetensors", b"short"),
        ("best.json", b"[1, 2]"),
        ("best.json", b"{}"),
        ("best.json", b"[" * 100_000),
        ("best.json", json.dumps({**BEST, "schema": 99}).encode()),
        ("best.json", json.dumps({**BEST, "surprise": 1}).encode()),
        ("notes.txt", b"hello"),
    ],
)
def test_damaged_and_foreign_files_are_one_line_and_code_6(
    tmp_path: Path, name: str, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert cli.run(["inspect", str(path)]) == 6
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.strip().splitlines()) == 1


def test_what_is_not_there_is_code_6(tmp_path: Path) -> None:
    assert cli.run(["inspect", str(tmp_path / "none")]) == 6
    assert cli.run(["inspect", str(tmp_path)]) == 6
    assert cli.run(["inspect", "/dev/null"]) == 6


def test_a_pickled_file_is_named_and_not_loaded(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", b"cos\nsystem\n(S'touch hacked'\ntR.")
        archive.writestr("model/version", b"3")
    assert inspect(path)["kind"] == "pickled PyTorch file"


def test_safetensors_are_listed(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    path = tmp_path / "weights.safetensors"
    save_file({"stem.weight": np.zeros((2, 1, 3, 3), np.float32)}, path)
    assert inspect(path)["tensors"] == {"stem.weight": "F32 [2, 1, 3, 3]"}


def test_people_get_a_table_and_programs_get_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "best.json"
    path.write_text(json.dumps(BEST))
    assert cli.run(["inspect", str(path)]) == 0
    assert "cat, dog" in capsys.readouterr().out
    assert cli.run(["inspect", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == inspect(path)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 10**6), value=st.integers(0, 255), length=st.integers(0, 10**6))
def test_mutated_onnx_files_give_facts_or_a_clean_error(
    tmp_path: Path, position: int, value: int, length: int
) -> None:
    data = bytearray(onnx_model().SerializeToString())
    data[position % len(data)] = value
    path = tmp_path / "model.onnx"
    path.write_bytes(data[: max(1, length % (2 * len(data)))])
    with contextlib.suppress(SmashError):
        json.dumps(inspect(path))


def test_a_bundle_shows_every_measured_result(
    digits_bundle_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["compile", "--target", "onnxruntime"], ["bench", "--seconds", "0.05"]):
        assert cli.run([words[0], str(digits_bundle_copy), *words[1:], "-q"]) == 0
    results = inspect(digits_bundle_copy)["measured"]["onnxruntime/fp32"]
    assert results["agreement"] == 1.0
    assert results["accuracy"] > 0.9
    assert results["latency, batch 1"]["p50_ms"] > 0
    capsys.readouterr()
    assert cli.run(["inspect", str(digits_bundle_copy)]) == 0
    shown = capsys.readouterr().out
    assert "measured: onnxruntime/fp32" in shown
    assert "p50_ms" in shown


def grouped(weight: np.ndarray, groups: int) -> onnx.ModelProto:
    """A convolution of 4x4 images and a product after it."""
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["input", "weight"], ["maps"], group=groups),
            helper.make_node("GlobalAveragePool", ["maps"], ["mean"]),
            helper.make_node("Flatten", ["mean"], ["flat"]),
            helper.make_node("Gemm", ["flat", "head"], ["logits"], transB=1),
        ],
        "g",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 8, 4, 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])],
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(HEAD, "head")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])


HEAD = np.ones((2, 8), np.float32)


def test_the_cost_of_a_file_is_the_files_and_stored_zeros_are_said(tmp_path: Path) -> None:
    narrow = np.random.default_rng(0).standard_normal((8, 2, 3, 3)).astype(np.float32)  # 4 groups
    wide, groups = regroup(narrow, 4)
    assert groups == 1
    facts = {}
    for name, model in {"narrow": grouped(narrow, 4), "wide": grouped(wide, groups)}.items():
        onnx.save(model, tmp_path / f"{name}.onnx")
        facts[name] = inspect(tmp_path / f"{name}.onnx")
    assert (facts["narrow"]["parameters"], facts["narrow"]["zeros"]) == (144 + 16, 0)
    assert (facts["wide"]["parameters"], facts["wide"]["zeros"]) == (576 + 16, 576 - 144)
    assert facts["narrow"]["macs"] == 4 * 144 + 16  # 2x2 pixels
    assert facts["wide"]["macs"] == 4 * 576 + 16
    assert "432 of them in kernels of zeros" in cost_words(tmp_path / "wide.onnx")

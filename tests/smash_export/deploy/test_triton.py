"""The Triton repository, read with Triton's own protobuf messages."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from smash_base.errors import UsageError
from smash_base.files import sha256
from smash_export.bundle.bundle import Bundle
from smash_export.cli import run
from smash_export.deploy.triton import TritonSettings, config, write_repository
from smash_targets.base import ModelSignature
from tests.conftest import DOUBT_BELOW

model_config_pb2 = pytest.importorskip("tritonclient.grpc.model_config_pb2")
text_format = pytest.importorskip("google.protobuf.text_format")


def parse(text: str) -> object:
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def test_an_onnx_model_has_triton_s_layout_and_configuration(digits_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(digits_bundle)
    (folder,) = write_repository(bundle, tmp_path, name="digits", settings=TritonSettings(threads=2))

    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()) == [
        "1/model.onnx",
        "config.pbtxt",
        "labels.txt",
        "preprocessing.json",
    ]
    assert sha256(folder / "1" / "model.onnx") == sha256(bundle.onnx)
    assert (folder / "labels.txt").read_text().splitlines() == list(bundle.labels)
    assert json.loads((folder / "preprocessing.json").read_text()) == bundle.preprocessing.to_json()
    parsed = parse((folder / "config.pbtxt").read_text())
    assert (parsed.name, parsed.backend, parsed.max_batch_size) == ("digits", "onnxruntime", 32)
    assert (parsed.input[0].name, list(parsed.input[0].dims)) == ("input", [1, 8, 8])
    assert (parsed.output[0].name, list(parsed.output[0].dims)) == ("logits", [10])
    assert parsed.output[0].label_filename == "labels.txt"
    assert parsed.dynamic_batching.max_queue_delay_microseconds == 0
    assert parsed.dynamic_batching.default_queue_policy.max_queue_size == 256
    assert parsed.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_CPU
    assert [warm.batch_size for warm in parsed.model_warmup] == [1, 32]
    assert parsed.model_warmup[0].inputs["input"].zero_data
    assert parsed.parameters["intra_op_thread_count"].string_value == "2"
    assert json.loads(parsed.parameters["doubt_below"].string_value) == DOUBT_BELOW
    assert parsed.parameters["outputs"].string_value == "logits"


def test_a_bundle_without_a_threshold_names_none(
    digits_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Bundle, "doubt_below", None)
    parsed = parse(config(Bundle.open(digits_bundle), "onnx", "digits", TritonSettings()))
    assert list(parsed.parameters) == ["outputs"]


def test_several_variants_become_several_models(digits_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(digits_bundle)
    folders = write_repository(bundle, tmp_path, name="digits", variants=["onnx", "torchscript"])
    assert [folder.name for folder in folders] == ["digits_onnx", "digits_torchscript"]
    parsed = parse((folders[1] / "config.pbtxt").read_text())
    assert parsed.name == "digits_torchscript"
    assert (parsed.backend, parsed.input[0].name, parsed.output[0].name) == (
        "pytorch",
        "INPUT__0",
        "OUTPUT__0",
    )
    assert (folders[1] / "1" / "model.pt").is_file()


def test_a_compiled_engine_becomes_a_plan_on_gpus(digits_bundle_copy: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(digits_bundle_copy)
    staged = bundle.staging("tensorrt", "fp16")
    (staged / "model.engine").write_bytes(b"engine bytes, copied as they are")
    bundle.add_compiled("tensorrt", "fp16", staged, "model.engine", {}, {})
    settings = TritonSettings(precision="fp16", version=3, max_batch=8)
    (folder,) = write_repository(bundle, tmp_path / "out", variants=["plan"], name="d", settings=settings)
    assert (folder / "3" / "model.plan").read_bytes() == b"engine bytes, copied as they are"
    parsed = parse((folder / "config.pbtxt").read_text())
    assert (parsed.backend, parsed.max_batch_size) == ("tensorrt", 8)
    assert parsed.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_GPU


@pytest.mark.parametrize(("batch", "dims"), [((4, 4, 4), [4, 1, 8, 8]), ((1, 1, 1), [1, 1, 8, 8])])
def test_a_static_file_has_its_batch_as_a_dimension(
    digits_bundle: Path, monkeypatch: pytest.MonkeyPatch, batch: tuple[int, int, int], dims: list[int]
) -> None:
    bundle = Bundle.open(digits_bundle)
    static: ModelSignature = dataclasses.replace(bundle.signature, batch=batch)
    monkeypatch.setattr(Bundle, "signature", static)
    parsed = parse(config(bundle, "onnx", "digits", TritonSettings()))
    assert (parsed.max_batch_size, list(parsed.input[0].dims)) == (0, dims)
    assert list(parsed.output[0].dims) == [batch[0], 10]
    assert not parsed.HasField("dynamic_batching")
    assert [warm.batch_size for warm in parsed.model_warmup] == [1]


def test_what_is_missing_or_there_already_is_said(digits_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(digits_bundle)
    with pytest.raises(UsageError, match=r"smash-export compile .* --target tensorrt --precision fp32"):
        write_repository(bundle, tmp_path, variants=["plan"])
    with pytest.raises(UsageError, match="name of the model"):
        write_repository(bundle, tmp_path, name="../up")
    write_repository(bundle, tmp_path, name="digits")
    with pytest.raises(UsageError, match="exists already"):
        write_repository(bundle, tmp_path, name="digits")
    write_repository(bundle, tmp_path, name="digits", force=True)


def test_a_further_version_stands_beside_the_earlier_ones(digits_bundle_copy: Path, tmp_path: Path) -> None:
    bundle, second = Bundle.open(digits_bundle_copy), TritonSettings(version=2, instances=3)
    (folder,) = write_repository(bundle, tmp_path, name="digits")
    write_repository(bundle, tmp_path, name="digits", settings=second)
    assert [(folder / version / "model.onnx").is_file() for version in "12"] == [True, True]
    assert parse((folder / "config.pbtxt").read_text()).instance_group[0].count == 3
    with pytest.raises(UsageError, match="exists already"):
        write_repository(bundle, tmp_path, name="digits", settings=second)
    labels = folder / "labels.txt"
    labels.write_text(labels.read_text().replace("0", "zero"))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    third = TritonSettings(version=3)
    with pytest.raises(UsageError, match=r"version 3 does not fit.*--force"):
        write_repository(bundle, tmp_path, name="digits", settings=third)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    write_repository(bundle, tmp_path, name="digits", settings=third, force=True)
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["3"]


def test_the_command_plans_then_writes(
    digits_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "repository"
    words = ["triton", str(digits_bundle), str(out), "--name", "digits", "--json"]
    assert run([*words, "--dry-run"]) == 0
    assert not out.exists()
    assert run(words) == 0
    assert (out / "digits" / "config.pbtxt").is_file()
    assert '"written": true' in capsys.readouterr().out
    assert run([*words, "--dry-run"]) == 2  # as the command itself: the model is there
    assert "--force" in capsys.readouterr().err
    assert run([*words, "--dry-run", "--force"]) == 0

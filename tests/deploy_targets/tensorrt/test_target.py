"""What can be known of the TensorRT target without TensorRT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from smash_base.errors import InvalidInputError, MissingRuntimeError, UsageError, VerificationError
from smash_base.files import sha256
from smash_targets.base import ModelSignature, SessionOptions, get_target
from smash_targets.tensorrt import builder, nodes
from smash_targets.tensorrt import target as tensorrt
from smash_targets.tensorrt.cuda import Gpu, open_cuda
from smash_targets.tensorrt.manifest import EngineManifest, check_manifest, read_manifest, write_manifest
from smash_targets.tensorrt.settings import read_settings
from smash_targets.tensorrt.trtexec_results import EngineLayers

SIGNATURE = ModelSignature("input", "logits", (3, 8, 8), 10, (1, 8, 32))
GPU = Gpu("NVIDIA H100", "9.0", "13.0", "580.1")


def test_without_tensorrt_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tensorrt", None)
    with pytest.raises(MissingRuntimeError, match="pip install tensorrt"):
        tensorrt.import_tensorrt()
    assert not get_target("trtexec").availability().available


def test_tensorrt_without_a_driver_is_another_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An importable module is all that the question for the driver needs; it is never imported."""
    try:
        open_cuda().close()
        pytest.skip("there is a GPU")
    except MissingRuntimeError:
        pass
    (tmp_path / "tensorrt.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    state = get_target("tensorrt").availability()
    assert not state.available
    assert "no NVIDIA GPU can be used here" in state.reason


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("blocks.1.ops.2.convs.0", "block 1, operation 2, convolution 0"),
        ("blocks.0.ops.1.reduce", "block 0, operation 1, 1x1 reduction"),
        ("blocks.3.transition.pool", "block 3, transition"),
        ("stem", ""),
    ],
)
def test_a_layer_is_told_by_its_place_in_the_architecture(name: str, place: str) -> None:
    assert nodes.describe_node(name) == (f"{name} ({place})" if place else name)


def test_a_refused_layer_is_named_from_the_text_of_the_builder() -> None:
    text = "Error Code 10: Could not find any implementation for node {ForeignNode[blocks.1.ops.2.convs.0]}."
    assert "block 1, operation 2, convolution 0" in (nodes.node_hint(text) or "")
    assert nodes.node_hint("Out of memory") is None


@pytest.mark.parametrize(
    "options",
    [
        {"batch": [8, 1, 32]}, {"batch": 64}, {"batch": "1"}, {"batch": [1, 2]}, {"level": 6},
        {"level": True}, {"hardware": ["none"]},
        {"hardware": "x"}, {"workspace_mib": 0}, {"timing_cache": 1}, {"dla": -1},
        {"dla": 0, "batch": [1, 2, 4]}, {"gpu_fallback": True}, {"version_compatible": "yes"},
    ],
)  # fmt: skip
def test_settings_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        read_settings(options, SIGNATURE, "fp16")


def test_a_dla_gets_one_batch_and_half_or_int8() -> None:
    assert read_settings({"dla": 1}, SIGNATURE, "int8").batch == (8, 8, 8)
    assert read_settings({}, SIGNATURE, "fp32").batch == (1, 8, 32)
    with pytest.raises(UsageError, match="fp16 and int8"):
        read_settings({"dla": 1}, SIGNATURE, "fp32")


def test_int8_on_a_dla_before_tensorrt_11_is_refused_with_the_way_that_works() -> None:
    builder._check_dla_precision("11.4.1", "int8")
    builder._check_dla_precision("10.3.0", "fp16")
    with pytest.raises(UsageError, match="smash-export trtexec BUNDLE --precision int8"):
        builder._check_dla_precision("10.3.0", "int8")


def test_a_silent_fp32_engine_is_an_error() -> None:
    layers = EngineLayers(({"Name": "c", "Outputs": [{"Datatype": "Float"}]},), True, ())
    builder.check_layers(layers, "fp32")
    with pytest.raises(VerificationError, match="nothing in fp16"):
        builder.check_layers(layers, "fp16")


LINUX = "Linux x86_64"


def manifest(engine: Path, **values: Any) -> EngineManifest:
    fields: dict[str, Any] = {
        "gpu": GPU.name, "compute_capability": "9.0", "cuda": "13.0", "driver": "580.1",
        "tensorrt": "10.16.0",
        "platform": LINUX, "engine_sha256": sha256(engine), "onnx_sha256": "0", "source_sha256": "",
        "precision": "fp16", "batch": (1, 1, 8), "flags": {}, "layers": {},
    }  # fmt: skip
    return EngineManifest(**{**fields, **values})


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    path = tmp_path / "model.engine"
    path.write_bytes(b"plan")
    return path


@pytest.mark.parametrize(
    ("here", "version", "platform", "flags", "fits"),
    [
        (GPU, "10.16.0", LINUX, {}, True),
        (GPU, "11.1.0", LINUX, {}, False),
        (GPU, "10.16.1", LINUX, {}, False),
        (GPU, "11.1.0", LINUX, {"version_compatible": True}, True),
        (GPU, "10.17.0", LINUX, {"version_compatible": True}, True),
        (GPU, "10.3.0", LINUX, {"version_compatible": True}, False),
        (GPU, "12.0.0", LINUX, {"version_compatible": True}, False),
        (GPU, "10.16.0", "Windows AMD64", {}, False),
        (GPU, "10.16.0", "Linux aarch64", {"hardware": "ampere+"}, False),
        (Gpu("NVIDIA H200", "9.0", "13.0", "580.1"), "10.16.0", LINUX, {}, True),
        (Gpu("NVIDIA A100", "8.0", "13.0", "580.1"), "10.16.0", LINUX, {}, False),
        (Gpu("NVIDIA A100", "8.0", "13.0", "580.1"), "10.16.0", LINUX, {"hardware": "ampere+"}, True),
        (Gpu("NVIDIA T4", "7.5", "13.0", "580.1"), "10.16.0", LINUX, {"hardware": "ampere+"}, False),
        (Gpu("NVIDIA A100", "8.0", "13.0", "580.1"), "10.16.0", LINUX, {"hardware": "same"}, False),
    ],
)
def test_engines_are_refused_before_tensorrt_sees_them(
    engine: Path, here: Gpu, version: str, platform: str, flags: dict[str, Any], fits: bool
) -> None:
    made = manifest(engine, flags=flags)
    if fits:
        check_manifest(engine, made, here, version, platform)
    else:
        with pytest.raises(InvalidInputError, match="compile BUNDLE --target tensorrt --precision fp16"):
            check_manifest(engine, made, here, version, platform)


@pytest.mark.parametrize(
    ("here", "words"),
    [
        (GPU, []),
        (Gpu(GPU.name, "9.0", "13.0", "590.2"), ["driver 580.1, here is 590.2"]),
        (Gpu(GPU.name, "9.0", "13.1", "580.1"), ["CUDA 13.0, here is 13.1"]),
        (Gpu("NVIDIA H200", "9.0", "13.0", "580.1"), ["GPU NVIDIA H100, here is NVIDIA H200"]),
    ],
)
def test_what_may_cost_speed_is_a_warning(engine: Path, here: Gpu, words: list[str]) -> None:
    found = check_manifest(engine, manifest(engine), here, "10.16.0", LINUX)
    assert [word in text for word, text in zip(words, found, strict=True)] == [True] * len(words)


def test_an_engine_of_another_network_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "targets" / "tensorrt" / "fp16"
    folder.mkdir(parents=True)
    path = folder / "model.engine"
    path.write_bytes(b"plan")
    (folder / "model.onnx").write_bytes(b"half")
    (tmp_path / "model.onnx").write_bytes(b"network")
    good = manifest(
        path, onnx_sha256=sha256(folder / "model.onnx"), source_sha256=sha256(tmp_path / "model.onnx")
    )
    assert check_manifest(path, good, GPU, "10.16.0", LINUX) == []
    (tmp_path / "model.onnx").write_bytes(b"another")
    with pytest.raises(InvalidInputError, match="built from another network"):
        check_manifest(path, good, GPU, "10.16.0", LINUX)
    (folder / "model.onnx").write_bytes(b"changed")
    with pytest.raises(InvalidInputError, match="built from another file"):
        check_manifest(path, good, GPU, "10.16.0", LINUX)
    path.write_bytes(b"other plan")
    with pytest.raises(InvalidInputError, match="not the engine that its manifest describes"):
        check_manifest(path, good, GPU, "10.16.0", LINUX)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"dla": None, "gpu_fallback": False, "level": 3, "workspace_mib": 1024, "hardware": "none"}, ""),
        (
            {"version_compatible": True, "hardware": "ampere+"},
            " --option version_compatible=true --option hardware=ampere+",
        ),
        ({"dla": 0, "gpu_fallback": True}, " --option dla=0 --option gpu_fallback=true"),
        (
            {"workspace_mib": 64, "level": 0, "dla": 1},
            " --option workspace_mib=64 --option level=0 --option dla=1",
        ),
    ],
)
def test_the_rebuild_command_has_every_option_of_the_engine(
    engine: Path, flags: dict[str, Any], words: str
) -> None:
    start = "smash-export compile BUNDLE --target tensorrt --precision fp16 --option"
    made = manifest(engine, flags=flags)
    assert made.rebuild == f"{start} 'batch=[1,1,8]'{words}"
    fixed = manifest(engine, flags={}, batch=(4, 4, 4), target="tensorrt_rtx").rebuild
    assert fixed == "smash-export compile BUNDLE --target tensorrt_rtx --precision fp16 --option batch=4"


def test_the_rebuild_command_makes_the_same_settings_again(engine: Path) -> None:
    """Through the parser of the command line, which reads the values."""
    import shlex

    from smash_export.cli.compile import read_options

    settings = read_settings(
        {"batch": 8, "dla": 0, "gpu_fallback": True, "level": 5, "workspace_mib": 64}, SIGNATURE, "fp16"
    )
    made = manifest(engine, flags=settings.flags("fp16"), batch=settings.batch)
    words = shlex.split(made.rebuild)
    options = read_options(tuple(words[at + 1] for at, word in enumerate(words) if word == "--option"))
    assert read_settings(options, SIGNATURE, "fp16") == settings


def test_a_manifest_is_read_as_it_was_written(engine: Path) -> None:
    made = manifest(engine, flags={"dla": None})
    write_manifest(engine, made)
    assert read_manifest(engine) == made
    for content in ("{}", '{"schema": 1, "gpu": "x"}', "not json", '{"schema": 2}'):
        engine.with_name("model.engine.json").write_text(content)
        with pytest.raises(InvalidInputError):
            read_manifest(engine)
    engine.with_name("model.engine.json").unlink()
    with pytest.raises(InvalidInputError):
        get_target("tensorrt").open(engine, SIGNATURE, SessionOptions())


def test_the_timing_cache_is_of_one_gpu_driver_and_version(tmp_path: Path) -> None:
    cache = builder.TimingCache("10.16.0", GPU, tmp_path)
    assert cache.read() == b""
    cache.write(b"1234")
    cache.write(b"12")  # of a build that began earlier
    assert builder.TimingCache("10.16.0", GPU, tmp_path).read() == b"1234"
    assert builder.TimingCache("11.0.0", GPU, tmp_path).read() == b""

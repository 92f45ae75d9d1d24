"""What can be known of the TensorRT target without TensorRT."""

import ast
from pathlib import Path

import pytest

from deploy_targets import tensorrt
from deploy_targets.base import ModelSignature, get_target
from deploy_targets.cuda_memory import Gpu
from deploy_targets.tensorrt_manifest import EngineManifest, check_manifest
from deploy_targets.trtexec_results import EngineLayers
from smash_base.errors import InvalidInputError, MissingRuntimeError, UsageError, VerificationError
from smash_base.files import sha256

SIGNATURE = ModelSignature("input", "logits", (3, 8, 8), 10, (1, 8, 32))
GPU = Gpu("NVIDIA H100", "9.0", "13.0", "580.1")
# Of the module, documented in every version from 10.0 to 11.4.
EVERYWHERE = {
    "Builder", "BuilderFlag", "HardwareCompatibilityLevel", "ILogger", "IProgressMonitor", "LayerInformationFormat",  # noqa: E501
    "MemoryPoolType", "NetworkDefinitionCreationFlag", "OnnxParser", "OnnxParserFlag", "ProfilingVerbosity", "Runtime",  # noqa: E501
    "TensorIOMode", "nptype", "__version__",
}  # fmt: skip
MEMBERS = {
    "BuilderFlag": {"TF32", "VERSION_COMPATIBLE"},
    "NetworkDefinitionCreationFlag": {"STRONGLY_TYPED"},
    "OnnxParserFlag": {"NATIVE_INSTANCENORM"},
    "MemoryPoolType": {"WORKSPACE"},
    "ProfilingVerbosity": {"DETAILED"},
    "LayerInformationFormat": {"JSON"},
    "TensorIOMode": {"INPUT"},
    "ILogger": {"Severity", "__init__"},
    "IProgressMonitor": {"__init__"},
}
REMOVED = {
    "int8_calibrator", "platform_has_fast_fp16", "execute_async_v2", "set_output_type", "supports_model",
    "device_memory_size", "max_workspace_size", "num_bindings", "FP16", "INT8", "EXPLICIT_BATCH",
}  # fmt: skip


@pytest.mark.parametrize("name", ["tensorrt.py", "tensorrt_session.py"])
def test_every_name_exists_in_10_0_to_11_4(name):
    tree = ast.parse((Path(tensorrt.__file__).parent / name).read_text())
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        assert node.attr not in REMOVED, node.lineno
        if isinstance(node.value, ast.Name) and node.value.id == "trt":
            assert node.attr in EVERYWHERE, node.lineno
        inner = node.value
        if isinstance(inner, ast.Attribute) and isinstance(inner.value, ast.Name) and inner.value.id == "trt":
            assert node.attr in MEMBERS[inner.attr], node.lineno


def test_without_tensorrt_one_clear_line(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tensorrt", None)
    with pytest.raises(MissingRuntimeError, match="pip install tensorrt"):
        tensorrt.import_tensorrt()
    assert not get_target("trtexec").availability().available


@pytest.mark.parametrize(
    "options", [{"batch": [8, 1, 32]}, {"batch": 64}, {"level": 6}, {"hardware": "x"}, {"batch": "1"}]
)
def test_settings_out_of_range(options):
    with pytest.raises(UsageError):
        tensorrt.read_settings(options, SIGNATURE)


def test_a_silent_fp32_engine_is_an_error():
    layers = EngineLayers(({"Name": "c", "Outputs": [{"Datatype": "Float"}]},), True, ())
    tensorrt.check_layers(layers, "fp32")
    with pytest.raises(VerificationError, match="nothing in fp16"):
        tensorrt.check_layers(layers, "fp16")


@pytest.mark.parametrize(
    ("here", "version", "flags", "fits"),
    [
        (GPU, "10.16.0", {}, True),
        (GPU, "11.1.0", {}, False),
        (GPU, "11.1.0", {"version_compatible": True}, True),
        (GPU, "10.3.0", {"version_compatible": True}, False),
        (Gpu("NVIDIA A100", "8.0", "13.0", "580.1"), "10.16.0", {}, False),
        (Gpu("NVIDIA A100", "8.0", "13.0", "580.1"), "10.16.0", {"hardware": "ampere+"}, True),
        (Gpu("NVIDIA T4", "7.5", "13.0", "580.1"), "10.16.0", {"hardware": "ampere+"}, False),
    ],
)
def test_engines_are_refused_before_tensorrt_sees_them(tmp_path, here, version, flags, fits):
    engine = tmp_path / "model.engine"
    engine.write_bytes(b"plan")
    manifest = EngineManifest(
        GPU.name, "9.0", "13.0", "580.1", "10.16.0", sha256(engine), "0", "fp16", (1, 1, 8), flags, {}
    )
    if fits:
        check_manifest(engine, manifest, here, version)
    else:
        with pytest.raises(
            InvalidInputError, match="smash-export compile BUNDLE --target tensorrt --precision fp16"
        ):
            check_manifest(engine, manifest, here, version)


def test_the_timing_cache_is_of_one_gpu_driver_and_version(tmp_path):
    cache = tensorrt.TimingCache("10.16.0", GPU, tmp_path)
    assert cache.read() == b""
    cache.write(b"1234")
    cache.write(b"12")  # of a build that began earlier
    assert tensorrt.TimingCache("10.16.0", GPU, tmp_path).read() == b"1234"
    assert tensorrt.TimingCache("11.0.0", GPU, tmp_path).read() == b""

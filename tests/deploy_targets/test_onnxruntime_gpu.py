"""Settings of ONNX Runtime's GPU providers and the check of the TensorRT that its wheel is linked with.

Option names are those found in the provider of onnxruntime-gpu 1.31. No GPU is needed but for the last test.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from smash_base.errors import MissingRuntimeError, UsageError
from smash_targets.base import SessionOptions, get_target
from smash_targets.onnxruntime_gpu import (
    cache_folder,
    cuda_options,
    linked_tensorrt,
    linked_versions,
    provider_library,
    require_linked_tensorrt,
    tensorrt_options,
)
from smash_targets.tensorrt.operators import release_of
from tests.deploy_targets.inputs import SIGNATURE
from tests.deploy_targets.networks import Sources

TENSORRT_NAMES = set(
    """
    device_id trt_max_workspace_size trt_max_partition_iterations trt_min_subgraph_size trt_fp16_enable
    trt_bf16_enable trt_int8_enable trt_engine_cache_enable trt_engine_cache_path trt_engine_cache_prefix
    trt_timing_cache_enable trt_timing_cache_path trt_force_timing_cache trt_engine_hw_compatible
    trt_builder_optimization_level trt_auxiliary_streams trt_cuda_graph_enable trt_profile_min_shapes
    trt_profile_opt_shapes trt_profile_max_shapes trt_dump_ep_context_model trt_ep_context_file_path
    trt_ep_context_embed_mode trt_dla_enable trt_dla_core
    """.split()  # noqa: SIM905
)
CUDA_NAMES = {"device_id", "use_tf32", "enable_cuda_graph", "cudnn_conv_algo_search", "prefer_nhwc"}


def test_every_option_is_one_of_the_provider(tmp_path: Path) -> None:
    found = tensorrt_options(SIGNATURE, tmp_path, precision="int8", ep_context=tmp_path / "c.onnx")
    assert set(found) <= TENSORRT_NAMES
    assert set(cuda_options(1, tf32=True, graph=True)) <= CUDA_NAMES
    assert all(isinstance(value, str) for value in (*found.values(), *cuda_options().values()))


def test_the_profile_is_the_range_of_the_bundle_and_precision_a_flag(tmp_path: Path) -> None:
    found = tensorrt_options(SIGNATURE, tmp_path)
    assert (found["trt_profile_min_shapes"], found["trt_profile_max_shapes"]) == (
        "input:1x3x12x12",
        "input:32x3x12x12",
    )
    flags = {
        precision: (options["trt_fp16_enable"], options["trt_int8_enable"])
        for precision in ("fp32", "fp16", "int8")
        for options in [tensorrt_options(SIGNATURE, tmp_path, precision=precision)]
    }
    assert flags == {"fp32": ("0", "0"), "fp16": ("1", "0"), "int8": ("1", "1")}
    assert cuda_options()["use_tf32"] == "0"


def test_caches_are_kept_by_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "b").write_bytes(b"2")
    one = cache_folder(tmp_path / "a")
    assert one.is_dir()
    assert one == cache_folder(tmp_path / "a") != cache_folder(tmp_path / "b")


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A shared library linked with libnvinfer.so.10 and libcudart.so.13, as the provider is."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not here")
    (tmp_path / "e.c").write_text("int nothing(void) { return 0; }\n")
    build = ["gcc", "-shared", "-fPIC"]
    for name in ("libnvinfer.so.10", "libcudart.so.13"):
        subprocess.run([*build, f"-Wl,-soname,{name}", "-o", name, "e.c"], cwd=tmp_path, check=True)
    links = ["-Wl,--no-as-needed", "-L.", "-l:libnvinfer.so.10", "-l:libcudart.so.13"]
    subprocess.run([*build, "-o", "provider.so", "e.c", *links], cwd=tmp_path, check=True)
    return tmp_path / "provider.so"


def test_what_a_library_is_linked_with(library: Path, tmp_path: Path) -> None:
    assert linked_versions(library) == (10, 13)
    (tmp_path / "other.so").write_bytes(b"nothing of that")
    assert linked_versions(tmp_path / "other.so") is None


def test_another_major_version_is_refused_with_the_command(library: Path) -> None:
    with pytest.raises(MissingRuntimeError) as caught:
        require_linked_tensorrt(library, "11.4.0.106")
    text = str(caught.value)
    assert "expected TensorRT 10; received TensorRT 11.4.0.106" in text
    assert 'pip install "tensorrt-cu13>=10,<11"' in text
    assert caught.value.exit_code == 3


def test_libraries_that_do_not_load_are_told(library: Path) -> None:
    with pytest.raises(MissingRuntimeError, match=r"libnvinfer\.so\.10, which does not load"):
        require_linked_tensorrt(library, "10.16.1")


def test_without_the_provider_there_is_nothing_to_check(sources: Sources) -> None:
    if provider_library() is not None:
        pytest.skip("onnxruntime-gpu is installed")
    assert linked_tensorrt() is None
    require_linked_tensorrt()
    with pytest.raises(MissingRuntimeError, match="tensorrt-cu13"):
        get_target("onnxruntime").open(sources.onnx, SIGNATURE, SessionOptions(provider="tensorrt"))


def test_an_ep_context_needs_the_provider(sources: Sources, tmp_path: Path) -> None:
    if provider_library() is not None:
        pytest.skip("onnxruntime-gpu is installed")
    target = get_target("onnxruntime")
    with pytest.raises(MissingRuntimeError, match="TensorrtExecutionProvider") as caught:
        target.compile(sources.request(ep_context=True), tmp_path)
    assert "allow_fallback" not in str(caught.value)  # a compiled engine has no fallback
    assert not list(tmp_path.iterdir())
    with pytest.raises(UsageError, match="true or false"):
        target.compile(sources.request(ep_context="yes"), tmp_path)
    assert target.compile(sources.request(ep_context=False), tmp_path).main == "model.onnx"


def test_a_file_that_holds_an_engine_asks_for_the_provider_by_itself(tmp_path: Path) -> None:
    from onnx import TensorProto, helper

    if provider_library() is not None:
        pytest.skip("onnxruntime-gpu is installed")
    node = helper.make_node("EPContext", ["input"], ["logits"], domain="com.microsoft", embed_mode=1)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("input", "logits")]
    model = helper.make_model(helper.make_graph([node], "context", ends[:1], ends[1:]))
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(MissingRuntimeError, match="TensorrtExecutionProvider"):
        get_target("onnxruntime").open(tmp_path / "model.onnx", SIGNATURE, SessionOptions())


@pytest.mark.gpu
@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_gpu_providers_equal_eager_pytorch(provider: str, sources: Sources) -> None:
    import numpy as np
    import onnxruntime

    from tests.deploy_targets.inputs import IMAGES

    if provider_library() is None or "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("onnxruntime-gpu is not here")
    options = SessionOptions(provider=provider)
    with get_target("onnxruntime").open(sources.onnx, SIGNATURE, options) as session:
        np.testing.assert_allclose(session.run(IMAGES[:32]), sources.logits[:32], rtol=0, atol=1e-4)


@pytest.mark.wheel
@pytest.mark.parametrize("extra", ["gpu", "tensorrt"])
def test_an_extra_resolves_to_versions_that_fit_each_other(extra: str, tmp_path: Path) -> None:
    """By pip's dry run, which reads metadata only: the wheels have hundreds of megabytes."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    wanted = project["project"]["optional-dependencies"][extra]
    words = [
        "--dry-run",
        "--ignore-installed",
        "--no-deps",
        "--quiet",
        "--report",
        str(tmp_path / "report.json"),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", *words, *wanted], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = {
        item["metadata"]["name"].replace("_", "-"): item["metadata"]
        for item in json.loads((tmp_path / "report.json").read_text())["install"]
    }
    if extra == "tensorrt":
        assert set(found) == {"tensorrt", "cuda-python"}
        assert release_of(found["tensorrt"]["version"].partition(".")[0])[0] in (10, 11)
        return
    cuda = next(line for line in found["onnxruntime-gpu"]["requires_dist"] if "nvidia-cuda-runtime" in line)
    assert cuda.startswith("nvidia-cuda-runtime~=13.")
    library = tmp_path / "provider.so"
    library.write_bytes(b"libnvinfer.so.10 libcudart.so.13")  # what onnxruntime-gpu 1.31 is linked with
    try:
        require_linked_tensorrt(library, found["tensorrt-cu13"]["version"])
    except MissingRuntimeError as error:
        assert "does not load" in str(error)  # noqa: PT017  the right one, which is not installed

"""Settings of ONNX Runtime's CUDA and TensorRT providers, and which TensorRT its wheel is linked with.

Option names as they stand in the provider of onnxruntime-gpu 1.31. Not run on hardware.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from deploy_targets.base import ModelSignature

_LINKED = re.compile(rb"libnvinfer\.so\.(\d+)")


def cuda_options(device: int = 0, *, tf32: bool = False, graph: bool = False) -> dict[str, str]:
    """For CUDAExecutionProvider. ``graph`` needs IO binding with fixed shapes and addresses."""
    return {
        "device_id": str(device),
        "use_tf32": "1" if tf32 else "0",  # its default computes fp32 graphs in tf32
        "enable_cuda_graph": "1" if graph else "0",
    }


def tensorrt_options(
    signature: ModelSignature,
    cache: Path,
    *,
    device: int = 0,
    precision: str = "fp32",
    workspace_mib: int = 1024,
    ep_context: Path | None = None,
) -> dict[str, str]:
    """For TensorrtExecutionProvider: engine and timing cache, one profile, optionally an EP context file.

    The provider links TensorRT 10 and still goes by flags, also for graphs that carry fp16 or Q/DQ.
    """
    shapes = [
        f"{signature.input_name}:{'x'.join(map(str, (n, *signature.input_shape)))}" for n in signature.batch
    ]
    options = {
        "device_id": str(device),
        "trt_max_workspace_size": str(workspace_mib * 2**20),
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(cache),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(cache),
        "trt_profile_min_shapes": shapes[0],
        "trt_profile_opt_shapes": shapes[1],
        "trt_profile_max_shapes": shapes[2],
        "trt_fp16_enable": "1" if precision in ("fp16", "int8") else "0",
        "trt_int8_enable": "1" if precision == "int8" else "0",
    }
    if ep_context is not None:
        options |= {"trt_dump_ep_context_model": "1", "trt_ep_context_file_path": str(ep_context)}
    return options


def linked_tensorrt() -> int | None:
    """Major version of TensorRT that the installed provider library is linked with; None without one."""
    spec = importlib.util.find_spec("onnxruntime")
    if spec is None or spec.origin is None:
        return None
    library = Path(spec.origin).parent / "capi" / "libonnxruntime_providers_tensorrt.so"
    if not library.is_file():
        return None
    found = _LINKED.search(library.read_bytes())
    return int(found[1]) if found else None

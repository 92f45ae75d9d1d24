"""Settings of ONNX Runtime's CUDA and TensorRT providers, and which TensorRT its wheel is linked with.

Option names as they stand in the provider of onnxruntime-gpu 1.31. Not run on hardware.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import importlib.util
import re
from collections.abc import Iterable
from pathlib import Path

from smash_base import files
from smash_base.errors import MissingRuntimeError
from smash_targets.base import ModelSignature

_TENSORRT = re.compile(rb"libnvinfer\.so\.(\d+)")
_CUDA = re.compile(rb"libcudart\.so\.(\d+)")
_PACKAGES = ("tensorrt", "tensorrt-cu13", "tensorrt-cu12")


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
        options |= {
            "trt_dump_ep_context_model": "1",
            "trt_ep_context_file_path": str(ep_context),
            "trt_ep_context_embed_mode": "1",  # the engine inside the file: one file is the whole result
        }
    return options


def cache_folder(model: Path) -> Path:
    """Where the provider keeps engines and timings of one ONNX file, in the user's cache folder; made if
    missing. The provider itself tells GPUs and TensorRT versions apart in the names of its files."""
    folder = files.user_cache("onnxruntime-tensorrt") / files.sha256(model)[:16]
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def provider_library() -> Path | None:
    """The TensorRT provider of the installed ONNX Runtime; None when it brings none."""
    spec = importlib.util.find_spec("onnxruntime")
    if spec is None or spec.origin is None:
        return None
    library = Path(spec.origin).parent / "capi" / "libonnxruntime_providers_tensorrt.so"
    return library if library.is_file() else None


def linked_versions(library: Path) -> tuple[int, int | None] | None:
    """Major versions of TensorRT and CUDA that a provider library is linked with; None if it names none."""
    data = library.read_bytes()
    tensorrt, cuda = _TENSORRT.search(data), _CUDA.search(data)
    return (int(tensorrt[1]), int(cuda[1]) if cuda else None) if tensorrt else None


def linked_tensorrt() -> int | None:
    """Major version of TensorRT that the installed provider library is linked with; None without one."""
    library = provider_library()
    linked = None if library is None else linked_versions(library)
    return linked[0] if linked else None


def installed_tensorrt(packages: Iterable[str] = _PACKAGES) -> str | None:
    """Version of the TensorRT that pip installed; None without one (a system may have it elsewhere)."""
    for name in packages:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def require_linked_tensorrt(library: Path | None = None, installed: str | None = None) -> None:
    """Make the TensorRT that the provider is linked with loadable; ONNX Runtime would fall back to the CPU
    with no more than a logged line.

    Args:
        library: provider library, that of the installed ONNX Runtime if None.
        installed: version that pip installed, asked for if None.

    Raises:
        MissingRuntimeError: another major version is installed, or its library does not load.
    """
    library = library or provider_library()
    linked = None if library is None else linked_versions(library)
    if linked is None:
        return  # ONNX Runtime itself says that it has no such provider
    major, cuda = linked
    installed = installed or installed_tensorrt()
    package = "tensorrt" if cuda is None else f"tensorrt-cu{cuda}"
    command = f'pip install "{package}>={major},<{major + 1}"'
    if installed is not None and installed.partition(".")[0] != str(major):
        raise MissingRuntimeError(
            "ONNX Runtime's TensorRT provider is linked with another TensorRT than the installed one",
            expected=f"TensorRT {major}",
            received=f"TensorRT {installed}",
            hint=f"Install it: {command} (in an environment of its own to keep TensorRT {installed})",
        )
    name = f"libnvinfer.so.{major}"
    try:
        if installed is not None and importlib.util.find_spec("tensorrt") is not None:
            importlib.import_module(
                "tensorrt"
            )  # loads the libraries of its wheel, which no loader path names
        ctypes.CDLL(name)
    except (ImportError, OSError) as error:
        raise MissingRuntimeError(
            f"ONNX Runtime's TensorRT provider needs {name}, which does not load",
            received=error,
            hint=f"Install it: {command}",
        ) from None

"""TensorRT for RTX: the builder for GeForce and workstation cards of the RTX kind.

Its wheels need no driver to build, so that the project's tests build with it: built by NVIDIA's builder, not
run on hardware. The bindings' wheel does not bring the libraries; the plugin wheel of ONNX Runtime does,
under names with a version, so that they are loaded from there. Kernels are made on the user's card when an
engine is opened, and no timings are kept: of the options only the batch and the scratch memory remain.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

from smash_base.errors import MissingRuntimeError
from smash_targets.base import Availability, CompileRequest
from smash_targets.common import find_runtime, has_module
from smash_targets.tensorrt.builder import build
from smash_targets.tensorrt.cuda import Gpu
from smash_targets.tensorrt.settings import read_settings
from smash_targets.tensorrt.target import TensorRtTarget

INSTALL = "pip install onnxruntime-ep-nv-tensorrt-rtx-cu12 tensorrt-rtx-cu12-bindings cuda-python"
BINDINGS = "tensorrt_rtx_bindings"
LIBRARIES = "onnxruntime_ep_nv_tensorrt_rtx"
_NAMES = ("libtensorrt_rtx.so", "libtensorrt_onnxparser_rtx.so")  # the second needs the first


class TensorRtRtxTarget(TensorRtTarget):
    """See the head of this module."""

    name = "tensorrt_rtx"
    extra = "tensorrt-rtx"
    modules = {
        BINDINGS: ("tensorrt-rtx-cu12-bindings", "tensorrt-rtx-cu13-bindings"),
        LIBRARIES: ("onnxruntime-ep-nv-tensorrt-rtx-cu12",),
    }
    triton = None
    environment = "tensorrt-rtx"
    options = ("batch", "workspace_mib")
    keeps_timings = False  # its timing cache does nothing since 1.2

    def installed(self) -> Availability:
        state = find_runtime(self, INSTALL)
        if state.available and not (has_module(LIBRARIES) or has_module("tensorrt_rtx_libs")):
            return Availability(
                False, state.version, "the libraries of TensorRT for RTX are missing", INSTALL
            )
        return state

    def module(self) -> Any:
        return import_tensorrt_rtx()


def build_without_gpu(request: CompileRequest) -> int | None:
    """Bytes of the engine that NVIDIA's builder makes of an ONNX file; None where it is not installed.

    Raises:
        InvalidInputError: the parser or the builder refuses it.
    """
    if not TensorRtRtxTarget().installed().available:
        return None
    settings = replace(read_settings({}, request.signature, request.precision), timing_cache=False)
    plan, _ = build(import_tensorrt_rtx(), request, settings, Gpu("", "", "", ""))
    return len(plan)


def import_tensorrt_rtx() -> Any:
    """The bindings, over the libraries of whichever wheel has them.

    Raises:
        MissingRuntimeError: not installed, or a library does not load.
    """
    try:
        for library in _libraries():
            ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        return importlib.import_module(BINDINGS)
    except (ImportError, OSError) as error:
        raise MissingRuntimeError(
            "TensorRT for RTX is not installed, or its libraries do not load",
            received=error,
            hint=f"Install it: {INSTALL}",
        ) from None


def _libraries() -> list[Path]:
    """The library files in the plugin's wheel; [] where the bindings find theirs by themselves."""
    spec = importlib.util.find_spec(LIBRARIES)
    if spec is None or spec.origin is None:
        return []
    folder = Path(spec.origin).parent
    return [path for name in _NAMES for path in sorted(folder.glob(f"{name}*"))[:1]]

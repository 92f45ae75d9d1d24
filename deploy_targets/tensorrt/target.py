"""TensorRT: an engine built through Python from an ONNX file, for 10.x and 11.x by the same code.

Precision lives in the ONNX file (fp16 casts, symmetric Q/DQ): networks are strongly typed, and no
precision flag is set, none exists in 11. :mod:`smash_targets.tensorrt.builder` builds.
The engine stays pure; :mod:`smash_targets.tensorrt.manifest` describes what stands beside
it, :mod:`smash_targets.tensorrt.session` runs it.

Not run on hardware: written to the documented interface of 10.0 to 11.4, which the tests compare every name
with, and built with NVIDIA's builder for RTX, which needs no GPU. ``python -m benchmarks.tensorrt`` on a
machine with a GPU and TensorRT proves it all.
"""

from __future__ import annotations

import logging
import platform
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from smash_base.errors import MissingRuntimeError, SmashError
from smash_base.files import sha256, write_bytes
from smash_targets.base import (
    Availability,
    CompileRequest,
    CompileResult,
    ModelSignature,
    Precision,
    Session,
    SessionOptions,
    Target,
    TritonBackend,
)
from smash_targets.common import check_file, find_runtime, gpu_number
from smash_targets.tensorrt.builder import build, check_layers, inspect
from smash_targets.tensorrt.cuda import Gpu, open_cuda
from smash_targets.tensorrt.manifest import EngineManifest, check_manifest, read_manifest, write_manifest
from smash_targets.tensorrt.settings import OPTIONS, BuildSettings, read_settings

INSTALL = "pip install tensorrt cuda-python"
NOT_RUN = "not run on hardware by its authors"
DISTRIBUTIONS = ("tensorrt", "tensorrt-cu13", "tensorrt-cu12")
ENGINE = "model.engine"
SOURCE = "model.onnx"


class TensorRtTarget(Target):
    """See the head of this module."""

    name = "tensorrt"
    extra = "tensorrt"
    modules: Mapping[str, tuple[str, ...]] = {"tensorrt": DISTRIBUTIONS, "cuda": ("cuda-python",)}
    int8_placement = "tensorrt"
    triton: TritonBackend | None = TritonBackend("plan", "tensorrt", "model.plan", gpu_only=True)
    precisions = ("fp32", "tf32", "fp16", "int8")
    batch_note = "takes the batch sizes of its profile"
    options: tuple[str, ...] = OPTIONS
    keeps_timings = True

    def availability(self) -> Availability:
        state = self.installed()
        if not state.available:
            return state
        try:
            open_cuda().close()
        except SmashError as error:
            return Availability(False, state.version, str(error), error.hint or "")
        return state

    def installed(self) -> Availability:
        """Whether the builder is there, whatever the driver says."""
        return find_runtime(self, INSTALL)

    def module(self) -> Any:
        """TensorRT's Python module.

        Raises:
            MissingRuntimeError: not installed, or its libraries do not load.
        """
        return import_tensorrt()

    def check_options(
        self, options: Mapping[str, Any], signature: ModelSignature, precision: Precision
    ) -> None:
        super().check_options(options, signature, precision)
        read_settings(options, signature, precision)

    def compile(self, request: CompileRequest, destination: Path) -> CompileResult:
        """Options: ``batch`` (N or [smallest, usual, largest]), ``workspace_mib``, ``level``,
        ``timing_cache``, ``version_compatible``, ``hardware`` ("none", "ampere+", "same"), ``dla`` (a core),
        ``gpu_fallback``."""
        self.check_request(request)
        settings = read_settings(request.options, request.signature, request.precision)
        check_file(request.onnx, "ONNX file")
        self.require()
        trt = self.module()
        cuda = open_cuda()
        try:
            settings = replace(settings, timing_cache=settings.timing_cache and self.keeps_timings)
            plan, notes = build(trt, request, settings, cuda.gpu, self.on_progress)
            layers = inspect(trt, plan, settings, request.signature)
            check_layers(layers, request.precision)
            counts = dict(layers.precisions())
            self._write(destination, plan, request, settings, cuda.gpu, trt.__version__, counts)
        finally:
            cuda.close()
        return CompileResult(ENGINE, {**notes, "layers": counts, "status": NOT_RUN})

    def _write(
        self,
        destination: Path,
        plan: bytes,
        request: CompileRequest,
        settings: BuildSettings,
        gpu: Gpu,
        version: str,
        layers: dict[str, int],
    ) -> None:
        """The engine, the ONNX file that it can be built from again, and the manifest."""
        path = destination / ENGINE
        write_bytes(path, plan)
        shutil.copyfile(request.onnx, destination / SOURCE)
        write_manifest(
            path,
            EngineManifest(
                gpu=gpu.name,
                compute_capability=gpu.compute_capability,
                cuda=gpu.cuda,
                driver=gpu.driver,
                tensorrt=version,
                platform=this_platform(),
                engine_sha256=sha256(path),
                onnx_sha256=sha256(request.onnx),
                source_sha256=request.source_sha256,
                precision=request.precision,
                batch=settings.batch,
                flags=settings.flags(request.precision),
                layers=layers,
                target=self.name,
            ),
        )

    def open(self, path: Path, signature: ModelSignature, options: SessionOptions) -> Session:
        """``options.device`` is "cuda:NUMBER". The manifest is checked before TensorRT sees the engine."""
        check_file(path, "engine")
        manifest = read_manifest(path)
        self.require()
        trt = self.module()
        from smash_targets.tensorrt.session import TensorRtSession

        number = gpu_number(options.device, "TensorRT")
        cuda = open_cuda(number)
        try:
            for warning in check_manifest(path, manifest, cuda.gpu, trt.__version__, this_platform()):
                logging.getLogger(__name__).warning("%s", warning)
            return TensorRtSession(trt, cuda, path, manifest, signature, number)
        except BaseException:
            cuda.close()
            raise


def import_tensorrt() -> Any:
    """The module.

    Raises:
        MissingRuntimeError: not installed, or its libraries do not load.
    """
    try:
        import tensorrt
    except (ImportError, OSError) as error:
        raise MissingRuntimeError(
            "TensorRT is not installed, or its libraries do not load",
            received=error,
            hint=f"Install it: {INSTALL}",
        ) from None
    return tensorrt


def this_platform() -> str:
    """System and processor, for example "Linux x86_64": an engine runs on no other."""
    return f"{platform.system()} {platform.machine()}"

"""TensorRT: an engine built through Python from an ONNX file, for 10.x and 11.x by the same code.

Precision lives in the ONNX file (fp16 casts, symmetric Q/DQ): networks are strongly typed, and no
precision flag is set, none exists in 11.
The engine stays pure; :mod:`smash_targets.tensorrt.manifest` describes what stands beside
it, :mod:`smash_targets.tensorrt.session` runs it.

Not run on hardware: written to the documented interface of 10.0 to 11.4, which the tests compare every name
with. ``python -m benchmarks.tensorrt`` on a machine with a GPU and TensorRT proves it all.
"""

from __future__ import annotations

import fcntl
import logging
import os
import platform
import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smash_base.errors import (
    InvalidInputError,
    MissingRuntimeError,
    SmashError,
    UsageError,
    VerificationError,
)
from smash_base.files import sha256, write_bytes
from smash_targets.base import (
    Availability,
    CompileRequest,
    CompileResult,
    ModelSignature,
    Progress,
    Session,
    SessionOptions,
    Target,
)
from smash_targets.common import check_file, find_module
from smash_targets.tensorrt.cuda import Gpu, open_cuda
from smash_targets.tensorrt.logger import make_logger
from smash_targets.tensorrt.manifest import EngineManifest, check_manifest, read_manifest, write_manifest
from smash_targets.tensorrt.trtexec_results import EngineLayers, read_layer_info

INSTALL = "pip install tensorrt cuda-python"
NOT_RUN = "not run on hardware by its authors"
DISTRIBUTIONS = ("tensorrt", "tensorrt-cu13", "tensorrt-cu12")
ENGINE = "model.engine"
SOURCE = "model.onnx"
HARDWARE = {"none": "NONE", "ampere+": "AMPERE_PLUS", "same": "SAME_COMPUTE_CAPABILITY"}
DLA_VERSIONS = "10.0 to 10.7 (JetPack 6), and 11.4.1 and newer on AGX Orin with JetPack 7.2.2"
PRICES = {
    "version_compatible": "version-compatible: larger by the lean runtime inside it, and may be slower",
    "ampere+": "for Ampere and newer: kernels of one generation are left out, so it may be slower",
    "same": "for every GPU of this compute capability: tuned on this one",
}


@dataclass(frozen=True)
class BuildSettings:
    """Options of the target.

    Attributes:
        batch: smallest, usual and largest.
        workspace_mib: limit of scratch memory.
        level: builder optimisation level; 0 ignores the timing cache.
        timing_cache: keep timings for the next build.
        version_compatible, hardware: see ``PRICES``.
        dla: DLA core that computes, None for the GPU.
        gpu_fallback: whether layers that the DLA does not take may run on the GPU; if not, they are an error.
    """

    batch: tuple[int, int, int]
    workspace_mib: int = 1024
    level: int = 3
    timing_cache: bool = True
    version_compatible: bool = False
    hardware: str = "none"
    dla: int | None = None
    gpu_fallback: bool = False


OPTIONS = (
    "batch",
    "workspace_mib",
    "level",
    "timing_cache",
    "version_compatible",
    "hardware",
    "dla",
    "gpu_fallback",
)


def read_settings(
    options: Mapping[str, Any], signature: ModelSignature, precision: str = "fp32"
) -> BuildSettings:
    """Options by name, checked.

    Raises:
        UsageError: a value out of range.
    """
    batch = options.get("batch", signature.batch if options.get("dla") is None else signature.batch[1])
    sizes = [batch] * 3 if isinstance(batch, int) else list(batch) if isinstance(batch, list | tuple) else []
    if (
        len(sizes) != 3
        or not all(type(size) is int for size in sizes)
        or not 1 <= sizes[0] <= sizes[1] <= sizes[2]
    ):
        raise UsageError("option batch", expected="N or [smallest, usual, largest] in order", received=batch)
    least, _, most = signature.batch
    if not least <= sizes[0] <= sizes[2] <= most:
        raise UsageError("option batch", expected=f"within the bundle's {least} to {most}", received=batch)
    values = {name: options[name] for name in OPTIONS[1:] if name in options}
    checks: dict[str, tuple[str, Callable[[Any], bool]]] = {
        "workspace_mib": ("1 to 1048576", lambda value: type(value) is int and 1 <= value <= 2**20),
        "level": ("0 to 5", lambda value: type(value) is int and 0 <= value <= 5),
        "timing_cache": ("true or false", lambda value: isinstance(value, bool)),
        "version_compatible": ("true or false", lambda value: isinstance(value, bool)),
        "hardware": (" or ".join(HARDWARE), lambda value: isinstance(value, str) and value in HARDWARE),
        "dla": ("0 to 15", lambda value: type(value) is int and 0 <= value <= 15),
        "gpu_fallback": ("true or false", lambda value: isinstance(value, bool)),
    }
    for name, value in values.items():
        expected, check = checks[name]
        if not check(value):
            raise UsageError(f"option {name}", expected=expected, received=value)
    settings = BuildSettings((sizes[0], sizes[1], sizes[2]), **values)
    if settings.dla is not None:
        if sizes[0] != sizes[2]:
            raise UsageError("a DLA takes fixed shapes only", expected="option batch=N", received=batch)
        if precision not in ("fp16", "int8"):
            raise UsageError("a DLA computes in fp16 and int8", expected="fp16 or int8", received=precision)
    elif settings.gpu_fallback:
        raise UsageError("option gpu_fallback is for a DLA", expected="option dla=CORE beside it")
    return settings


class TensorRtTarget(Target):
    """See the head of this module."""

    name = "tensorrt"
    extra = "gpu"
    precisions = ("fp32", "tf32", "fp16", "int8")
    batch_note = "takes the batch sizes of its profile"

    def availability(self) -> Availability:
        state = find_module("tensorrt", DISTRIBUTIONS, INSTALL)
        if not state.available:
            return state
        try:
            open_cuda().close()
        except SmashError as error:
            return Availability(False, state.version, str(error), error.hint or "")
        return state

    def compile(self, request: CompileRequest, destination: Path) -> CompileResult:
        """Options: ``batch`` (N or [smallest, usual, largest]), ``workspace_mib``, ``level``,
        ``timing_cache``, ``version_compatible``, ``hardware`` ("none", "ampere+", "same"), ``dla`` (a core),
        ``gpu_fallback``."""
        self.check_request(request, OPTIONS)
        settings = read_settings(request.options, request.signature, request.precision)
        check_file(request.onnx, "ONNX file")
        self.require()
        trt = import_tensorrt()
        cuda = open_cuda()
        try:
            plan, notes = build(trt, request, settings, cuda.gpu, self.on_progress)
            layers = _inspect(trt, plan, settings)
            counts = layers.precisions()
            check_layers(layers, request.precision)
            path = destination / ENGINE
            write_bytes(path, plan)
            shutil.copyfile(request.onnx, destination / SOURCE)  # what the engine can be built from again
            write_manifest(
                path,
                EngineManifest(
                    gpu=cuda.gpu.name,
                    compute_capability=cuda.gpu.compute_capability,
                    cuda=cuda.gpu.cuda,
                    driver=cuda.gpu.driver,
                    tensorrt=trt.__version__,
                    platform=this_platform(),
                    engine_sha256=sha256(path),
                    onnx_sha256=sha256(request.onnx),
                    source_sha256=request.source_sha256,
                    precision=request.precision,
                    batch=settings.batch,
                    flags={
                        "tf32": request.precision == "tf32",
                        "level": settings.level,
                        "workspace_mib": settings.workspace_mib,
                        "version_compatible": settings.version_compatible,
                        "hardware": settings.hardware,
                        "dla": settings.dla,
                        "gpu_fallback": settings.gpu_fallback,
                    },
                    layers=dict(counts),
                ),
            )
        finally:
            cuda.close()
        return CompileResult(ENGINE, {**notes, "layers": dict(counts), "status": NOT_RUN})

    def open(self, path: Path, signature: ModelSignature, options: SessionOptions) -> Session:
        """``options.device`` is "cuda:NUMBER". The manifest is checked before TensorRT sees the engine."""
        check_file(path, "engine")
        manifest = read_manifest(path)
        self.require()
        trt = import_tensorrt()
        from smash_targets.tensorrt.session import TensorRtSession

        number = (options.device or "cuda:0").partition(":")[2] or "0"
        if not number.isdecimal():
            raise UsageError("no such device", expected="cuda or cuda:NUMBER", received=options.device)
        cuda = open_cuda(int(number))
        try:
            for warning in check_manifest(path, manifest, cuda.gpu, trt.__version__, this_platform()):
                logging.getLogger(__name__).warning("%s", warning)
            return TensorRtSession(trt, cuda, path, manifest, signature, int(number))
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


def build(
    trt: Any, request: CompileRequest, settings: BuildSettings, gpu: Gpu, on_progress: Progress | None = None
) -> tuple[bytes, dict[str, Any]]:
    """The serialised engine and notes about how it was made.

    Args:
        on_progress: called with the outermost phase of the build, its steps done and all its steps.

    Raises:
        MissingRuntimeError: no working driver.
        InvalidInputError: the parser or the builder refuses the network.
    """
    errors: list[str] = []
    warnings: list[str] = []
    logger = make_logger(trt, errors, warnings)
    try:
        builder = trt.Builder(logger)
    except TypeError as error:  # what the bindings raise when the library returns no object
        raise MissingRuntimeError(
            "TensorRT finds no working driver",
            received=errors[-1] if errors else error,
            hint="Check it: nvidia-smi",
        ) from None
    # The value of STRONGLY_TYPED is 1 in 10.x and 0 in 11.x: by name, never as a number.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if settings.version_compatible or settings.hardware != "none":
        parser.set_flag(trt.OnnxParserFlag.NATIVE_INSTANCENORM)  # else a plugin, which is not portable
    if not parser.parse_from_file(str(request.onnx)):
        raise _refused(parser, errors)
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_mib * 2**20)
    config.builder_optimization_level = settings.level
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # the inspector must tell types
    if request.precision == "tf32":
        config.set_flag(trt.BuilderFlag.TF32)
    else:
        config.clear_flag(trt.BuilderFlag.TF32)  # on by default
    if settings.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    config.hardware_compatibility_level = _hardware(trt, settings.hardware)
    if settings.dla is not None:
        _use_dla(trt, builder, config, settings.dla, settings.gpu_fallback)
    profile = _add_profile(builder, network, config, request.signature, settings.batch)
    monitor = None if on_progress is None else _monitor(trt, on_progress)  # must live as long as the build
    if monitor is not None:
        config.progress_monitor = monitor
    cache = TimingCache(trt.__version__, gpu) if settings.timing_cache and settings.level else None
    if cache is not None and not config.set_timing_cache(
        config.create_timing_cache(cache.read()), ignore_mismatch=False
    ):
        # Of another device in spite of its name: start again from an empty one.
        empty = config.create_timing_cache(b"")
        if not config.set_timing_cache(empty, ignore_mismatch=False):
            raise SmashError(
                "TensorRT refuses an empty timing cache", hint="Pass --option timing_cache=false."
            )
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise InvalidInputError(
            "TensorRT could not build the network",
            received="; ".join(errors[-3:]) or "no reason given",
            hint=_node_hint(" ".join(errors)),
        )
    timings = config.get_timing_cache()
    if cache is not None and timings is not None:
        cache.write(bytes(timings.serialize()))
    notes: dict[str, Any] = {"tf32": request.precision == "tf32", "profile": profile}
    if settings.version_compatible:
        notes["price"] = PRICES["version_compatible"]
    if settings.hardware != "none":
        notes["hardware"] = PRICES[settings.hardware]
    if settings.dla is not None:
        rest = "the GPU takes what it refuses" if settings.gpu_fallback else "the whole network"
        notes["dla"] = f"core {settings.dla}, {rest}"
    if warnings:
        notes["warnings"] = warnings
    return bytes(plan), notes


def _hardware(trt: Any, level: str) -> Any:
    name = HARDWARE[level]
    if not hasattr(trt.HardwareCompatibilityLevel, name):  # SAME_COMPUTE_CAPABILITY came with 10.9
        raise UsageError(
            f"TensorRT {trt.__version__} has no hardware level {level!r}",
            expected="none or ampere+",
            received=level,
        )
    return getattr(trt.HardwareCompatibilityLevel, name)


def _use_dla(trt: Any, builder: Any, config: Any, core: int, gpu_fallback: bool) -> None:
    if core >= builder.num_DLA_cores:
        raise UsageError(
            f"TensorRT {trt.__version__} finds no DLA core {core} here",
            expected=f"one of {builder.num_DLA_cores} cores; TensorRT has DLA in {DLA_VERSIONS}",
            received=core,
        )
    config.default_device_type = trt.DeviceType.DLA
    config.DLA_core = core
    if gpu_fallback:
        config.set_flag(trt.BuilderFlag.GPU_FALLBACK)


def _add_profile(
    builder: Any, network: Any, config: Any, signature: ModelSignature, batch: tuple[int, int, int]
) -> str:
    """Give a dynamic network its profile; a static one must have the batch that is asked for."""
    inputs = {network.get_input(index).name: network.get_input(index) for index in range(network.num_inputs)}
    if set(inputs) != {signature.input_name}:
        raise InvalidInputError(
            "inputs of the network", expected=signature.input_name, received=", ".join(inputs)
        )
    shape = tuple(inputs[signature.input_name].shape)
    if shape[1:] != signature.input_shape:
        raise InvalidInputError("shape of the input", expected=signature.input_shape, received=shape[1:])
    if shape[0] != -1:
        if set(batch) != {shape[0]}:
            raise UsageError("the network has a fixed batch", expected=shape[0], received=batch)
        return f"fixed shape {shape}"
    profile = builder.create_optimization_profile()
    profile.set_shape(signature.input_name, *((size, *signature.input_shape) for size in batch))
    if config.add_optimization_profile(profile) < 0:
        raise InvalidInputError("TensorRT refuses the optimisation profile", received=f"batch {batch}")
    return f"batch {batch[0]} to {batch[2]}, tuned for {batch[1]}"


def _refused(parser: Any, errors: list[str]) -> InvalidInputError:
    """Every parser error by node and by operation of the architecture."""
    lines = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        name = str(error.node_name()) or f"node {error.node()}"
        lines.append(f"{error.node_operator()} {describe_node(name)}: {error.desc()}".strip())
    return InvalidInputError(
        "TensorRT's parser refuses the network",
        received="; ".join(lines or errors[-3:]) or "no reason given",
        hint="See every node's verdict: smash-export check BUNDLE --target tensorrt",
    )


_NODE = re.compile(r"blocks\.(\d+)\.(?:ops\.(\d+)\.(?:(reduce)|convs\.(\d+))?|(transition))?")


def describe_node(name: str) -> str:
    """A node name with its place in the architecture: block, operation and convolution.

    >>> describe_node("blocks.1.ops.2.convs.0")
    'blocks.1.ops.2.convs.0 (block 1, operation 2, convolution 0)'
    """
    match = _NODE.search(name)
    if not match:
        return name
    block, operation, reduce, conv, transition = match.groups()
    words = [f"block {block}"]
    if operation is not None:
        words.append(f"operation {operation}")
    if reduce:
        words.append("1x1 reduction")
    if conv is not None:
        words.append(f"convolution {conv}")
    if transition:
        words.append("transition")
    return f"{name} ({', '.join(words)})"


def _node_hint(text: str) -> str | None:
    match = _NODE.search(text)
    return f"The layer is {describe_node(match[0])}." if match else None


def check_layers(layers: EngineLayers, precision: str) -> None:
    """An engine that was asked for in half or int8 must hold such layers: a silent fp32 engine is an error.

    Raises:
        VerificationError: it holds none, or the inspector does not tell.
    """
    if precision not in ("fp16", "int8"):
        return
    counts: Counter[str] = layers.precisions()
    if not layers.detailed:
        raise VerificationError(
            "the engine inspector does not tell types", expected="detailed profiling verbosity"
        )
    if not counts[precision]:
        raise VerificationError(
            f"the engine computes nothing in {precision}",
            expected=f"layers that write {precision}",
            received=", ".join(f"{count} layers {name}" for name, count in counts.items()) or "no types",
            hint="Look at the ONNX file: smash-export check BUNDLE --target tensorrt",
        )


def _inspect(trt: Any, plan: bytes, settings: BuildSettings) -> EngineLayers:
    errors: list[str] = []
    runtime = trt.Runtime(make_logger(trt, errors, []))
    if settings.version_compatible:
        runtime.engine_host_code_allowed = True
    if settings.dla is not None:
        runtime.DLA_core = settings.dla
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise InvalidInputError("TensorRT does not load the engine that it built", received="; ".join(errors))
    inspector = engine.create_engine_inspector()
    return read_layer_info(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def _monitor(trt: Any, on_progress: Progress) -> Any:
    """Tells the caller how far the outermost phase is; the phases inside it overlap and are left out."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.outer: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if not parent_phase:
                self.outer[phase_name] = num_steps
                on_progress(phase_name, 0, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            total = self.outer.get(phase_name)
            if total:
                on_progress(phase_name, step + 1, total)
            return True  # False would cancel the build

        def phase_finish(self, phase_name: str) -> None:
            self.outer.pop(phase_name, None)

    return Monitor()


class TimingCache:
    """Kernel timings of one GPU, driver and TensorRT version, in the user's cache folder.

    Args:
        folder: ``$XDG_CACHE_HOME/smash-export/tensorrt`` if None.
    """

    def __init__(self, tensorrt: str, gpu: Gpu, folder: Path | None = None) -> None:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        parts = (gpu.name, gpu.compute_capability, gpu.driver, gpu.cuda, tensorrt)
        name = "_".join(re.sub(r"[^A-Za-z0-9.]+", "-", part) for part in parts)
        self.path = (folder or base / "smash-export" / "tensorrt") / f"{name}.timing"

    def read(self) -> bytes:
        """The stored timings, or nothing."""
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            return b""

    def write(self, data: bytes) -> None:
        """Replace them; of two builds at once the larger cache stays."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if len(data) >= len(self.read()):
                write_bytes(self.path, data)

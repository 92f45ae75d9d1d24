"""Builds an engine with TensorRT's builder, from an ONNX file that already holds its precision.

The same code for TensorRT 10 and 11 and for TensorRT for RTX, whose builder works without a driver: that one
is what the tests build with.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

from smash_base import files
from smash_base.errors import InvalidInputError, SmashError, UsageError, VerificationError
from smash_base.files import lock, write_bytes
from smash_base.json_values import JsonObject
from smash_targets.base import CompileRequest, ModelSignature, OnProgress
from smash_targets.tensorrt.cuda import Gpu
from smash_targets.tensorrt.jetson import is_jetson
from smash_targets.tensorrt.logs import Log, create
from smash_targets.tensorrt.nodes import describe_node, node_hint
from smash_targets.tensorrt.settings import HARDWARE, PRICES, BuildSettings
from smash_targets.tensorrt.trtexec_results import EngineLayers, read_layer_info

MAX_REFUSED = 3  # nodes that an error names
DLA_VERSIONS = "10.0 to 10.7 (JetPack 6), and 11.4.1 and newer on AGX Orin with JetPack 7.2.2"


def build(
    trt: Any,
    request: CompileRequest,
    settings: BuildSettings,
    gpu: Gpu,
    on_progress: OnProgress | None = None,
) -> tuple[bytes, JsonObject]:
    """The serialised engine and notes about how it was made.

    Args:
        on_progress: called with the outermost phase of the build, its steps done and all its steps.

    Raises:
        MissingRuntimeError: no working driver.
        InvalidInputError: the parser or the builder refuses the network.
    """
    builder, log = create(trt, trt.Builder)
    network = parse(trt, builder, request.onnx, log, portable=_portable(settings))
    config = builder.create_builder_config()
    _configure(trt, config, request.precision, settings)
    if settings.dla is not None:
        _check_dla_precision(trt.__version__, request.precision)
        _use_dla(trt, builder, config, settings.dla, settings.gpu_fallback)
    profile = _add_profile(builder, network, config, request.signature, settings.batch)
    monitor = None if on_progress is None else _monitor(trt, on_progress)  # must live as long as the build
    if monitor is not None:
        config.progress_monitor = monitor
    cache = TimingCache(trt.__version__, gpu) if settings.timing_cache and settings.level else None
    if cache is not None:
        _load_timings(config, cache)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise InvalidInputError(
            "TensorRT could not build the network",
            received=log.reason(),
            hint=node_hint(" ".join(log.errors)),
        )
    if cache is not None:
        _keep_timings(config, cache)
    return bytes(plan), _notes(request.precision, settings, profile, log)


def parse(trt: Any, builder: Any, onnx: Path, log: Log, *, portable: bool = False) -> Any:
    """The network of an ONNX file, strongly typed.

    Args:
        portable: without plugins of the parser, which other versions and GPUs would lack.

    Raises:
        InvalidInputError: the parser refuses it; every node is named that it refuses.
    """
    # The value of STRONGLY_TYPED is 1 in 10.x and 0 in 11.x: by name, never as a number.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, builder.logger)
    if portable:
        parser.set_flag(trt.OnnxParserFlag.NATIVE_INSTANCENORM)
    if not parser.parse_from_file(str(onnx)):
        raise _refused(parser, log)
    return network


def _portable(settings: BuildSettings) -> bool:
    return settings.version_compatible or settings.hardware != "none"


def _configure(trt: Any, config: Any, precision: str, settings: BuildSettings) -> None:
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_mib * 2**20)
    config.builder_optimization_level = settings.level
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # the inspector must tell types
    if precision == "tf32":
        config.set_flag(trt.BuilderFlag.TF32)
    else:
        config.clear_flag(trt.BuilderFlag.TF32)  # on by default
    if settings.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if settings.hardware != "none":
        config.hardware_compatibility_level = _hardware(trt, settings.hardware)


def _load_timings(config: Any, cache: TimingCache) -> None:
    if config.set_timing_cache(config.create_timing_cache(cache.read()), ignore_mismatch=False):
        return
    # Of another device in spite of its name: start again from an empty one.
    empty = config.create_timing_cache(b"")
    if not config.set_timing_cache(empty, ignore_mismatch=False):
        raise SmashError("TensorRT refuses an empty timing cache", hint="Pass --option timing_cache=false.")


def _keep_timings(config: Any, cache: TimingCache) -> None:
    timings = config.get_timing_cache()
    if timings is not None:
        cache.write(bytes(timings.serialize()))


def _notes(precision: str, settings: BuildSettings, profile: str, log: Log) -> JsonObject:
    notes: JsonObject = {"tf32": precision == "tf32", "profile": profile}
    if settings.version_compatible:
        notes["price"] = PRICES["version_compatible"]
    if settings.hardware != "none":
        notes["hardware"] = PRICES[settings.hardware]
    if settings.dla is not None:
        rest = "the GPU takes what it refuses" if settings.gpu_fallback else "the whole network"
        notes["dla"] = f"core {settings.dla}, {rest}"
    if log.warnings:
        notes["warnings"] = list(log.warnings)
    return notes


def _hardware(trt: Any, level: str) -> Any:
    name = HARDWARE[level]
    if level == "ampere+" and is_jetson():
        raise UsageError(
            "hardware compatibility is not there on JetPack", expected="hardware=none", received=level
        )
    if not hasattr(trt.HardwareCompatibilityLevel, name):  # SAME_COMPUTE_CAPABILITY came with 10.9
        raise UsageError(
            f"TensorRT {trt.__version__} has no hardware level {level!r}",
            expected="none or ampere+",
            received=level,
        )
    return getattr(trt.HardwareCompatibilityLevel, name)


def _check_dla_precision(version: str, precision: str) -> None:
    if precision == "int8" and int(version.partition(".")[0]) < 11:
        raise UsageError(
            "a DLA takes Q/DQ nodes from TensorRT 11 on only",
            expected="fp16",
            received=f"int8 with TensorRT {version}",
            hint="With ranges by tensor: smash-export trtexec BUNDLE --precision int8 "
            "--device jetson-orin --dla 0 --gpu-fallback",
        )


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


def _refused(parser: Any, log: Log) -> InvalidInputError:
    """Parser errors by node and by operation of the architecture, each whole."""
    lines = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        name = str(error.node_name()) or f"node {error.node()}"
        why = error.desc() if error.desc() != "false" else "the parser does not read it"
        lines.append(f"{error.node_operator()} {describe_node(name)}: {why}".strip())
    unlike = list(dict.fromkeys(lines or [log.reason()]))
    count = f"; and {len(unlike) - MAX_REFUSED} more" if len(unlike) > MAX_REFUSED else ""
    return InvalidInputError(
        f"TensorRT's parser refuses the network: {'; '.join(unlike[:MAX_REFUSED])}{count}",
        hint="See every node's verdict: smash-export check BUNDLE --target tensorrt",
    )


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


def inspect(trt: Any, plan: bytes, settings: BuildSettings, signature: ModelSignature) -> EngineLayers:
    """What the engine inspector says of each layer, at the usual batch size.

    Without an execution context the shapes and types of an engine with a profile are not known, and the
    inspector says N/A.

    Raises:
        InvalidInputError: TensorRT does not load the engine that it built.
    """
    runtime, log = create(trt, trt.Runtime)
    if settings.version_compatible:
        runtime.engine_host_code_allowed = True
    if settings.dla is not None:
        runtime.DLA_core = settings.dla
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise InvalidInputError("TensorRT does not load the engine that it built", received=log.reason())
    inspector = engine.create_engine_inspector()
    context = engine.create_execution_context()
    usual = (settings.batch[1], *signature.input_shape)
    if context is not None and context.set_input_shape(signature.input_name, usual):
        inspector.execution_context = context
    return read_layer_info(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def _monitor(trt: Any, on_progress: OnProgress) -> Any:
    """Tells the caller how far the outermost phase is; the phases inside it overlap and are left out."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # TensorRT ships no types
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
            total = self.outer.pop(phase_name, None)
            if total:  # the last step of a phase is not always told
                on_progress(phase_name, total, total)

    return Monitor()


class TimingCache:
    """Kernel timings of one GPU, driver and TensorRT version, in the user's cache folder.

    Args:
        folder: ``$XDG_CACHE_HOME/smash-export/tensorrt`` if None.
    """

    def __init__(self, tensorrt: str, gpu: Gpu, folder: Path | None = None) -> None:
        parts = (gpu.name, gpu.compute_capability, gpu.driver, gpu.cuda, tensorrt)
        name = "_".join(re.sub(r"[^A-Za-z0-9.]+", "-", part) for part in parts)
        self.path = (folder or files.user_cache("tensorrt")) / f"{name}.timing"

    def read(self) -> bytes:
        """The stored timings, or nothing."""
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            return b""

    def write(self, data: bytes) -> None:
        """Replace them; of two builds at once the larger cache stays."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path.with_suffix(".lock"), "w") as stream:
            lock(stream.fileno(), wait=True)
            if len(data) >= len(self.read()):
                write_bytes(self.path, data)

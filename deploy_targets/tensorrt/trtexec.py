"""Command lines of trtexec: which options a version takes, and lines that build and measure one engine.

The same line means another benchmark on 10 and on 11, where the defaults of CUDA graph, transfers, spin-wait
and profile run were turned round; so all four are always written out. Precision is a property of the ONNX
file: no precision flag is written for 10 and 11 (11 refuses them), and 8.6, which has no strong typing, gets
the flags that let it use what the file asks for. A DLA before 11 is the exception: there the file is fp32,
and flags and a calibration cache say what the DLA computes in.

Not run on hardware: lines are checked against the option parser's own table
(:mod:`smash_targets.tensorrt.trtexec_options`) and what trtexec's source does with them
(:mod:`smash_targets.tensorrt.consequences`), not by building an engine.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from smash_base.errors import UsageError
from smash_targets.elsewhere import ElsewhereTarget
from smash_targets.tensorrt.consequences import Holds, NetworkFacts, refusals
from smash_targets.tensorrt.operators import dla_of
from smash_targets.tensorrt.trtexec_options import TABLE, VERSIONS

Release = Literal["8.6", "10", "11"]
RELEASES: tuple[Release, ...] = ("8.6", "10", "11")
CALIBRATION = "calibration.cache"
EQUAL_MEASUREMENT = ("--useCudaGraph", "--noDataTransfers", "--useSpinWait", "--separateProfileRun")

_POOL = re.compile(r"\d+(\.\d+)?[BKMG]?")
_POOLS = ("workspace", "dlaSRAM", "dlaLocalDRAM", "dlaGlobalDRAM", "tacticSharedMem")
_SHAPE = re.compile(r"[^,]+:\d+(x\d+)*(,[^,]+:\d+(x\d+)*)*")
_SHAPE_OPTIONS = ("--minShapes", "--optShapes", "--maxShapes", "--shapes")
_FORMAT_10 = re.compile(r"\w+:[\w+]+(,\w+:[\w+]+)*")
_FORMAT_11 = re.compile(r"[a-z0-9+]+(,[a-z0-9+]+)*")


@dataclass(frozen=True)
class Option:
    """One option of trtexec.

    Attributes:
        name: Name with its dashes.
        kind: see :mod:`smash_targets.tensorrt.trtexec_options`, without the star.
        repeatable: may come several times.
        states: version -> "y", "d" or "-".
    """

    name: str
    kind: str
    repeatable: bool
    states: dict[str, str]


@functools.cache
def options() -> dict[str, Option]:
    """The table by option name."""
    rows = [line.split() for line in TABLE.splitlines() if line]
    return {
        name: Option(name, kind.rstrip("*"), kind.endswith("*"), dict(zip(VERSIONS, states, strict=True)))
        for name, kind, states in rows
    }


def versions_of(release: str) -> tuple[str, ...]:
    """The versions of the table that a release stands for: "10" is every 10.x.

    Raises:
        UsageError: none.
    """
    found = tuple(v for v in VERSIONS if v == release or v.split(".")[0] == release)
    if not found:
        raise UsageError(
            "no such trtexec version", expected=", ".join((*RELEASES, *VERSIONS)), received=release
        )
    return found


def problems(words: Sequence[str], version: str) -> list[str]:
    """What is wrong with the options of a command line for one version of the table; [] is right.

    Checks names, the ``--name=value`` form, kinds of values, repetitions, and the rules which trtexec
    applies after parsing or, like minimum <= optimum <= maximum, not at all.
    """
    found: list[str] = []
    seen: dict[str, str] = {}
    table = options()
    for word in words:
        name, equals, value = word.partition("=")
        option = table.get(name)
        if option is None or option.states[version] == "-":
            found.append(f"{name}: unknown option in {version}")
            continue
        if name in seen and not option.repeatable:
            found.append(f"{name}: given twice")
        seen[name] = value
        if option.kind == "flag":
            if equals:
                found.append(f"{name}: a flag; its value would be ignored and the flag be on")
        elif not value:
            found.append(f"{name}: needs a value, as {name}=VALUE")
        else:
            found += _value_problems(option, value, version)
    return found + _rule_problems(seen, version)


def _value_problems(option: Option, value: str, version: str) -> list[str]:
    name = option.name
    if option.kind == "int" and not re.fullmatch(r"-?\d+", value):
        return [f"{name}: {value!r} is not a whole number"]
    if option.kind == "float" and not re.fullmatch(r"-?\d+(\.\d+)?([eE][-+]?\d+)?", value):
        return [f"{name}: {value!r} is not a number"]
    if name in _SHAPE_OPTIONS and not _SHAPE.fullmatch(value):
        return [f"{name}: {value!r} is not name:1x3x32x32"]
    if name == "--memPoolSize":
        for part in value.split(","):
            pool, _, size = part.partition(":")
            if pool not in _POOLS or not _POOL.fullmatch(size):
                return [f"{name}: {part!r} is not one of {', '.join(_POOLS)} with a size such as 2048 or 2G"]
    if name == "--hardwareCompatibilityLevel":
        levels = ["none", "ampere+"] + (["samecomputecapability"] if _at_least(version, (10, 9)) else [])
        if value.lower() not in levels:
            return [f"{name}: {value!r} is not one of {', '.join(levels)}"]
    if name == "--builderOptimizationLevel" and not 0 <= int(value) <= 5:
        return [f"{name}: {value} is not 0 to 5"]
    if name in ("--inputIOFormats", "--outputIOFormats"):
        pattern = _FORMAT_11 if _at_least(version, (11, 0)) else _FORMAT_10
        if not pattern.fullmatch(value):
            form = "chw" if _at_least(version, (11, 0)) else "fp16:chw"
            return [f"{name}: {version} takes the form {form}, not {value!r}"]
    if name == "--profilingVerbosity" and value not in (
        "layer_names_only",
        "detailed",
        "none",
        "verbose",
        "default",
    ):
        return [f"{name}: {value!r} is not layer_names_only, detailed or none"]
    return []


def _rule_problems(seen: dict[str, str], version: str) -> list[str]:
    found = []
    if "--saveEngine" in seen and "--loadEngine" in seen:
        found.append("--saveEngine and --loadEngine exclude each other")
    if "--loadEngine" not in seen and "--onnx" not in seen and not {"--help", "-h"} & set(seen):
        found.append("neither --onnx nor --loadEngine")
    if "--loadEngine" in seen and any(name in seen for name in ("--minShapes", "--optShapes", "--maxShapes")):
        found.append("a loaded engine has its profiles already: use --shapes")
    if "--useDLACore" not in seen and "--reportCapabilityDLA" in seen:
        found.append("--reportCapabilityDLA needs --useDLACore")
    if seen.get("--useRuntime", "full") != "full" and "--loadEngine" not in seen:
        found.append("--useRuntime=lean or dispatch needs --loadEngine")
    if "--buildDLAStandalone" in seen:
        if "--allowGPUFallback" in seen:
            found.append("--buildDLAStandalone forbids --allowGPUFallback")
        if not {"--inputIOFormats", "--outputIOFormats"} <= set(seen):
            found.append("--buildDLAStandalone needs --inputIOFormats and --outputIOFormats")
    shapes = [_batches(seen[name]) for name in _SHAPE_OPTIONS[:3] if name in seen]
    for name in shapes[0] if shapes else ():
        sizes = [group[name] for group in shapes if name in group]
        if any(
            low > high for one, two in itertools.pairwise(sizes) for low, high in zip(one, two, strict=False)
        ):
            found.append(f"shapes of {name}: not minimum <= optimum <= maximum")
    return found


def _batches(spec: str) -> dict[str, list[int]]:
    if not _SHAPE.fullmatch(spec):
        return {}
    parts = [part.rpartition(":") for part in spec.split(",")]
    return {name: [int(size) for size in sizes.split("x")] for name, _, sizes in parts}


def _at_least(version: str, least: tuple[int, int]) -> bool:
    return _pair(version) >= least


@dataclass(frozen=True)
class EngineCommand:
    """What is to be built and measured.

    Attributes:
        onnx, engine: file names on the device.
        input_name, input_shape: Name and shape of one sample, without the batch.
        precision: Precision that is computed in.
        release: Release of trtexec.
        batches: smallest, usual and largest batch; None for a graph of fixed shape, which refuses shapes.
        workspace_mib: limit of scratch memory.
        level: builder optimisation level, 0 to 5.
        timing_cache: file that makes a rebuild short; "" for none. Level 0 ignores it.
        dla: DLA core, or None.
        gpu_fallback: layers that the DLA refuses run on the GPU, and input and output are converted there;
            no line can build without it.
        jetson: whether it is built on a Jetson.
        version_compatible: the engine runs with newer TensorRT of the same major; costs size and some speed.
        hardware: "none", "ampere+" (all of Ampere and newer, may cost speed) or "sameComputeCapability".
    """

    onnx: str
    engine: str
    input_name: str
    input_shape: tuple[int, ...]
    precision: str
    release: Release = "10"
    batches: tuple[int, int, int] | None = (1, 1, 1)
    workspace_mib: int = 1024
    level: int = 3
    timing_cache: str = "timing.cache"
    dla: int | None = None
    gpu_fallback: bool = False
    version_compatible: bool = False
    hardware: str = "none"
    jetson: bool = False

    @property
    def weakly_typed(self) -> bool:
        """Whether flags say what may be computed in: 8.6 always, and a DLA before 11."""
        return self.release == "8.6" or (self.dla is not None and self.release == "10")

    @property
    def holds(self) -> Holds:
        """What the ONNX file must hold: on a DLA before 11 fp32, else the precision itself."""
        if self.precision in ("fp32", "tf32") or (self.dla is not None and self.weakly_typed):
            return "fp32"
        return "fp16" if self.precision == "fp16" else "int8"

    @property
    def calibration(self) -> str:
        """Name of the file with the range of each tensor; "" where the graph itself holds them."""
        return CALIBRATION if self.precision == "int8" and self.holds == "fp32" else ""

    @property
    def network(self) -> NetworkFacts:
        """What is known of the ONNX file."""
        return NetworkFacts(self.holds, self.batches is None, self.jetson)

    def __post_init__(self) -> None:
        if self.release not in RELEASES:
            raise UsageError("trtexec release", expected=" or ".join(RELEASES), received=self.release)
        if self.batches is not None and not 1 <= self.batches[0] <= self.batches[1] <= self.batches[2]:
            raise UsageError(
                "batches of the engine", expected="1 <= smallest <= usual <= largest", received=self.batches
            )
        if self.dla is not None:
            if self.batches is not None and len(set(self.batches)) != 1:
                raise UsageError(
                    "DLA takes fixed shapes only", expected="one batch size", received=self.batches
                )
            if self.precision not in ("fp16", "int8"):
                raise UsageError(
                    "DLA computes in fp16 and int8", expected="fp16 or int8", received=self.precision
                )
        elif self.gpu_fallback:
            raise UsageError("a fallback to the GPU is for a DLA", expected="--dla CORE with --gpu-fallback")


def build_words(command: EngineCommand) -> list[str]:
    """Options that build the engine and measure nothing.

    Raises:
        UsageError: an option that the release does not have.
    """
    words = [f"--onnx={command.onnx}", f"--saveEngine={command.engine}", "--skipInference"]
    if command.batches is not None:
        for name, size in zip(_SHAPE_OPTIONS[:3], command.batches, strict=True):
            words.append(f"{name}={shape_of(command, size)}")
    if command.weakly_typed:
        words += {"fp16": ["--fp16"], "int8": ["--int8", "--fp16"]}.get(command.precision, [])
    else:
        words.append("--stronglyTyped")  # needed by 10, without effect in 11
    if command.precision == "fp32":
        words.append("--noTF32")  # TF32 is on by default: other numbers than fp32
    words += [
        f"--memPoolSize=workspace:{command.workspace_mib}",
        f"--builderOptimizationLevel={command.level}",
    ]
    words.append("--profilingVerbosity=detailed")  # else --exportLayerInfo has names only
    if command.timing_cache:
        words.append(f"--timingCacheFile={command.timing_cache}")
    if command.version_compatible:
        words.append("--versionCompatible")
    if command.hardware != "none":
        words.append(f"--hardwareCompatibilityLevel={command.hardware}")
    if command.dla is not None:
        words.append(f"--useDLACore={command.dla}")
    if command.gpu_fallback:
        words.append("--allowGPUFallback")
    if command.calibration:
        words.append(f"--calib={command.calibration}")
    words = _checked(words, command)
    for _, version in _versions(command):
        for refusal in refusals(words, version, command.network):
            raise UsageError(
                f"trtexec {version} cannot build this: {refusal.reason} ({refusal.source})",
                hint=f"Change: {refusal.change}.",
            )
    return words


def bench_words(
    command: EngineCommand,
    batch: int,
    *,
    inputs: str = "",
    results: str = "",
    duration_s: int = 5,
    transfers: bool = False,
) -> list[str]:
    """Options that measure a saved engine at one batch size.

    Args:
        inputs: raw little-endian file for the input; "" for random values.
        results: start of the names of the JSON files; "" writes none.
        transfers: whether inputs and outputs are copied too, as a program would.

    Raises:
        UsageError: a batch that the engine does not take.
    """
    words = [f"--loadEngine={command.engine}"]
    if command.batches is not None:
        if not command.batches[0] <= batch <= command.batches[2]:
            raise UsageError(
                "batch to measure", expected=f"{command.batches[0]} to {command.batches[2]}", received=batch
            )
        words.append(f"--shapes={shape_of(command, batch)}")
    if command.version_compatible:
        words.append("--versionCompatible")  # lets the engine bring its own runtime
    words += [
        *_measurement(command, transfers),
        "--warmUp=500",
        f"--duration={duration_s}",
        "--iterations=100",
        "--percentile=90,95,99",
    ]
    if inputs:
        words.append(f"--loadInputs={command.input_name}:{inputs}")
    if results:
        words += [
            f"--exportTimes={results}.times.json",
            "--dumpProfile",
            f"--exportProfile={results}.profile.json",
            f"--exportLayerInfo={results}.layers.json",
        ]
    return _checked(words, command)


def _measurement(command: EngineCommand, transfers: bool) -> list[str]:
    """The options whose defaults differ between 10 and 11, written out."""
    words = list(EQUAL_MEASUREMENT)
    if command.dla is not None:  # a CUDA graph is not possible with DLA
        words[0:1] = ["--noCudaGraph"] if command.release == "11" else []
        words.insert(0, f"--useDLACore={command.dla}")
    if transfers:
        words.remove("--noDataTransfers")
        words += ["--includeDataTransfers"] if command.release == "11" else []
    return words


def check_words(command: EngineCommand, batch: int, inputs: str, outputs: str) -> list[str]:
    """Options that run a saved engine once on real images and keep its answers.

    Args:
        inputs: raw little-endian float32 file of ``batch`` images.
        outputs: JSON file to write.
    """
    words = [f"--loadEngine={command.engine}"]
    if command.batches is not None:
        words.append(f"--shapes={shape_of(command, batch)}")
    if command.version_compatible:
        words.append("--versionCompatible")
    if command.dla is not None:
        words.append(f"--useDLACore={command.dla}")
    if command.release == "11":
        words.append("--includeDataTransfers")  # off by default since 11
    words += ["--iterations=1", "--duration=0", "--warmUp=0", "--avgRuns=1"]
    words += [f"--loadInputs={command.input_name}:{inputs}", f"--exportOutput={outputs}"]
    return _checked(words, command)


def shape_of(command: EngineCommand, batch: int) -> str:
    """``input:8x3x32x32``, the form of every shape option."""
    return f"{command.input_name}:{'x'.join(map(str, (batch, *command.input_shape)))}"


def _checked(words: list[str], command: EngineCommand) -> list[str]:
    for version, _ in _versions(command):
        wrong = problems(words, version)
        if wrong:
            raise UsageError(f"trtexec {version} does not take this line: {'; '.join(wrong)}")
    return words


def _versions(command: EngineCommand) -> list[tuple[str, str]]:
    """(version of the table, version whose consequences count) that a line is for; with a DLA those that have
    one. The table ends with 11.1, and 11.4 brought the DLA back: it is parsed as 11.1."""
    found = versions_of(command.release)
    if command.dla is None:
        return [(version, version) for version in found]
    if command.release == "11":
        return [(found[-1], "11.4")]
    return [(version, version) for version in found if dla_of(_pair(version))[0]]


def _pair(version: str) -> tuple[int, int]:
    major, minor = version.split(".")
    return int(major), int(minor)


class TrtexecTarget(ElsewhereTarget):
    """Scripts in a bundle for a device that has trtexec and a shell; nothing that Python can open.

    ``smash-export trtexec`` writes them. Listed so that commands which go through the files of a bundle
    report them as skipped.
    """

    name = "trtexec"
    extra = "tensorrt"
    int8_placement = "tensorrt"
    precisions = ("fp32", "tf32", "fp16", "int8")
    why = "scripts for a device with trtexec, which run there and not in Python"
    way = "smash-export trtexec BUNDLE writes them; run build_engine.sh and bench_engine.sh there"
    refusal = "scripts for trtexec run on the device, not in Python"
    command = "smash-export trtexec BUNDLE"

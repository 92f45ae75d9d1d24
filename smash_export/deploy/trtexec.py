"""Scripts for a device that has trtexec and a shell: build the engine there, measure it, check its answers.

The folder ``targets/trtexec/<precision>/`` of the bundle holds

    model.onnx                           at that precision
    build_engine.sh bench_engine.sh      build, and measure at each batch size
    check_engine.sh check_outputs.awk    run every test image and compare, on the device itself
    input_bN.bin                         N real images, raw float32, for the measurement at that size
    images_000000.bin ...                all test images in batches of the largest size, named by the first
    calibration.cache                    ranges of tensors, for int8 on a DLA before TensorRT 11
    expected.txt                         one line per image: true label, PyTorch's label, PyTorch's logits

The graph is first run by ONNX Runtime on the CPU and held to the gates of its precision: these are the
numbers TensorRT should give.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from smash_base import files
from smash_base.errors import InvalidInputError, UsageError
from smash_base.json_values import JsonObject
from smash_base.preprocess import first_answers
from smash_export.bundle.bundle import Bundle, CompiledFile
from smash_export.measure.gates import GATES, Gate
from smash_export.measure.machine import describe_machine
from smash_export.measure.verify import Parity, check_parity, compare_logits, held_to, measure_parity
from smash_targets.base import ModelSignature, SessionOptions, get_target
from smash_targets.tensorrt.trtexec import EngineCommand, Release, bench_words, build_words, check_words

TARGET = "trtexec"
NOT_RUN = "written after the documented options; not run on hardware"
CHECKER = Path(__file__).with_name("check_outputs.awk.txt")
BUILT = "test -f model.engine || { echo 'build it first: ./build_engine.sh' >&2; exit 1; }"
POWER = (
    "# Power mode and clocks decide the speed of a Jetson: they are kept beside the numbers.",
    "{ nvpmodel -q; cat /sys/class/devfreq/*gpu*/*_freq; } >power.txt 2>&1 || true",
    "cat power.txt",
    "echo 'for the best numbers: sudo nvpmodel -m 0 && sudo jetson_clocks' >&2",
)
_CHECKED = re.compile(r"check_(\d{6})\.output\.json")


@dataclass(frozen=True)
class ScriptSettings:
    """What the scripts are for.

    Attributes:
        release: Release of trtexec on the device.
        batches: Sizes to measure; the engine takes the smallest to the largest, tuned for the middle one.
        device: "dgpu" or "jetson-orin" (less scratch memory).
        dla: DLA core of an Orin, or None. One batch size only.
        gpu_fallback: what the DLA refuses runs on the GPU, which also converts input and output; no line can
            build without it.
        images: how many test images are shipped for the check, None for all.
        version_compatible, hardware: see :class:`smash_targets.tensorrt.trtexec.EngineCommand`.
    """

    release: Release = "10"
    batches: tuple[int, ...] = (1,)
    device: str = "dgpu"
    dla: int | None = None
    gpu_fallback: bool = False
    version_compatible: bool = False
    hardware: str = "none"
    images: int | None = None

    def __post_init__(self) -> None:
        if self.images is not None and self.images < 1:
            raise UsageError("images to check", expected="1 or more", received=self.images)
        if self.device not in ("dgpu", "jetson-orin"):
            raise UsageError("device", expected="dgpu or jetson-orin", received=self.device)
        if self.dla is not None and self.device != "jetson-orin":
            raise UsageError("only Jetson has a DLA", expected="--device jetson-orin", received=self.device)
        if self.device != "dgpu" and self.hardware == "ampere+":
            raise UsageError(
                "hardware compatibility is not there on JetPack",
                expected="--hardware none",
                received=self.hardware,
                hint="Build on each kind of Jetson.",
            )
        if not self.batches or min(self.batches) < 1 or len(set(self.batches)) != len(self.batches):
            raise UsageError("batches", expected="different sizes of 1 and more", received=self.batches)


def engine_command(bundle: Bundle, precision: str, settings: ScriptSettings) -> EngineCommand:
    """The engine that the scripts build.

    Raises:
        UsageError: batches that the bundle does not take, or a precision that DLA does not have.
    """
    signature = bundle.signature
    sizes = sorted(settings.batches)
    least, _, most = signature.batch
    if sizes[0] < least or sizes[-1] > most:
        raise UsageError("batches", expected=f"within the bundle's {least} to {most}", received=sizes)
    if settings.dla is not None and len(sizes) > 1:
        raise UsageError("a DLA takes fixed shapes only", expected="one batch size", received=sizes)
    fixed = least == most or settings.dla is not None
    return EngineCommand(
        onnx="model.onnx",
        engine="model.engine",
        input_name=signature.input_name,
        input_shape=signature.input_shape,
        precision=precision,
        release=settings.release,
        batches=None if fixed else (sizes[0], sizes[len(sizes) // 2], sizes[-1]),
        workspace_mib=512 if settings.device == "jetson-orin" else 2048,
        dla=settings.dla,
        gpu_fallback=settings.gpu_fallback,
        version_compatible=settings.version_compatible,
        hardware=settings.hardware,
        jetson=settings.device != "dgpu",
    )


def opset_note(onnx: Path, release: str) -> str:
    """What to know when a release of TensorRT reads smaller opsets than a file has; "" when all is well."""
    from onnx import load_model_from_string

    from smash_targets.tensorrt.operators import opsets_of, release_of

    _, most, _ = opsets_of(release_of(release))
    model = load_model_from_string(onnx.read_bytes())
    opset = max((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), default=0)
    if opset <= most:
        return ""
    return (
        f"TensorRT {release} reads opsets up to {most}, this graph has {opset}: it may be refused. "
        f"Use a newer TensorRT, or adopt an ONNX file of opset {most}"
    )


def write_scripts(
    bundle: Bundle, precision: str, settings: ScriptSettings, options: Mapping[str, Any] | None = None
) -> tuple[CompiledFile, Parity]:
    """Make the graph, hold it to its gates on the CPU, and add the folder to the bundle.

    Args:
        options: settings of the precision, as :func:`graph_for_tensorrt` takes them.

    Raises:
        UsageError: settings that contradict each other or the bundle.
        VerificationError: the graph at this precision does not do what the network does.
    """
    command = engine_command(bundle, precision, settings)
    build_words(command)  # refuses what cannot build, before anything is made
    with files.temporary_folder() as work:
        onnx, notes = graph_for_tensorrt(bundle, precision, work, options)
        parity = emulate(bundle, onnx, precision)
        staging = bundle.staging(TARGET, precision)
        try:
            notes = {**notes, **_write_source(bundle, command, settings, onnx, notes, staging)}
            write_images(bundle, settings, staging)
            gate = GATES[held_to(bundle, precision)]
            for name, text in scripts(command, settings, gate, bundle.signature).items():
                files.write_text(staging / name, text)
                files.set_mode(staging / name, 0o755)
            added = bundle.add_compiled(
                TARGET,
                precision,
                staging,
                "model.onnx",
                {**notes, "settings": asdict(settings), "status": NOT_RUN},
                {
                    "parity": parity.to_json(),
                    "gate": asdict(gate),
                    "machine": describe_machine(),
                    "runtime": {"target": "onnxruntime", "device": "cpu"},
                },
            )
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return added, parity


def _write_source(
    bundle: Bundle,
    command: EngineCommand,
    settings: ScriptSettings,
    onnx: Path,
    notes: Mapping[str, Any],
    staging: Path,
) -> JsonObject:
    """``model.onnx`` as trtexec gets it, and notes about where a DLA computes it."""
    file = staging / command.onnx
    if command.dla is None:
        shutil.copyfile(onnx, file)
        return {}
    from smash_export.deploy.dla import dla_verdicts, write_dla_source, write_fixed_batch

    (batch,) = settings.batches
    if command.holds == "fp32":
        write_dla_source(bundle, command, batch, str(notes.get("calibration_method", "minmax")), staging)
    else:
        write_fixed_batch(onnx, batch, file)
    verdicts = dla_verdicts(file, command)
    moved = [item.node for item in verdicts if item.level == "warn" and "runs on the GPU" in item.reason]
    return {"dla": {"nodes": sum(bool(v.node) for v in verdicts), "on_the_gpu": moved}}


def check_options(bundle: Bundle, precision: str, options: Mapping[str, Any]) -> None:
    """Refuse, before anything is made, options that :func:`graph_for_tensorrt` would refuse."""
    from smash_export.compiling.precision import check_settings

    check_settings(bundle, precision, options, target=get_target("tensorrt"))


def graph_for_tensorrt(
    bundle: Bundle, precision: str, work: Path, options: Mapping[str, Any] | None = None
) -> tuple[Path, JsonObject]:
    """The ONNX file that TensorRT gets, and notes about it; fp32 and tf32 are the bundle's own.

    Args:
        options: settings of the precision (:data:`smash_export.compiling.precision.OPTIONS`).

    Raises:
        UsageError: an option that the precision does not have.
    """
    from smash_export.compiling.precision import prepare_onnx, read_settings

    if precision in ("fp32", "tf32"):
        read_settings(precision, options or {})  # refuses all
        return bundle.onnx, {}
    target = get_target("tensorrt")
    return prepare_onnx(bundle, precision, target=target, destination=work, options=options)


def emulate(bundle: Bundle, onnx: Path, precision: str) -> Parity:
    """Run that file by ONNX Runtime on the CPU against eager PyTorch.

    Raises:
        VerificationError: a gate of the precision is missed.
    """
    options = SessionOptions(provider="cpu")
    with get_target("onnxruntime").open(onnx, bundle.signature, options) as session:
        parity = measure_parity(session, bundle.samples(), bundle.preprocessing, bundle.signature.batch)
    what = f"the {precision} graph for TensorRT, run by ONNX Runtime on the CPU,"
    check_parity(parity, held_to(bundle, precision), what)
    return parity


def write_images(bundle: Bundle, settings: ScriptSettings, folder: Path) -> None:
    """``input_bN.bin`` for each size, ``images_*.bin`` for the check, and ``expected.txt``."""
    samples = bundle.samples()
    count = min(len(samples), settings.images or len(samples))

    def raw(indices: np.ndarray) -> bytes:
        images = np.asarray(samples.images[indices % len(samples)])
        return bytes(bundle.preprocessing.normalise(images).astype("<f4").tobytes())

    for size in settings.batches:
        files.write_bytes(folder / f"input_b{size}.bin", raw(np.arange(size)))
    most = max(settings.batches)
    for start in range(0, count, most):  # the last one is filled up with what comes next, then from the start
        files.write_bytes(folder / f"images_{start:06d}.bin", raw(np.arange(start, start + most)))
    answers = first_answers(samples.logits[:count], samples.labels[:count])
    lines = [
        " ".join([str(int(label)), str(int(first)), *(f"{value:.9g}" for value in logits)])
        for label, first, logits in zip(samples.labels[:count], answers, samples.logits[:count], strict=True)
    ]
    files.write_text(folder / "expected.txt", "\n".join(lines) + "\n")


def scripts(
    command: EngineCommand, settings: ScriptSettings, gate: Gate, signature: ModelSignature
) -> dict[str, str]:
    """The scripts by name: POSIX shell and awk, nothing but trtexec needed."""
    head = _head(command)
    build = [*head, _call(build_words(command), "build.log"), 'echo "engine: $PWD/model.engine"']
    bench = [*head, BUILT, *(POWER if command.jetson else ())]
    for size in settings.batches:
        words = bench_words(command, size, inputs=f"input_b{size}.bin", results=f"bench_b{size}")
        bench.append(_call(words, f"bench_b{size}.log"))
    bench.append('echo "read the results with: smash-export trtexec-results $PWD/bench_b*"')
    words = check_words(command, max(settings.batches), "@in", "@out")
    lines = " \\\n    ".join(shlex.quote(word) for word in words)
    lines = lines.replace("@in", '"$input"').replace("@out", '"check_$part.output.json"')
    check = [
        *head,
        BUILT,
        "for input in images_*.bin; do",
        "  part=${input#images_}",
        "  part=${part%.bin}",
        f'  if "$TRTEXEC" {lines} >check.log 2>&1; then :',
        '  else cat check.log >&2; echo "failed at $input, see check.log" >&2; exit 1; fi',
        "done",
        f"OUTPUT={shlex.quote(signature.output_name)} awk -v classes={signature.classes} \\",
        f"  -v agreement={gate.agreement} -v drop={gate.drop} -v difference={gate.max_difference or -1} \\",
        "  -f check_outputs.awk expected.txt check_*.output.json",
    ]
    named = {"build_engine.sh": build, "bench_engine.sh": bench, "check_engine.sh": check}
    texts = {name: "\n".join(lines) + "\n" for name, lines in named.items()}
    return {**texts, "check_outputs.awk": CHECKER.read_text()}


def _head(command: EngineCommand) -> list[str]:
    major = command.release.split(".")[0]
    return [
        "#!/bin/sh",
        f"# TensorRT {command.release}, {command.precision}. {NOT_RUN.capitalize()}.",
        "set -eu",
        "export LC_ALL=C  # where numbers have a comma, mawk reads 1.5 as 1",
        'cd "$(dirname "$0")"',
        "TRTEXEC=${TRTEXEC:-trtexec}",
        'command -v "$TRTEXEC" >/dev/null 2>&1 || TRTEXEC=/usr/src/tensorrt/bin/trtexec',
        'if ! command -v "$TRTEXEC" >/dev/null 2>&1; then',
        '  echo "trtexec not found; set TRTEXEC=/path/to/trtexec" >&2',
        "  exit 3",
        "fi",
        "# Its banner holds the version as a number: v8601 is 8.6.1, v101600 is 10.16.0.",
        r"banner='s/.*TensorRT\.trtexec \[TensorRT v\([0-9]*\)\].*/\1/p'",
        'found=$("$TRTEXEC" --help 2>&1 | sed -n "$banner" | head -n 1)',
        'case "$found" in',
        "  '') echo 'trtexec does not tell its version; going on' >&2; major=unknown ;;",
        "  ?????|??????) major=${found%????} ;;",
        "  *) major=${found%???} ;;",
        "esac",
        f'if [ "$major" != unknown ] && [ "$major" != {major} ]; then',
        f'  echo "this script is for TensorRT {major}, trtexec is v$found;'
        f' write it again: smash-export trtexec BUNDLE --precision {command.precision} --for $major" >&2',
        "  exit 3",
        "fi",
        *_minor_version(command),
        *_dla_version(command),
    ]


def _minor_version(command: EngineCommand) -> list[str]:
    """JetPack 5 has 8.5.2, which lacks options of 8.6 and reads no graph of opset 17."""
    if command.release != "8.6":
        return []
    return [
        'if [ "$major" = 8 ] && [ "$found" -lt 8600 ]; then',
        '  echo "this script is for TensorRT 8.6, trtexec is v$found; JetPack 5 has 8.5.2, which is not'
        ' supported: use JetPack 6 (10.3)" >&2',
        "  exit 3",
        "fi",
    ]


def _dla_version(command: EngineCommand) -> list[str]:
    """DLA is in 10.0 to 10.7 and from 11.4 on; a trtexec of another version would build for the GPU."""
    if command.dla is None or command.release == "8.6":
        return []
    test, where = {"10": ("-gt 1007", "10.0 to 10.7"), "11": ("-lt 1104", "11.4 and newer")}[command.release]
    return [
        f'if [ "$major" != unknown ] && [ "${{found%??}}" {test} ]; then',
        f'  echo "TensorRT has DLA in {where}, this is v$found" >&2',
        "  exit 3",
        "fi",
    ]


def _call(words: Sequence[str], log: str) -> str:
    """trtexec with its log kept and shown; without a pipe, which would hide the exit code."""
    lines = " \\\n  ".join(shlex.quote(word) for word in words)
    return (
        f'if "$TRTEXEC" {lines} >{log} 2>&1; then cat {log}\n'
        f'else cat {log} >&2; echo "failed, see {log}" >&2; exit 1; fi'
    )


def checked_from(path: Path) -> int | None:
    """Index of the first image whose answers a file of ``check_engine.sh`` holds; None for another file."""
    match = _CHECKED.fullmatch(path.name)
    return int(match[1]) if match else None


def device_parity(bundle: Bundle, answers: Mapping[int, np.ndarray]) -> Parity:
    """Answers of a device against eager PyTorch.

    Args:
        answers: index of the first image -> logits [B, K]; rows beyond the last image are filling.

    Raises:
        InvalidInputError: images that the bundle does not have.
    """
    samples = bundle.samples()
    rows, parts = [], []
    for start, logits in sorted(answers.items()):
        if start >= len(samples):
            raise InvalidInputError(
                "answers for images that the bundle does not have",
                expected=f"below {len(samples)}",
                received=start,
            )
        indices = np.arange(start, min(start + len(logits), len(samples)))
        rows.append(indices)
        parts.append(logits[: len(indices)])
    chosen = np.concatenate(rows)
    targets = None if samples.targets is None else samples.targets[chosen]
    return compare_logits(
        samples.logits[chosen], np.concatenate(parts), samples.labels[chosen], targets=targets
    )

"""Scripts for a device that has trtexec and a shell: build the engine there, measure it, check its answers.

The folder ``targets/trtexec/<precision>/`` of the bundle holds ``model.onnx`` at that precision, the two
scripts, and real test images as raw float32 files with the logits that are expected for them.
The graph is first run by ONNX Runtime on
the CPU and held to the gates of its precision: these are the numbers TensorRT should give.
"""

from __future__ import annotations

import shlex
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deploy_targets.base import SessionOptions, get_target
from deploy_targets.trtexec import EngineCommand, Release, bench_words, build_words
from smash_base import files
from smash_base.errors import InvalidInputError, UsageError
from smash_export.bundle import Bundle, CompiledFile
from smash_export.machine import describe_machine
from smash_export.verify import GATES, Parity, check_parity, measure_parity

TARGET = "trtexec"
NOT_RUN = "written after the documented options; no engine was built by the authors"


@dataclass(frozen=True)
class ScriptSettings:
    """What the scripts are for.

    Attributes:
        release: of trtexec on the device.
        batches: to measure; the engine takes the smallest to the largest and is tuned for the middle one.
        device: "dgpu" or "jetson-orin" (less scratch memory).
        dla: DLA core of an Orin, or None. One batch size only.
        version_compatible, hardware: see :class:`deploy_targets.trtexec.EngineCommand`.
    """

    release: Release = "10"
    batches: tuple[int, ...] = (1,)
    device: str = "dgpu"
    dla: int | None = None
    version_compatible: bool = False
    hardware: str = "none"

    def __post_init__(self) -> None:
        if self.device not in ("dgpu", "jetson-orin"):
            raise UsageError("device", expected="dgpu or jetson-orin", received=self.device)
        if self.dla is not None and self.device != "jetson-orin":
            raise UsageError("only Jetson has a DLA", expected="--device jetson-orin", received=self.device)
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
    return EngineCommand(
        onnx="model.onnx",
        engine="model.engine",
        input_name=signature.input_name,
        input_shape=signature.input_shape,
        precision=precision,
        release=settings.release,
        batches=None if least == most else (sizes[0], sizes[len(sizes) // 2], sizes[-1]),
        workspace_mib=512 if settings.device == "jetson-orin" else 2048,
        dla=settings.dla,
        version_compatible=settings.version_compatible,
        hardware=settings.hardware,
    )


def write_scripts(bundle: Bundle, precision: str, settings: ScriptSettings) -> tuple[CompiledFile, Parity]:
    """Make the graph, hold it to its gates on the CPU, and add the folder to the bundle.

    Raises:
        UsageError: settings that contradict each other or the bundle.
        VerificationError: the graph at this precision does not do what the network does.
    """
    command = engine_command(bundle, precision, settings)
    with tempfile.TemporaryDirectory(prefix="smash-export-") as work:
        onnx, notes = graph_for_tensorrt(bundle, precision, Path(work))
        parity = emulate(bundle, onnx, precision)
        staging = bundle.staging(TARGET, precision)
        try:
            shutil.copyfile(onnx, staging / "model.onnx")
            samples = bundle.samples()
            for size in settings.batches:
                images = samples.images[np.arange(size) % len(samples.images)]
                tensors = bundle.preprocessing.normalise(np.asarray(images)).astype("<f4")
                expected = samples.logits[np.arange(size) % len(samples.logits)].astype("<f4")
                files.write_bytes(staging / f"input_b{size}.bin", tensors.tobytes())
                files.write_bytes(staging / f"expected_b{size}.bin", expected.tobytes())
            for name, text in scripts(command, settings).items():
                files.write_text(staging / name, text)
                (staging / name).chmod(0o755)
            added = bundle.add_compiled(
                TARGET,
                precision,
                staging,
                "model.onnx",
                {**notes, "settings": asdict(settings), "status": NOT_RUN},
                {
                    "parity": parity.to_json(),
                    "gate": asdict(GATES[precision]),
                    "machine": describe_machine(),
                    "runtime": {"target": "onnxruntime", "device": "cpu"},
                },
            )
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return added, parity


def graph_for_tensorrt(bundle: Bundle, precision: str, work: Path) -> tuple[Path, dict[str, Any]]:
    """The ONNX file that TensorRT gets, and notes about it; fp32 and tf32 are the bundle's own."""
    if precision in ("fp32", "tf32"):
        return bundle.onnx, {}
    from smash_export.precision import prepare_onnx

    return prepare_onnx(bundle, precision, target=get_target("tensorrt"), destination=work)


def emulate(bundle: Bundle, onnx: Path, precision: str) -> Parity:
    """Run that file by ONNX Runtime on the CPU against eager PyTorch.

    Raises:
        VerificationError: a gate of the precision is missed.
    """
    options = SessionOptions(provider="cpu")
    with get_target("onnxruntime").open(onnx, bundle.signature, options) as session:
        parity = measure_parity(session, bundle.samples(), bundle.preprocessing, bundle.signature.batch)
    check_parity(parity, precision, f"the {precision} graph for TensorRT, run by ONNX Runtime on the CPU,")
    return parity


def scripts(command: EngineCommand, settings: ScriptSettings) -> dict[str, str]:
    """``build_engine.sh`` and ``bench_engine.sh``: POSIX shell, nothing but trtexec needed."""
    head = _head(command)
    build = [*head, _call(build_words(command), "build.log"), 'echo "engine: $PWD/model.engine"']
    bench = [*head, "test -f model.engine || { echo 'build it first: ./build_engine.sh' >&2; exit 1; }"]
    for size in settings.batches:
        words = bench_words(command, size, inputs=f"input_b{size}.bin", results=f"bench_b{size}")
        bench.append(_call(words, f"bench_b{size}.log"))
    bench.append('echo "read the results with: smash-export trtexec-results $PWD/bench_b*"')
    return {"build_engine.sh": "\n".join(build) + "\n", "bench_engine.sh": "\n".join(bench) + "\n"}


def _head(command: EngineCommand) -> list[str]:
    major = command.release.split(".")[0]
    return [
        "#!/bin/sh",
        f"# TensorRT {command.release}, {command.precision}. {NOT_RUN.capitalize()}.",
        "set -eu",
        'cd "$(dirname "$0")"',
        "TRTEXEC=${TRTEXEC:-trtexec}",
        'command -v "$TRTEXEC" >/dev/null 2>&1 || TRTEXEC=/usr/src/tensorrt/bin/trtexec',
        'command -v "$TRTEXEC" >/dev/null 2>&1 || { echo "trtexec not found; set TRTEXEC=/path/to/trtexec" >&2; exit 3; }',  # noqa: E501
        "# Its banner holds the version as a number: v8601 is 8.6.1, v101600 is 10.16.0.",
        r"""found=$("$TRTEXEC" --help 2>&1 | sed -n 's/.*TensorRT\.trtexec \[TensorRT v\([0-9]*\)\].*/\1/p' | head -n 1)""",  # noqa: E501
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
    ]


def _call(words: Sequence[str], log: str) -> str:
    """trtexec with its log kept and shown; without a pipe, which would hide the exit code."""
    lines = " \\\n  ".join(shlex.quote(word) for word in words)
    return f'if "$TRTEXEC" {lines} >{log} 2>&1; then cat {log}; else cat {log} >&2; echo "failed, see {log}" >&2; exit 1; fi'  # noqa: E501


def expected_logits(path: Path, classes: int) -> np.ndarray:
    """float32 [B, K] from an ``expected_bN.bin`` file.

    Raises:
        InvalidInputError: missing, or of a size that is no whole number of images.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise InvalidInputError(f"{path} does not exist", expected="expected logits") from None
    if not raw or len(raw) % (4 * classes):
        raise InvalidInputError(f"{path}", expected=f"float32 [B, {classes}]", received=f"{len(raw)} bytes")
    return np.frombuffer(raw, "<f4").reshape(-1, classes)

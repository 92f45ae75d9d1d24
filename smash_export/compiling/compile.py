"""Turn a bundle's network into the file of one runtime, and keep it only if it is proven.

The file is made in a folder that no reader looks into, opened through the runtime that will run it, and
compared with eager PyTorch on real images. What passes takes its name ``targets/<target>/<precision>/``;
what fails is kept as ``<precision>.rejected`` with a ``report.json``, and an earlier good file stays.
"""

from __future__ import annotations

import os
import shlex
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast, get_args

from smash_base import files
from smash_base.errors import MissingRuntimeError, SmashError, UsageError, VerificationError
from smash_base.json_values import JsonObject
from smash_export.bundle.bundle import Bundle, CompiledFile
from smash_export.bundle.manifest import plain
from smash_export.bundle.samples import Samples
from smash_export.compiling.precision import check_quantisable
from smash_export.measure.evidence import Evidence
from smash_export.measure.gates import GATES
from smash_export.measure.machine import describe_machine
from smash_export.measure.verify import (
    measure_parity,
    open_session,
    reference_of,
    reference_samples,
)
from smash_targets.base import (
    CompileRequest,
    CompileResult,
    OnProgress,
    Precision,
    SessionOptions,
    Target,
    get_target,
)
from smash_targets.isolation.parent import compile_isolated
from smash_targets.onnx_file import read_onnx_facts

CAST_IN_GRAPH = ("bf16", "fp16", "int8")  # tf32 is a mode of the device; its graph is the fp32 one
CALIBRATED = ("fp16", "int8")


def compile_bundle(
    bundle: Bundle | Path | str,
    target: str,
    precision: str = "fp32",
    options: Mapping[str, Any] | None = None,
    *,
    max_drop: float | None = None,
    data: str | None = None,
    split: str = "test",
    threads: int | None = None,
    isolated: bool = True,
    on_progress: OnProgress | None = None,
) -> CompiledFile:
    """Compile, verify and add one runtime file.

    Args:
        bundle: an opened bundle or its path.
        target: name of the runtime, see ``smash-export targets``.
        precision: one of that target's precisions.
        options: settings by name, of the target and of the precision
            (:data:`smash_export.compiling.precision.OPTIONS`).
        max_drop: points of accuracy that an int8 file may lose; 0.5 if None.
        data: labelled images to judge on (NAME or NAME:PATH) instead of those in the bundle.
        split: "train", "validation" or "test"; part of ``data``.
        threads: Threads of one inference while it is verified.
        isolated: compile and verify in processes of their own: a runtime that crashes or hangs is then an
            error like any other.
        on_progress: called with a phase, the steps done and all steps, by targets that take minutes.

    Returns:
        The file, which now stands in the bundle's manifest with its evidence.

    Raises:
        UsageError: no such target, precision or option.
        MissingRuntimeError: the runtime or its device is not here.
        VerificationError: the file does not do what the network does; it was kept as ``.rejected``.
    """
    if not isinstance(bundle, Bundle):
        bundle = Bundle.open(bundle)
    runtime = plan(bundle, target, precision)
    runtime.require()
    standard = _standard(bundle, precision, max_drop, data, split, threads)
    options = {**(options or {}), **({} if max_drop is None else {"max_drop": max_drop})}
    started = time.monotonic()
    staging = bundle.staging(target, precision)
    try:
        with files.temporary_folder() as work:
            request, notes = _request(bundle, runtime, precision, options, work)
            if isolated:
                result = compile_isolated(target, request, staging, on_progress=on_progress)
            else:
                runtime.on_progress = on_progress
                result = runtime.compile(request, staging)
        evidence, problems = _verify(bundle, target, precision, staging, result, standard, threads, isolated)
        evidence = replace(evidence, seconds=round(time.monotonic() - started, 3))
        notes = {**notes, **result.notes}
        if problems:
            raise _reject(bundle, target, precision, staging, problems, evidence, notes)
        added = bundle.add_compiled(target, precision, staging, result.main, notes, evidence.to_json())
        shutil.rmtree(bundle.rejected_folder(target, precision), ignore_errors=True)
        return added
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def plan(bundle: Bundle, target: str, precision: str) -> Target:
    """The target, after checking that it has this precision and that the bundle has what it needs.

    Raises:
        UsageError: no such target or precision.
    """
    runtime = get_target(target)
    if precision not in get_args(Precision) or precision not in runtime.precisions:
        raise UsageError(
            f"target {target} has no precision {precision}",
            expected=" or ".join(runtime.precisions),
            received=precision,
        )
    _check_source(bundle, runtime, precision)
    if precision == "int8":
        bundle.calibration()  # a missing one is said before a minute of work
    return runtime


def _check_source(bundle: Bundle, runtime: Target, precision: str) -> None:
    """Raise UsageError if this target cannot start from the graph of the bundle: a foreign file may hold
    fp16 or int8 already."""
    stored = read_onnx_facts(bundle.onnx).precision
    if precision == "int8":
        check_quantisable(bundle)
    if stored not in runtime.reads:
        others = [name for name in ("onnxruntime", "openvino") if stored in get_target(name).reads]
        raise UsageError(
            f"target {runtime.name} does not read {stored} graphs, and the network of {bundle.path} is one",
            expected=" or ".join(runtime.reads),
            received=stored,
            hint=f"Adopt the fp32 file it was made from, or choose {' or '.join(others)}.",
        )


@dataclass(frozen=True)
class _Standard:
    """What a file is held against, and how much of it may be lost."""

    samples: Samples
    reference: str
    max_drop: float | None


def _standard(
    bundle: Bundle, precision: str, max_drop: float | None, data: str | None, split: str, threads: int | None
) -> _Standard:
    if max_drop is not None and precision != "int8":
        raise UsageError(
            f"{precision} files are held to rounding, not to a loss of accuracy",
            expected="max_drop with precision int8",
            received=precision,
        )
    if max_drop is not None and not 0 <= max_drop <= 100:
        raise UsageError("max_drop", expected="0 to 100 points of accuracy", received=max_drop)
    if data is None:
        return _Standard(bundle.samples(), reference_of(bundle), max_drop)
    from smash_export.measure.labelled import from_data

    labelled = from_data(bundle, data, split)
    samples, reference = reference_samples(bundle, labelled.images, labelled.labels, threads)
    return _Standard(samples, reference, max_drop)


def _request(
    bundle: Bundle,
    runtime: Target,
    precision: str,
    options: Mapping[str, Any],
    work: Path,
) -> tuple[CompileRequest, JsonObject]:
    onnx: Path = bundle.onnx
    notes: JsonObject = {}
    if precision in CAST_IN_GRAPH and runtime.precision_source == "onnx":
        from smash_export.compiling.precision import OPTIONS, prepare_onnx

        of_precision = {name: value for name, value in options.items() if name in OPTIONS[precision]}
        options = {name: value for name, value in options.items() if name not in of_precision}
        onnx, notes = prepare_onnx(bundle, precision, target=runtime, destination=work, options=of_precision)
    calibration = None
    if precision in CALIBRATED and "calibration.npz" in bundle.manifest.files:
        calibration = bundle.preprocessing.normalise(bundle.calibration())
    program = None
    if runtime.needs_torch_program:
        from smash_export.export.torch_program import write_torch_program

        program = write_torch_program(bundle, work / "model.pt2")
    request = CompileRequest(
        onnx=onnx,
        torchscript=bundle.torchscript,
        signature=bundle.signature,
        precision=cast(Precision, precision),  # plan() checked it
        calibration=calibration,
        options=options,
        torch_program=program,
        source_sha256=files.sha256(bundle.onnx),
    )
    return request, notes


def _verify(
    bundle: Bundle,
    target: str,
    precision: str,
    folder: Path,
    result: CompileResult,
    standard: _Standard,
    threads: int | None,
    isolated: bool,
) -> tuple[Evidence, list[str]]:
    """Evidence for the manifest, and what is wrong with the file (nothing: it passed)."""
    gate = GATES[precision]
    if standard.max_drop is not None:
        gate = replace(gate, drop=standard.max_drop)
    evidence = Evidence(gate, describe_machine())
    main = folder / result.main
    if not main.exists():
        return evidence, [f"expected the file {result.main}, received nothing from {target}"]
    try:
        options = SessionOptions(threads=threads)
        with open_session(target, main, bundle.signature, options, isolated) as session:
            evidence = replace(evidence, runtime=session.info)
            parity = measure_parity(
                session,
                standard.samples,
                bundle.preprocessing,
                bundle.signature.batch,
                reference=standard.reference,
            )
    except MissingRuntimeError:
        raise
    except SmashError as error:  # the runtime refuses the file that it was given to write
        return evidence, [str(error)]
    evidence = replace(evidence, parity=parity)
    return evidence, parity.problems(precision, standard.max_drop)


def _reject(
    bundle: Bundle,
    target: str,
    precision: str,
    staging: Path,
    problems: list[str],
    evidence: Evidence,
    notes: Mapping[str, Any],
) -> VerificationError:
    """Keep the file under a name that is never used, beside the reason."""
    report = {
        "target": target,
        "precision": precision,
        "problems": problems,
        "evidence": plain(evidence.to_json()),
        "notes": plain(dict(notes)),
    }
    files.write_json(staging / "report.json", report)
    rejected = bundle.rejected_folder(target, precision)
    shutil.rmtree(rejected, ignore_errors=True)
    os.rename(staging, rejected)
    return VerificationError(
        f"{target} {precision} does not do what the network does: {'; '.join(problems)}",
        hint=f"{_next(bundle, target, precision)}The file and the measurements are in {rejected}",
    )


def _next(bundle: Bundle, target: str, precision: str) -> str:
    """Commands that may help an int8 file."""
    if precision != "int8":
        return ""
    command = f"smash-export compile {shlex.quote(str(bundle.path))} --target {target} --precision int8"
    return (
        f"Judge it on more images: {command} --data NAME:PATH. "
        f"Allow a larger loss: {command} --max-drop POINTS. Train for int8: smash-export freeze --qat. "
    )

"""Turn a bundle's network into the file of one runtime, and keep it only if it is proven.

The file is made in a folder that no reader looks into, opened through the runtime that will run it, and
compared with eager PyTorch on real images. What passes takes its name ``targets/<target>/<precision>/``;
what fails is kept as ``<precision>.rejected`` with a ``report.json``, and an earlier good file stays.
"""

from __future__ import annotations

import math
import os
import shlex
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast, get_args

from smash_base import files
from smash_base.errors import MissingRuntimeError, SmashError, UsageError, VerificationError
from smash_base.json_values import JsonObject
from smash_export.bundle.bundle import Bundle, CompiledFile
from smash_export.bundle.manifest import plain
from smash_export.bundle.samples import Samples
from smash_export.compiling.effort import ENOUGH, Effort, Source, sources
from smash_export.compiling.precision import check_quantisable
from smash_export.measure.evidence import Evidence
from smash_export.measure.gates import GATES
from smash_export.measure.machine import describe_machine
from smash_export.measure.verify import (
    held_to,
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
    effort: Effort = "normal",
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
        effort: "high" mends the network for int8 where the file fails or loses more than it needs to
            (:mod:`smash_export.compiling.effort`).
        data: labelled images to judge on (NAME or NAME:PATH) instead of those in the bundle.
        split: "train", "validation", "test" or "all"; part of ``data``.
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
    runtime = plan(bundle, target, precision, effort)
    options = dict(options or {})
    check_options(bundle, runtime, precision, options, max_drop)
    runtime.require()
    standard = _standard(bundle, max_drop, data, split, threads)
    if max_drop is not None and runtime.precision_source == "onnx":  # others have no loss to choose layers by
        options["max_drop"] = max_drop
    job = _Job(bundle, runtime, precision, options, standard, threads, isolated, on_progress)
    with ExitStack() as stack:
        work = stack.enter_context(files.temporary_folder())
        best = _best(job, sources(bundle, runtime, effort, work, data, on_progress), stack)
        if best.problems:
            raise _reject(bundle, target, precision, best)
        evidence = best.evidence.to_json()
        added = bundle.add_compiled(target, precision, best.folder, best.result.main, best.notes, evidence)
        shutil.rmtree(bundle.rejected_folder(target, precision), ignore_errors=True)
        return added


@dataclass(frozen=True)
class _Job:
    """What is compiled, and how it is judged."""

    bundle: Bundle
    runtime: Target
    precision: str
    options: Mapping[str, Any]
    standard: _Standard
    threads: int | None
    isolated: bool
    on_progress: OnProgress | None


@dataclass(frozen=True)
class _Attempt:
    """A file that was made and judged."""

    folder: Path
    result: CompileResult
    evidence: Evidence
    problems: list[str]
    notes: JsonObject

    @property
    def lost(self) -> float:
        """Points of accuracy by the margins of changed labels."""
        loss = None if self.evidence.parity is None else self.evidence.parity.loss
        return math.inf if loss is None else loss.expected

    @property
    def given_up(self) -> int:
        """Layers that stay in fp32 because rounding them costs too much."""
        kept: Any = self.notes.get("kept_fp32") or []
        return sum(row["reason"].startswith("noise") for row in kept)

    @property
    def rank(self) -> tuple[bool, int, float]:
        """Less is better."""
        return bool(self.problems), self.given_up, self.lost

    def is_enough(self, drop: float) -> bool:
        """Whether nothing more need be tried."""
        return not self.problems and not self.given_up and self.lost <= ENOUGH * drop

    def tried(self, source: Source) -> JsonObject:
        """What the notes say of it."""
        lost = None if math.isinf(self.lost) else round(self.lost, 4)
        return {"network": source.name, "passed": not self.problems, "points": lost, "in_fp32": self.given_up}


def _best(job: _Job, networks: Iterator[Source], stack: ExitStack) -> _Attempt:
    """The first file that is good enough, or the best one, with what was tried in its notes.

    Raises:
        VerificationError: no network bears the precision.
    """
    drop = GATES[job.precision].drop if job.standard.max_drop is None else job.standard.max_drop
    best: _Attempt | None = None
    chosen = ""
    failed: VerificationError | None = None
    tried: list[JsonObject] = []
    for source in networks:
        try:
            attempt = _attempt(job, source, stack)
        except VerificationError as error:
            failed = failed or error
            tried.append({"network": source.name, "passed": False, "points": None, "in_fp32": None})
            continue
        tried.append(attempt.tried(source))
        if best is None or attempt.rank < best.rank:
            best, chosen = attempt, source.name
        if attempt.is_enough(drop):
            break
    if best is None:
        assert failed is not None  # there is one network at least
        raise failed
    if job.precision != "int8":
        return best
    return replace(best, notes={**best.notes, "network": chosen, "tried": tried})


def _attempt(job: _Job, source: Source, stack: ExitStack) -> _Attempt:
    """Make one file of one network and judge it."""
    started = time.monotonic()
    staging = job.bundle.staging(job.runtime.name, job.precision)
    stack.callback(shutil.rmtree, staging, ignore_errors=True)
    with files.temporary_folder() as work:
        request, notes = _request(job, source, work)
        if job.isolated:
            result = compile_isolated(job.runtime.name, request, staging, on_progress=job.on_progress)
        else:
            job.runtime.on_progress = job.on_progress
            result = job.runtime.compile(request, staging)
    evidence, problems = _verify(job, staging, result)
    evidence = replace(evidence, seconds=round(time.monotonic() - started, 3))
    return _Attempt(staging, result, evidence, problems, {**notes, **result.notes})


def plan(bundle: Bundle, target: str, precision: str, effort: Effort = "normal") -> Target:
    """The target, after checking that it has this precision and that the bundle has what it needs.

    Raises:
        UsageError: no such target, precision or effort.
    """
    runtime = get_target(target)
    if effort not in get_args(Effort):
        raise UsageError("effort", expected=" or ".join(get_args(Effort)), received=effort)
    if effort == "high" and precision != "int8":
        raise UsageError("effort high mends int8 files", expected="precision int8", received=precision)
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


def check_options(
    bundle: Bundle,
    runtime: Target,
    precision: str,
    options: Mapping[str, Any],
    max_drop: float | None = None,
) -> None:
    """Refuse, before anything is made and where the runtime is not here, what compiling would refuse.

    Args:
        bundle: what is to be compiled.
        runtime, precision: as :func:`plan` checked them.
        options: settings of the target and of the precision.
        max_drop: points of accuracy that the file may lose, or None.

    Raises:
        UsageError: an option that neither has, or a value that it does not take.
    """
    if max_drop is not None and precision != "int8":
        raise UsageError(
            f"{precision} files are held to rounding, not to a loss of accuracy",
            expected="max_drop with precision int8",
            received=precision,
        )
    if max_drop is not None and not 0 <= max_drop <= 100:
        raise UsageError("max_drop", expected="0 to 100 points of accuracy", received=max_drop)
    if precision in CAST_IN_GRAPH and runtime.precision_source == "onnx":
        from smash_export.compiling.precision import check_settings

        of_precision, options = _by_owner(options, precision)
        check_settings(bundle, precision, of_precision, target=runtime)
    runtime.check_options(options, bundle.signature, cast(Precision, precision))


def _by_owner(options: Mapping[str, Any], precision: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of a precision that is written into the graph, and those of the target."""
    from smash_export.compiling.precision import OPTIONS

    of_precision = {name: value for name, value in options.items() if name in OPTIONS[precision]}
    return of_precision, {name: value for name, value in options.items() if name not in of_precision}


@dataclass(frozen=True)
class _Standard:
    """What a file is held against, and how much of it may be lost."""

    samples: Samples
    reference: str
    max_drop: float | None


def _standard(
    bundle: Bundle, max_drop: float | None, data: str | None, split: str, threads: int | None
) -> _Standard:
    if data is None:
        return _Standard(bundle.samples(), reference_of(bundle), max_drop)
    from smash_export.measure.labelled import from_data

    labelled = from_data(bundle, data, split)
    samples, reference = reference_samples(bundle, labelled, threads)
    return _Standard(samples, reference, max_drop)


def _request(job: _Job, source: Source, work: Path) -> tuple[CompileRequest, JsonObject]:
    bundle, runtime, precision, options = job.bundle, job.runtime, job.precision, job.options
    onnx = source.onnx
    notes: JsonObject = {}
    if precision in CAST_IN_GRAPH and runtime.precision_source == "onnx":
        from smash_export.compiling.precision import prepare_onnx

        of_precision, options = _by_owner(options, precision)
        onnx, notes = prepare_onnx(
            bundle, precision, target=runtime, destination=work, options=of_precision, source=onnx
        )
    calibration = None
    if precision in CALIBRATED and "calibration.npz" in bundle.manifest.files:
        calibration = bundle.preprocessing.normalise(bundle.calibration())
    program = None
    if runtime.starts_from_program(onnx):
        from smash_export.export.torch_program import write_torch_program

        program = write_torch_program(bundle, work / "model.pt2", source.weights)
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


def _verify(job: _Job, folder: Path, result: CompileResult) -> tuple[Evidence, list[str]]:
    """Evidence for the manifest, and what is wrong with the file (nothing: it passed)."""
    bundle, target, precision, standard = job.bundle, job.runtime.name, job.precision, job.standard
    rounding = held_to(bundle, precision)
    gate = GATES[rounding]
    if standard.max_drop is not None:
        gate = replace(gate, drop=standard.max_drop)
    evidence = Evidence(gate, describe_machine())
    main = folder / result.main
    if not main.exists():
        return evidence, [f"expected the file {result.main}, received nothing from {target}"]
    try:
        options = SessionOptions(threads=job.threads)
        with open_session(target, main, bundle.signature, options, job.isolated) as session:
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
    return evidence, parity.problems(rounding, standard.max_drop)


def _reject(bundle: Bundle, target: str, precision: str, attempt: _Attempt) -> VerificationError:
    """Keep the file under a name that is never used, beside the reason."""
    report = {
        "target": target,
        "precision": precision,
        "problems": attempt.problems,
        "evidence": plain(attempt.evidence.to_json()),
        "notes": plain(attempt.notes),
    }
    files.write_json(attempt.folder / "report.json", report)
    rejected = bundle.rejected_folder(target, precision)
    shutil.rmtree(rejected, ignore_errors=True)
    os.rename(attempt.folder, rejected)
    return VerificationError(
        f"{target} {precision} does not do what the network does: {'; '.join(attempt.problems)}",
        hint=f"{_next(bundle, target, precision)}The file and the measurements are in {rejected}",
    )


def _next(bundle: Bundle, target: str, precision: str) -> str:
    """Commands that may help an int8 file."""
    if precision != "int8":
        return ""
    command = f"smash-export compile {shlex.quote(str(bundle.path))} --target {target} --precision int8"
    return (
        f"Mend the network for int8: {command} --effort high. "
        f"Judge it on more images: {command} --data NAME:PATH. "
        f"Allow a larger loss: {command} --max-drop POINTS. Train for int8: smash-export freeze --qat. "
    )

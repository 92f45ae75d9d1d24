"""The one latency measurement, and ``bench``: every file of a bundle, measured on this machine.

Timings go through the session that predicts, on real images. Several files are measured in turns
(*interleaved* rounds in random order), so that a change of the machine's clock or load meets all of
them; ratios of their medians then mean something even where the medians themselves move. Each number
comes with n, threads, load average and spread, and says so when it should not be trusted.

``bench`` gives every file a process of its own (:mod:`smash_export.measure.bench_worker`): the spinning
thread pools of two runtimes in one process slow each other 10 to 40 times, and cold start and peak memory
belong to a process.
"""

from __future__ import annotations

import gc
import os
import random
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from smash_base.errors import SmashError, UsageError
from smash_targets.base import Session, get_target

if TYPE_CHECKING:
    from smash_export.bundle.bundle import Bundle
    from smash_export.measure.bench_worker import Worker

MIN_RUNS = 20  # even when one inference takes longer than the time given
SPREAD_LIMIT = 0.25
FASTER = 0.98  # a ratio of times above this is not called faster


@dataclass(frozen=True)
class Latency:
    """Time of one inference, in milliseconds.

    Attributes:
        min_ms, p50_ms, p90_ms, p99_ms: smallest, median, 90th and 99th percentile.
        n: number of inferences timed.
        threads: in use for one inference, 0 when the runtime does not tell.
        load_average: of the machine over the minute before; includes what was measured.
        spread: interquartile range over the median.
        warnings: why the numbers should not be trusted; empty when nothing speaks against them.
    """

    min_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    n: int
    threads: int
    load_average: float
    spread: float
    warnings: tuple[str, ...] = ()

    @property
    def flagged(self) -> bool:
        """Whether the numbers should not be trusted."""
        return bool(self.warnings)

    @classmethod
    def from_nanoseconds(cls, times: Sequence[int] | np.ndarray, *, threads: int, load: float) -> Latency:
        """Summarise single times.

        Args:
            times: int [n], n >= 1.
            load: load average before the measurement began.
        """
        values = np.asarray(times, dtype=np.float64) / 1e6
        low, p25, p50, p75, p90, p99 = np.percentile(values, (0, 25, 50, 75, 90, 99))
        spread = float((p75 - p25) / p50) if p50 > 0 else 0.0
        cores = len(os.sched_getaffinity(0))
        warnings = []
        if spread > SPREAD_LIMIT:
            warnings.append(f"times are spread: half of them lie {spread:.0%} of the median apart")
        if load > cores:
            warnings.append(f"the machine was busy: load {load:.1f} on {cores} cores")
        if threads > cores:
            warnings.append(f"{threads} threads on {cores} cores")
        if len(values) < MIN_RUNS:
            warnings.append(f"only {len(values)} inferences")
        return cls(
            min_ms=round(float(low), 6),
            p50_ms=round(float(p50), 6),
            p90_ms=round(float(p90), 6),
            p99_ms=round(float(p99), 6),
            n=len(values),
            threads=threads,
            load_average=round(load, 2),
            spread=round(spread, 4),
            warnings=tuple(warnings),
        )

    def to_json(self) -> dict[str, Any]:
        """JSON values for manifests and ``--json``."""
        return {**asdict(self), "warnings": list(self.warnings), "flagged": self.flagged}


def measure_latency(
    session: Session, batch: np.ndarray, *, seconds: float = 1.0, warm_up: float = 0.2
) -> Latency:
    """Time one session on one batch.

    Args:
        batch: float32 [B, *input_shape], real images.
        seconds: how long to measure; at least 20 inferences are timed in any case.
        warm_up: seconds (and at least three inferences) that are not counted.
    """
    load = os.getloadavg()[0]
    _warm_up(session, batch, warm_up)
    return Latency.from_nanoseconds(
        time_runs(session, batch, seconds), threads=session.info.threads, load=load
    )


def interleaved(
    runs: Mapping[str, tuple[Session, np.ndarray]],
    *,
    seconds: float = 1.0,
    rounds: int = 5,
    warm_up: float = 0.2,
    seed: int = 0,
) -> dict[str, Latency]:
    """Time several sessions of one process in turns, in a random order each round.

    Args:
        runs: name -> session and the batch it gets.
        seconds: for each of them, over all rounds.
    """
    load = os.getloadavg()[0]
    for session, batch in runs.values():
        _warm_up(session, batch, warm_up)
    times: dict[str, list[np.ndarray]] = {name: [] for name in runs}
    for order in round_orders(list(runs), rounds, seed):
        for name in order:
            session, batch = runs[name]
            times[name].append(time_runs(session, batch, seconds / rounds, MIN_RUNS // rounds + 1))
    return {
        name: Latency.from_nanoseconds(np.concatenate(parts), threads=runs[name][0].info.threads, load=load)
        for name, parts in times.items()
    }


def ratio(one: Latency, other: Latency) -> float:
    """Median of ``one`` over the median of ``other``; above 1 means that ``one`` is slower."""
    return one.p50_ms / other.p50_ms


def time_runs(session: Session, batch: np.ndarray, seconds: float, least: int = MIN_RUNS) -> np.ndarray:
    """Nanoseconds of each inference, int64 [n], for ``seconds`` and at least ``least`` inferences."""
    return time_calls(lambda: session.run(batch), seconds, least)


def time_calls(call: Callable[[], object], seconds: float, least: int = MIN_RUNS) -> np.ndarray:
    """Nanoseconds of each call, int64 [n]; the garbage collector waits meanwhile."""
    times: list[int] = []
    clock = time.perf_counter_ns
    collecting = gc.isenabled()
    gc.disable()
    try:
        end = clock() + int(seconds * 1e9)
        while True:
            start = clock()
            call()
            stop = clock()
            times.append(stop - start)
            if stop >= end and len(times) >= least:
                return np.asarray(times, dtype=np.int64)
    finally:
        if collecting:
            gc.enable()


def round_orders(names: list[str], rounds: int, seed: int) -> list[list[str]]:
    """The names in a random order for each round."""
    generator = random.Random(seed)
    return [generator.sample(names, len(names)) for _ in range(max(1, rounds))]


def _warm_up(session: Session, batch: np.ndarray, seconds: float) -> None:
    time_runs(session, batch, seconds, least=3)


# --- every file of a bundle ------------------------------------------------------------------------


@dataclass(frozen=True)
class BenchedFile:
    """One file of a bundle and the path that its target opens.

    Attributes:
        source: whether it is model.onnx or model.torchscript.pt itself, not a compiled file.
        size: bytes.
    """

    target: str
    precision: str
    path: Path
    size: int
    source: bool

    @property
    def name(self) -> str:
        """``target:precision``, as in ``--target``."""
        return f"{self.target}:{self.precision}"


@dataclass(frozen=True)
class Measurement:
    """What was measured of one file.

    Attributes:
        target, precision, source, size_bytes: which file.
        status: "measured", "skipped" (its runtime is not here) or "failed".
        problem: why it was skipped or failed.
        runtime: what was really used, see :class:`smash_targets.base.SessionInfo`.
        latency: by batch size.
        stages: median milliseconds of ``preprocess`` (encoded image to tensor), ``inference`` and
            ``postprocess`` (logits to labels), and of ``end_to_end``.
        memory: ``peak_bytes`` of the process; ``base_bytes`` before the runtime was imported.
        cold_start: seconds from starting the process to the first answer (``total_s``), and in it
            ``import_s``, ``open_s`` and ``first_s``.
        relative_to_fp32: median over the fp32 median of the same runtime, at the first batch size.
        slower_than_fp32: whether a lower precision brought no speed, by the median or by the smallest
            time; None when not known.
        loadgen: results of the LoadGen scenarios.
    """

    target: str
    precision: str
    source: bool
    size_bytes: int
    status: Literal["measured", "skipped", "failed"] = "measured"
    problem: str = ""
    runtime: dict[str, Any] = field(default_factory=dict)
    latency: dict[int, Latency] = field(default_factory=dict)
    stages: dict[str, float] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)
    cold_start: dict[str, float] = field(default_factory=dict)
    relative_to_fp32: float | None = None
    slower_than_fp32: bool | None = None
    loadgen: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """``target:precision``."""
        return f"{self.target}:{self.precision}"

    @property
    def images_per_second(self) -> dict[int, float]:
        """Throughput by batch size: images of one batch over the median time of one."""
        return {size: round(1000 * size / latency.p50_ms, 1) for size, latency in self.latency.items()}

    def to_json(self) -> dict[str, Any]:
        """JSON values for the manifest and ``--json``."""
        document = asdict(self)
        document["latency"] = {str(size): latency.to_json() for size, latency in self.latency.items()}
        document["images_per_second"] = {str(size): rate for size, rate in self.images_per_second.items()}
        return document


def bundle_files(bundle: Bundle, select: Sequence[str] = ()) -> list[BenchedFile]:
    """Every file that can be measured: compiled ones, and the source files where no compiled one
    of the same runtime and precision stands for them.

    Args:
        select: ``target`` or ``target:precision``; nothing means all.

    Raises:
        UsageError: a selection names no file of the bundle.
    """
    found = [
        BenchedFile(file.target, file.precision, file.main, file.size, False) for file in bundle.compiled
    ]
    sources = [("onnxruntime", bundle.onnx)]
    if bundle.torchscript is not None:
        sources.insert(0, ("torchscript", bundle.torchscript))
    for target, path in reversed(sources):
        if bundle.find_compiled(target) is None:
            found.insert(0, BenchedFile(target, "fp32", path, path.stat().st_size, True))
    if not select:
        return found
    chosen = [file for file in found if file.target in select or file.name in select]
    for wish in select:
        if not any(wish in (file.target, file.name) for file in found):
            target, _, precision = wish.partition(":")
            raise UsageError(
                f"{bundle.path} has no file {wish!r}",
                expected=", ".join(file.name for file in found),
                received=wish,
                hint=f"Make it: smash-export compile {bundle.path} --target {target}"
                + (f" --precision {precision}" if precision else ""),
            )
    return chosen


def bench_bundle(
    bundle: Bundle,
    *,
    select: Sequence[str] = (),
    threads: int = 1,
    batches: Sequence[int] = (1,),
    seconds: float = 2.0,
    rounds: int = 5,
    scenarios: Sequence[str] = (),
    scenario_seconds: float = 5.0,
    timeout: float = 120.0,
    logits: Path | None = None,
    advance: Callable[..., None] = lambda n=1, **fields: None,
) -> list[Measurement]:
    """Measure the files of a bundle in interleaved rounds, each in a process of its own.

    Args:
        select: see :func:`bundle_files`.
        threads: for one inference.
        batches: batch sizes; the bundle's range must allow them.
        seconds: for each file and batch size, over all rounds.
        scenarios: LoadGen scenarios to run as well, see :mod:`smash_export.measure.loadgen`.
        scenario_seconds: for each scenario.
        timeout: seconds after which a silent process is ended and its file called failed.
        logits: a folder; the logits of the bundled images by each file land in it, as TARGET-PRECISION.npy.
        advance: called after every step; there are ``steps(...)`` of them.

    Returns:
        one measurement per file, in the order of the bundle. A runtime that is missing, crashes or
        hangs costs its own row only.

    Raises:
        UsageError: a batch size that the bundle does not take, or no such file.
    """
    from smash_export.measure.bench_worker import Worker

    smallest, _, largest = bundle.signature.batch
    wrong = [size for size in batches if not smallest <= size <= largest]
    if wrong or not batches:
        raise UsageError(
            "this bundle does not take that batch", expected=f"{smallest} to {largest}", received=wrong
        )
    results: dict[str, Measurement] = {}
    workers: dict[str, Worker] = {}
    chosen = bundle_files(bundle, select)
    load = os.getloadavg()[0]
    with ExitStack() as stack:
        shared = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="smash-bench-")))
        images = bundle.samples().images
        np.save(shared / "images.npy", images, allow_pickle=False)
        for file in chosen:
            row = Measurement(file.target, file.precision, file.source, file.size)
            state = get_target(file.target).availability()
            if not state.available:
                problem = f"{state.reason}. {state.install}".strip()
                results[file.name] = replace(row, status="skipped", problem=problem)
                continue
            try:
                worker = Worker.start(bundle, file, shared / "images.npy", threads=threads, timeout=timeout)
                stack.callback(worker.stop)
                results[file.name] = replace(row, runtime=worker.runtime, cold_start=worker.cold_start)
                workers[file.name] = worker
            except SmashError as error:
                results[file.name] = replace(row, status="failed", problem=str(error))
            advance(1, file=file.name)
        times: dict[tuple[str, int], list[int]] = {}
        for size in batches:
            for order in round_orders(list(workers), rounds, seed=size):
                for name in order:
                    if name in workers:
                        part = _guarded(workers, results, name, "time", size, seconds / max(1, rounds))
                        times.setdefault((name, size), []).extend(part or [])
                        advance(1, file=name, batch=size)
        for name in list(workers):
            stages = _guarded(workers, results, name, "stages", min(1.0, seconds))
            memory = _guarded(workers, results, name, "memory")
            if logits is not None:
                _guarded(workers, results, name, "logits", logits / f"{name.replace(':', '-')}.npy")
            if stages is None or memory is None:
                continue
            scores = {}
            for scenario in scenarios:
                answer = _guarded(workers, results, name, "scenario", scenario, scenario_seconds)
                if answer is None:
                    break
                scores[scenario] = answer
            latency = {
                size: Latency.from_nanoseconds(
                    times[name, size], threads=results[name].runtime["threads"], load=load
                )
                for size in batches
            }
            if name in workers:
                results[name] = replace(
                    results[name], latency=latency, stages=stages, memory=memory, loadgen=scores
                )
            advance(1, file=name)
    return _against_fp32([results[file.name] for file in chosen], batches[0])


def steps(files: int, batches: int, rounds: int) -> int:
    """How often :func:`bench_bundle` calls ``advance``."""
    return files * (2 + batches * rounds)


def _guarded(
    workers: dict[str, Worker],
    results: dict[str, Measurement],
    name: str,
    question: str,
    *arguments: Any,
) -> Any:
    """Ask a worker (a method of it, by name); one that fails is stopped and costs its own row only."""
    if name not in workers:
        return None
    try:
        return getattr(workers[name], question)(*arguments)
    except SmashError as error:
        workers.pop(name).stop()
        results[name] = replace(results[name], status="failed", problem=str(error))
        return None


def _against_fp32(rows: list[Measurement], batch: int) -> list[Measurement]:
    """Mark files of lower precision that are no faster than fp32 of the same runtime."""
    full = {row.target: row.latency[batch] for row in rows if row.precision == "fp32" and row.latency}
    marked = []
    for row in rows:
        if row.precision != "fp32" and row.latency and row.target in full:
            mine, other = row.latency[batch], full[row.target]
            # Both must say so: on a busy machine medians wander by more than a cast brings.
            slower = max(ratio(mine, other), mine.min_ms / other.min_ms) > FASTER
            row = replace(row, relative_to_fp32=round(ratio(mine, other), 4), slower_than_fp32=slower)
        marked.append(row)
    return marked

"""``bench``: every file of a bundle, measured on this machine with :mod:`smash_export.measure.timing`.

``bench`` gives every file a process of its own (:mod:`smash_export.measure.bench_process`): the spinning
thread pools of two runtimes in one process slow each other 10 to 40 times, and cold start and peak memory
belong to a process.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar

import numpy as np

from smash_base import files
from smash_base.errors import SmashError, UsageError
from smash_base.json_values import JsonObject
from smash_base.records import read_record
from smash_export.bundle.bundle import Bundle, opened
from smash_export.bundle.runnable import RunnableFile, selected_files
from smash_export.measure.bench_process import BenchProcess
from smash_export.measure.clock import ClockChange, read_clock
from smash_export.measure.loadgen import LoadGenResult
from smash_export.measure.machine import describe_machine, now
from smash_export.measure.timing import Latency, ratio, round_orders
from smash_targets.base import SessionInfo, get_target

P = ParamSpec("P")
T = TypeVar("T")

FASTER = 0.98  # a ratio of times above this is not called faster


@dataclass(frozen=True)
class FileMeasurement:
    """What was measured of one file.

    Attributes:
        target, precision, source, size_bytes: which file.
        status: "measured", "skipped" (its runtime is not here) or "failed".
        problem: Reason why it was skipped or failed.
        runtime: what was really used, see :class:`smash_targets.base.SessionInfo`.
        latency: Latency by batch size.
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
    runtime: SessionInfo | None = None
    latency: dict[int, Latency] = field(default_factory=dict)
    stages: dict[str, float] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)
    cold_start: dict[str, float] = field(default_factory=dict)
    relative_to_fp32: float | None = None
    slower_than_fp32: bool | None = None
    loadgen: dict[str, LoadGenResult] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """``target:precision``."""
        return f"{self.target}:{self.precision}"

    @property
    def images_per_second(self) -> dict[int, float]:
        """Throughput by batch size: images of one batch over the median time of one."""
        return {size: round(1000 * size / latency.p50_ms, 1) for size, latency in self.latency.items()}

    def to_json(self) -> JsonObject:
        """JSON values for the manifest and ``--json``."""
        document = asdict(self)
        document["runtime"] = {} if self.runtime is None else asdict(self.runtime)
        document["latency"] = {str(size): latency.to_json() for size, latency in self.latency.items()}
        document["loadgen"] = {name: result.to_json() for name, result in self.loadgen.items()}
        document["images_per_second"] = {str(size): rate for size, rate in self.images_per_second.items()}
        return document

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> FileMeasurement:
        """Read :meth:`to_json` back."""
        known = {name: value[name] for name in cls.__dataclass_fields__}
        known["runtime"] = read_record(SessionInfo, value["runtime"], "runtime") if value["runtime"] else None
        known["latency"] = {int(size): Latency.from_json(item) for size, item in value["latency"].items()}
        known["loadgen"] = {
            name: read_record(LoadGenResult, item, name) for name, item in value["loadgen"].items()
        }
        return cls(**known)


@dataclass(frozen=True)
class BenchSettings:
    """How files were measured.

    Attributes:
        threads: Threads of one inference.
        batches: Batch sizes.
        seconds: Time for each file and batch size, over all rounds.
        rounds: Number of interleaved rounds.
    """

    threads: int
    batches: tuple[int, ...]
    seconds: float
    rounds: int


@dataclass(frozen=True)
class Benchmark:
    """What :func:`bench` measured, and where.

    Attributes:
        files: one measurement per file, in the order of the bundle.
        settings: How it was measured.
        machine, date: where and when.
        clock: governor, frequency, temperature and throttling before and after.
        unrecorded: Reason why it does not stand in the bundle's manifest, "" if it does.
    """

    files: tuple[FileMeasurement, ...]
    settings: BenchSettings
    machine: JsonObject = field(default_factory=describe_machine)
    date: str = field(default_factory=now)
    clock: JsonObject = field(default_factory=dict)
    unrecorded: str = ""

    def to_json(self) -> JsonObject:
        """JSON values for the manifest and ``--json``."""
        return {
            "machine": self.machine,
            "date": self.date,
            "settings": asdict(self.settings),
            "clock": self.clock,
            "files": [file.to_json() for file in self.files],
        }


def bench(
    bundle: Bundle | Path | str,
    *,
    targets: Sequence[str] = (),
    threads: int = 1,
    batches: Sequence[int] = (1,),
    seconds: float = 2.0,
    rounds: int = 5,
    scenarios: Sequence[str] = (),
    scenario_seconds: float = 10.0,
    timeout: float = 120.0,
    advance: Callable[..., None] = lambda n=1, **fields: None,
) -> Benchmark:
    """Measure the files of a bundle and record the result in its manifest, section ``bench``, where that
    may be written.

    Args:
        bundle: an opened bundle or its path.
        targets: ``target`` or ``target:precision``; nothing means all.
        threads, batches, seconds, rounds, scenarios, scenario_seconds, timeout, advance: see
            :func:`bench_bundle`.

    Raises:
        UsageError: a batch size that the bundle does not take, or no such file.
    """
    bundle, before = opened(bundle), read_clock()
    files = bench_bundle(
        bundle,
        select=targets,
        threads=threads,
        batches=batches,
        seconds=seconds,
        rounds=rounds,
        scenarios=scenarios,
        scenario_seconds=scenario_seconds,
        timeout=timeout,
        advance=advance,
    )
    settings = BenchSettings(threads, tuple(batches), seconds, rounds)
    change = ClockChange(before, read_clock())
    marked = tuple(_warned(file, change.warnings()) for file in files)
    benchmark = Benchmark(marked, settings, clock=change.to_json())
    return replace(benchmark, unrecorded=bundle.try_record("bench", benchmark.to_json()))


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
) -> list[FileMeasurement]:
    """Measure the files of a bundle in interleaved rounds, each in a process of its own.

    Args:
        select: see :func:`smash_export.bundle.runnable.selected_files`.
        threads: Threads of one inference.
        batches: batch sizes; the bundle's range must allow them.
        seconds: Time for each file and batch size, over all rounds.
        scenarios: LoadGen scenarios to run as well, see :mod:`smash_export.measure.loadgen`.
        scenario_seconds: Time for each scenario.
        timeout: seconds after which a silent process is ended and its file called failed.
        logits: a folder; the logits of the bundled images by each file land in it, as TARGET-PRECISION.npy.
        advance: called after every step; there are ``steps(...)`` of them.

    Returns:
        one measurement per file, in the order of the bundle. A runtime that is missing, crashes or
        hangs costs its own row only.

    Raises:
        UsageError: a batch size that the bundle does not take, or no such file.
    """
    check_batches(bundle, batches)
    bench = _Bench(selected_files(bundle, select), advance)
    with ExitStack() as stack:
        shared = stack.enter_context(files.temporary_folder("smash-bench-"))
        np.save(shared / "images.npy", bundle.samples().images, allow_pickle=False)
        bench.start(stack, bundle, shared / "images.npy", threads, timeout)
        bench.time(batches, seconds, rounds)
        bench.finish(batches, seconds, scenarios, scenario_seconds, logits)
    return _against_fp32([bench.results[file.name] for file in bench.files], batches[0])


def check_batches(bundle: Bundle, batches: Sequence[int]) -> None:
    """Raise UsageError unless the bundle takes these batch sizes, one at least."""
    smallest, _, largest = bundle.signature.batch
    wrong = [size for size in batches if not smallest <= size <= largest]
    if wrong or not batches:
        raise UsageError(
            "this bundle does not take that batch", expected=f"{smallest} to {largest}", received=wrong
        )


class _Bench:
    """The files of one benchmark, their workers, and what is known so far.

    Attributes:
        results: Measurements by name of the file; a worker that fails costs its own only.
    """

    def __init__(self, files: Sequence[RunnableFile], advance: Callable[..., None]) -> None:
        self.files, self.advance = files, advance
        self.results: dict[str, FileMeasurement] = {}
        self._workers: dict[str, BenchProcess] = {}
        self._times: dict[tuple[str, int], list[int]] = {}
        self._load = os.getloadavg()[0]

    def start(self, stack: ExitStack, bundle: Bundle, images: Path, threads: int, timeout: float) -> None:
        """Open every file whose runtime is here; ``stack`` ends the processes."""
        for file in self.files:
            row = FileMeasurement(file.target, file.precision, file.source, file.size)
            state = get_target(file.target).availability()
            if not state.available:
                problem = f"{state.reason}. {state.install}".strip()
                self.results[file.name] = replace(row, status="skipped", problem=problem)
                continue
            try:
                worker = BenchProcess.start(bundle, file, images, threads=threads, timeout=timeout)
                stack.callback(worker.stop)
                self.results[file.name] = replace(row, runtime=worker.runtime, cold_start=worker.cold_start)
                self._workers[file.name] = worker
            except SmashError as error:
                self.results[file.name] = replace(row, status="failed", problem=str(error))
            self.advance(1, file=file.name)

    def time(self, batches: Sequence[int], seconds: float, rounds: int) -> None:
        """Single inferences, in interleaved rounds."""
        for size in batches:
            for order in round_orders(list(self._workers), rounds, seed=size):
                for name in order:
                    if name in self._workers:
                        part = self._ask(name, BenchProcess.time, size, seconds / max(1, rounds))
                        self._times.setdefault((name, size), []).extend(part or [])
                        self.advance(1, file=name, batch=size)

    def finish(
        self,
        batches: Sequence[int],
        seconds: float,
        scenarios: Sequence[str],
        scenario_seconds: float,
        logits: Path | None,
    ) -> None:
        """Stages, memory, logits and scenarios of every file that is still there."""
        for name, worker in list(self._workers.items()):
            stages = self._ask(name, BenchProcess.stages, min(1.0, seconds))
            memory = self._ask(name, BenchProcess.memory)
            answers = None if logits is None else self._ask(name, BenchProcess.logits)
            if logits is not None and answers is not None:
                np.save(logits / f"{name.replace(':', '-')}.npy", answers, allow_pickle=False)
            scores = {}
            for scenario in scenarios:
                score = self._ask(name, BenchProcess.scenario, scenario, scenario_seconds)
                if score is not None:
                    scores[scenario] = score
            if name not in self._workers or stages is None or memory is None:
                continue
            row = self.results[name]
            latency = {
                size: Latency.from_nanoseconds(
                    self._times[name, size], threads=worker.runtime.threads, load=self._load
                )
                for size in batches
            }
            self.results[name] = replace(row, latency=latency, stages=stages, memory=memory, loadgen=scores)
            self.advance(1, file=name)

    def _ask(
        self,
        name: str,
        question: Callable[Concatenate[BenchProcess, P], T],
        *arguments: P.args,
        **named: P.kwargs,
    ) -> T | None:
        """Ask a worker; one that fails is stopped, and its file with it."""
        if name not in self._workers:
            return None
        try:
            return question(self._workers[name], *arguments, **named)
        except SmashError as error:
            self._workers.pop(name).stop()
            self.results[name] = replace(self.results[name], status="failed", problem=str(error))
            return None


def _warned(row: FileMeasurement, warnings: tuple[str, ...]) -> FileMeasurement:
    """The row with what the processor's clock says against its times."""
    latency = {
        size: replace(item, warnings=(*item.warnings, *warnings)) for size, item in row.latency.items()
    }
    return replace(row, latency=latency)


def steps(files: int, batches: int, rounds: int) -> int:
    """How often :func:`bench_bundle` calls ``advance``."""
    return files * (2 + batches * rounds)


def _against_fp32(rows: list[FileMeasurement], batch: int) -> list[FileMeasurement]:
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

"""``bench``: every file of a bundle, measured on this machine with :mod:`smash_export.measure.timing`.

``bench`` gives every file a process of its own (:mod:`smash_export.measure.bench_worker`): the spinning
thread pools of two runtimes in one process slow each other 10 to 40 times, and cold start and peak memory
belong to a process.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from smash_base.errors import SmashError, UsageError
from smash_export.bundle.bundle import Bundle, opened
from smash_export.bundle.runnable import selected_files
from smash_export.measure.bench_worker import Worker
from smash_export.measure.machine import describe_machine, now
from smash_export.measure.timing import Latency, ratio, round_orders
from smash_targets.base import get_target

FASTER = 0.98  # a ratio of times above this is not called faster


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

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Measurement:
        """Read :meth:`to_json` back."""
        known = {name: value[name] for name in cls.__dataclass_fields__}
        latency = {int(size): Latency.from_json(item) for size, item in value["latency"].items()}
        return cls(**{**known, "latency": latency})


@dataclass(frozen=True)
class Benchmark:
    """What :func:`bench` measured, and where.

    Attributes:
        files: one measurement per file, in the order of the bundle.
        settings: threads, batch sizes, seconds and rounds of the measurement.
        machine, date: where and when.
        unrecorded: why it does not stand in the bundle's manifest, "" if it does.
    """

    files: tuple[Measurement, ...]
    settings: dict[str, Any]
    machine: dict[str, Any] = field(default_factory=describe_machine)
    date: str = field(default_factory=now)
    unrecorded: str = ""

    def to_json(self) -> dict[str, Any]:
        """JSON values for the manifest and ``--json``."""
        return {
            "machine": self.machine,
            "date": self.date,
            "settings": self.settings,
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
    bundle = opened(bundle)
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
    settings = {"threads": threads, "batches": list(batches), "seconds": seconds, "rounds": rounds}
    benchmark = Benchmark(tuple(files), settings)
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
) -> list[Measurement]:
    """Measure the files of a bundle in interleaved rounds, each in a process of its own.

    Args:
        select: see :func:`smash_export.bundle.runnable.selected_files`.
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
    smallest, _, largest = bundle.signature.batch
    wrong = [size for size in batches if not smallest <= size <= largest]
    if wrong or not batches:
        raise UsageError(
            "this bundle does not take that batch", expected=f"{smallest} to {largest}", received=wrong
        )
    results: dict[str, Measurement] = {}
    workers: dict[str, Worker] = {}
    chosen = selected_files(bundle, select)
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
                answers = _guarded(workers, results, name, "logits")
                if answers is not None:
                    np.save(logits / f"{name.replace(':', '-')}.npy", answers, allow_pickle=False)
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

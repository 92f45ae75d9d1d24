"""The one latency measurement.

Timings go through the session that predicts, on real images. Several sessions are measured in turns
(*interleaved* rounds in random order), so that a change of the machine's clock or load meets all of
them; ratios of their medians then mean something even where the medians themselves move. Each number
comes with n, threads, load average and spread, and says so when it should not be trusted.
"""

from __future__ import annotations

import gc
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from smash_base.json_values import JsonObject
from smash_targets.base import Session

MIN_RUNS = 20  # even when one inference takes longer than the time given
SPREAD_LIMIT = 0.25


@dataclass(frozen=True)
class Latency:
    """Time of one inference, in milliseconds.

    Attributes:
        min_ms, p50_ms, p90_ms, p99_ms: smallest, median, 90th and 99th percentile.
        n: number of inferences timed.
        threads: in use for one inference, 0 when the runtime does not tell.
        load_average: Load average of the machine over the minute before; includes what was measured.
        spread: interquartile range over the median.
        warnings: Reasons not to trust the numbers; empty when nothing speaks against them.
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

    def to_json(self) -> JsonObject:
        """JSON values for manifests and ``--json``."""
        return {**asdict(self), "warnings": list(self.warnings), "flagged": self.flagged}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Latency:
        """Read :meth:`to_json` back."""
        known = {name: value[name] for name in cls.__dataclass_fields__}
        return cls(**{**known, "warnings": tuple(value["warnings"])})


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
        seconds: Time for each of them, over all rounds.
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
    """Median of ``one`` over the median of ``other``; above 1 means that ``one`` is slower.

    Of their smallest times where one of them is flagged: what else a busy machine does moves medians.
    """
    if one.flagged or other.flagged:
        return one.min_ms / other.min_ms
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

"""Sustained speed: one file after the other, without a pause, for as long as a device needs to get warm.

``bench`` measures seconds; a board without a fan slows down after minutes. Here every file runs for ten
minutes (or as told), in windows of a few seconds: what counts is the last minute against the first.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from smash_base import files
from smash_base.errors import SmashError
from smash_base.json_values import JsonObject
from smash_export.bundle.bundle import Bundle
from smash_export.bundle.runnable import selected_files
from smash_export.measure.bench import check_batches
from smash_export.measure.bench_process import BenchProcess
from smash_export.measure.clock import ClockChange, read_clock
from smash_targets.base import get_target

WINDOW = 5.0  # seconds between two looks at the temperature
EDGE = 60.0  # seconds at the beginning and at the end that are compared
SLOWER = 1.05  # the last minute is called slower from here on


@dataclass(frozen=True)
class Window:
    """A few seconds of it.

    Attributes:
        at: seconds since the beginning, at its end.
        p50_ms: median time of one inference.
        n: inferences.
        celsius, mhz: at its end; None where the system does not tell.
    """

    at: float
    p50_ms: float
    n: int
    celsius: float | None
    mhz: float | None


@dataclass(frozen=True)
class Sustained:
    """One file under sustained load.

    Attributes:
        name: ``target:precision``.
        windows: Windows in their order; empty when it could not be run.
        first_ms, last_ms: median time of one inference in the first and in the last minute (or quarter).
        clock: State before and after, and the highest temperature.
        problem: Reason why it could not be run, "" otherwise.
    """

    name: str
    windows: tuple[Window, ...] = ()
    first_ms: float = 0.0
    last_ms: float = 0.0
    clock: ClockChange | None = None
    problem: str = ""

    @property
    def slowdown(self) -> float:
        """Last minute over the first: above 1 means that it became slower."""
        return self.last_ms / self.first_ms if self.first_ms else 1.0

    @property
    def verdict(self) -> str:
        """In words."""
        if self.problem:
            return self.problem
        words = f"{self.slowdown:.2f}x of the first minute" if self.slowdown > SLOWER else "steady"
        if self.clock is not None and self.clock.throttled:
            words += ", throttled"
        return words

    def to_json(self) -> JsonObject:
        """JSON values."""
        return {
            "name": self.name,
            "first_ms": self.first_ms,
            "last_ms": self.last_ms,
            "slowdown": round(self.slowdown, 4),
            "clock": None if self.clock is None else self.clock.to_json(),
            "windows": [asdict(window) for window in self.windows],
            "problem": self.problem,
            "verdict": self.verdict,
        }


def sustain_bundle(
    bundle: Bundle,
    *,
    select: Sequence[str] = (),
    threads: int = 1,
    batch: int = 1,
    seconds: float = 600.0,
    window: float = WINDOW,
    timeout: float = 120.0,
    advance: Callable[..., None] = lambda n=1, **fields: None,
) -> list[Sustained]:
    """Run every file of a bundle for ``seconds`` without a pause.

    Args:
        select: see :func:`smash_export.bundle.runnable.selected_files`.
        threads, batch: Threads and batch size of one inference.
        window: seconds of each window.
        advance: called with the seconds that have passed.

    Raises:
        UsageError: a batch size that the bundle does not take, or no such file.
    """
    check_batches(bundle, (batch,))
    results = []
    with files.temporary_folder("smash-bench-") as folder:
        images = folder / "images.npy"
        np.save(images, bundle.samples().images, allow_pickle=False)
        for file in selected_files(bundle, select):
            state = get_target(file.target).availability()
            if not state.available:
                results.append(Sustained(file.name, problem=f"skipped: {state.reason}"))
                continue
            try:
                worker = BenchProcess.start(bundle, file, images, threads=threads, timeout=timeout)
                try:
                    results.append(_sustain(file.name, worker, batch, seconds, window, advance))
                finally:
                    worker.stop()
            except SmashError as error:
                results.append(Sustained(file.name, problem=f"failed: {error}"))
    return results


def _sustain(
    name: str,
    worker: BenchProcess,
    batch: int,
    seconds: float,
    window: float,
    advance: Callable[..., None],
) -> Sustained:
    before = read_clock()
    begin = time.monotonic()
    windows: list[Window] = []
    groups: list[np.ndarray] = []  # milliseconds of single inferences, by window
    while (passed := time.monotonic() - begin) < seconds:
        times = np.asarray(worker.time(batch, min(window, seconds - passed))) / 1e6
        clock, at = read_clock(), time.monotonic() - begin
        groups.append(times)
        median = round(float(np.median(times)), 6)
        windows.append(Window(round(at, 2), median, len(times), clock.celsius, clock.mhz))
        advance(at - passed, file=name, p50=median, celsius=clock.celsius or "?")
    degrees = [window.celsius for window in windows if window.celsius is not None]
    change = ClockChange(before, read_clock(), max(degrees, default=None))
    edge = min(EDGE, seconds / 4)
    last = windows[-1].at
    first_times = [group for group, item in zip(groups, windows, strict=True) if item.at <= edge] or groups[
        :1
    ]
    last_times = [
        group for group, item in zip(groups, windows, strict=True) if item.at > last - edge
    ] or groups[-1:]
    return Sustained(
        name,
        tuple(windows),
        round(float(np.median(np.concatenate(first_times))), 6),
        round(float(np.median(np.concatenate(last_times))), 6),
        change,
    )

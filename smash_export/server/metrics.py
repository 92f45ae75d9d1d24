"""Prometheus metrics of the server: requests, errors, queues, batch sizes, latencies.

Counted in plain numbers and turned into Prometheus' families only when they are asked for: a request
costs one lock and a few additions. One registry per server, none of it global, so that several servers
in a process do not mix.
"""

from __future__ import annotations

import copy
import functools
import os
import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from smash_base.json_values import JsonObject
from smash_export.server.batching import QueuedRequest

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
_PREFIX = "smash_export"
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)


class _Counter:
    """Numbers that grow, by label values."""

    def __init__(self, name: str, help_text: str, labels: tuple[str, ...]) -> None:
        self.name, self.help_text, self.labels = name, help_text, labels
        self.values: dict[tuple[str, ...], float] = {}

    def add(self, key: tuple[str, ...], value: float = 1) -> None:
        self.values[key] = self.values.get(key, 0) + value

    def join(self, values: Mapping[tuple[str, ...], float]) -> None:
        """Add the numbers of another process."""
        for key, value in values.items():
            self.add(key, value)

    def family(self) -> Metric:
        family = CounterMetricFamily(f"{_PREFIX}_{self.name}", self.help_text, labels=self.labels)
        for key, value in self.values.items():
            family.add_metric(key, value)
        return family


class _Histogram:
    """Distributions by label values: how many fell into each bucket, and their sum."""

    def __init__(self, name: str, help_text: str, labels: tuple[str, ...], bounds: tuple[float, ...]) -> None:
        self.name, self.help_text, self.labels, self.bounds = name, help_text, labels, bounds
        self.values: dict[tuple[str, ...], list[float]] = {}

    def begin(self, key: tuple[str, ...]) -> list[float]:
        """The row of these labels, of zeros at first: buckets, +Inf, sum."""
        return self.values.setdefault(key, [0.0] * (len(self.bounds) + 2))

    def add(self, key: tuple[str, ...], value: float, times: int = 1) -> None:
        row = self.values.get(key) or self.begin(key)
        row[bisect_left(self.bounds, value)] += times
        row[-1] += value * times

    def join(self, values: Mapping[tuple[str, ...], list[float]]) -> None:
        """Add the numbers of another process."""
        for key, row in values.items():
            mine = self.values.setdefault(key, [0.0] * len(row))
            mine[:] = [a + b for a, b in zip(mine, row, strict=True)]

    def total(self, key: tuple[str, ...]) -> tuple[int, int]:
        """How many there were, and their sum in units of 1e-9."""
        row = self.values.get(key)
        return (0, 0) if row is None else (int(sum(row[:-1])), round(row[-1] * 1e9))

    def family(self) -> Metric:
        family = HistogramMetricFamily(f"{_PREFIX}_{self.name}", self.help_text, labels=self.labels)
        for key, row in self.values.items():
            total, buckets = 0.0, []
            for bound, count in zip((*map(str, self.bounds), "+Inf"), row[:-1], strict=True):
                total += count
                buckets.append((bound, total))
            family.add_metric(key, buckets, row[-1])
        return family


@dataclass(frozen=True)
class Counts:
    """The numbers of one process, for others.

    Attributes:
        tables: name of a counter or histogram -> its rows.
        last: when each model last ran.
        ran: nanoseconds in the runtime of each model, counted for each request of a batch.
        waiting: images in each model's queue.
        process: id of the process itself.
    """

    tables: dict[str, dict[tuple[str, ...], Any]]
    last: dict[tuple[str, str], int]
    ran: dict[tuple[str, str], int]
    waiting: dict[tuple[str, str], float]
    process: int


class _Processes:
    """The processor time, memory and files of some processes, each summed; the time of the first start."""

    def __init__(self, processes: Iterable[int]) -> None:
        self._collectors = [
            ProcessCollector(pid=functools.partial(int, pid), registry=None) for pid in processes
        ]

    def collect(self) -> Iterator[Metric]:
        """Called by the registry."""
        families: dict[str, Metric] = {}
        for collector in self._collectors:
            for family in collector.collect():
                first = families.setdefault(family.name, family)
                if first is not family and first.samples and family.samples:
                    values = (first.samples[0].value, family.samples[0].value)
                    value = min(values) if "start_time" in family.name else sum(values)
                    first.samples[0] = first.samples[0]._replace(value=value)
        yield from families.values()


class Metrics:
    """Every metric.

    Args:
        processes: whose memory and time are told; this one if None.
    """

    def __init__(self, processes: Iterable[int] | None = None) -> None:
        self._lock = threading.Lock()
        answers, model = ("protocol", "route", "code"), ("model", "version")
        self._requests = _Counter("requests", "Answered requests.", answers)
        self._seconds = _Histogram(
            "request_seconds", "Time from the request to the answer.", answers[:2], _SECONDS
        )
        self._images = _Counter("images", "Images that ran.", model)
        self._failures = _Counter("run_errors", "Requests a run failed.", model)
        self._batch = _Histogram("batch_images", "Images per run.", model, _SIZES)
        self._run = _Histogram("run_seconds", "Time of a run.", model, _SECONDS)
        self._queue_time = _Histogram("queue_seconds", "Time in the queue.", model, _SECONDS)
        self._last: dict[tuple[str, str], int] = {}  # when a model last ran, ms since 1970
        self._ran_for_requests: Counter[tuple[str, str]] = Counter()  # ns in the runtime, of each request
        self._refused: dict[str, int] = {}  # by route, all so far; written by one thread without the lock
        self._told: dict[str, int] = {}  # of these, what the tables have
        self._loads = _Counter("model_loads", "Loads of a model.", ("model", "result"))
        self._registry = CollectorRegistry()
        self._waiting: dict[tuple[str, str], Callable[[], float]] = {}
        self._registry.register(_Processes([os.getpid()] if processes is None else processes))
        self._registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """Called by the registry."""
        with self._lock:
            self._tell_refused()
            families = [metric.family() for metric in self._tables()]
        yield from families
        queue = GaugeMetricFamily(
            f"{_PREFIX}_queue_images", "Images waiting now.", labels=("model", "version")
        )
        for key, waiting in list(self._waiting.items()):
            queue.add_metric(key, waiting())
        yield queue

    def _tables(self) -> tuple[_Counter | _Histogram, ...]:
        return (
            self._requests,
            self._seconds,
            self._images,
            self._failures,
            self._batch,
            self._run,
            self._queue_time,
            self._loads,
        )

    def counts(self) -> Counts:
        """The numbers so far, copied."""
        with self._lock:
            self._tell_refused()
            tables = {table.name: copy.deepcopy(dict(table.values)) for table in self._tables()}
            last, ran = dict(self._last), dict(self._ran_for_requests)
        waiting = {key: read() for key, read in list(self._waiting.items())}
        return Counts(tables, last, ran, waiting, os.getpid())

    @classmethod
    def together(cls, parts: Iterable[Counts]) -> Metrics:
        """The sum of the numbers of several processes."""
        parts = list(parts)
        total = cls([part.process for part in parts])
        for part in parts:
            for table in total._tables():
                table.join(part.tables[table.name])
            for key, when in part.last.items():
                total._last[key] = max(when, total._last.get(key, 0))
            total._ran_for_requests.update(part.ran)
        keys = {key for part in parts for key in part.waiting}
        for key in sorted(keys):
            waiting = sum(part.waiting.get(key, 0) for part in parts)
            total.watch_queue(*key, functools.partial(float, waiting))
        return total

    def answered(self, protocol: str, route: str, code: int | str, seconds: float) -> None:
        """Count one answer. ``route`` is a template, never what a client sent."""
        with self._lock:
            self._requests.add((protocol, route, str(code)))
            self._seconds.add((protocol, route), seconds)

    def refused(self, route: str) -> None:
        """Count an HTTP request that was refused unread, in no time; for the thread of the event loop. Under
        overload these are most requests, so they reach the tables only when somebody reads them."""
        self._refused[route] = self._refused.get(route, 0) + 1

    def _tell_refused(self) -> None:
        for route, count in self._refused.copy().items():
            new = count - self._told.get(route, 0)
            if new:
                self._requests.add(("http", route, "503"), new)
                self._seconds.add(("http", route), 0.0, new)
                self._told[route] = count

    def loaded(self, model: str, result: str) -> None:
        """Count a load: "done" or "refused"; the other is there as well."""
        with self._lock:
            for known in ("done", "refused"):
                self._loads.add((model, known), known == result)

    def observer(self, model: str, version: str) -> Callable[[list[QueuedRequest]], None]:
        """What a model's batcher reports its runs to. Its numbers are there from now on, as zeros: a number
        that begins with the first image or failure shows no growth by it."""
        key = (model, version)
        with self._lock:
            for counter in (self._images, self._failures):
                counter.add(key, 0)
            for histogram in (self._batch, self._run, self._queue_time):
                histogram.begin(key)

        def observe(requests: list[QueuedRequest]) -> None:
            ran = requests[0]  # of a batch that raised nothing each request knows size and time of the run
            failed = sum(request.error is not None for request in requests)
            with self._lock:
                for request in requests:
                    self._queue_time.add(key, request.waited)
                if failed:
                    self._failures.add(key, failed)
                self._last[key] = int(time.time() * 1e3)
                if ran.batch:
                    self._images.add(key, ran.batch)
                    self._batch.add(key, ran.batch)
                    self._run.add(key, ran.ran)
                    self._ran_for_requests[key] += round(1e9 * ran.ran) * (len(requests) - failed)

        return observe

    def statistics(self, model: str, version: str) -> JsonObject:
        """What Triton's statistics extension says about a model since it was first opened; times in ns."""
        key = (model, version)
        with self._lock:
            queue, run = self._queue_time.total(key), self._run.total(key)
            failures = int(self._failures.values.get(key, 0))
            images, last = int(self._images.values.get(key, 0)), self._last.get(key, 0)
            ran = self._ran_for_requests[key]
        nothing = {"count": 0, "ns": 0}
        answered = max(0, queue[0] - failures)
        return {
            "name": model,
            "version": version,
            "last_inference": last,
            "inference_count": images,
            "execution_count": run[0],
            "inference_stats": {
                "success": {"count": answered, "ns": queue[1] + ran},
                "fail": {"count": failures, "ns": 0},
                "queue": {"count": queue[0], "ns": queue[1]},
                "compute_input": nothing,
                "compute_infer": {"count": run[0], "ns": run[1]},
                "compute_output": nothing,
            },
            "batch_stats": [],
        }

    def watch_queue(self, model: str, version: str, waiting: Callable[[], float]) -> None:
        """Read the length of a queue whenever the metrics are asked for."""
        self._waiting[(model, version)] = waiting

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self._registry)

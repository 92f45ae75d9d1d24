"""Prometheus metrics of the server: requests, errors, queues, batch sizes, latencies.

One registry per server, none of it global, so that several servers in a process do not mix.
"""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from smash_export.server.batching import Job

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Every metric, and children for the hot path."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        prefix = "smash_export"
        self._requests = Counter(
            f"{prefix}_requests", "Answered requests.", ["protocol", "route", "code"], registry=registry
        )
        self._seconds = Histogram(
            f"{prefix}_request_seconds",
            "Time from the first byte to the answer.",
            ["protocol", "route"],
            buckets=_SECONDS,
            registry=registry,
        )
        labels = ["model", "version"]
        self._images = Counter(f"{prefix}_images", "Images that ran.", labels, registry=registry)
        self._failures = Counter(f"{prefix}_run_errors", "Requests a run failed.", labels, registry=registry)
        self._batch = Histogram(
            f"{prefix}_batch_images", "Images per run.", labels, buckets=_SIZES, registry=registry
        )
        self._run = Histogram(
            f"{prefix}_run_seconds", "Time of a run.", labels, buckets=_SECONDS, registry=registry
        )
        self._queue_time = Histogram(
            f"{prefix}_queue_seconds", "Time in the queue.", labels, buckets=_SECONDS, registry=registry
        )
        self._queue = Gauge(f"{prefix}_queue_images", "Images waiting now.", labels, registry=registry)
        self._exchanges = Counter(
            f"{prefix}_model_loads", "Loads of a model.", ["model", "result"], registry=registry
        )
        self._counters: dict[tuple[str, str, int | str], Counter] = {}
        self._histograms: dict[tuple[str, str], Histogram] = {}

    def answered(self, protocol: str, route: str, code: int | str, seconds: float) -> None:
        """Count one answer. ``route`` is a template, never what a client sent."""
        counter = self._counters.get((protocol, route, code))
        if counter is None:
            counter = self._counters[protocol, route, code] = self._requests.labels(protocol, route, code)
        counter.inc()
        histogram = self._histograms.get((protocol, route))
        if histogram is None:
            histogram = self._histograms[protocol, route] = self._seconds.labels(protocol, route)
        histogram.observe(seconds)

    def loaded(self, model: str, result: str) -> None:
        """Count a load: "done" or "refused"."""
        self._exchanges.labels(model, result).inc()

    def observer(self, model: str, version: str) -> Callable[[list[Job]], None]:
        """What a model's batcher reports its runs to."""
        images = self._images.labels(model, version)
        failures = self._failures.labels(model, version)
        batch = self._batch.labels(model, version)
        run = self._run.labels(model, version)
        queue_time = self._queue_time.labels(model, version)

        def observe(jobs: list[Job]) -> None:
            for job in jobs:
                queue_time.observe(job.waited)
            first = jobs[0]
            if first.error is not None:
                failures.inc(len(jobs))
                return
            images.inc(first.batch)
            batch.observe(first.batch)
            run.observe(first.ran)

        return observe

    def watch_queue(self, model: str, version: str, waiting: Callable[[], int]) -> None:
        """Read the length of a queue whenever the metrics are asked for."""
        self._queue.labels(model, version).set_function(waiting)

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self._registry)

"""MLPerf-style measurement: the four scenarios of MLCommons LoadGen on real images.

LoadGen decides when which image is asked for, measures, and says VALID or INVALID by its own rules; the
system under test is one :class:`~smash_targets.base.Session`. What is reported are *MLPerf-style results
(LoadGen scenarios)*: not MLPerf results, which need review, 600 seconds and prescribed networks.

    SingleStream   one image after the other: 90th percentile of latency
    MultiStream    eight images at a time: 99th percentile of latency of the eight
    Offline        all images at once: images per second
    Server         images arrive at random (Poisson) at a given rate: 99th percentile within a bound

https://github.com/mlcommons/inference_policies/blob/master/inference_rules.adoc
"""

from __future__ import annotations

import json
import queue
import tempfile
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from smash_base.errors import MissingRuntimeError, UsageError, VerificationError
from smash_base.json_values import JsonObject
from smash_export.measure.timing import time_runs
from smash_targets.base import Session

SCENARIOS = ("SingleStream", "MultiStream", "Offline", "Server")
TITLE = "MLPerf-style (LoadGen scenarios)"
STREAMS = 8  # images of one MultiStream query
UTILISATION = 0.5  # Server: rate of arrival over what one stream manages, unless the user says
OVERHEAD_S = 2e-4  # of a query through Python and two threads, in what one stream manages
_RULES = {
    "result_min_duration_met": "shorter than asked for",
    "result_min_queries_met": "too few queries",
    "early_stopping_met": "too few queries to be sure of the percentile: measure longer",
}
_PERCENTILES = ("50.00", "90.00", "95.00", "97.00", "99.00", "99.90")


@dataclass(frozen=True)
class LoadGenResult:
    """One scenario.

    Attributes:
        scenario: its name.
        valid: LoadGen's own verdict.
        reasons: Reasons why it is not valid.
        metric, value: the scenario's figure and its name with the unit.
        percentiles_ms: latency of a query by percentile.
        settings: what LoadGen was asked to do.
    """

    scenario: str
    valid: bool
    reasons: tuple[str, ...]
    metric: str
    value: float
    percentiles_ms: dict[str, float] = field(default_factory=dict)
    settings: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> JsonObject:
        """JSON values, under the name that these results must carry."""
        return {"title": TITLE, **asdict(self), "reasons": list(self.reasons)}


def run_scenario(
    session: Session,
    tensors: np.ndarray,
    scenario: str,
    *,
    seconds: float = 10.0,
    largest_batch: int = 32,
    qps: float | None = None,
    bound_ms: float | None = None,
) -> LoadGenResult:
    """Run one scenario.

    Args:
        tensors: float32 [N, *input_shape], the images asked for.
        seconds: shortest duration.
        largest_batch: Largest batch of the session; used by MultiStream and Offline.
        qps: Server: arrivals per second; half of what one stream manages by default.
        bound_ms: Server: latency that 99 % must stay within; ten inferences, at least 10 ms, by default.

    Raises:
        UsageError: no such scenario.
        MissingRuntimeError: mlcommons-loadgen is not installed.
        VerificationError: LoadGen left no result.
    """
    if scenario not in SCENARIOS:
        raise UsageError("no such scenario", expected=", ".join(SCENARIOS), received=scenario)
    loadgen = _require()
    batch = min(largest_batch, len(tensors))
    settings, asked = _settings(loadgen, session, tensors, scenario, seconds, batch, qps, bound_ms)
    with tempfile.TemporaryDirectory(prefix="loadgen-") as folder:
        _run(loadgen, settings, session, tensors, batch, scenario == "Server", Path(folder))
        entries = _entries(Path(folder) / "mlperf_log_detail.txt")
    return _result(scenario, entries, asked)


def _settings(
    loadgen: Any,
    session: Session,
    tensors: np.ndarray,
    scenario: str,
    seconds: float,
    batch: int,
    qps: float | None,
    bound_ms: float | None,
) -> tuple[Any, dict[str, float]]:
    """LoadGen's settings, and what of them the result tells."""
    single = float(np.median(time_runs(session, tensors[:1], 0.2))) / 1e9
    batched = float(np.median(time_runs(session, tensors[:batch], 0.2))) / 1e9
    settings = loadgen.TestSettings()
    settings.mode = loadgen.TestMode.PerformanceOnly
    settings.scenario = getattr(loadgen.TestScenario, scenario)
    settings.min_duration_ms = int(seconds * 1000)
    asked: dict[str, float] = {"seconds": seconds}
    if scenario == "SingleStream":
        settings.single_stream_expected_latency_ns = max(1, int(single * 1e9))
    elif scenario == "MultiStream":
        settings.multi_stream_samples_per_query = STREAMS
        settings.multi_stream_expected_latency_ns = max(1, int(STREAMS * single * 1e9))
        asked["images_per_query"] = STREAMS
    elif scenario == "Offline":
        # LoadGen makes one query as long as this promises; a little more, or it ends too early.
        settings.offline_expected_qps = 1.2 * batch / batched
        asked["batch"] = batch
    else:
        rate = qps or UTILISATION / (single + OVERHEAD_S)
        bound = bound_ms or max(10.0, 10_000 * single)
        settings.server_target_qps = rate
        settings.server_target_latency_ns = int(bound * 1e6)
        asked |= {"arrivals_per_second": round(rate, 2), "bound_ms": round(bound, 3)}
    return settings, asked


def _require() -> Any:
    try:
        import mlperf_loadgen
    except ImportError:
        raise MissingRuntimeError(
            "MLCommons LoadGen is not here", hint="Install it: pip install 'smash-export[loadgen]'"
        ) from None
    return mlperf_loadgen


def _log_settings(loadgen: Any, folder: Path) -> Any:
    output = loadgen.LogOutputSettings()
    output.outdir = str(folder)
    output.copy_summary_to_stdout = False
    logs = loadgen.LogSettings()
    logs.log_output = output
    logs.enable_trace = False
    return logs


def _run(
    loadgen: Any,
    settings: Any,
    session: Session,
    tensors: np.ndarray,
    batch: int,
    queued: bool,
    folder: Path,
) -> None:
    """Let LoadGen drive the session; its logs land in ``folder``."""
    failures: list[Exception] = []

    def answer(samples: list[Any]) -> None:
        for start in range(0, len(samples), batch):
            part = samples[start : start + batch]
            if not failures:
                try:
                    session.run(np.ascontiguousarray(tensors[[sample.index for sample in part]]))
                except Exception as error:  # noqa: BLE001 - LoadGen waits for ever unless every query ends
                    failures.append(error)
            loadgen.QuerySamplesComplete([loadgen.QuerySampleResponse(sample.id, 0, 0) for sample in part])

    issue: Callable[[list[Any]], None] = answer
    waiting: queue.SimpleQueue[list[Any] | None] = queue.SimpleQueue()
    thread: threading.Thread | None = None
    if queued:  # arrivals must not wait for the answer before them

        def serve() -> None:
            while (samples := waiting.get()) is not None:
                answer(samples)

        issue = waiting.put
        thread = threading.Thread(target=serve, name="loadgen-server")
        thread.start()
    logs = _log_settings(loadgen, folder)
    system = loadgen.ConstructSUT(issue, lambda: None)
    library = loadgen.ConstructQSL(len(tensors), len(tensors), lambda indices: None, lambda indices: None)
    try:
        loadgen.StartTestWithLogSettings(system, library, settings, logs, str(folder / "audit.config"))
    finally:
        if thread is not None:
            waiting.put(None)
            thread.join()
        loadgen.DestroyQSL(library)
        loadgen.DestroySUT(system)
    if failures:
        raise failures[0]


def _entries(path: Path) -> dict[str, list[Any]]:
    """Values by key of LoadGen's detailed log, whose lines are ``:::MLLOG {json}``."""
    found: dict[str, list[Any]] = {}
    if path.exists():
        for line in path.read_text(errors="replace").splitlines():
            _, separator, text = line.partition(":::MLLOG ")
            if separator:
                entry = json.loads(text)
                found.setdefault(entry["key"], []).append(entry["value"])
    return found


def _result(scenario: str, entries: dict[str, list[Any]], asked: dict[str, float]) -> LoadGenResult:
    if "result_validity" not in entries:
        raise VerificationError("LoadGen left no result", received=entries.get("error", [""])[-1])
    percentiles = {
        name.removesuffix("0").removesuffix(".0"): round(entries[key][-1] / 1e6, 6)
        for name in _PERCENTILES
        if (key := f"result_{name}_percentile_latency_ns") in entries
    }
    if scenario == "Offline":
        metric, value = "images per second", float(entries["result_samples_per_second"][-1])
    elif scenario == "Server":
        metric, value = "99th percentile, ms", percentiles["99"]
    elif scenario == "MultiStream":
        metric, value = f"99th percentile of {STREAMS} images, ms", percentiles["99"]
    else:
        metric, value = "90th percentile, ms", percentiles["90"]
    return LoadGenResult(
        scenario,
        entries["result_validity"][-1] == "VALID",
        _reasons(entries),
        metric,
        round(value, 6),
        percentiles,
        asked,
    )


def _reasons(entries: dict[str, list[Any]]) -> tuple[str, ...]:
    """Why LoadGen calls a run invalid; it gives advice for some of its rules only."""
    unmet = [words for key, words in _RULES.items() if entries.get(key, [True])[-1] is False]
    advice = [str(reason).strip() for reason in entries.get("result_invalid_reason", [])]
    return tuple(dict.fromkeys([*advice, *unmet])) if entries["result_validity"][-1] != "VALID" else ()

"""``compare``: every file of a bundle in one table, and which one to use.

Accuracy and latency are measured now, on this machine, through the sessions that predict: a
recommendation from old numbers or another machine would be worth nothing.

A file can be recommended when it passes the gates of its precision and, at a lower precision, is faster
than fp32 of the same runtime. Among those the fastest wins; within the noise of the measurement the more
exact one does, then the smaller one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from smash_base import files
from smash_base.errors import VerificationError
from smash_base.json_values import JsonObject
from smash_base.preprocess import first_answers, with_none
from smash_export.bundle.bundle import Bundle
from smash_export.bundle.rejected import RejectedFile, rejected_files
from smash_export.bundle.runnable import runnable_files
from smash_export.bundle.samples import Samples
from smash_export.measure.bench import BenchSettings, FileMeasurement, bench_bundle
from smash_export.measure.machine import describe_machine, now, versions
from smash_export.measure.noise import NodeNoise, noise_of
from smash_export.measure.timing import Latency, ratio
from smash_export.measure.verify import Parity, compare_logits, held_to

TIE = 1.05  # medians closer than this are not told apart
_EXACTNESS = ("fp32", "tf32", "fp16", "bf16", "int8")
Verdict = Literal["recommended", "good", "source file", "not faster", "speed unknown", "failed", "skipped"]


@dataclass(frozen=True)
class Row:
    """One file.

    Attributes:
        measurement: Size, latency, throughput and memory.
        parity: against eager PyTorch on the bundled images; None when it could not be run.
        verdict: what this says about using it.
        reason: Reason of the verdict, in words.
        noise: int8: signal to noise by layer, from the notes of compilation.
    """

    measurement: FileMeasurement
    parity: Parity | None
    verdict: Verdict
    reason: str
    noise: tuple[NodeNoise, ...] = ()

    @property
    def name(self) -> str:
        """``target:precision``."""
        return self.measurement.name

    @property
    def p50_ms(self) -> float | None:
        """Median latency at the first batch size."""
        return next((latency.p50_ms for latency in self.measurement.latency.values()), None)

    def to_json(self) -> JsonObject:
        """JSON values."""
        return {
            "name": self.name,
            "verdict": self.verdict,
            "reason": self.reason,
            "parity": None if self.parity is None else self.parity.to_json(),
            "measurement": self.measurement.to_json(),
        }


@dataclass(frozen=True)
class Disagreement:
    """One image that files see differently than the reference.

    Attributes:
        image: its index among the bundled images.
        label, expected: true class and the reference's.
        margin: how sure the reference was: its best logit over the best logit that a file chose.
        received: name of a file -> its class, for those that differ.
    """

    image: int
    label: int
    expected: int
    margin: float
    received: dict[str, int]


@dataclass(frozen=True)
class Comparison:
    """Everything that the table and the report show.

    Attributes:
        rows: in the order of the bundle.
        disagreements: images whose label changed, those that most files see differently first.
        recommendation: ``target``, ``precision`` and ``reason``; None when no file qualifies.
        machine, versions, date, settings: where and how it was measured.
        problems: what could not be written: the report, or the recommendation in the bundle.
        rejected: files that failed when they were compiled, with the reason; they are not measured.
    """

    rows: tuple[Row, ...]
    disagreements: tuple[Disagreement, ...]
    recommendation: dict[str, str] | None
    machine: JsonObject
    versions: dict[str, str]
    date: str
    settings: BenchSettings
    problems: tuple[str, ...] = ()
    rejected: tuple[RejectedFile, ...] = ()

    def to_json(self) -> JsonObject:
        """JSON values."""
        return {
            "rows": [row.to_json() for row in self.rows],
            "disagreements": [asdict(item) for item in self.disagreements],
            "recommendation": self.recommendation,
            "machine": self.machine,
            "versions": self.versions,
            "date": self.date,
            "settings": asdict(self.settings),
            "rejected": [asdict(file) for file in self.rejected],
        }


def compare_bundle(
    bundle: Bundle,
    *,
    select: Sequence[str] = (),
    threads: int = 1,
    batches: Sequence[int] = (1,),
    seconds: float = 2.0,
    rounds: int = 5,
    timeout: float = 120.0,
    advance: Callable[..., None] = lambda n=1, **fields: None,
) -> Comparison:
    """Measure every file of a bundle and choose one; see :func:`smash_export.measure.bench.bench_bundle`.

    Raises:
        UsageError: a batch size that the bundle does not take, or a selection that names no file.
    """
    samples = bundle.samples()
    with files.temporary_folder("smash-compare-") as folder:
        measured = bench_bundle(
            bundle,
            select=select,
            threads=threads,
            batches=batches,
            seconds=seconds,
            rounds=rounds,
            timeout=timeout,
            logits=folder,
            advance=advance,
        )
        logits = _logits_of(measured, folder)
    runnable = {file.name: file for file in runnable_files(bundle)}
    rows = []
    for row in measured:
        held = held_to(bundle, row.precision)
        judged = verdict_on(row, logits.get(row.name), samples, runnable[row.name].max_drop, held)
        rows.append(replace(judged, noise=noise_of(runnable[row.name].notes)))
    rows, recommendation = recommend(rows)
    return Comparison(
        rows=tuple(rows),
        disagreements=tuple(disagreements(samples, logits)),
        recommendation=recommendation,
        machine=describe_machine(),
        versions=versions(),
        date=now(),
        settings=BenchSettings(threads, tuple(batches), seconds, rounds),
        rejected=tuple(rejected_files(bundle)),
    )


def _logits_of(measured: Sequence[FileMeasurement], folder: Path) -> dict[str, np.ndarray]:
    """What each file answered, by its name, where it answered at all."""
    return {
        row.name: np.load(path, allow_pickle=False)
        for row in measured
        if row.status == "measured" and (path := folder / f"{row.target}-{row.precision}.npy").exists()
    }


def verdict_on(
    measurement: FileMeasurement,
    logits: np.ndarray | None,
    samples: Samples,
    max_drop: float | None = None,
    held: str | None = None,
) -> Row:
    """A row with its verdict, before one is recommended.

    Args:
        logits: float32 [N, K] of this file for ``samples``; None when it could not be run.
        max_drop: points of accuracy that the file may lose, if it is int8; None for the usual ones.
        held: The precision whose gate holds; None for that of the file.
    """
    if logits is None or not measurement.latency:
        status: Verdict = "skipped" if measurement.status == "skipped" else "failed"
        return Row(measurement, None, status, measurement.problem)
    try:
        parity = compare_logits(samples.logits, logits, samples.labels, targets=samples.targets)
    except VerificationError as error:
        return Row(measurement, None, "failed", str(error))
    problems = parity.problems(held or measurement.precision, max_drop)
    if problems:
        return Row(measurement, parity, "failed", "; ".join(problems))
    if measurement.slower_than_fp32:
        return Row(
            measurement,
            parity,
            "not faster",
            f"median {measurement.relative_to_fp32:.2f} times that of {measurement.target} fp32, "
            "or the smallest time no smaller",
        )
    if measurement.precision != "fp32" and measurement.slower_than_fp32 is None:
        return Row(
            measurement, parity, "speed unknown", f"no {measurement.target} fp32 file to measure it against"
        )
    if measurement.source:
        return Row(measurement, parity, "source file", "compile it to use it by default")
    return Row(measurement, parity, "good", "")


def recommend(rows: Sequence[Row]) -> tuple[list[Row], dict[str, str] | None]:
    """Mark the row to use; returns the rows and the recommendation for the manifest, or None."""
    candidates = [row for row in rows if row.verdict == "good" and row.p50_ms is not None]
    if not candidates:
        return list(rows), None
    fastest = min(row.p50_ms or 0.0 for row in candidates)
    ties = [row for row in candidates if (row.p50_ms or 0.0) <= fastest * TIE]
    chosen = min(
        ties,
        key=lambda row: (
            _EXACTNESS.index(row.measurement.precision),
            row.measurement.size_bytes,
            row.p50_ms,
            row.name,
        ),
    )
    reason = _reason(chosen, candidates, ties, rows)
    marked = [replace(row, verdict="recommended", reason=reason) if row is chosen else row for row in rows]
    measurement = chosen.measurement
    return marked, {
        "target": measurement.target,
        "precision": measurement.precision,
        "reason": reason[:1000],
    }


def _reason(chosen: Row, candidates: Sequence[Row], ties: Sequence[Row], rows: Sequence[Row]) -> str:
    assert chosen.parity is not None
    median = chosen.p50_ms or 0.0
    words = [f"{median:.4g} ms"]
    if len(candidates) == 1:
        words.append("the only file that qualifies")
    elif len(ties) > 1:
        others = ", ".join(row.name for row in ties if row is not chosen)
        words.append(f"as fast as {others} within {TIE - 1:.0%}, and more exact or smaller")
    else:
        second = min((row for row in candidates if row is not chosen), key=lambda row: row.p50_ms or 0.0)
        words.append(f"fastest of {len(candidates)}; {second.name} takes {second.p50_ms or 0.0:.4g} ms")
    slow = [
        row for row in rows if row.measurement.target == "torchscript" and row.p50_ms and row is not chosen
    ]
    if slow and (times := ratio(_first(slow[0]), _first(chosen))) > 1:
        words.append(f"{times:.1f} times as fast as TorchScript")
    words.append(
        f"accuracy {chosen.parity.accuracy:.2%} ({0.0 - chosen.parity.drop:+.2f} points), "
        f"same label as PyTorch for {chosen.parity.agreement:.2%} of {chosen.parity.images} images"
    )
    words.append(_size(chosen, rows))
    if any(latency.flagged for latency in list(chosen.measurement.latency.values())[:1]):
        words.append("times were unsteady: compare again when the machine is idle")
    return "; ".join(words)


def _size(chosen: Row, rows: Sequence[Row]) -> str:
    """Its size, and that of the fp32 file of the same runtime where it differs."""
    of = {row.name: row.measurement.size_bytes for row in rows}
    exact = of.get(f"{chosen.measurement.target}:fp32", 0)
    size = of[chosen.name]
    words = f"{size / 1024:.0f} KiB"
    return f"{words}, {size / exact:.2f} of its fp32 file" if exact and exact != size else words


def _first(row: Row) -> Latency:
    """Latency at the first batch size."""
    return next(iter(row.measurement.latency.values()))


def disagreements(samples: Samples, logits: dict[str, np.ndarray]) -> list[Disagreement]:
    """Images that any file labels differently than the reference."""
    expected = with_none(samples.logits, samples.labels)
    first = expected.argmax(axis=1)
    by_image: dict[int, dict[str, int]] = {}
    for name, values in logits.items():
        if values.shape == samples.logits.shape:
            answers = first_answers(values, samples.labels)
            for image in np.flatnonzero(answers != first):
                by_image.setdefault(int(image), {})[name] = int(answers[image])
    found = []
    for index, received in by_image.items():
        reference = expected[index]
        margin = float(reference.max() - max(reference[answer] for answer in received.values()))
        found.append(
            Disagreement(index, int(samples.labels[index]), int(first[index]), round(margin, 6), received)
        )
    return sorted(found, key=lambda item: (-len(item.received), -item.margin, item.image))

"""``compare`` and its page: table, accuracy against latency, worst disagreements, layers, machine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from smash_base.files import write_text
from smash_base.preprocess import NO_CLASS
from smash_export.bundle.bundle import Bundle, opened
from smash_export.bundle.rejected import RejectedFile
from smash_export.measure.compare import Comparison, Row, compare_bundle
from smash_export.prediction.pictures import to_picture
from smash_export.report.chart import Axis, Point, scatter
from smash_export.report.page import Cell, Html, counted, heading, page, paragraph, picture, table

COLUMNS = (
    "file", "provider used", "bytes", "accuracy", "change, points", "same label",
    "min ms", "p50", "p90", "p99", "images/s", "peak MiB", "verdict", "why",
)  # fmt: skip
_ON_PAGE = (
    "file", "verdict", "accuracy", "change, points", "same label", "p50", "p90", "p99", "min ms",
    "images/s", "peak MiB", "bytes", "provider used",
)  # fmt: skip
SHOWN_IMAGES = 24
SHOWN_LAYERS = 20


def compare(
    bundle: Bundle | Path | str,
    *,
    targets: Sequence[str] = (),
    page: Path | str | None = None,
    threads: int = 1,
    batches: Sequence[int] = (1,),
    seconds: float = 2.0,
    rounds: int = 5,
    advance: Callable[..., None] = lambda n=1, **fields: None,
) -> Comparison:
    """Measure every file of a bundle, write a report, and record in the bundle which file to use.

    Args:
        bundle: an opened bundle or its path.
        targets: ``target`` or ``target:precision``; nothing means all. The recommendation is recorded only
            when all were measured.
        page: HTML file to write; see :func:`default_page`.
        threads, batches, seconds, rounds, advance: see :func:`smash_export.measure.bench.bench_bundle`.

    Raises:
        UsageError: a batch size that the bundle does not take, or a selection that names no file.
    """
    bundle = opened(bundle)
    comparison = compare_bundle(
        bundle,
        select=targets,
        threads=threads,
        batches=batches,
        seconds=seconds,
        rounds=rounds,
        advance=advance,
    )
    text = compare_page(comparison, bundle.samples().images, bundle.labels, title_of(bundle.path))
    problems = []
    try:
        write_text(page or default_page(bundle.path), text)
    except OSError as error:  # what was measured for minutes is still told
        problems.append(f"the report was not written: {error.strerror} (--html FILE writes it elsewhere)")
    advice, verdicts = comparison.recommendation, {row.name: row.verdict for row in comparison.rows}
    if not targets and (advice is not None or is_refuted(bundle, verdicts)):
        reason = bundle.try_record("recommendation", advice)
        problems += [f"the recommendation was not recorded: {reason}"] if reason else []
    return replace(comparison, problems=tuple(problems))


def is_refuted(bundle: Bundle, verdicts: Mapping[str, str]) -> bool:
    """Whether the file that the bundle recommends has been measured, by its name, and does not qualify."""
    earlier = bundle.recommendation
    name = "" if earlier is None else f"{earlier.target}:{earlier.precision}"
    return verdicts.get(name) in ("failed", "not faster")


def default_page(bundle: Path) -> Path:
    """``BUNDLE.compare.html`` beside the bundle."""
    folder = bundle.resolve()
    return folder.with_name(f"{folder.name}.compare.html")


def title_of(bundle: Path) -> str:
    """Title of table and page."""
    return f"{bundle.resolve().name}: every file compared"


def cells(row: Row) -> list[Cell]:
    """One line of the table, in the order of :data:`COLUMNS`."""
    measurement, parity = row.measurement, row.parity
    latency = next(iter(measurement.latency.values()), None)
    rates = measurement.images_per_second
    peak = measurement.memory.get("peak_bytes")
    return [
        row.name,
        "-"
        if measurement.runtime is None
        else measurement.runtime.provider.removesuffix("ExecutionProvider"),
        measurement.size_bytes,
        None if parity is None else f"{parity.accuracy:.2%}",
        None if parity is None else round(0.0 - parity.drop, 3),
        None if parity is None else f"{parity.agreement:.2%}",
        None if latency is None else latency.min_ms,
        None if latency is None else latency.p50_ms,
        None if latency is None else latency.p90_ms,
        None if latency is None else latency.p99_ms,
        max(rates.values(), default=None),
        None if peak is None else round(peak / 2**20, 1),
        row.verdict,
        row.reason,
    ]


def compare_page(comparison: Comparison, images: np.ndarray, labels: tuple[str, ...], title: str) -> str:
    """The whole document.

    Args:
        images: the bundled images, uint8 [N, *sample_shape], that disagreements point into.
        labels: class names.
    """
    advice = comparison.recommendation
    batch = comparison.settings.batches[0]
    parts = [
        paragraph(
            "No file qualifies: see the verdicts."
            if advice is None
            else f"Use {advice['target']} {advice['precision']}: {advice['reason']}.",
            "lead",
        ),
        heading("Every file"),
        table(
            _ON_PAGE,
            [_line(row) for row in comparison.rows],
            [_kind(row) for row in comparison.rows],
        ),
        *(paragraph(f"{row.name}: {row.verdict}: {row.reason}.", "note") for row in _explained(comparison)),
        *(paragraph(line, "note") for line in rejections(comparison.rejected)),
        heading("Accuracy against latency"),
        scatter(
            _points(comparison.rows),
            Axis(f"median latency of batch {batch}, ms", "log"),
            Axis("accuracy", percent=True),
        ),
        paragraph(
            "Hollow: not to be used. Dashed: the files that no other one beats in both.",
            "note",
        ),
        *_disagreements(comparison, images, labels),
        *_layers(comparison.rows),
        heading("Measured on"),
        table(["what", "value"], [[name, _words(value)] for name, value in _facts(comparison).items()]),
    ]
    warnings = [
        f"{row.name}: {warning}"
        for row in comparison.rows
        for latency in list(row.measurement.latency.values())[:1]
        for warning in latency.warnings
    ]
    parts += [paragraph(warning, "note") for warning in warnings]
    return page(title, parts)


def rejections(rejected: Iterable[RejectedFile]) -> list[str]:
    """One sentence for each file that compile refused."""
    return [f"{file.name}: rejected by compile: {'; '.join(file.problems)}." for file in rejected]


def _line(row: Row) -> list[Cell]:
    """One line of the page's table; reasons stand below it, where they have room."""
    found = dict(zip(COLUMNS, cells(row), strict=True))
    return [found[name] for name in _ON_PAGE]


def _explained(comparison: Comparison) -> list[Row]:
    """Rows whose verdict wants a reason; that of the recommended one stands on top of the page."""
    return [row for row in comparison.rows if row.reason and row.verdict != "recommended"]


def _kind(row: Row) -> str:
    if row.verdict == "recommended":
        return "chosen"
    return "" if row.verdict in ("good", "source file") else "bad"


def _points(rows: tuple[Row, ...]) -> list[Point]:
    return [
        Point(
            row.p50_ms,
            row.parity.accuracy,
            row.name,
            good=row.verdict in ("recommended", "good", "source file"),
            chosen=row.verdict == "recommended",
            title=f"{row.name}: {row.p50_ms:.4g} ms, {row.parity.accuracy:.2%}",
        )
        for row in rows
        if row.p50_ms is not None and row.parity is not None
    ]


def _disagreements(comparison: Comparison, images: np.ndarray, labels: tuple[str, ...]) -> list[Html]:
    found = comparison.disagreements
    parts = [heading("Worst disagreements")]
    if not found:
        return [*parts, paragraph("No file changed the label of any image.", "note")]
    parts.append(
        paragraph(
            f"{counted(len(found), 'image')} with another label from at least one file; the margin is how "
            "far the reference's own logits were apart.",
            "note",
        )
    )
    labels = (*labels, NO_CLASS)
    for item in found[:SHOWN_IMAGES]:
        lines = [
            f"image {item.image}: {labels[item.label]}",
            f"reference: {labels[item.expected]}",
            *(f"{name}: {labels[answer]}" for name, answer in item.received.items()),
            f"margin {item.margin:.3g}",
        ]
        parts.append(picture(to_picture(images[item.image], 64), lines))
    return parts


def _layers(rows: tuple[Row, ...]) -> list[Html]:
    parts: list[Html] = []
    for row in rows:
        if row.noise:
            parts.append(heading(f"Signal to noise by layer: {row.name}"))
            lines: list[list[Cell]] = [
                [item.node, item.operator, item.sqnr_db, item.precision] for item in row.noise[:SHOWN_LAYERS]
            ]
            parts.append(table(["node", "operator", "dB", "precision"], lines))
            if len(row.noise) > SHOWN_LAYERS:
                parts.append(paragraph(f"The worst {SHOWN_LAYERS} of {len(row.noise)}.", "note"))
    return parts


def _facts(comparison: Comparison) -> dict[str, object]:
    return {
        "date": comparison.date,
        **comparison.machine,
        **asdict(comparison.settings),
        "versions": ", ".join(f"{name} {version}" for name, version in comparison.versions.items()),
    }


def _words(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)

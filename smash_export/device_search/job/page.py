"""The page of ``run``: what came out, how long each stage took, and the commands behind it."""

from __future__ import annotations

import html
import shlex
from typing import TYPE_CHECKING

from smash_export.device_search.job.outcomes import Compared, Frozen, Searched
from smash_export.device_search.job.stages import Job, command_line, told
from smash_export.measure.evaluate import wilson_interval
from smash_export.report.images import class_counts, sample_images
from smash_export.report.page import Cell, Html, heading, page, paragraph, table

if TYPE_CHECKING:
    from smash_search.data import Dataset


def job_page(job: Job, dataset: Dataset) -> str:
    """The whole document.

    Args:
        job: with all stages done.
        dataset: Data set, of which some images are shown.
    """
    search, frozen = job.outcome("search", Searched), job.outcome("freeze", Frozen)
    compared = job.outcome("compare", Compared)
    bundle = job.folder / "bundle"
    predict = shlex.join(["smash-export", "predict", str(bundle), "image.png"])
    place = "on the device" if job.request.elsewhere else "here"
    parts = [
        paragraph(_lead(search, frozen, compared), "lead"),
        Html(
            '<p><a href="search/report.html">The search</a> · <a href="compare.html">every file compared</a> '
            '· <a href="bundle/README.md">the bundle\'s card</a></p>'
        ),
        heading("Use it"),
        Html(f"<pre>{html.escape(predict)}</pre>"),
        heading(f"Files of the bundle, measured {place}"),
        table(["file", "verdict", "accuracy", "p50 ms", "bytes", "why"], _files(compared)),
        heading("Images"),
        table(["what", "value"], [[name, value] for name, value in job.plan.images.items()]),
        class_counts(dataset),
        *sample_images(dataset),
        heading("Stages"),
        table(
            ["stage", "expected s", "took s", "outcome"],
            [
                [done.stage.name, round(done.stage.seconds, 1), round(done.seconds, 1), told(done)]
                for done in job.done
            ],
        ),
        heading("Commands"),
        paragraph("Each stage is a command of its own; these repeat the run.", "note"),
        Html("<pre>" + html.escape("\n".join(command_line(done.stage) for done in job.done)) + "</pre>"),
    ]
    return page(f"Run {job.folder.resolve().name}", parts)


def _lead(search: Searched, frozen: Frozen, compared: Compared) -> str:
    least, most = wilson_interval(round(frozen.test_accuracy * frozen.test_images), frozen.test_images)
    words = f"Test accuracy {frozen.test_accuracy:.2%} on {frozen.test_images:,} images (95 % interval "
    words += f"{least:.1%} to {most:.1%}), network "
    words += f"{search.architecture} ({search.origin}), {search.cost.parameters:,} parameters. "
    advice = compared.recommendation
    if advice is None:
        return words + "No file qualifies: see the verdicts."
    return words + f"Use {advice.target} {advice.precision}: {advice.reason}."


def _files(compared: Compared) -> list[list[Cell]]:
    rows: list[list[Cell]] = []
    for row in compared.rows:
        latency = next(iter(row.measurement.latency.values()), None)
        rows.append(
            [
                row.name,
                row.verdict,
                None if row.parity is None else f"{row.parity.accuracy:.2%}",
                None if latency is None else latency.p50_ms,
                row.measurement.size_bytes,
                row.reason,
            ]
        )
    return rows

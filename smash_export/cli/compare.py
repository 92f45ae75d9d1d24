"""``smash-export compare``: one table of every file, one page, one recommendation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from smash_export.cli.console import Output, common_options
from smash_export.cli.device import NAMES, ask, device_of, device_options, given_words
from smash_export.cli.groups import Grouped
from smash_export.cli.shared_options import measuring_options

if TYPE_CHECKING:
    from smash_export.bundle.bundle import Bundle
    from smash_export.measure.compare import Comparison
    from smash_export.remote.device import Device


GROUPS = {
    "Files": ("targets", "page"),
    "Measuring": ("threads", "batches", "seconds", "rounds"),
    "Device": NAMES,
}


@click.command(cls=Grouped, groups=GROUPS)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--target",
    "-t",
    "targets",
    multiple=True,
    metavar="NAME[:PRECISION]",
    help="Only this runtime or file; may be repeated. The recommendation is then not recorded.",
)
@click.option(
    "--html",
    "page",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Report to write. [default: BUNDLE.compare.html]",
)
@measuring_options("Images at a time; may be repeated, the first one decides.")
@device_options
@common_options(writes=True)
def command(
    bundle: Path,
    targets: tuple[str, ...],
    page: Path | None,
    threads: int,
    batches: tuple[int, ...],
    seconds: float,
    rounds: int,
    output: Output,
    **values: Any,
) -> None:
    """Measure accuracy and speed of every file of BUNDLE on this machine and recommend one.

    The recommendation is stored in the bundle: predict and serve follow it.
    """
    from smash_export.bundle.bundle import Bundle
    from smash_export.bundle.runnable import selected_files
    from smash_export.measure.bench import steps
    from smash_export.report.compare import compare, default_page, title_of

    opened, device = Bundle.open(bundle), device_of(values)
    files = selected_files(opened, targets)
    destination = page or default_page(bundle)
    sizes = tuple(dict.fromkeys(batches))
    if output.dry_run:
        output.table("Would compare", ["file", "path"], [[file.name, str(file.path)] for file in files])
        output.result({"dry_run": True, "files": [file.name for file in files], "html": str(destination)})
        return
    if device is not None:
        expected = len(files) * (20 + seconds * len(sizes))
        _on_device(device, opened, destination, output, expected, record=not targets)
        return
    if opened.unwritable:
        output.warn(f"{opened.unwritable}: the recommendation will be shown and not recorded")
    with output.progress("comparing", steps(len(files), len(sizes), rounds)) as advance:
        comparison = compare(
            opened,
            targets=targets,
            page=destination,
            threads=threads,
            batches=sizes,
            seconds=seconds,
            rounds=rounds,
            advance=advance,
        )
    _show(output, comparison, title_of(bundle))
    if destination.is_file():
        output.note(f"report: {destination}")
    output.result({"html": str(destination), **comparison.to_json()})


def _show(output: Output, comparison: Comparison, title: str) -> None:
    """The table, what is wrong with each file, and the recommendation."""
    from smash_export.report.compare import COLUMNS, cells, rejections

    shown = [index for index, name in enumerate(COLUMNS) if name not in ("min ms", "why")]  # in the report
    lines = [[cells(row)[index] for index in shown] for row in comparison.rows]
    output.table(title, [COLUMNS[index] for index in shown], lines)
    for row in comparison.rows:
        if row.reason and row.verdict != "recommended":
            output.text(f"{row.name}: {row.verdict}: {row.reason}")
    for line in rejections(comparison.rejected):
        output.text(line)
    advice = comparison.recommendation
    if advice is None:
        output.warn("no file qualifies; nothing is recommended")
    else:
        output.text(f"Use {advice['target']} {advice['precision']}: {advice['reason']}.")
    for problem in comparison.problems:
        output.warn(problem)


def _on_device(
    device: Device, bundle: Bundle, page: Path, output: Output, seconds: float, *, record: bool
) -> None:
    """The same on the device: its page and its recommendation come back."""
    from smash_base.records import read_record
    from smash_export.bundle.rejected import RejectedFile
    from smash_export.report.compare import is_refuted, rejections

    without = {*NAMES, "dry_run", "page"}
    words = ["compare", "{bundle}", "--html", "{page}"]
    words += given_words(click.get_current_context(), without=without)
    result = ask(
        device, words, output, inputs={"bundle": bundle.path}, outputs={"page": page}, seconds=seconds
    )
    advice = result["recommendation"]
    verdicts = {row["name"]: row["verdict"] for row in result["rows"]}
    if record and (advice is not None or is_refuted(bundle, verdicts)):
        reason = bundle.try_record("recommendation", advice)
        if reason:
            output.warn(f"the recommendation was not recorded: {reason}")
    rows = []
    for row in result["rows"]:
        latency = next(iter(row["measurement"]["latency"].values()), None)
        accuracy = f"{row['parity']['accuracy']:.2%}" if row["parity"] else None
        rows.append([row["name"], accuracy, latency and latency["p50_ms"], row["verdict"], row["reason"]])
    output.table(f"On {device.name}", ["file", "accuracy", "p50 ms", "verdict", "why"], rows)
    for line in rejections(read_record(RejectedFile, item, "rejected file") for item in result["rejected"]):
        output.text(line)
    if advice is None:
        output.warn("no file qualifies; nothing is recommended")
    output.note(f"report: {page}")
    output.result({**result, "html": str(page), "device": device.name})

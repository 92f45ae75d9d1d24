"""``smash-export bench``: latency, throughput, memory, size and cold start of a bundle's files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from smash_export.cli.console import Output, common_options
from smash_export.cli.device import NAMES, ask, device_of, device_options, given_words
from smash_export.cli.groups import Grouped
from smash_export.cli.shared_options import measuring_options

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from smash_export.bundle.bundle import Bundle
    from smash_export.bundle.runnable import RunnableFile
    from smash_export.measure.bench import Benchmark, FileMeasurement
    from smash_export.remote.device import Device


GROUPS = {
    "Files": ("targets",),
    "Measuring": ("threads", "batches", "seconds", "rounds", "sustained", "timeout"),
    "LoadGen": ("loadgen", "loadgen_seconds"),
    "Gate": ("max_p50",),
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
    help="Only this runtime or file; may be repeated.",
)
@measuring_options("Images at a time; may be repeated.")
@click.option("--loadgen", is_flag=True, help="Run the four scenarios of MLCommons LoadGen as well.")
@click.option(
    "--loadgen-seconds",
    type=click.FloatRange(0.5, 3600),
    default=10.0,
    show_default=True,
    help="Seconds of each LoadGen scenario.",
)
@click.option(
    "--sustained",
    type=click.FloatRange(0, 600, min_open=True),
    metavar="MINUTES",
    help="Run every file for so long without a pause, 10 for example, and compare its last minute with the "
    "first; in place of everything else.",
)
@click.option(
    "--max-p50",
    type=click.FloatRange(0, min_open=True),
    metavar="MS",
    help="Largest median, with --sustained that of the last minute; exit code 5 above it, and where a file "
    "failed or none was measured.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(1),
    default=120.0,
    show_default=True,
    help="Seconds after which a silent runtime is given up.",
)
@device_options
@common_options(writes=True)
def command(
    bundle: Path,
    targets: tuple[str, ...],
    threads: int,
    batches: tuple[int, ...],
    seconds: float,
    rounds: int,
    loadgen: bool,
    loadgen_seconds: float,
    sustained: float | None,
    max_p50: float | None,
    timeout: float,
    output: Output,
    **values: Any,
) -> None:
    """Measure the files of BUNDLE in turns, each in a process of its own, and record the results.

    Exit code 5 when --max-p50 is given and a file is slower or failed, or none was measured.
    """
    from smash_export.bundle.bundle import Bundle
    from smash_export.bundle.runnable import selected_files
    from smash_export.measure.bench import bench, steps
    from smash_export.measure.loadgen import SCENARIOS

    opened, device = Bundle.open(bundle), device_of(values)
    files = selected_files(opened, targets)
    sizes = tuple(dict.fromkeys(batches))
    if output.dry_run:
        _tell(output, files, seconds * len(sizes) if sustained is None else 60 * sustained, sizes)
        return
    if sustained is not None:
        _sustained(
            opened,
            device,
            output,
            60 * sustained,
            len(files),
            targets=targets,
            threads=threads,
            batch=sizes[0],
            timeout=timeout,
            max_p50=max_p50,
        )
        return
    if device is not None:
        expected = len(files) * (20 + seconds * len(sizes) + 4 * loadgen_seconds * loadgen)
        benchmark = _on_device(device, opened, output, expected)
    else:
        with output.progress("measuring", steps(len(files), len(sizes), rounds)) as advance:
            benchmark = bench(
                opened,
                targets=targets,
                threads=threads,
                batches=sizes,
                seconds=seconds,
                rounds=rounds,
                scenarios=SCENARIOS if loadgen else (),
                scenario_seconds=loadgen_seconds,
                timeout=timeout,
                advance=advance,
            )
    _show(output, benchmark.files, sizes)
    if benchmark.unrecorded:
        output.warn(f"the results were not recorded in {bundle}: {benchmark.unrecorded}")
    output.result({"bundle": str(bundle), **benchmark.to_json()})
    if max_p50 is not None:
        rows = benchmark.files
        medians = {row.name: row.latency[sizes[0]].p50_ms for row in rows if row.latency}
        _check(medians, [f"{row.name} {row.problem}" for row in rows if row.status == "failed"], max_p50)


def _tell(output: Output, files: Sequence[RunnableFile], seconds: float, sizes: tuple[int, ...]) -> None:
    """What would be measured, and for how many seconds each."""
    output.table(
        "Would measure",
        ["file", "path", "seconds"],
        [[file.name, str(file.path), f"{seconds:g}"] for file in files],
    )
    told = {"files": [file.name for file in files], "batches": list(sizes), "seconds": seconds}
    output.result({"dry_run": True, **told})


def _check(medians: Mapping[str, float], failed: Sequence[str], max_p50: float) -> None:
    """Raise GateError unless there are medians (milliseconds by file), all short enough, and none failed."""
    from smash_base.errors import GateError

    expected = f"a median of at most {max_p50:g} ms"
    if failed or not medians:
        raise GateError(
            "some files could not be measured" if failed else "no file was measured",
            expected=expected,
            received="; ".join(failed) or "only files whose runtime is not here",
        )
    slow = {name: median for name, median in medians.items() if median > max_p50}
    if slow:
        raise GateError(
            f"{', '.join(slow)} slower than allowed",
            expected=expected,
            received=", ".join(f"{median:.4g} ms" for median in slow.values()),
            hint="Which file is fastest: smash-export compare. A faster network: search --max-latency.",
        )


def _on_device(device: Device, bundle: Bundle, output: Output, seconds: float) -> Benchmark:
    """The same on the device; recorded in the bundle as if it had been measured here."""
    from smash_base.records import read_record
    from smash_export.measure.bench import Benchmark, BenchSettings, FileMeasurement

    without = {*NAMES, "dry_run", "max_p50"}
    words = ["bench", "{bundle}", *given_words(click.get_current_context(), without=without)]
    result = ask(device, words, output, inputs={"bundle": bundle.path}, seconds=seconds)
    rows = tuple(FileMeasurement.from_json(item) for item in result["files"])
    machine = {**result["machine"], "device": device.name}
    settings = read_record(BenchSettings, result["settings"], "settings")
    benchmark = Benchmark(rows, settings, machine, result["date"], result["clock"])
    return replace(benchmark, unrecorded=bundle.try_record("bench", benchmark.to_json()))


def _sustained(
    bundle: Bundle,
    device: Device | None,
    output: Output,
    seconds: float,
    files: int,
    *,
    targets: tuple[str, ...],
    threads: int,
    batch: int,
    timeout: float,
    max_p50: float | None,
) -> None:
    """Minutes in place of seconds, here or on the device; recorded in the bundle."""
    from smash_export.measure.machine import describe_machine, now
    from smash_export.measure.sustained import sustain_bundle

    if device is not None:
        without = {*NAMES, "dry_run", "max_p50"}
        words = ["bench", "{bundle}", *given_words(click.get_current_context(), without=without)]
        bound = 2 * files * (seconds + 60)
        record = ask(device, words, output, inputs={"bundle": bundle.path}, seconds=bound)
        record["machine"]["device"] = device.name
    else:
        with output.progress("sustained", files * seconds) as advance:
            rows = sustain_bundle(
                bundle,
                select=targets,
                threads=threads,
                batch=batch,
                seconds=seconds,
                timeout=timeout,
                advance=advance,
            )
        record = {
            "machine": describe_machine(),
            "date": now(),
            "settings": {"seconds": seconds, "threads": threads, "batch": batch},
            "files": [row.to_json() for row in rows],
        }
    record.pop("bundle", None)
    unrecorded = bundle.try_record("sustained", record)
    _show_sustained(output, record, seconds, batch)
    if unrecorded:
        output.warn(f"the results were not recorded in {bundle.path}: {unrecorded}")
    output.result({"bundle": str(bundle.path), **record})
    if max_p50 is not None:
        rows = record["files"]
        failed = [f"{row['name']} {row['problem']}" for row in rows if row["problem"].startswith("failed")]
        _check({row["name"]: row["last_ms"] for row in rows if not row["problem"]}, failed, max_p50)


def _show_sustained(output: Output, record: dict[str, Any], seconds: float, batch: int) -> None:
    lines = [
        [
            row["name"],
            row["first_ms"],
            row["last_ms"],
            (row["clock"] or {}).get("hottest_celsius"),
            (row["clock"] or {}).get("before", {}).get("governor"),
            row["verdict"],
        ]
        for row in record["files"]
    ]
    columns = ["file", "first minute, p50 ms", "last minute", "hottest, °C", "governor", "verdict"]
    output.table(f"{seconds / 60:g} minutes each, batch {batch}", columns, lines)


def _show(output: Output, rows: tuple[FileMeasurement, ...], sizes: tuple[int, ...]) -> None:
    first = sizes[0]
    cells: list[list[object]] = []
    for row in rows:
        if not row.latency:
            cells.append([row.name, *[None] * 10, f"{row.status}: {row.problem}"])
            continue
        latency = row.latency[first]
        verdict = "not faster than fp32" if row.slower_than_fp32 else ""
        if latency.flagged:
            verdict = "; ".join(filter(None, [verdict, "unsteady"]))
        cells.append(
            [
                row.name,
                None if row.runtime is None else row.runtime.provider,
                latency.min_ms,
                latency.p50_ms,
                latency.p90_ms,
                latency.p99_ms,
                latency.n,
                row.images_per_second[sizes[-1]],
                round(row.memory["peak_bytes"] / 2**20, 1),
                row.size_bytes,
                row.cold_start["total_s"],
                verdict,
            ]
        )
    columns = ["file", "provider", "min ms", "p50", "p90", "p99", "n", f"images/s at {sizes[-1]}"]
    columns += ["peak MiB", "bytes", "cold start s", "note"]
    output.table(f"Batch {first}", columns, cells)
    _show_stages(output, rows)
    _show_scenarios(output, rows)
    for row in rows:
        for warning in row.latency[first].warnings if row.latency else ():
            output.note(f"{row.name}: {warning}")


def _show_stages(output: Output, rows: tuple[FileMeasurement, ...]) -> None:
    staged = [row for row in rows if row.stages]
    if staged:
        names = ("preprocess", "inference", "postprocess", "end_to_end")
        output.table(
            "One image, median ms",
            ["file", "decode and normalise", "inference", "labels", "image to labels"],
            [[row.name, *(row.stages[name] for name in names)] for row in staged],
        )


def _show_scenarios(output: Output, rows: tuple[FileMeasurement, ...]) -> None:
    scored = [(row.name, score) for row in rows for score in row.loadgen.values()]
    if scored:
        output.table(
            "MLPerf-style (LoadGen scenarios)",
            ["file", "scenario", "value", "metric", "valid", "why not"],
            [
                [
                    name,
                    item.scenario,
                    item.value,
                    item.metric,
                    item.valid,
                    "; ".join(item.reasons),
                ]
                for name, item in scored
            ],
        )

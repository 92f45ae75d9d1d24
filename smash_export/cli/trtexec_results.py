"""``smash-export trtexec-results``: what trtexec measured on a device, and whether its answers are right."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from smash_base.errors import UsageError, VerificationError
from smash_base.json_values import JsonObject
from smash_export.cli.console import Output, common_options

COLUMNS = ["file", "provider", "batch", "min ms", "p50", "p90", "p99", "n", "images/s"]
SLOWEST = 10


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--bundle", type=click.Path(path_type=Path), help="Bundle that the answers are checked against."
)
@click.option(
    "--precision",
    "-p",
    default="fp32",
    show_default=True,
    type=click.Choice(["fp32", "tf32", "fp16", "int8"]),
    help="Precision of the engine, whose gates the answers are held to.",
)
@common_options(writes=False)
def command(files: tuple[Path, ...], bundle: Path | None, precision: str, output: Output) -> None:
    """Read logs and exported JSON FILES of trtexec; with --bundle check the answers (exit code 4 if wrong).

    A log and the times of one measurement (bench_b8.log, bench_b8.times.json) make one row. Answers are those
    that check_engine.sh exports (check_*.output.json), of all test images together.
    """
    read = _Read(output)
    for path in files:
        read.file(path)
    rows, answers, problems = read.rows, read.answers, read.problems
    timings = [row for path, parts in rows.items() if (row := _row(path, **parts)) is not None]
    if timings:
        output.table("GPU compute time", COLUMNS, timings)
    parity = None
    if bundle is not None:
        parity, wrong = _check(bundle, precision, answers)
        problems += wrong
        output.note(
            f"{parity['images']} images: {parity['agreement']:.2%} same label as PyTorch, "
            f"{parity['drop']:.2f} points lost, largest difference {parity['max_difference']}"
        )
    measured = [dict(zip(COLUMNS, row, strict=True)) for row in timings]
    output.result({"files": read.documents, "measured": measured, "parity": parity, "problems": problems})
    if problems:
        raise VerificationError("; ".join(problems))


class _Read:
    """What the files hold, as they are read one after the other."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self.documents: list[JsonObject] = []
        self.rows: dict[Path, dict[str, Any]] = defaultdict(dict)
        self.answers: dict[Path, dict[str, Any]] = {}
        self.problems: list[str] = []

    def file(self, path: Path) -> None:
        """Read one file, whatever trtexec wrote there."""
        from smash_targets.tensorrt import trtexec_results as reader

        text = reader.read_text(path)
        kind = reader.kind_of(text)
        document: JsonObject = {"file": str(path), "kind": kind}
        if kind == "log":
            log = reader.read_log(text)
            if not log.passed:
                why = "; ".join(log.errors[:2]) or "no PASSED line"
                self.problems.append(f"{path}: trtexec did not pass: {why}")
            document |= _of_log(log)
            self.rows[_measurement(path)]["log"] = log
        elif kind == "times":
            document |= _of_times(reader.read_times(text)["computeMs"])
            self.rows[_measurement(path)]["times"] = document
        elif kind == "profile":
            layers = sorted(reader.read_profile(text), key=lambda layer: -layer.average_ms)
            shown = [[layer.name, layer.average_ms, layer.percentage] for layer in layers[:SLOWEST]]
            self._output.table(f"{path.name}: slowest layers", ["layer", "ms", "%"], shown)
            document["layers"] = [asdict(layer) for layer in layers]
        elif kind == "layers":
            info = reader.read_layer_info(text)
            counts = dict(info.precisions())
            document |= {"layers": len(info.layers), "detailed": info.detailed, "precisions": counts}
            rows = [list(item) for item in counts.items()]
            self._output.table(f"{path.name}: layers by type", ["type", "layers"], rows)
        else:
            self.answers[path] = reader.read_outputs(text)
            shapes = {name: list(array.shape) for name, array in self.answers[path].items()}
            document["outputs"] = shapes
        self.documents.append(document)


def _measurement(path: Path) -> Path:
    """What the files of one measurement have in common: bench_b8 of bench_b8.log and bench_b8.times.json."""
    return path.with_name(path.name.partition(".")[0])


def _of_log(log: Any) -> JsonObject:
    return {
        "passed": log.passed,
        "version": log.version,
        "batch": log.batch,
        "images_per_second": log.images_per_second,
        "build_seconds": log.build_seconds,
        "load_seconds": log.load_seconds,
        "stages": {name: stage.to_json() for name, stage in log.stages.items()},
        "errors": log.errors,
        "warnings": log.warnings,
    }


def _of_times(times: Any) -> JsonObject:
    import numpy as np

    low, half, p90, p99 = (float(np.percentile(times, at)) for at in (0, 50, 90, 99))
    return {"min": low, "p50": half, "p90": p90, "p99": p99, "n": len(times)}


def _row(path: Path, log: Any = None, times: dict[str, Any] | None = None) -> list[object] | None:
    """One measurement in ``COLUMNS``; single times are better than the log's summary of them."""
    match = re.search(r"_b(\d+)$", path.name)
    batch = int(match[1]) if match else None
    provider = "trtexec"
    rate = None
    if log is not None:
        provider, batch, rate = f"trtexec {log.version}".strip(), log.batch or batch, log.images_per_second
        if rate is None and batch is not None and log.queries_per_second is not None:
            rate = log.queries_per_second * batch
    if times is not None:
        if rate is None and batch is not None and times["p50"] > 0:
            rate = 1000 * batch / times["p50"]
        cells = [times[name] for name in ("min", "p50", "p90", "p99", "n")]
    else:
        stage = None if log is None else log.stages.get("compute") or log.stages.get("latency")
        if stage is None:
            return None  # a build: nothing was measured
        at = stage.percentiles
        cells = [stage.minimum, stage.median, at.get(90.0), at.get(99.0), None]
    return [path.name, provider, batch, *cells, rate]


def _check(bundle: Path, precision: str, answers: dict[Path, dict[str, Any]]) -> tuple[JsonObject, list[str]]:
    """Hold the answers of a device, of all images together, to the gates of the precision."""
    from smash_export.bundle.bundle import Bundle
    from smash_export.deploy.trtexec import checked_from, device_parity
    from smash_export.measure.verify import held_to

    opened = Bundle.open(bundle)
    signature = opened.signature
    logits: dict[int, Any] = {}
    for path, arrays in answers.items():
        start = checked_from(path)
        if start is None:
            raise UsageError(
                f"{path} does not tell which images it is of", expected="check_NUMBER.output.json"
            )
        if signature.output_name not in arrays:
            raise UsageError(f"{path} has no output {signature.output_name!r}", received=", ".join(arrays))
        logits[start] = arrays[signature.output_name].reshape(-1, signature.classes)
    if not logits:
        raise UsageError("no answers to check", expected="check_*.output.json, which check_engine.sh exports")
    parity = device_parity(opened, logits)
    problems = parity.problems(held_to(opened, precision))
    return parity.to_json(), [f"the device's answers: {problem}" for problem in problems]

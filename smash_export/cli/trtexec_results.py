"""``smash-export trtexec-results``: what trtexec measured on a device, and whether its answers are right."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from smash_base.errors import UsageError, VerificationError
from smash_export.cli.console import Output, common_options


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--bundle", type=click.Path(path_type=Path), help="Check outputs against it.")
@click.option(
    "--precision",
    "-p",
    default="fp32",
    show_default=True,
    type=click.Choice(["fp32", "tf32", "fp16", "int8"]),
)
@common_options(writes=False)
def command(files: tuple[Path, ...], bundle: Path | None, precision: str, output: Output) -> None:
    """Read logs and exported JSON FILES of trtexec; with --bundle check the outputs (exit code 4 if wrong).

    Outputs are checked when they are of the images that bench_engine.sh loads (names with _bN).
    """
    import numpy as np

    from deploy_targets import trtexec_results as reader

    timings: list[list[object]] = []
    documents: list[dict[str, Any]] = []
    problems: list[str] = []
    for path in files:
        text = reader.read_text(path)
        kind = reader.kind_of(text)
        document: dict[str, Any] = {"file": path, "kind": kind}
        if kind == "log":
            log = reader.read_log(text)
            compute = log.stages.get("compute") or log.stages.get("latency")
            if not log.passed:
                problems.append(
                    f"{path}: trtexec did not pass: {'; '.join(log.errors[:2]) or 'no PASSED line'}"
                )
            document |= {
                "passed": log.passed,
                "version": log.version,
                "batch": log.batch,
                "images_per_second": log.images_per_second,
                "build_seconds": log.build_seconds,
                "stages": {name: stage.to_json() for name, stage in log.stages.items()},
                "errors": log.errors,
            }
            if compute is not None:
                at = compute.percentiles
                timings.append(
                    [path.name, log.version, log.batch, compute.minimum, compute.median, at.get(90.0), at.get(99.0),  # noqa: E501
                     None, log.images_per_second]
                )  # fmt: skip
        elif kind == "times":
            times = reader.read_times(text)["computeMs"]
            low, half, p90, p99 = (float(np.percentile(times, at)) for at in (0, 50, 90, 99))
            timings.append([path.name, "", _batch(path), low, half, p90, p99, len(times), None])
            document |= {"min": low, "p50": half, "p90": p90, "p99": p99, "n": len(times)}
        elif kind == "profile":
            layers = sorted(reader.read_profile(text), key=lambda layer: -layer.average_ms)
            output.table(f"{path.name}: slowest layers", ["layer", "ms", "%"],
                         [[layer.name, layer.average_ms, layer.percentage] for layer in layers[:10]])  # fmt: skip  # noqa: E501
            document["layers"] = layers
        elif kind == "layers":
            info = reader.read_layer_info(text)
            document |= {
                "layers": len(info.layers),
                "detailed": info.detailed,
                "precisions": dict(info.precisions()),
            }
            output.table(f"{path.name}: layers by type", ["type", "layers"], list(info.precisions().items()))
        else:
            arrays = reader.read_outputs(text)
            document["outputs"] = {name: list(array.shape) for name, array in arrays.items()}
            if bundle is not None:
                document["check"], wrong = _check(bundle, precision, path, arrays)
                problems += wrong
        documents.append(document)
    if timings:
        columns = ["file", "TensorRT", "batch", "min ms", "p50", "p90", "p99", "n", "images/s"]
        output.table("GPU compute time", columns, timings)
    output.result({"files": documents, "problems": problems})
    if problems:
        raise VerificationError("; ".join(problems))


def _batch(path: Path) -> int | None:
    match = re.search(r"_b(\d+)\.", path.name)
    return int(match[1]) if match else None


def _check(
    bundle: Path, precision: str, path: Path, arrays: dict[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """Hold the outputs of a device to the gates of the precision."""
    import numpy as np

    from smash_export.bundle import Bundle
    from smash_export.trtexec import expected_logits
    from smash_export.verify import compare_logits

    opened = Bundle.open(bundle)
    signature = opened.signature
    if signature.output_name not in arrays:
        raise UsageError(f"{path} has no output {signature.output_name!r}", received=", ".join(arrays))
    received = arrays[signature.output_name].reshape(-1, signature.classes)
    scripts = opened.find_compiled("trtexec", precision)
    if scripts is None:
        raise UsageError(
            f"{bundle} has no scripts for {precision}", hint=f"smash-export trtexec {bundle} -p {precision}"
        )
    expected = expected_logits(scripts.folder / f"expected_b{len(received)}.bin", signature.classes)
    samples = opened.samples()
    labels = samples.labels[np.arange(len(received)) % len(samples.labels)]
    parity = compare_logits(expected, received, labels)
    return parity.to_json(), [f"{path}: {problem}" for problem in parity.problems(precision)]

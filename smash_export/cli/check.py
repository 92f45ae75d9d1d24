"""``smash-export check``: would TensorRT, or a DLA, take this network? No GPU is needed."""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from smash_base.errors import UsageError, VerificationError
from smash_export.cli.compile import read_options
from smash_export.cli.console import Output, common_options
from smash_export.cli.shared_options import precision_settings_option

if TYPE_CHECKING:
    from smash_export.bundle.bundle import Bundle
    from smash_targets.base import Precision

BY_RULES = "checked by rules, not by TensorRT"
BUILT = "built by NVIDIA's builder (RTX), not run on hardware"


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--target",
    "-t",
    default="tensorrt",
    show_default=True,
    metavar="tensorrt[:RELEASE]|tensorrt_rtx",
    help="RELEASE is 8.6, 10, 10.MINOR, 11 or 11.MINOR; 10 means every 10.x.",
)
@click.option(
    "--precision",
    "-p",
    default="fp32",
    show_default=True,
    type=click.Choice(["fp32", "tf32", "fp16", "int8"]),
    help="Precision of the graph.",
)
@click.option("--dla", type=click.Choice(["orin"]), help="Check the limits of a DLA too.")
@click.option("--gpu-fallback", is_flag=True, help="What the DLA refuses may run on the GPU.")
@precision_settings_option
@common_options(writes=False)
def command(
    bundle: Path,
    target: str,
    precision: str,
    dla: str | None,
    gpu_fallback: bool,
    options: tuple[str, ...],
    output: Output,
) -> None:
    """One verdict per node of the graph that TensorRT would get, and the numbers it should give.

    The graph is run by ONNX Runtime on the CPU and held to the gates of its precision. Exit code 4 when a
    node would be refused. For tensorrt_rtx NVIDIA's builder, where it is installed, builds the graph too.
    """
    from smash_export.bundle.bundle import Bundle
    from smash_export.deploy.trtexec import emulate, graph_for_tensorrt
    from smash_targets.tensorrt.check import check_onnx

    release, settings = _release(target), read_options(options)
    if gpu_fallback and dla is None:
        raise UsageError("a fallback to the GPU is for a DLA", expected="--dla orin with --gpu-fallback")
    opened = Bundle.open(bundle)
    with (
        tempfile.TemporaryDirectory(prefix="smash-export-") as work,
        output.progress(f"checking for {target}", None),
    ):
        onnx, _ = graph_for_tensorrt(opened, precision, Path(work), settings)
        weak = dla is not None and not release.startswith("11")  # flags decide, on the fp32 graph
        judged = opened.onnx if weak else onnx
        verdicts = check_onnx(judged, release, dla is not None, gpu_fallback, precision if weak else "")
        parity = emulate(opened, onnx, precision)
        built = _build(opened, onnx, precision) if release == "rtx" else None
    status = BY_RULES if built is None else BUILT
    counts = Counter(verdict.level for verdict in verdicts)
    output.table(
        f"{precision} graph for {target}" + (f" and the DLA of {dla}" if dla else ""),
        ["node", "operator", "verdict", "why", "what to change", "source"],
        [[item.node, item.operator, item.level, item.reason, item.change, item.source] for item in verdicts],
    )
    output.result(
        {
            "target": target,
            "precision": precision,
            "verdicts": [asdict(item) for item in verdicts],
            "counts": dict(counts),
            "parity": parity.to_json(),
            "status": status,
            "engine_bytes": built,
        }
    )
    output.note(
        f"{counts['ok']} nodes right, {counts['warn']} warnings, {counts['error']} errors; {status}; "
        f"{parity.agreement:.2%} same label as PyTorch in ONNX Runtime on the CPU"
    )
    if counts["error"]:
        raise VerificationError(
            f"TensorRT would refuse {counts['error']} parts of the {precision} graph",
            hint="The table names them; another --precision or release may take them.",
        )


def _release(target: str) -> str:
    """The release behind ``tensorrt:RELEASE``, and "rtx" for ``tensorrt_rtx``."""
    name, _, release = target.partition(":")
    if name == "tensorrt":
        return release or "10"
    if target != "tensorrt_rtx":
        expected = "tensorrt, tensorrt:10, tensorrt:11 or tensorrt_rtx"
        raise UsageError("--target", expected=expected, received=target)
    return "rtx"


def _build(bundle: Bundle, onnx: Path, precision: str) -> int | None:
    """Bytes of the engine; None where NVIDIA's builder is not installed."""
    from smash_targets.base import CompileRequest
    from smash_targets.tensorrt.rtx import build_without_gpu

    return build_without_gpu(CompileRequest(onnx, None, bundle.signature, cast("Precision", precision)))

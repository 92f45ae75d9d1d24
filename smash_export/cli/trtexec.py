"""``smash-export trtexec``: exact command lines, and scripts in the bundle."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from smash_base.errors import UsageError
from smash_base.json_values import JsonObject
from smash_export.cli.compile import read_options
from smash_export.cli.console import Output, common_options
from smash_export.cli.groups import Grouped
from smash_export.cli.shared_options import precision_settings_option

if TYPE_CHECKING:
    from smash_targets.tensorrt.trtexec import EngineCommand

GROUPS = {
    "Engine": ["precision", "release", "batch", "version_compatible", "hardware", "options"],
    "Device": ["device", "dla", "gpu_fallback"],
    "Check": ["images"],
}


@click.command(cls=Grouped, groups=GROUPS)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--precision",
    "-p",
    default="fp32",
    show_default=True,
    type=click.Choice(["fp32", "tf32", "fp16", "int8"]),
    help="Precision of the engine.",
)
@click.option(
    "--for",
    "release",
    default="10",
    show_default=True,
    type=click.Choice(["8.6", "10", "11"]),
    help="Release of TensorRT on the device.",
)
@click.option(
    "--batch",
    metavar="N[,N...]",
    help="Batch sizes to measure. [default: the smallest that the bundle takes]",
)
@click.option(
    "--device",
    default="dgpu",
    show_default=True,
    type=click.Choice(["dgpu", "jetson-orin"]),
    help="Kind of device: a discrete GPU or a Jetson Orin.",
)
@click.option("--dla", type=click.IntRange(0, 1), help="DLA core of an Orin; fp16 or int8, one batch size.")
@click.option(
    "--gpu-fallback",
    is_flag=True,
    help="Layers that the DLA refuses run on the GPU, and input and output are converted there.",
)
@click.option("--images", type=click.IntRange(1), help="Test images shipped for the check; all if left out.")
@click.option(
    "--version-compatible",
    is_flag=True,
    help="Engine that runs with newer TensorRT too; larger, may be slower.",
)
@click.option(
    "--hardware",
    default="none",
    show_default=True,
    type=click.Choice(["none", "ampere+"]),
    help="GPUs that the engine runs on: that of the device, or any from Ampere on, which may be slower.",
)
@precision_settings_option
@common_options(writes=True)
def command(
    bundle: Path,
    precision: str,
    release: str,
    batch: str | None,
    device: str,
    dla: int | None,
    gpu_fallback: bool,
    images: int | None,
    version_compatible: bool,
    hardware: str,
    options: tuple[str, ...],
    output: Output,
) -> None:
    """Write scripts into BUNDLE for a device with trtexec and a shell: build an engine, measure it, check it.

    check_engine.sh runs every test image on the device and compares, with awk: Python is not needed there.
    """
    from smash_export.bundle.bundle import Bundle
    from smash_export.deploy.trtexec import (
        NOT_RUN,
        ScriptSettings,
        check_options,
        engine_command,
        opset_note,
        write_scripts,
    )

    opened, of_precision = Bundle.open(bundle), read_options(options)
    settings = ScriptSettings(
        release=cast(Any, release),
        batches=_batches(batch or str(opened.signature.batch[0])),
        device=device,
        dla=dla,
        gpu_fallback=gpu_fallback,
        version_compatible=version_compatible,
        hardware=hardware,
        images=images,
    )
    engine = engine_command(opened, precision, settings)
    check_options(opened, precision, of_precision)
    facts = opset_note(opened.onnx, release)
    if facts:
        output.warn(facts)
    lines = _lines(engine, settings.batches)
    result: JsonObject = {"commands": lines, "status": NOT_RUN}
    for line in lines:
        output.text(line)
    if output.dry_run:
        output.result({"dry_run": True, **result})
        return
    with output.progress("writing and running the graph", None):
        file, parity = write_scripts(opened, precision, settings, of_precision)
    output.note(f"wrote {file.folder}/build_engine.sh, bench_engine.sh and check_engine.sh; {NOT_RUN}")
    if "dla" in file.notes:
        where = file.notes["dla"]
        output.note(f"{len(where['on_the_gpu'])} of {where['nodes']} nodes run on the GPU instead of the DLA")
    output.note(f"the graph, run by ONNX Runtime on the CPU: {parity.agreement:.2%} same label as PyTorch")
    output.result({**result, "folder": file.folder, "parity": parity.to_json()})


def _batches(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.isdecimal() for part in parts):
        raise UsageError("--batch", expected="1,8,32", received=text)
    return tuple(int(part) for part in parts)


def _lines(engine: EngineCommand, batches: tuple[int, ...]) -> list[str]:
    """What builds the engine, measures it at each batch size, and checks its answers."""
    from smash_targets.tensorrt.trtexec import bench_words, build_words, check_words

    check = check_words(engine, max(batches), "images_000000.bin", "check_000000.output.json")
    lines = [build_words(engine), *(bench_words(engine, size) for size in batches), check]
    return [shlex.join(["trtexec", *words]) for words in lines]

"""``smash-export bake``: preprocessing and softmax inside one ONNX file, for programs that have neither."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from smash_export.cli.compile import read_options
from smash_export.cli.console import Output, common_options
from smash_export.cli.shared_options import precision_settings_option


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--precision",
    "-p",
    default="fp32",
    show_default=True,
    type=click.Choice(["fp32", "fp16", "int8"]),
    help="Precision of the network inside; bytes go in and float32 comes out.",
)
@click.option(
    "--output",
    "answers",
    default="probabilities",
    show_default=True,
    type=click.Choice(["probabilities", "top-k"]),
    help="All probabilities, or scores and numbers of the best classes.",
)
@click.option(
    "--top-k",
    type=click.IntRange(1),
    default=5,
    show_default=True,
    help="Number of classes that the answer names.",
)
@click.option(
    "--runtime",
    "runtimes",
    multiple=True,
    help="Compile the file for this runtime too, or for all; those that take seconds if left out.",
)
@precision_settings_option
@common_options(writes=True)
def command(
    bundle: Path,
    precision: str,
    answers: Literal["probabilities", "top-k"],
    top_k: int,
    runtimes: tuple[str, ...],
    options: tuple[str, ...],
    output: Output,
) -> None:
    """Write an ONNX file into BUNDLE that takes images as uint8 [batch, height, width, channels].

    For C++, DeepStream, trtexec and Triton: what is left to do outside is resizing. The file is run on all
    test images by ONNX Runtime, and by each other runtime that takes it and is here.
    """
    from smash_export.bundle.bundle import Bundle
    from smash_export.deploy.bake import TARGET, bake
    from smash_export.deploy.baked_runtimes import chosen_runtimes
    from smash_export.deploy.trtexec import check_options
    from smash_export.measure.evidence import parity_of

    opened, settings = Bundle.open(bundle), read_options(options)
    if output.dry_run:
        chosen_runtimes(runtimes)
        check_options(opened, precision, settings)
        folder = opened.path / "targets" / TARGET / precision
        output.text(f"would write {folder}")
        output.result({"dry_run": True, "writes": folder})
        return
    with output.progress("baking", None):
        file = bake(opened, precision, answers, top_k, runtimes, settings)
    parity = parity_of(file)
    output.table(
        f"{file.main}: taken by",
        ["runtime", "how", "file or reason", "same label"],
        [
            [
                item["target"],
                item["how"],
                item["file"] or item["why"],
                "" if item["agreement"] is None else f"{item['agreement']:.2%}",
            ]
            for item in file.notes["taken_by"]
        ],
    )
    output.note(f"run on {parity.images} real images; what is only built or checked was not run")
    output.result(
        {"file": file.main, "taken_by": file.notes["taken_by"], "parity": parity.to_json(), "output": answers}
    )

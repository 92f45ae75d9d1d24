"""``smash-export triton``: a model repository for Triton Inference Server."""

from __future__ import annotations

from pathlib import Path

import click

from smash_export.cli.console import Output, common_options
from smash_export.cli.groups import Grouped

GROUPS = {
    "Files": ("variants", "name", "precision", "version", "force"),
    "Batching": ("max_batch", "queue_delay_us", "queue_size"),
    "Running": ("instances", "threads", "gpu"),
}


@click.command(cls=Grouped, groups=GROUPS)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--variant",
    "variants",
    type=click.Choice(["onnx", "plan", "torchscript", "baked"]),
    multiple=True,
    default=["onnx"],
    show_default=True,
    help="Kind of file; several give several models.",
)
@click.option("--name", help="Name of the model.  [default: that of the bundle's folder]")
@click.option("--precision", default="fp32", show_default=True, help="Precision of the file.")
@click.option(
    "--version",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Version of the model in the repository.",
)
@click.option(
    "--max-batch", type=click.IntRange(1), help="Largest batch.  [default: the largest that the file takes]"
)
@click.option(
    "--queue-delay-us",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Microseconds to wait for a fuller batch.",
)
@click.option(
    "--queue-size",
    type=click.IntRange(1),
    default=256,
    show_default=True,
    help="Requests that may wait; more are refused.",
)
@click.option(
    "--instances",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Copies of the model that run side by side.",
)
@click.option("--threads", type=click.IntRange(1), help="Threads of one inference on the CPU.")
@click.option("--gpu", is_flag=True, help="Run on GPUs; a plan always does.")
@click.option("--force", is_flag=True, help="Replace models that are there, with all of their versions.")
@common_options(writes=True)
def command(
    bundle: Path,
    out: Path,
    variants: tuple[str, ...],
    name: str | None,
    precision: str,
    version: int,
    max_batch: int | None,
    queue_delay_us: int,
    queue_size: int,
    instances: int,
    threads: int | None,
    gpu: bool,
    force: bool,
    output: Output,
) -> None:
    """Write a model repository for Triton: model files, labels, batching, warm-up."""
    from smash_export.bundle.bundle import Bundle
    from smash_export.deploy.triton import TritonSettings, plan_repository, write_repository

    settings = TritonSettings(
        precision, version, instances, gpu, max_batch, queue_delay_us, queue_size, threads
    )
    opened = Bundle.open(bundle)
    if output.dry_run:
        plan = plan_repository(opened, out, variants, name, settings, force=force)
        folders = [model.folder for model in plan]
    else:
        with output.progress("writing the repository", None):
            folders = write_repository(
                opened, out, variants=variants, name=name, settings=settings, force=force
            )
    for folder in folders:
        output.text(f"{'would write' if output.dry_run else 'wrote'} {folder}")
    output.result({"models": folders, "written": not output.dry_run})
    output.note(f"Serve it: tritonserver --model-repository={out.resolve()}")

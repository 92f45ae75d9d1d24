"""``smash-export web``: a static folder that classifies in the browser."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from smash_export.cli.console import Output, common_options


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--runtime",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder of the npm package onnxruntime-web: npm install onnxruntime-web.",
)
@click.option("--force", is_flag=True, help="Replace the folder.")
@common_options(writes=True)
def command(bundle: Path, out: Path, runtime: Path, force: bool, output: Output) -> None:
    """Write a static folder OUT that classifies pictures in the browser, with onnxruntime-web.

    Any server of static files will do; pictures do not leave the browser, and nothing is fetched.
    """
    from smash_export.bundle.bundle import Bundle
    from smash_export.deploy.web import check, web

    opened = Bundle.open(bundle)
    if output.dry_run:
        distribution = check(opened, out, runtime, force=force)
        output.text(f"would write {out} with the runtime of {distribution}")
    else:
        output.text(f"wrote {web(opened, out, runtime, force=force)}")
        output.note(f"Look at it: python -m http.server --directory {shlex.quote(str(out))}")
    output.result({"folder": out, "written": not output.dry_run})

"""``smash-export inspect FILE``: what a file or folder is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from smash_base.json_values import JsonObject
from smash_export.cli.console import Output, common_options, words_of


@click.command()
@click.argument("path", metavar="FILE", type=click.Path())
@common_options(writes=False)
def command(path: str, output: Output) -> None:
    """Say what FILE is: best.json, a bundle, a compiled target, a run folder, ONNX, TorchScript, ...

    Nothing in the file is trusted, loaded or followed.
    """
    from smash_export.bundle.inspection import inspect

    facts = inspect(path)
    rows = [[name.replace("_", " "), words_of(value)] for name, value in _lines(facts)]
    output.table("", ["what", "value"], rows)
    output.result(facts)


def _lines(facts: JsonObject) -> Iterator[tuple[str, Any]]:
    """Objects of objects, such as results by file, take a line for each."""
    for name, value in facts.items():
        if isinstance(value, dict) and any(isinstance(item, dict) for item in value.values()):
            yield from ((f"{name}: {key}", item) for key, item in value.items())
        else:
            yield name, value

"""``smash-export targets``: every runtime, whether it can be used here, and how to get it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from smash_export.cli.console import Output, common_options

if TYPE_CHECKING:
    from smash_targets.listing import TargetState


@click.command()
@common_options(writes=False)
def command(output: Output) -> None:
    """List the targets: available or not, version, precisions, reason, install command."""
    from smash_targets.listing import targets

    rows = targets()
    output.table(
        "Targets",
        ["target", "available", "version", "precisions", "note"],
        [[row.target, _available(row), row.version, " ".join(row.precisions), _note(row)] for row in rows],
    )
    output.result({"targets": rows})


def _available(row: TargetState) -> str | bool:
    """Whether it runs and compiles here; a runtime without its compiler is not simply there."""
    return "needs an environment" if row.available and row.reason else row.available


def _note(row: TargetState) -> str:
    if row.available:
        return row.deprecated or row.reason
    return f"{row.reason}  {row.install}".strip()

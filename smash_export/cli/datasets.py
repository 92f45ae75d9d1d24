"""``smash-export datasets``: what ``--data`` takes."""

from __future__ import annotations

import click

from smash_export.cli.console import Output, common_options


@click.command()
@common_options(writes=False)
def command(output: Output) -> None:
    """List the data sets and formats that --data NAME[:PATH] reads."""
    from smash_search.data import describe

    rows = describe()
    output.table("Data sets", ["--data", "what"], [[row["usage"], row["summary"]] for row in rows])
    output.result({"datasets": rows})

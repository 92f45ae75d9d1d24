"""``smash-export datasets``: what ``--data`` takes."""

from __future__ import annotations

import click

from smash_export.cli.console import Output, common_options


@click.command()
@common_options(writes=False)
def command(output: Output) -> None:
    """List the data sets and formats that --data NAME[:PATH] reads."""
    from search.data import describe

    rows = [dict(row) for row in describe()]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    output.table("Data sets", columns, [[row.get(column) for column in columns] for row in rows])
    output.result({"datasets": rows})

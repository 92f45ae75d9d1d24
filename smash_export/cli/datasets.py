"""``smash-export datasets``: what ``--data`` takes, and what a data set holds."""

from __future__ import annotations

import click

from smash_export.cli.console import Output, common_options
from smash_export.cli.images import data_words, skip_bad_option, tell_images


@click.command()
@click.argument("data", required=False, metavar="[NAME[:PATH]]")
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Random seed of missing splits."
)
@skip_bad_option
@common_options(writes=False)
def command(data: str | None, seed: int, skip_bad: bool, output: Output) -> None:
    """List the data sets and formats that --data NAME[:PATH] reads; of one, say what it holds.

    Images, classes with counts, size, splits, duplicates, and what is left out.
    """
    from smash_search.data import describe, load_dataset

    if data is not None:
        with output.progress("reading images", None):
            dataset = load_dataset(data_words(data, skip_bad), seed=seed)
        output.result(tell_images(output, dataset).to_json())
        return
    rows = describe()
    output.table("Data sets", ["--data", "what"], [[row["usage"], row["summary"]] for row in rows])
    output.result({"datasets": rows})

"""``smash-export reproduce``: the paper's experiments, on any data set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from smash_base.errors import UsageError
from smash_base.json_values import JsonObject
from smash_export.cli.console import Output, common_options
from smash_export.cli.training_options import use_threads

if TYPE_CHECKING:
    from smash_export.device_search.reproduce import Reproduced

# Of smash_search.experiments.EXPERIMENTS, which a help text must not import; a test compares the two.
NAMES = ("correlation", "capacity", "encoding", "gradient", "transfer", "presets")


@click.command()
@click.argument("name", type=click.Choice(NAMES))
@click.option(
    "--size",
    default="cpu",
    show_default=True,
    type=click.Choice(["cpu", "edge", "paper"]),
    help="Size of the experiment: cpu and edge take an hour on two cores, paper wants a GPU.",
)
@click.option(
    "--data",
    default="fashion-mnist",
    show_default=True,
    metavar="NAME[:PATH]",
    help="Images; see: smash-export datasets",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder that the experiments of one size and data set share.  [default: experiments/DATA-SIZE]",
)
@click.option("--minutes", type=click.FloatRange(0), help="Train no further network after so much time.")
@click.option(
    "--transfer-to",
    multiple=True,
    metavar="NAME[:PATH]",
    help="Data that transfer trains the picks on; may be given several times.  [by the size]",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads.")
@common_options(writes=True, trains=True)
def command(
    name: str,
    size: str,
    data: str,
    out: Path | None,
    minutes: float | None,
    transfer_to: tuple[str, ...],
    device: str,
    threads: int | None,
    output: Output,
) -> None:
    """Repeat an experiment of the SMASH paper: NAME.json, a picture and a paragraph that says what was found.

    Experiments in one folder share the HyperNet and the trained networks. An interrupted one goes on when
    the same command is given again.
    """
    from smash_search.data import folder_name, load_dataset
    from smash_search.experiments.config import size_named

    if transfer_to and name != "transfer":
        raise UsageError("--transfer-to", expected="with the experiment transfer", received=name)
    with output.progress("reading images", None):
        dataset = load_dataset(data)
    folder = out or Path("experiments") / f"{folder_name(dataset)}-{size}"
    plan: JsonObject = size_named(size).to_json()
    if transfer_to:
        plan["transfer_to"] = list(transfer_to)
    if output.dry_run:
        output.plan(plan)
        output.result({"dry_run": True, "writes": str(folder), **plan})
        return
    from smash_export.device_search.reproduce import reproduce

    use_threads(threads)
    made = reproduce(
        name,
        dataset,
        folder,
        size=size,
        device=device,
        minutes=minutes,
        transfer_to=transfer_to,
        output=output,
    )
    _tell(output, made)


def _tell(output: Output, made: Reproduced) -> None:
    output.text(made.paragraph)
    for path in (made.json, made.png, made.svg, made.markdown):
        output.note(str(path))
    output.result(
        {
            "paragraph": made.paragraph,
            "files": [str(path) for path in (made.json, made.png, made.svg, made.markdown)],
            "result": made.result,
        }
    )

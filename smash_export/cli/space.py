"""``smash-export space``: what a space holds, before any training."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from smash_export.cli.console import Output, common_options
from smash_export.cli.shared_options import cost_limits
from smash_export.device_search.search import SPACE_DEFAULTS

space_option = click.option(
    "--space",
    type=click.Choice(list(SPACE_DEFAULTS)),
    help="Search space.  [default: edge-tiny below 16 pixels, else edge]",
)


@click.command()
@click.option("--data", metavar="NAME[:PATH]", help="Take size, channels and classes from these images.")
@space_option
@click.option(
    "--size", default=28, show_default=True, type=click.IntRange(1, 4096), help="Side of an image in pixels."
)
@click.option(
    "--channels", default=1, show_default=True, type=click.IntRange(1, 4096), help="Channels of an image."
)
@click.option("--classes", default=10, show_default=True, type=click.IntRange(2), help="Number of labels.")
@click.option(
    "--samples",
    default=500,
    show_default=True,
    type=click.IntRange(10),
    help="Random networks to draw.",
)
@cost_limits
@common_options(writes=False)
def command(output: Output, **values: Any) -> None:
    """Show how many networks a space holds and what they cost; say whether limits can be kept.

    Exit code 5 when no network that was found keeps the limits.
    """
    from smash_export.device_search.space import space
    from smash_search.space.limits import CostLimits

    limits = CostLimits(values["max_parameters"], values["max_macs"], values["max_memory"])
    with output.progress("drawing networks", None):
        survey = space(
            values["data"],
            space=values["space"],
            size=values["size"],
            channels=values["channels"],
            classes=values["classes"],
            samples=values["samples"],
            limits=limits,
        )
    ranges = [("parameters", survey.parameters), ("macs", survey.macs)]
    ranges += [("activation_bytes", survey.activation_bytes)]
    output.table(
        f"space {survey.space}: about 10^{survey.log10_size:.0f} networks; {survey.samples} drawn for "
        f"{survey.input.to_json()}",
        ["cost", "smallest", "median", "largest"],
        [[name, *(f"{value:,}" for value in vars(costs).values())] for name, costs in ranges],
    )
    limits.check_possible([*survey.costs, *survey.others], survey.space)
    if any(value is not None for value in asdict(limits).values()):
        output.text(f"{survey.share_within_limits:.1%} of the drawn networks keep the limits")
    output.result(survey)

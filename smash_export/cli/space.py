"""``smash-export space``: what a space holds, before any training."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from smash_export.cli.console import Output, common_options
from smash_export.device_search.search import PRESETS


@click.command()
@click.option("--data", metavar="NAME[:PATH]", help="Take size, channels and classes from these images.")
@click.option("--space", type=click.Choice(list(PRESETS)), help="[default: by image size]")
@click.option("--size", default=28, show_default=True, type=click.IntRange(1, 4096), help="Pixels a side.")
@click.option("--channels", default=1, show_default=True, type=click.IntRange(1, 4096), help="Of an image.")
@click.option("--classes", default=10, show_default=True, type=click.IntRange(2), help="Labels.")
@click.option("--samples", default=500, show_default=True, type=click.IntRange(10), help="Draws to look at.")
@click.option("--max-parameters", type=click.IntRange(1), help="Limit on stored numbers.")
@click.option("--max-macs", type=click.IntRange(1), help="Limit on multiply-accumulates per image.")
@click.option("--max-memory", type=click.IntRange(1), help="Limit on bytes of activations, batch 1.")
@common_options(writes=False)
def command(output: Output, **values: Any) -> None:
    """Show how many networks a space holds and what they cost; say whether limits can be kept.

    Exit code 5 when no drawn network keeps the limits.
    """
    from statistics import median

    from smash_search.space.architecture import InputSpec
    from smash_search.space.limits import Limits, survey
    from smash_search.space.space import space_for

    if values["data"]:
        from smash_search.data import load_dataset
        from smash_search.rank.finalists import input_spec_of

        dataset = load_dataset(values["data"])
        spec, classes = input_spec_of(dataset), len(dataset.classes)
    else:
        spec, classes = InputSpec(values["channels"], (values["size"],) * 2), values["classes"]
    space = space_for(spec, values["space"])
    costs = survey(space, spec, classes, samples=values["samples"])
    size = space.log10_size(samples=min(values["samples"], 500))
    named = {
        "parameters": [cost.parameters for cost in costs],
        "macs": [cost.macs for cost in costs],
        "activation_bytes": [cost.activation_bytes for cost in costs],
    }
    ranges = {
        name: {"smallest": min(column), "median": int(median(column)), "largest": max(column)}
        for name, column in named.items()
    }
    rows = [[name, *(f"{value:,}" for value in entry.values())] for name, entry in ranges.items()]
    output.table(
        f"space {space.name}: about 10^{size:.0f} networks; {len(costs)} drawn for {spec.to_json()}",
        ["cost", "smallest", "median", "largest"],
        rows,
    )
    limits = Limits(values["max_parameters"], values["max_macs"], values["max_memory"])
    within = limits.check_possible(costs, space.name)
    if any(value is not None for value in asdict(limits).values()):
        output.text(f"{within:.1%} of the drawn networks keep the limits")
    output.result(
        {
            "space": space.name,
            "log10_size": size,
            "input": spec.to_json(),
            "classes": classes,
            "samples": len(costs),
            **ranges,
            "limits": asdict(limits),
            "share_within_limits": within,
        }
    )

"""``smash-export train``: a preset, an architecture file or your own network becomes a trained bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from smash_base.errors import UsageError
from smash_base.json_values import JsonObject
from smash_export.cli.console import Output, common_options
from smash_export.cli.freeze import GROUPS, run_freeze
from smash_export.cli.freeze import command as freeze_command
from smash_export.cli.groups import Grouped
from smash_export.cli.images import data_words, tell_images
from smash_export.cli.training import check_early, planned, tell_interrupted, train_module
from smash_export.cli.training_options import chosen_recipe, use_threads

if TYPE_CHECKING:
    from torch import nn

NOT_HERE = ("arch", "weights", "run")  # the network is an argument, and nothing is generated


def _train(network: Path, output: Output, **values: Any) -> None:
    from smash_export.export.own_network import names_function

    values["weights"] = "retrain"
    if names_function(str(network)) and not network.exists():
        _train_own(str(network), output, values)
    else:
        run_freeze(network, output, {**values, "run": None})


def _train_own(name: str, output: Output, values: dict[str, Any]) -> None:
    """Train ``module:function`` and make a bundle of it."""
    from smash_export.export.freeze import work_of
    from smash_export.export.own_network import CHECKPOINT, check_export, check_recipe, own_network
    from smash_search.data import load_dataset

    if values["data"] is None or values["qat"] or values["exporter"] != "graph":
        raise UsageError(
            f"{name} is a network of your own",
            expected="--data, and neither --qat nor --exporter, which need an architecture file",
        )
    if values["teacher"] == "auto":
        raise UsageError("--teacher auto needs an architecture file or a preset", hint="Name a teacher.")
    use_threads(values["threads"])
    destination = values["out"] or Path(f"{name.rpartition(':')[2]}-bundle")
    check_early(destination, values)
    with output.progress("reading images", None):
        dataset = load_dataset(data_words(values["data"], values["skip_bad"]))
    summary = tell_images(output, dataset)
    if not any(word.startswith("whiten=") for word in values["settings"]):
        values["settings"] = (*values["settings"], "whiten=false")  # its weights may be trained ones
    recipe = chosen_recipe(dataset, values)
    network = own_network(name, dataset, recipe.seed)
    check_recipe(network, dataset, recipe, name)
    check_export(network, dataset, name)
    checkpoint = work_of(destination) / CHECKPOINT

    def make() -> nn.Module:
        return own_network(name, dataset, recipe.seed)

    tell_interrupted(checkpoint, make, dataset, recipe, values, output)
    if output.dry_run:
        plan: JsonObject = {"network": name, "data": dataset.spec, "writes": str(destination)}
        plan |= planned(make, None, dataset, recipe, values, output)
        output.plan(plan)
        output.result({"dry_run": True, "images": summary.to_json(), **plan})
        return
    train_module(make, name, None, dataset, summary, destination, recipe, values, output)


command = Grouped(
    "train",
    groups={heading: [name for name in names if name not in NOT_HERE] for heading, names in GROUPS.items()},
    callback=common_options(writes=True, trains=True)(_train),
    params=[
        click.Argument(["network"], metavar="NETWORK", type=click.Path(path_type=Path)),
        *(option for option in freeze_command.params if option.name not in NOT_HERE),
    ],
    help="""Train a network from scratch and write a verified bundle.

    NETWORK is a preset, such as resnet-8, an architecture file, or package.module:function that returns a
    torch.nn.Module. An interrupted training goes on when the same command is given again.
    """,
)

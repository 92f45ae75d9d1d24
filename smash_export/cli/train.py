"""``smash-export train``: a preset or any architecture file is trained by a recipe and becomes a bundle."""

from __future__ import annotations

import functools
from pathlib import Path

import click

from smash_export.cli.freeze import GROUPS
from smash_export.cli.freeze import command as freeze_command
from smash_export.cli.groups import Grouped

NOT_HERE = ("arch", "weights", "run")  # the network is an argument, and nothing is generated

assert freeze_command.callback is not None
command = Grouped(
    "train",
    groups={heading: [name for name in names if name not in NOT_HERE] for heading, names in GROUPS.items()},
    callback=functools.partial(freeze_command.callback, weights="retrain", run=None),
    params=[
        click.Argument(["arch"], metavar="NETWORK", type=click.Path(path_type=Path)),
        *(option for option in freeze_command.params if option.name not in NOT_HERE),
    ],
    help="""Train a network from scratch and write a verified bundle.

    NETWORK is a preset, such as resnet-8, or an architecture file. An interrupted training goes on when
    the same command is given again.
    """,
)

"""Options that several commands spell alike."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

import click

from smash_base.errors import UsageError

F = TypeVar("F", bound=Callable[..., object])


def measuring_options(batches: str) -> Callable[[F], F]:
    """How files are measured in turns: ``threads``, ``batches``, ``seconds`` and ``rounds``.

    Args:
        batches: What the batch sizes are used for, for the help.
    """
    return _all(
        click.option(
            "--threads",
            type=click.IntRange(1),
            default=1,
            show_default=True,
            help="Threads of one inference.",
        ),
        click.option(
            "--batch",
            "-b",
            "batches",
            type=click.IntRange(1),
            multiple=True,
            default=(1,),
            show_default=True,
            help=batches,
        ),
        click.option(
            "--seconds",
            type=click.FloatRange(0.05, 600),
            default=2.0,
            show_default=True,
            help="Seconds of measuring for each file and batch size, over all rounds.",
        ),
        click.option(
            "--rounds",
            type=click.IntRange(1, 100),
            default=5,
            show_default=True,
            help="Rounds in which the files take turns.",
        ),
    )


_UNITS = {"k": 1e3, "m": 1e6, "g": 1e9, "ki": 2**10, "mi": 2**20, "gi": 2**30, None: 1}


def count(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """A number of at least 1, as it stands or shortened: ``15000000``, ``15M``, ``1.5e7``, ``64Ki``."""
    if value is None:
        return None
    bytes_too = "b?" if param.name == "max_memory" else ""
    match = re.fullmatch(rf"(\d[\d_,]*(?:\.\d+)?(?:e\d+)?) ?([kmg]i?)?{bytes_too}", value.strip().lower())
    number = float(re.sub("[_,]", "", match[1])) * _UNITS[match[2]] if match else 0.0
    if not 1 <= number < 1e18 or number != int(number):
        raise click.BadParameter(f"expected a count such as 15000000 or 15M, received {value!r}", ctx, param)
    return int(number)


def cost_limits(command: F) -> F:
    """Limits on what a network costs: ``max_parameters``, ``max_macs`` and ``max_memory``."""
    helps = {
        "parameters": "Limit on parameters, such as 300k.",
        "macs": "Limit on multiply-accumulates per image, such as 15M.",
        "memory": "Limit on bytes of activations, batch 1, such as 256Ki.",
    }
    options = [
        click.option(f"--max-{name}", metavar="COUNT", callback=count, help=text)
        for name, text in helps.items()
    ]
    return _all(*options)(command)


balance_option = click.option(
    "--balance",
    type=click.Choice(["none", "loss", "sampling"]),
    help="Remedy for classes of unequal size: weights in the loss, or even sampling.",
)


def recipe_option(what: str, name: str = "recipe") -> Callable[[F], F]:
    """``--recipe``.

    Args:
        what: it says, for the help.
        name: Name of the parameter.
    """
    return click.option(
        "--recipe",
        name,
        default="auto",
        show_default=True,
        type=click.Choice(["auto", "quick", "standard", "long"]),
        help=what,
    )


split_option = click.option(
    "--split",
    type=click.Choice(["train", "validation", "test", "all"]),
    default="test",
    show_default=True,
    help="Part of --data that is used; all of it where the bundle never saw any.",
)


precision_settings_option = click.option(
    "--option",
    "-o",
    "options",
    multiple=True,
    metavar="NAME=VALUE",
    help="Setting of the precision, such as calibration_minimum=100; several times for several.",
)


def check_part(data: str | None, split: str, seed: int | None = None) -> None:
    """Raise UsageError for a part of no data set: the bundled test images would pass for it."""
    if data is None and (split != "test" or seed is not None):
        raise UsageError(
            "without --data the test images of the bundle are used",
            expected="--data NAME[:PATH], of which --split and --seed choose a part",
            received=f"--split {split}" if seed is None else f"--seed {seed}",
        )


def file_options(function: F) -> F:
    """Which file of a bundle answers, and how: ``target``, ``precision``, ``threads`` and ``device``."""
    return _all(
        click.option("--target", "-t", metavar="NAME", help="Runtime; the recommended one if left out."),
        click.option(
            "--precision",
            "-p",
            type=click.Choice(["fp32", "tf32", "bf16", "fp16", "int8"]),
            help="Precision of the file.",
        ),
        click.option("--threads", type=click.IntRange(1), help="Threads of one inference."),
        click.option("--device", metavar="NAME", help="cpu, cuda:0, ..."),
    )(function)


def _all(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Several options as one decorator, in the order in which help shows them."""

    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate

"""Options that every command takes, the :class:`Output` that it gets in their place, and words for values."""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import math
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from smash_base.errors import UsageError
from smash_export.cli.config import below_root, check_group, check_settings, load_config, print_settings
from smash_export.progress import Output as Output

Function = TypeVar("Function", bound=Callable[..., Any])

_LONGEST = 400  # characters of a value


def common_options(*, writes: bool, trains: bool = False) -> Callable[[Function], Function]:
    """Options of every command: ``--json``, ``--quiet``, ``--config``, ``--print-config``, ``--debug``.

    The decorated function gets ``output: Output`` in their place.

    Args:
        writes: whether the command writes files; adds ``--dry-run``.
        trains: whether it loads PyTorch before it says anything, which takes seconds: a terminal is told.
    """

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def call(*args: Any, as_json: bool, quiet: bool, print_config: bool, **values: Any) -> Any:
            output = Output(json=as_json, quiet=quiet, dry_run=values.pop("dry_run", False))
            if print_config:
                return print_settings(click.get_current_context(), output)
            for name, value in values.items():
                for number in value if isinstance(value, tuple) else (value,):
                    if isinstance(number, float) and math.isnan(number):  # in click's ranges, below no gate
                        option = "--" + name.replace("_", "-")
                        raise UsageError(f"option {option}", expected="a number", received=number)
            if trains and sys.stderr.isatty():
                with output.progress("loading PyTorch", None), contextlib.suppress(ImportError):
                    importlib.import_module("torch")  # one that is missing is told where it is needed
            return function(*args, output=output, **values)

        options = [
            click.option(
                "--json", "as_json", is_flag=True, help="Print JSON on stdout and nothing else there."
            ),
            click.option("--quiet", "-q", is_flag=True, help="No notes and no progress."),
            click.option(
                "--config",
                metavar="FILE",
                is_eager=True,
                expose_value=False,
                callback=_command_config,
                help="Read settings from the table of this command in a TOML file.",
            ),
            click.option(
                "--print-config", is_flag=True, help="Print the settings in use and their sources, then stop."
            ),
            click.option("--debug", is_flag=True, expose_value=False, help="Show a traceback with an error."),
        ]
        if writes:
            options.insert(
                2, click.option("--dry-run", is_flag=True, help="Say what would be done; write nothing.")
            )
        decorated: Any = call
        for option in reversed(options):
            decorated = option(decorated)
        result: Function = decorated
        return result

    return decorate


def _command_config(ctx: click.Context, parameter: click.Parameter, value: str | None) -> None:
    if value is not None:
        table: Any = load_config(value, ctx)
        for context in below_root(ctx):
            context.default_map = table = table.get(context.info_name or "", {})
            if context is not ctx:
                check_group(context)
    if ctx.default_map:
        check_settings(ctx)


def words_of(value: Any) -> str:
    """A JSON value on one line, for people; what is long ends in "…"."""
    if isinstance(value, list) and all(isinstance(item, str | int) for item in value):
        text = ", ".join(str(item) for item in value) or "none"
    elif isinstance(value, dict):
        text = ", ".join(f"{key}: {words_of(item)}" for key, item in value.items()) or "none"
    elif isinstance(value, float):
        text = f"{value:.6g}"
    elif isinstance(value, int) and not isinstance(value, bool):
        text = f"{value:,}"
    elif value is None:
        text = "-"
    else:
        text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"

"""Settings from a TOML file, checked before use, and the settings in use with where each came from.

One table per command; keys are the option names with or without dashes:

    [search]
    data = "digits"
    steps = 2000
"""

from __future__ import annotations

import datetime
import difflib
import json
import tomllib
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from smash_base.errors import InvalidInputError, UsageError
from smash_export.progress import Output

MAX_CONFIG_BYTES = 2**20
_FILE = "smash_export.config"  # where a context keeps the name of the file, for messages
_NOT_SETTINGS = {"config", "print_config", "debug", "as_json", "help"}
_SOURCES = {
    ParameterSource.COMMANDLINE: "command line",
    ParameterSource.ENVIRONMENT: "environment",
    ParameterSource.DEFAULT_MAP: "config file",
    ParameterSource.DEFAULT: "default",
    ParameterSource.PROMPT: "prompt",
}


def load_config(path: str, ctx: click.Context) -> dict[str, dict[str, Any]]:
    """Read a TOML file: command -> option -> value, with underscores in the option names.

    Args:
        ctx: Context of a command or of the whole program, whose commands are the names that tables may have.

    Raises:
        InvalidInputError: missing, larger than 1 MiB, or not TOML.
        UsageError: a table that is not a command.
    """
    root = ctx.find_root().command
    commands = root.list_commands(ctx) if isinstance(root, click.Group) else []
    file = Path(path)
    try:
        if file.stat().st_size > MAX_CONFIG_BYTES:
            raise InvalidInputError(f"{path} is too large", expected=f"at most {MAX_CONFIG_BYTES} bytes")
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InvalidInputError(
            f"config file {path} does not exist", hint="See the settings in use: --print-config"
        ) from None
    except (IsADirectoryError, PermissionError) as error:
        raise InvalidInputError(f"config file {path} cannot be read", received=error.strerror) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInputError(f"{path} is not valid TOML", received=error) from None
    settings = {}
    for command, table in tables.items():
        if command not in commands or not isinstance(table, dict):
            near = difflib.get_close_matches(command, commands, n=1)
            raise UsageError(
                f"{path} holds {command!r}",
                expected="one table per command, for example [search]",
                hint=f"Did you mean [{near[0]}]?" if near else None,
            )
        settings[command] = {key.replace("-", "_"): value for key, value in table.items()}
        for key in (_NOT_SETTINGS - {"as_json"}) & set(settings[command]):
            raise UsageError(f"{path} sets {key!r} of [{command}], which a config file does not have")
    ctx.meta[_FILE] = path
    return settings


def below_root(ctx: click.Context) -> list[click.Context]:
    """Contexts of a command and of the groups that it is in, the outermost first: not that of the program."""
    found = [ctx]
    while (parent := found[0].parent) is not None and parent.parent is not None:
        found.insert(0, parent)
    return found


def _table_of(ctx: click.Context) -> str:
    """Name of a command's table, such as ``latency.build``."""
    return ".".join(context.info_name or "" for context in below_root(ctx))


def check_settings(ctx: click.Context) -> None:
    """Refuse keys of the config file that this command does not have, and values of another kind.

    Raises:
        UsageError: an unknown key; near misses are suggested. A list where one value is expected, or the
            reverse. A value of a type that the option does not take (:func:`_type_instead`).
    """
    known = {_key(parameter): parameter for parameter in ctx.command.params}
    names = {parameter.name or "": parameter for parameter in known.values()}
    table: dict[str, Any] = dict(ctx.default_map or {})
    renamed = {}
    for written, value in table.items():
        key = written.replace("-", "_")
        parameter = known.get(key) or names.get(key)
        if parameter is None:
            near = difflib.get_close_matches(key, known, n=1)
            raise UsageError(
                f"config file {ctx.meta[_FILE]} sets {key!r}, which {ctx.info_name} does not have",
                expected=", ".join(
                    sorted(key for key, one in known.items() if one.name not in _NOT_SETTINGS)
                ),
                hint=f"Did you mean {near[0]}?" if near else None,
            )
        several = parameter.nargs != 1 or getattr(parameter, "multiple", False)
        expected = _type_instead(parameter, value)
        if several != isinstance(value, list) or isinstance(value, dict):
            expected = f"a list of values, as in {key} = [...]" if several else "one value"
        if expected:
            raise UsageError(
                f"config file {ctx.meta[_FILE]} sets {key!r} of [{_table_of(ctx)}] to what it does not take",
                expected=expected,
                received=_toml(value) if isinstance(value, bool) else value,
            )
        renamed[parameter.name or ""] = value
    ctx.default_map = renamed


def _type_instead(parameter: click.Parameter, value: object) -> str | None:
    """Words for what the option takes in place of a value, or of one in a list; None for what click converts.

    click expects text: it fails on dates, and makes 1 of ``true`` and of 1.9 without a word.
    """
    if isinstance(value, list):
        return next((words for item in value if (words := _type_instead(parameter, item))), None)
    if isinstance(value, datetime.date | datetime.time):  # a datetime is a date
        return "text, a number, true or false; dates in quotation marks"
    whole = isinstance(parameter.type, type(click.INT))
    number = whole or isinstance(parameter.type, type(click.FLOAT))
    if (number and isinstance(value, bool)) or (
        whole and isinstance(value, float) and not value.is_integer()
    ):
        return "a whole number" if whole else "a number"
    return None


def check_group(ctx: click.Context) -> None:
    """Refuse what the config file sets of a group itself: its commands have tables of their own inside.

    Args:
        ctx: Context of a group of commands.

    Raises:
        UsageError: something else than such a table.
    """
    assert isinstance(ctx.command, click.Group)
    commands = ctx.command.list_commands(ctx)
    for key, value in (ctx.default_map or {}).items():
        if key not in commands or not isinstance(value, dict):
            raise UsageError(
                f"config file {ctx.meta[_FILE]} sets {key!r} of [{ctx.info_name}]",
                expected=" or ".join(f"[{ctx.info_name}.{command}]" for command in commands),
            )


def print_settings(ctx: click.Context, output: Output) -> None:
    """Print the settings in use: TOML that ``--config`` reads, each line with where its value came from."""
    rows = []
    for parameter in ctx.command.params:
        name = parameter.name or ""
        if name in _NOT_SETTINGS or name == "dry_run":
            continue
        source = _SOURCES.get(ctx.get_parameter_source(name) or ParameterSource.DEFAULT, "default")
        rows.append((_key(parameter), ctx.params.get(name), source))
    output.text(f"[{_table_of(ctx)}]")
    for key, value, source in rows:
        line = f"# {key} is not set" if value is None else f"{key} = {_toml(value)}"
        output.text(f"{line}  # {source}")
    output.result(
        {
            "command": ctx.info_name,
            "settings": {
                key: {"value": value if _simple(value) else str(value), "source": source}
                for key, value, source in rows
            },
        }
    )


def _key(parameter: click.Parameter) -> str:
    """The name a person would write: that of the longest option, with underscores."""
    if isinstance(parameter, click.Option):
        return max(parameter.opts, key=len).lstrip("-").replace("-", "_")
    return parameter.name or ""


def _simple(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(_simple(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)


def _toml(value: object) -> str:
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    return json.dumps(str(value), ensure_ascii=False)

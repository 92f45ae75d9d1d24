"""Options of commands that can run on another device, the device that they name, and asking it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from smash_base.errors import UsageError

if TYPE_CHECKING:
    from smash_export.cli.console import Output
    from smash_export.remote.device import Device

Function = TypeVar("Function", bound=Callable[..., Any])

NAMES = ("device_host", "device_ssh", "device_adb", "device_folder", "device_program", "device_timeout")


def device_options(function: Function) -> Function:
    """``--device-host``, ``--adb``, ``--device-folder`` and what belongs to them; see :func:`device_of`."""
    options = [
        click.option(
            "--device-host", metavar="USER@HOST", help="Device that runs the files, reached by ssh."
        ),
        click.option(
            "--device-ssh",
            metavar="COMMAND",
            help="The ssh client, for example 'ssh -p 2222 -i KEY'.  [ssh]",
        ),
        click.option(
            "--adb",
            "device_adb",
            metavar="SERIAL",
            help="Android device that runs the files, reached by adb.",
        ),
        click.option(
            "--device-folder",
            type=click.Path(path_type=Path, file_okay=False),
            help="Folder to carry to a device without a network, and back.",
        ),
        click.option(
            "--device-program", metavar="COMMAND", help="Path of smash-export on the device.  [smash-export]"
        ),
        click.option(
            "--device-timeout",
            type=click.FloatRange(1),
            metavar="SECONDS",
            help="Time limit of a step on the device.  [several times what is expected]",
        ),
    ]
    decorated: Any = function
    for option in reversed(options):
        decorated = option(decorated)
    result: Function = decorated
    return result


def device_of(values: dict[str, Any]) -> Device | None:
    """The device that the options name; takes them out of ``values``. None for this machine.

    Raises:
        UsageError: several devices, or what belongs to one without it.
    """
    host, ssh, adb, folder, program, seconds = (values.pop(name) for name in NAMES)
    given = [
        name
        for name, value in (("--device-host", host), ("--adb", adb), ("--device-folder", folder))
        if value is not None
    ]
    if len(given) > 1:
        raise UsageError("several devices are given", expected="one of them", received=", ".join(given))
    if not given:
        if any(value is not None for value in (ssh, program, seconds)):
            raise UsageError(
                "an option of a device is given, and no device",
                expected="--device-host, --adb or --device-folder",
            )
        return None
    if ssh is not None and host is None:
        raise UsageError("--device-ssh without --device-host")
    from smash_export.remote.adb import AdbTransport
    from smash_export.remote.device import ReachedDevice
    from smash_export.remote.folder import FolderDevice
    from smash_export.remote.ssh import SshTransport

    program = program or "smash-export"
    if folder is not None:
        return FolderDevice(program, seconds, folder=folder)
    transport = SshTransport(host, ssh or "ssh") if host is not None else AdbTransport(adb)
    return ReachedDevice(program, seconds, transport=transport)


def ask(
    device: Device,
    words: list[str],
    output: Output,
    *,
    inputs: Mapping[str, Path],
    outputs: Mapping[str, Path] | None = None,
    seconds: float,
) -> dict[str, Any]:
    """Run a command on the device and show its progress here; see :meth:`Device.ask`.

    Args:
        words: as :meth:`Device.ask` takes them, the name of the command first.
        seconds: Time that it should take; it may take ten times as long, and two minutes.
    """
    from smash_export.remote.folder import FolderDevice

    inputs = {name: path.resolve() for name, path in inputs.items()}  # "." has no name over there
    with output.progress(f"{words[0]} on {device.name}", None) as advance:
        result = device.ask(
            words,
            inputs=inputs,
            outputs=outputs,
            seconds=120 + 10 * seconds,
            told=lambda line: advance(0, there=line[:80]),
        )
    if isinstance(device, FolderDevice):
        output.note(f"the answer lay in {device.place(words, inputs)}; remove it to ask the device anew")
    return result


def given_words(context: click.Context, *, without: Collection[str] = ()) -> list[str]:
    """The options that were given, as words of a command that does the same.

    Args:
        context: Context of the command.
        without: names of parameters that are left out; arguments, ``--json`` and ``--quiet`` always are.
    """
    words: list[str] = []
    for parameter in context.command.params:
        name = parameter.name or ""
        value, source = context.params.get(name), context.get_parameter_source(name)
        if not isinstance(parameter, click.Option) or name in without or name in ("as_json", "quiet"):
            continue
        if value is None or source in (ParameterSource.DEFAULT, None):
            continue
        if isinstance(value, bool):
            words.append(parameter.opts[0] if value else parameter.secondary_opts[0])
        elif isinstance(value, tuple):
            words += [word for entry in value for word in (parameter.opts[0], str(entry))]
        else:
            words += [parameter.opts[0], str(value)]
    return words

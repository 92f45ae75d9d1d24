"""``smash-export doctor``: this machine, the packages with their required versions, the extras."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from smash_export.cli.console import Output, common_options

if TYPE_CHECKING:
    from smash_export.measure.doctor import Diagnosis


@click.command()
@click.option(
    "--environment",
    metavar="NAME",
    help="Only print the commands that make the environment of a target, such as litert.",
)
@common_options(writes=False)
def command(environment: str | None, output: Output) -> int:
    """Show what this machine can do and what is missing.

    Leaves with code 3 when a package of the base is missing or too old; a missing extra is only shown.
    """
    from smash_export.measure.doctor import diagnose
    from smash_targets.tensorrt.jetson import is_jetson

    if environment is not None:
        return _environment(environment, output)
    found = diagnose()
    output.table("This machine", ["what", "value"], _machine(found))
    output.table(
        "Packages",
        ["", "package", "version", "required", "for"],
        [
            [_tick(row.ok), row.package, row.found or "missing", row.required, row.extra or "base"]
            for row in found.packages
        ],
    )
    output.table(
        "Extras",
        ["", "extra", "missing", "command"],
        [
            [_tick(extra.ready), name, ", ".join(extra.missing), "" if extra.ready else extra.install]
            for name, extra in found.extras.items()
        ],
    )
    output.table(
        "Targets",
        ["", "target", "version", "why not"],
        [[_tick(row.available), row.target, row.version, row.reason] for row in found.targets],
    )
    if is_jetson():
        output.note(
            "A Jetson's way to TensorRT is the scripts of smash-export trtexec, which need no Python."
        )
    if not found.packages:
        output.warn("this copy was never installed, so the required versions are unknown: pip install -e .")
    output.result(found)
    return 0 if found.ok else 3


def _environment(name: str, output: Output) -> int:
    """The commands for one environment; nothing is run."""
    from smash_targets.isolation.environments import commands

    lines = commands(name)
    for line in lines:
        output.text(line)
    output.result({"environment": name, "commands": list(lines)})
    return 0


def _machine(found: Diagnosis) -> list[list[object]]:
    machine = found.machine
    features = "  ".join(f"{name} {_tick(there)}" for name, there in found.instructions.items())
    gpus = [
        f"{gpu['name']} (driver {gpu['driver_version']}, {gpu['memory.total']}, "
        f"compute capability {gpu['compute_cap']})"
        for gpu in found.gpus
    ]
    return [
        ["smash-export", found.version],
        ["Python", f"{found.python['version']}  {found.python['executable']}"],
        ["system", f"{machine['system']}, {machine['distribution']}, {machine['architecture']}"],
        ["processor", f"{machine['processor']}, {machine['cores']} cores usable"],
        ["instructions", features],
        ["memory", f"{found.memory_available_gib} of {machine['memory_gib']} GiB available"],
        ["disk here", f"{found.disk_free_gib} GiB free"],
        ["GPU", "; ".join(gpus) or "no NVIDIA driver found"],
    ]


def _tick(good: bool) -> str:
    return "✓" if good else "✗"

"""``smash-export targets``: every runtime, whether it can be used here, and how to get it."""

from __future__ import annotations

from typing import Any

import click

from smash_export.cli.console import Output, common_options


@click.command()
@common_options(writes=False)
def command(output: Output) -> None:
    """List the targets: available or not, version, precisions, reason, install command."""
    rows = describe_targets()
    output.table(
        "Targets",
        ["target", "available", "version", "precisions", "note"],
        [
            [row["target"], row["available"], row["version"], " ".join(row["precisions"]), _note(row)]
            for row in rows
        ],
    )
    output.result({"targets": rows})


def describe_targets() -> list[dict[str, Any]]:
    """One row per registered target; a target whose own module fails is a row that says so."""
    from smash_targets.base import get_target, target_names

    rows = []
    for name in target_names():
        row: dict[str, Any] = {
            "target": name,
            "available": False,
            "version": "",
            "precisions": [],
            "reason": "",
            "install": "",
            "deprecated": "",
        }
        try:
            target = get_target(name)
            row["precisions"] = list(target.precisions)
            row["deprecated"] = target.deprecated
            row.update(vars(target.availability()))
        except Exception as error:  # noqa: BLE001 - runtimes fail to import in every way there is
            row["reason"] = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        rows.append(row)
    return rows


def _note(row: dict[str, Any]) -> str:
    if row["available"]:
        return str(row["deprecated"])
    return f"{row['reason']}  {row['install']}".strip()

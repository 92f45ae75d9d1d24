"""``smash-export runs``: list and compare searches."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from smash_export.cli.console import Output, common_options

if TYPE_CHECKING:
    from smash_export.device_search.runs import Run


@click.command()
@click.argument("folders", nargs=-1, type=click.Path(path_type=Path))
@common_options(writes=False)
def command(folders: tuple[Path, ...], output: Output) -> None:
    """List the searches in FOLDERS (default: runs), the best trained network first."""
    from smash_export.device_search.runs import runs

    found = runs(*folders)
    columns = [
        "run", "data", "space", "strategy", "seed", "state", "scored", "SMASH score (error)", "error trained",
        "random search", "origin", "parameters", "MACs", "seconds",
    ]  # fmt: skip
    rows = [
        [
            run.folder, run.data, run.space, run.strategy, run.seed, run.state, run.scored,
            _percent(run.score), _percent(run.error), _percent(run.random_search_error),
            run.origin, run.parameters, run.macs, run.seconds,
        ]
        for run in found
    ]  # fmt: skip
    output.table("Searches", columns, rows)
    if not found:
        output.note("no searches here; start one: smash-export search --data digits")
    measured = [_latency(run) for run in found if run.latency is not None or run.within is not None]
    if measured:
        output.table("Latency", ["run", "latency", "candidates within the limit", "beyond it"], measured)
    output.result({"runs": [run.to_json() for run in found]})


def _latency(run: Run) -> list[object]:
    return [run.folder, None if run.latency is None else run.latency.words(), run.within, run.beyond]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"

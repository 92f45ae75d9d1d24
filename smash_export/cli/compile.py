"""``smash-export compile``: the network as the file of one runtime, verified before it is kept."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from smash_base.errors import UsageError
from smash_base.json_values import JsonObject
from smash_export.cli.console import Output, common_options, words_of
from smash_export.cli.groups import Grouped
from smash_export.cli.shared_options import check_part, split_option

if TYPE_CHECKING:
    from smash_export.bundle.bundle import Bundle, CompiledFile
    from smash_export.compiling.effort import Effort
    from smash_targets.base import Target

GROUPS = {
    "File": ["target", "everything", "precision", "options"],
    "What int8 may lose": ["max_drop", "effort"],
    "Verification": ["data", "split", "threads", "in_process"],
}
_DEFAULT = click.core.ParameterSource.DEFAULT
SHOWN_LINES = 12  # of a note that is a table, such as the noise by layer: the worst come first


@click.command(cls=Grouped, groups=GROUPS)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--target", "-t", metavar="NAME", help="Runtime; see: smash-export targets")
@click.option("--all", "everything", is_flag=True, help="Every runtime that is here, at every precision.")
@click.option(
    "--precision",
    "-p",
    default="fp32",
    show_default=True,
    type=click.Choice(["fp32", "tf32", "bf16", "fp16", "int8"]),
    help="Precision of the computation.",
)
@click.option(
    "--option",
    "-o",
    "options",
    multiple=True,
    metavar="NAME=VALUE",
    help="Setting of the target or of the precision; several times for several.",
)
@click.option(
    "--max-drop",
    type=click.FloatRange(0, 100),
    metavar="POINTS",
    help="Percentage points of accuracy that an int8 file may lose.  [default: 0.5]",
)
@click.option(
    "--effort",
    default="normal",
    show_default=True,
    type=click.Choice(["normal", "high"]),
    help="high: for an int8 file that fails or loses more than it needs to, equalise channels and train on.",
)
@click.option(
    "--data", metavar="NAME[:PATH]", help="Labelled images to verify on instead of those in the bundle."
)
@split_option
@click.option("--threads", type=click.IntRange(1), help="Threads of the verification run.")
@click.option(
    "--in-process",
    is_flag=True,
    help="Run the runtimes in this process: faster, but a crash of one ends the command.",
)
@common_options(writes=True)
def command(
    bundle: Path,
    target: str | None,
    everything: bool,
    precision: str,
    options: tuple[str, ...],
    max_drop: float | None,
    effort: Effort,
    data: str | None,
    split: str,
    threads: int | None,
    in_process: bool,
    output: Output,
) -> int:
    """Compile BUNDLE for a runtime, verify the file on that runtime, and add it to the bundle.

    A file that fails is kept as targets/NAME/PRECISION.rejected with a report, and the exit code is 4.
    """
    _check_choice(target, everything, options)
    check_part(data, split)
    if target is None:
        judged = {"max_drop": max_drop, "effort": effort, "data": data, "split": split}
        return _all(bundle, judged, threads, in_process, output)
    from smash_export.bundle.bundle import Bundle
    from smash_export.compiling.compile import compile_bundle, plan

    opened, settings = Bundle.open(bundle), read_options(options)
    runtime = plan(opened, target, precision, effort)
    if runtime.deprecated:
        output.warn(runtime.deprecated)
    if output.dry_run:
        _tell(output, opened, runtime, precision, settings, max_drop)
        return 0
    with output.progress(f"compiling for {target} {precision}", None) as advance:
        file = compile_bundle(
            opened,
            target,
            precision,
            settings,
            max_drop=max_drop,
            effort=effort,
            data=data,
            split=split,
            threads=threads,
            isolated=not in_process,
            on_progress=lambda phase, done, steps: advance(0, step=f"{phase} {done}/{steps}"),
        )
        advance()
    _show(output, file)
    return 0


def _check_choice(target: str | None, everything: bool, options: tuple[str, ...]) -> None:
    """Raise UsageError unless one runtime is named, or all of them without settings of one."""
    if everything == (target is not None):
        raise UsageError(
            "which runtime?",
            expected="either --target NAME or --all",
            received="both" if everything else "neither",
            hint="See: smash-export targets",
        )
    chosen = click.get_current_context().get_parameter_source("precision") is not _DEFAULT
    if everything and (options or chosen):
        raise UsageError("--all with --precision or --option", expected="--all alone, or --target NAME")


def _all(bundle: Path, judged: dict[str, Any], threads: int | None, in_process: bool, output: Output) -> int:
    """Compile everything and show one table; 4 when a file was rejected."""
    from smash_export.bundle.bundle import Bundle
    from smash_export.compiling.everything import compile_all, wishes

    opened = Bundle.open(bundle)
    if output.dry_run:
        names = [[target.name, precision, target.availability().available] for target, precision in wishes()]
        output.table("Would compile", ["target", "precision", "available"], names)
        output.result({"dry_run": True, "files": names})
        return 0
    with output.progress("compiling", len(wishes())) as advance:
        outcomes = compile_all(
            opened,
            **judged,
            threads=threads,
            isolated=not in_process,
            on_outcome=lambda outcome: advance(step=f"{outcome.target} {outcome.precision}"),
        )
    output.table(
        f"Files of {bundle}",
        ["target", "precision", "status", "bytes", "accuracy", "points lost", "seconds"],
        [
            [
                *(item.target, item.precision, item.status, item.bytes),
                None if item.accuracy is None else f"{item.accuracy:.2%}",
                None if item.points_lost is None else round(item.points_lost, 3),
                item.seconds,
            ]
            for item in outcomes
        ],
    )
    for item in outcomes:
        if item.problem:
            output.text(f"{item.target} {item.precision} {item.status}: {item.problem}")
    output.note(f"Which one to use: smash-export compare {shlex.quote(str(bundle))}")
    output.result({"files": [item.to_json() for item in outcomes]})
    return 4 if any(item.status == "rejected" for item in outcomes) else 0


def _tell(
    output: Output,
    bundle: Bundle,
    target: Target,
    precision: str,
    settings: JsonObject,
    max_drop: float | None,
) -> None:
    """What would be done; raises UsageError for options that would be refused."""
    from smash_export.compiling.compile import check_options
    from smash_export.measure.gates import GATES
    from smash_export.measure.verify import held_to

    check_options(bundle, target, precision, settings, max_drop)
    state = target.availability()
    gate = GATES[held_to(bundle, precision)]
    gate = gate if max_drop is None else replace(gate, drop=max_drop)
    steps = {
        "target": target.name,
        "precision": precision,
        "available": state.available,
        "reason": state.reason,
        "install": state.install,
        "replaces": bundle.find_compiled(target.name, precision) is not None,
        "writes": str(bundle.path / "targets" / target.name / precision),
        "gate": asdict(gate),
        "options": settings,
    }
    output.plan(steps)
    output.result({"dry_run": True, **steps})


def _show(output: Output, file: CompiledFile) -> None:
    """Evidence, and what the target and the precision had to say."""
    from smash_export.measure.evidence import parity_of, seconds_of

    parity = parity_of(file)
    output.table(
        f"{file.target} {file.precision}: verified on {parity.images} real images",
        ["file", "bytes", "max difference", "same label", "accuracy", "points lost", "at most", "seconds"],
        [
            [
                str(file.main),
                file.size,
                parity.max_difference,
                f"{parity.agreement:.2%}",
                f"{parity.accuracy:.2%}",
                round(parity.drop, 3),
                None if parity.loss is None else round(parity.loss.at_most, 3),
                seconds_of(file),
            ]
        ],
    )
    for name, value in file.notes.items():
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            shown = [list(item.values()) for item in value[:SHOWN_LINES]]
            output.table(f"{name}: {len(shown)} of {len(value)}", list(value[0]), shown)
        else:
            output.note(f"{name}: {words_of(value)}")
    output.result(
        {
            "target": file.target,
            "precision": file.precision,
            "main": str(file.main),
            "bytes": file.size,
            "notes": dict(file.notes),
            "evidence": dict(file.evidence),
        }
    )


def read_options(words: tuple[str, ...], option: str = "--option") -> JsonObject:
    """NAME=VALUE pairs; a value that is JSON (true, 3, [1, 2]) is read as such, any other as text.

    Args:
        words: the pairs.
        option: Option that they are given by, for errors.

    Raises:
        UsageError: a pair without a value, or two of one name.
    """
    settings: JsonObject = {}
    for word in words:
        name, separator, text = word.partition("=")
        if not separator or not name:
            raise UsageError(f"{option} without a value", expected="NAME=VALUE", received=word)
        if name in settings:
            raise UsageError(f"{option}: {name} is given twice")
        try:
            settings[name] = json.loads(text)
        except ValueError:
            settings[name] = text
    return settings

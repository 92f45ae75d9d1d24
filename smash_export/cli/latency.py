"""``smash-export latency``: kits, tables and predictions of a device's latency."""

from __future__ import annotations

import shlex
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from smash_base import files
from smash_base.errors import UsageError
from smash_export.cli.config import check_group
from smash_export.cli.console import Output, common_options
from smash_export.cli.device import ask, device_of, device_options
from smash_export.cli.space import space_option
from smash_targets.base import target_names

if TYPE_CHECKING:
    from smash_export.device_search.latency import LatencyTable


@click.group()
@click.pass_context
def command(ctx: click.Context) -> None:
    """Latency of networks on a device: `kit` here, `build` there, `predict` here again."""
    check_group(ctx)


@command.command()
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--data", required=True, metavar="NAME[:PATH]", help="Images whose networks are measured.")
@space_option
@click.option(
    "--networks",
    type=click.IntRange(10, 10_000),
    default=150,
    show_default=True,
    help="Number of networks in the kit, random ones and up to sixteen known ones.",
)
@click.option(
    "--target",
    type=click.Choice(target_names()),
    default="onnxruntime",
    show_default=True,
    help="Runtime of the device.",
)
@click.option(
    "--precision",
    default="fp32",
    show_default=True,
    type=click.Choice(["fp32", "fp16", "int8"]),
    help="Precision that is measured.",
)
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Images per inference.")
@click.option(
    "--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads of one inference."
)
@click.option(
    "--seed", type=click.IntRange(0), default=1, show_default=True, help="Random seed of the networks."
)
@common_options(writes=True)
def kit(out: Path, data: str, space: str | None, output: Output, **values: Any) -> None:
    """Write OUT, a zip of graphs, for a device that has no PyTorch."""
    from smash_export.device_search.latency import Setting, write_kit
    from smash_search.data import load_dataset
    from smash_search.rank.finalists import input_spec_of
    from smash_search.space.space import space_for
    from smash_search.stages.survey import table_networks

    setting = Setting(values["target"], values["precision"], values["batch"], values["threads"])
    setting.check_precision()  # the device would refuse the kit
    with output.progress("reading images", None):
        dataset = load_dataset(data)
    input_spec = input_spec_of(dataset)
    chosen = space_for(input_spec, space)
    architectures = table_networks(
        chosen, input_spec, len(dataset.classes), values["seed"], values["networks"]
    )
    if output.dry_run:
        output.note(f"would write {out}: {len(architectures)} networks")
        output.result({"dry_run": True, "networks": len(architectures), "setting": asdict(setting)})
        return
    with output.progress("writing graphs", len(architectures)) as advance:
        write_kit(out, architectures, input_spec, len(dataset.classes), setting, advance)
    output.text(
        f"{out}: copy it to the device and run: smash-export latency build {shlex.quote(out.name)} table.json"
    )
    output.result({"kit": str(out), "networks": len(architectures), "setting": asdict(setting)})


@command.command()
@click.argument("kit", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--target", help="Refuse a kit for another runtime.")
@click.option(
    "--seconds", type=click.FloatRange(0.01), default=0.3, show_default=True, help="Time for each network."
)
@device_options
@common_options(writes=True)
def build(kit: Path, out: Path, target: str | None, seconds: float, output: Output, **values: Any) -> None:
    """Measure the graphs of KIT on this machine, or a device, and write the table OUT; resumes."""
    from smash_export.device_search.latency import PASSES, LatencyTable, build_table, read_kit

    device = device_of(values)
    facts = read_kit(kit)
    if target not in (None, facts["setting"]["target"]):
        raise UsageError(
            f"{kit} is for another runtime", expected=target, received=facts["setting"]["target"]
        )
    if output.dry_run:
        output.result({"dry_run": True, "networks": len(facts["networks"]), "setting": facts["setting"]})
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    if device is not None:
        ask(
            device,
            ["latency", "build", "{kit}", "{table}", "--seconds", f"{seconds:g}"],
            output,
            inputs={"kit": kit},
            outputs={"table": out},
            seconds=len(facts["networks"]) * (seconds + 1),
        )
        table = LatencyTable(files.read_json(out, what="latency table"))
    else:
        with output.progress("measuring", PASSES * len(facts["networks"])) as advance:
            table = build_table(kit, out, seconds=seconds, advance=advance)
    median = sorted(table.times)[len(table.times) // 2]
    output.text(f"{out}: {len(table.times)} networks, median {median:.3g} ms")
    output.result({"table": str(out), "networks": len(table.times), "median_ms": float(median)})


@command.command()
@click.argument("table", type=click.Path(path_type=Path))
@click.argument("architectures", nargs=-1, type=click.Path(path_type=Path))
@click.option("--measure", is_flag=True, help="Measure as well, on this machine.")
@common_options(writes=False)
def predict(table: Path, architectures: tuple[Path, ...], measure: bool, output: Output) -> None:
    """Predict the latency of ARCHITECTURES (best.json files) on the device of TABLE, and its error."""
    from smash_export.device_search.latency import LatencyTable, measure_architecture
    from smash_search.space.best import read_best

    known = LatencyTable.read(table)
    rows = []
    for path in architectures:
        best = read_best(path)
        _check_input(known, best.input, len(best.classes), path)
        row = {"file": str(path), "predicted_ms": known.predict(best.architecture)}
        if measure:
            setting = replace(known.setting)
            measured = measure_architecture(best.architecture, best.input, len(best.classes), setting)
            row["measured_ms"] = measured.p50_ms
        rows.append(row)
    error = known.error
    output.table(
        f"{known.setting.target} {known.setting.precision}, batch {known.setting.batch}",
        ["file", "predicted ms", "measured ms"],
        [[row["file"], row["predicted_ms"], row.get("measured_ms", "")] for row in rows],
    )
    output.text(
        f"Error on networks that the fit has not seen: median {error['median']:.1%}, "
        f"90th percentile {error['p90']:.1%}, Kendall tau {error['kendall_tau']:.2f} "
        f"({error['networks']} networks)."
    )
    output.result({"table": str(table), "error": error, "networks": rows})


def _check_input(table: LatencyTable, found: Any, classes: int, path: Path) -> None:
    if (table.input_spec, table.classes) != (found, classes):
        raise UsageError(
            f"{path} is for another input than the table",
            expected=f"{table.input_spec.to_json()}, {table.classes} classes",
            received=f"{found.to_json()}, {classes} classes",
        )

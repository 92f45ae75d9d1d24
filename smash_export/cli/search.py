"""``smash-export search``: find a network for labelled images."""

from __future__ import annotations

import hashlib
import shlex
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from smash_base import files
from smash_base.errors import UsageError
from smash_base.json_values import JsonObject
from smash_export.cli.console import Output, common_options
from smash_export.cli.device import NAMES, ask, device_of, device_options, given_words
from smash_export.cli.freeze import AUGMENT_HELP, SET_HELP, TEACHER_HELP, TRACK_HELP
from smash_export.cli.groups import Grouped
from smash_export.cli.images import data_words, skip_bad_option, tell_images
from smash_export.cli.shared_options import balance_option, cost_limits, recipe_option
from smash_export.cli.space import space_option
from smash_export.cli.training_options import augmentation, use_threads
from smash_export.cli.training_progress import FEW_TO_DECIDE
from smash_export.device_search.search import SPACE_DEFAULTS, STRATEGIES
from smash_targets.base import target_names

if TYPE_CHECKING:
    from smash_export.device_search.latency import DeviceLatency, Setting
    from smash_export.device_search.plan import Units
    from smash_export.remote.device import Device
    from smash_search.data import Dataset, DatasetSummary
    from smash_search.executors import ExecutorConfig
    from smash_search.stages.config import SearchConfig
    from smash_search.stages.picks import Pick, SearchResult

GROUPS = {
    "Images and run": ("data", "skip_bad", "validation", "run", "resume", "seed", "duration", "track"),
    "What is searched": (
        "space", "prior", "strategy", "strategy_option", "candidates", "known", "require",
    ),
    "HyperNet": (
        "epochs", "steps", "hypernet_share", "batch", "archs_per_step", "learning_rate", "average",
        "halve_batch",
    ),
    "Scoring": ("images", "keep"),
    "Finalists": (
        "finalists", "rounds", "per_round", "rungs", "recipe", "balance", "augment", "teacher", "settings",
        "finalist_batch", "finalist_images", "start", "baseline", "ensemble", "train_within",
    ),
    "Limits": ("max_latency", "max_parameters", "max_macs", "max_memory"),
    "Device": (
        "target", "precision", "latency_batch", "latency_threads", "latency_table", *NAMES,
        "device_networks",
    ),
    "This machine": ("device", "threads", "executor", "workers", "ray_address"),
}  # fmt: skip


LONG_STEPS, LONG_FINALISTS = 200, 8  # of a search whose time is told before it
TABLE_SEED = 1  # of the networks that a device measures; the same as that of `latency kit`


def _by_space(part: str, name: str) -> str:
    """``[tiny 240, small 4000]``: the default of an option that depends on the space."""
    values = {
        space: defaults[part][name] for space, defaults in SPACE_DEFAULTS.items() if name in defaults[part]
    }
    words = [f"{space} {_words(value)}" for space, value in values.items()]
    return f"[{', '.join(words)}]"


def _words(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


@click.command(cls=Grouped, groups=GROUPS)
@click.option("--data", required=True, metavar="NAME[:PATH]", help="Images; see: smash-export datasets")
@skip_bad_option
@click.option(
    "--run",
    type=click.Path(path_type=Path),
    help="Folder of the run.  [default: runs/photos for folder:photos]",
)
@click.option("--resume/--no-resume", default=True, show_default=True, help="Go on with the search in --run.")
@space_option
@click.option(
    "--prior",
    metavar="NAME|FILE",
    help="Distribution that networks are drawn from: regular, paper, or a TOML file.",
)
@click.option(
    "--strategy",
    type=click.Choice(STRATEGIES),
    default="random",
    show_default=True,
    help="Way in which candidates are proposed.",
)
@click.option(
    "--strategy-option",
    multiple=True,
    metavar="NAME=NUMBER",
    help="Setting of the strategy; may be repeated.",
)
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Random seed of the whole search."
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads.")
@click.option(
    "--validation",
    type=click.FloatRange(0, 0.5, min_open=True),
    help="Share of the training images held out for validation.",
)
@click.option("--epochs", type=click.FloatRange(0, min_open=True), help="Passes over the training images.")
@click.option(
    "--steps",
    type=click.IntRange(1),
    help=f"Updates, in place of --epochs.  {_by_space('training', 'steps')}",
)
@click.option(
    "--hypernet-share",
    type=click.FloatRange(0, 0.95, min_open=True),
    help="Share of the search's time for training the HyperNet, in place of --steps; from a few timed steps.",
)
@click.option("--batch", type=click.IntRange(2), help="Images per architecture in a training step.")
@click.option("--archs-per-step", type=click.IntRange(1), help="Architectures per update.")
@click.option("--learning-rate", type=click.FloatRange(0, min_open=True), help="Highest learning rate.")
@click.option(
    "--average", type=click.FloatRange(0, 0.999999), help="Decay of a moving average of the weights."
)
@click.option("--halve-batch", is_flag=True, help="Halve the batch when the GPU runs out of memory.")
@click.option(
    "--candidates",
    type=click.IntRange(1),
    help=f"Architectures to score with generated weights.  {_by_space('search', 'candidates')}",
)
@click.option(
    "--known",
    type=click.IntRange(0),
    help="Candidates that are known networks, such as residual, inverted and dense ones; at most half.  "
    + _by_space("search", "known"),
)
@click.option(
    "--images",
    metavar="N,N,..",
    help="Validation images in each stage of scoring; 0 is all.  " + _by_space("scoring", "images"),
)
@click.option(
    "--keep",
    type=click.FloatRange(0, 1, min_open=True),
    help=f"Share of the candidates that goes on to the next stage.  {_by_space('scoring', 'keep')}",
)
@click.option(
    "--finalists",
    type=click.IntRange(1),
    help=f"Networks to train after scoring.  {_by_space('finalists', 'count')}",
)
@click.option(
    "--rungs",
    metavar="N,N,..",
    help="Epochs at the end of each rung; the better networks go on.  " + _by_space("finalists", "rungs"),
)
@click.option(
    "--rounds",
    type=click.IntRange(0),
    help="Rounds in which a model of the trained networks proposes further ones.  "
    + _by_space("finalists", "rounds"),
)
@click.option(
    "--per-round",
    type=click.IntRange(1),
    help="Networks proposed in each round.  " + _by_space("finalists", "per_round"),
)
@recipe_option("Recipe of their training: docs/recipes.md.")
@balance_option
@click.option("--augment", metavar="NAME=VALUE,...", help=AUGMENT_HELP)
@click.option("--teacher", metavar="NETWORK", help=TEACHER_HELP + ".")
@click.option(
    "--ensemble", is_flag=True, help="Keep answers of the best finalists for freeze --teacher auto."
)
@click.option(
    "--train-within",
    metavar="TIME",
    help="Time that freeze will have, such as 20m: a network that trains slowly has fewer epochs in it.",
)
@click.option("--set", "settings", metavar="NAME=VALUE", multiple=True, help=SET_HELP)
@click.option("--finalist-batch", type=click.IntRange(1), help="Images per training step.")
@click.option("--finalist-images", type=click.IntRange(0), help="Most training images in an epoch; 0 is all.")
@click.option(
    "--start",
    type=click.Choice(["scratch", "generated"]),
    help="Initial weights: random, or generated by the HyperNet.  [scratch]",
)
@click.option(
    "--baseline",
    type=click.Choice(["none", "finalists", "total"]),
    help="Random search to compare with: none, as much training of finalists, or as much time in all.  "
    f"[default: finalists, but {_by_space('finalists', 'baseline')[1:]}",
)
@cost_limits
@click.option(
    "--max-latency",
    metavar="TIME[,TIME..]",
    help="Limit on measured latency, such as 3ms or 800us; one pick within each of several.",
)
@click.option(
    "--require",
    type=click.Choice(["tensorrt-dla"]),
    help="Accelerator that must be able to run every convolution and pooling layer.",
)
@click.option(
    "--target",
    type=click.Choice(target_names()),
    help="Runtime that candidates are measured on.  [onnxruntime with --max-latency]",
)
@click.option(
    "--precision", type=click.Choice(["fp32", "fp16", "int8"]), help="Precision that is measured.  [fp32]"
)
@click.option("--latency-batch", type=click.IntRange(1), help="Batch size of the latency measurement.  [1]")
@click.option("--latency-threads", type=click.IntRange(1), help="Threads of the latency measurement.  [1]")
@click.option(
    "--latency-table",
    type=click.Path(path_type=Path),
    help="Table to predict latency from, for a device that cannot be reached; see: smash-export latency",
)
@device_options
@click.option(
    "--device-networks",
    type=click.IntRange(10, 10_000),
    default=150,
    show_default=True,
    help="Networks that the device measures for its latency table, random and known ones.",
)
@click.option(
    "--executor",
    type=click.Choice(["auto", "serial", "process", "ray"]),
    default="auto",
    show_default=True,
    help="Place where candidates are scored and finalists trained: this process, several, or Ray actors; "
    "auto is several for a search of minutes on a CPU.",
)
@click.option(
    "--time",
    "duration",
    metavar="TIME",
    help="Time budget, such as 45m; updates, candidates and finalists are scaled to it by a few timed steps.",
)
@click.option("--track", metavar="NAME[:FOLDER]", help=TRACK_HELP)
@click.option("--workers", type=click.IntRange(1), help="Workers of the executor.  [one per GPU or core]")
@click.option("--ray-address", help="Address of a Ray cluster, such as auto.  [default: one on this machine]")
@common_options(writes=True, trains=True)
def command(data: str, run: Path | None, output: Output, **values: Any) -> None:
    """Train a HyperNet, score architectures, train finalists briefly, pick one: RUN/best.json.

    A search that was interrupted goes on when the same command is given again.
    """
    use_threads(values["threads"])
    with output.job("search"):
        found = _search(data, run, output, values)
    if found is not None:
        _show(output, *found)


def _search(
    data: str, run: Path | None, output: Output, values: dict[str, Any]
) -> tuple[SearchResult, SearchConfig, DatasetSummary] | None:
    """None after a dry run, and in all but the first of the processes that torchrun started."""
    from smash_export.device_search.search import default_folder, load_data, search
    from smash_export.device_search.workers import fitting_executor
    from smash_export.tracking import tracked
    from smash_search.train.distributed import world_size

    asked = _asked_executor(values, output)
    if values["teacher"]:
        from smash_export.export.teacher import check_there

        check_there(values["teacher"])
    with output.progress("reading images", None):
        dataset = load_data(data_words(data, values["skip_bad"]), validation=values["validation"])
    summary = tell_images(output, dataset)
    if len(dataset.validation) < FEW_TO_DECIDE:
        output.warn(
            f"{len(dataset.validation)} validation images choose between networks; differences of some "
            "points mean nothing: search --validation 0.3 takes more"
        )
    folder = run or default_folder(dataset)
    device = device_of(values)
    if device is not None and values["latency_table"] is not None:
        raise UsageError("both a device and --latency-table are given", hint="Choose one.")
    if device is not None and not output.dry_run:
        values["latency_table"] = device_table(device, dataset, folder, values, output)
        values |= dict.fromkeys(("target", "precision", "latency_batch", "latency_threads"))
    measurement = _measurement(dataset, device, values)
    config = _configuration(dataset, measurement, values)
    executor = asked or fitting_executor(config, dataset, values["device"])
    is_sized = values["duration"] is not None or values["hypernet_share"] is not None
    if is_sized and world_size() > 1:
        raise UsageError(
            "--time and --hypernet-share with several ranks, each of which would measure another size",
            expected="--steps, --candidates and --finalists",
            hint="Find them by the same command without torchrun and with --dry-run.",
        )
    if is_sized or (_is_long(config) and output.tells):
        predicted = device is not None and output.dry_run  # by a table that is not there yet, in no time
        rehearsed = None if predicted else measurement
        config, executor = _fitted(config, dataset, rehearsed, executor, folder, values, output)
    if output.dry_run:
        from smash_search.run import check_search

        check_search(config, dataset, measurement=measurement)
        _tell_plan(output, config, folder, summary)
        return None
    output.note(f"finalists are trained by recipe {values['recipe']}: {config.finalists.recipe.words()}")
    command = ["smash-export", "search", *given_words(click.get_current_context())]
    with tracked(values["track"], folder, {"command": shlex.join(command), **config.to_json()}) as tracker:
        result = search(
            dataset,
            folder,
            config=config,
            device=values["device"],
            resume=values["resume"],
            measurement=measurement,
            executor=executor,
            command=command,
            output=output,
            tracker=tracker,
            teacher=values["teacher"],
        )
    return None if result is None else (result, config, summary)


def _asked_executor(values: dict[str, Any], output: Output) -> ExecutorConfig | None:
    """The executor that was named, whose workers can be reached; None where this program chooses."""
    from smash_export.device_search.workers import processes
    from smash_search.executors import ExecutorConfig, check_executor

    name, workers, address = values["executor"], values["workers"], values["ray_address"]
    if name == "auto":
        if workers is None and address is None:
            return None
        name = "process" if (workers or 1) > 1 else "serial"
    if name == "process" and workers and address is None:
        asked = processes(workers)
    else:
        asked = ExecutorConfig(name, workers, ray_address=address)
    if name != "serial":
        with output.progress("reaching the workers", None):
            check_executor(asked)
    return asked


def _measurement(dataset: Dataset, device: Device | None, values: dict[str, Any]) -> DeviceLatency | None:
    from smash_export.device_search.search import device_latency

    return device_latency(
        dataset,
        max_latency=values["max_latency"],
        target=values["target"],
        precision=values["precision"],
        batch=values["latency_batch"],
        threads=values["latency_threads"],
        table=values["latency_table"],
        elsewhere=device,
    )


def _tell_plan(output: Output, config: SearchConfig, folder: Path, images: DatasetSummary) -> None:
    plan = config.to_json()
    output.plan(plan)
    output.result({"dry_run": True, "writes": str(folder), **plan, "images": images.to_json()})


def _is_long(config: SearchConfig) -> bool:
    """Whether a search takes so long that it is worth a few seconds to know for how long."""
    return config.training.steps >= LONG_STEPS and config.finalists.entering >= LONG_FINALISTS


def _fitted(
    config: SearchConfig,
    dataset: Dataset,
    measurement: DeviceLatency | None,
    executor: ExecutorConfig,
    folder: Path,
    values: dict[str, Any],
    output: Output,
) -> tuple[SearchConfig, ExecutorConfig]:
    """As much of the search as fits the time, and the HyperNet's share of it; tells the time that it takes.

    One that was begun keeps the size that it was given then. Where the size is measured, workers that nobody
    asked for are left out if they would take longer; what a whole search does depends on no measurement.
    """
    from smash_export.device_search import plan
    from smash_export.device_search.plan import duration_words, largest_factor, scaled
    from smash_search.executors import ExecutorConfig

    seconds = None if values["duration"] is None else plan.parse_duration(values["duration"])
    share = values["hypernet_share"]
    if share is not None and (values["steps"] is not None or values["epochs"] is not None):
        raise UsageError("--hypernet-share with --steps or --epochs", hint="Choose one.")
    if (folder / "config.json").exists():
        if seconds is None and share is None:
            return config, executor
        output.note(
            f"{folder} holds this search, which keeps the size that it began with; --run names another"
        )
        held = files.read_json(folder / "config.json", what="search configuration")
        return plan.sized_like(config, held), executor
    begin = time.monotonic()
    units = _rehearsed(config, dataset, measurement, executor, values["device"], output)
    before = time.monotonic() - begin

    def sized(factor: float, units: Units) -> SearchConfig:
        smaller = config if seconds is None else scaled(config, factor, units.beside)
        if values["rungs"] is not None:  # somebody's word
            smaller = replace(smaller, finalists=replace(smaller.finalists, rungs=config.finalists.rungs))
        return smaller if share is None else plan.with_hypernet_share(smaller, share, dataset, units)

    def expected(factor: float, units: Units) -> float:
        return sum(part.seconds for part in plan.search_parts(sized(factor, units), dataset, units))

    def fitting(units: Units) -> float:
        if seconds is None:
            return 1.0
        return largest_factor(lambda factor: before + expected(factor, units), seconds)

    is_sized = seconds is not None or share is not None
    if is_sized and values["executor"] == "auto" and values["workers"] is None:
        units = plan.sooner(units, lambda units: sized(fitting(units), units), dataset)
        executor = executor if units.beside > 1 else ExecutorConfig()
    factor = fitting(units)
    chosen, told = sized(factor, units), "the search"
    if is_sized:
        updates = f"{chosen.training.steps} updates of the HyperNet"
        told = f"{factor:.2g} times the default search with {updates}"
    output.note(f"{told}: about {duration_words(expected(factor, units))} here{_how(executor, units)}")
    return chosen, executor


def _rehearsed(
    config: SearchConfig,
    dataset: Dataset,
    measurement: DeviceLatency | None,
    executor: ExecutorConfig,
    device: str,
    output: Output,
) -> Units:
    from smash_export.device_search.plan import rehearse

    with output.progress("measuring a few steps", None) as advance:
        return rehearse(
            config, dataset, measurement=measurement, device=device, executor=executor, advance=advance
        )


def _how(executor: ExecutorConfig, units: Units) -> str:
    """Which workers a time is for, in words; nothing for one process."""
    if units.beside > 1:
        return f", {units.beside} networks beside each other, each {units.slower:.2g} times as long as alone"
    return ", by one worker" if executor.name == "ray" else ""


def device_table(
    device: Device, dataset: Dataset, folder: Path, values: dict[str, Any], output: Output
) -> Path:
    """The latency table of a device in the run's folder; measured there unless it is there already."""
    from smash_export.device_search.latency import BUILD_SECONDS, LatencyTable, Setting, write_kit
    from smash_export.device_search.search import DEVICE_FILES
    from smash_search.rank.finalists import input_spec_of
    from smash_search.stages.survey import table_networks

    kit, table, origin = (folder / name for name in DEVICE_FILES)
    names = {"target": "target", "precision": "precision"}
    names |= {"batch": "latency_batch", "threads": "latency_threads"}
    setting = Setting(**{name: values[key] for name, key in names.items() if values[key] is not None})
    setting.check_precision()
    spec = input_spec_of(dataset)
    space = _configuration(dataset, None, values).space_for(spec)  # whose draws are predicted by the table
    networks = table_networks(space, spec, len(dataset.classes), TABLE_SEED, values["device_networks"])
    keys = ",".join(network.key for network in networks)
    what: JsonObject = {"device": device.name, "networks": hashlib.sha256(keys.encode()).hexdigest()}
    if table.exists():
        _check_table(table, LatencyTable.read(table).setting, setting)
        if origin.exists() and (held := files.read_json(origin, what="origin of a table")) != what:
            raise UsageError(
                f"{table} was measured on another device, or with networks of another space",
                expected=held,
                received=what,
                hint="Choose another --run, or remove that file.",
            )
        return table
    with output.progress("writing graphs for the device", len(networks)) as advance:
        write_kit(kit, networks, spec, len(dataset.classes), setting, advance)
    words = ["latency", "build", "{kit}", "{table}"]
    seconds = len(networks) * (BUILD_SECONDS + 1)  # a second to compile and open each
    ask(device, words, output, inputs={"kit": kit}, outputs={"table": table}, seconds=seconds)
    files.write_json(origin, what)
    return table


def _check_table(table: Path, held: Setting, setting: Setting) -> None:
    """Raise UsageError where a table was measured with another setting."""
    if held != setting:
        raise UsageError(
            f"{table} was measured with another setting",
            expected=held,
            received=setting,
            hint="Choose another --run, or remove that file.",
        )


def _configuration(
    dataset: Dataset, measurement: DeviceLatency | None, values: dict[str, Any]
) -> SearchConfig:
    from smash_export.device_search.plan import parse_duration
    from smash_export.device_search.search import configure, latency_limits

    within = values["train_within"]
    return configure(
        dataset,
        measured=measurement.describe() if measurement else None,
        space=values["space"],
        seed=values["seed"],
        strategy=values["strategy"],
        strategy_options=options(values["strategy_option"]),
        latency_limits=latency_limits(values["max_latency"]),
        require=values["require"],
        prior=values["prior"],
        candidates=values["candidates"],
        known=values["known"],
        limits={
            "parameters": values["max_parameters"],
            "macs": values["max_macs"],
            "memory": values["max_memory"],
        },
        training={
            "steps": values["steps"],
            "batch": values["batch"],
            "architectures": values["archs_per_step"],
            "learning_rate": values["learning_rate"],
            "average": values["average"],
            "halve_batch": values["halve_batch"] or None,
        },
        epochs=values["epochs"],
        scoring={"images": numbers("--images", values["images"]), "keep": values["keep"]},
        finalists={
            "count": values["finalists"],
            "rounds": values["rounds"],
            "per_round": values["per_round"],
            "rungs": numbers("--rungs", values["rungs"]),
            "epoch_images": values["finalist_images"],
            "start": values["start"],
            "baseline": values["baseline"],
            "ensemble": values["ensemble"] or None,
        },
        recipe=values["recipe"],
        recipe_values=_recipe_values(values),
        last_training=parse_duration(within) if within else 0.0,
    )


def _show(output: Output, result: SearchResult, config: SearchConfig, images: DatasetSummary) -> None:
    """The table and the JSON of what was found."""
    from smash_export.device_search.findings import findings

    folder = result.folder
    best = result.best.search
    if result.missed:
        output.warn(
            f"no trained network keeps {', '.join(result.missed)}; search among more --candidates, "
            "or start again with larger limits"
        )
    facts = findings(result, config)
    seconds = ", ".join(f"{name} {value:.0f}" for name, value in result.seconds.items())
    rows: list[list[object]] = [[name, value] for name, value in [*facts.rows(), ("seconds", seconds)]]
    output.table(f"{folder / 'best.json'}", ["what", "value"], rows)
    output.note(f"report: {folder / 'report.html'}")
    output.note(f"next: {shlex.join(_freeze_words(folder / 'best.json', best.data))}")
    output.result(
        {
            "run": str(folder),
            "images": images.to_json(),
            "best": str(folder / "best.json"),
            "report": str(folder / "report.html"),
            "architecture": result.best.architecture.key,
            "origin": best.origin,
            "reason": best.reason,
            "score": best.score,
            "rank": best.rank,
            "candidates": result.candidates,
            "refused_by_latency": facts.refused,
            "latency": facts.latency,
            "unused": best.unused,
            "hurried": best.hurried,
            "error": result.pick.error,
            "loss": result.pick.validation_loss,
            "epochs": result.pick.epochs,
            "picks": {label: _pick_json(folder, label, found) for label, found in result.picks.items()},
            "missed": list(result.missed),
            "pareto": str(folder / "pareto.json"),
            "random_search": None if result.random is None else asdict(result.random),
            "cost": asdict(result.cost),
            "ranking": result.ranking.to_json(),
            "seconds": result.seconds,
        }
    )


def _pick_json(folder: Path, label: str, found: Pick) -> JsonObject:
    """The pick within one of several limits."""
    return {
        "best": str(folder / f"best-{label}.json"),
        "architecture": found.trained.key,
        "error": found.trained.error,
        "measures": found.best.search.measures,
        "unused": found.best.search.unused,
    }


def _freeze_words(best: Path, data: str | None) -> list[str]:
    """What to give next; a file must not choose which code is imported, so functions of data are named."""
    from smash_search.data.function import names_function
    from smash_search.data.spec import parse_spec

    words = ["smash-export", "freeze", "--arch", str(best), "--weights", "retrain"]
    return words + (["--data", data] if data and names_function(parse_spec(data)) else [])


def _recipe_values(values: dict[str, Any]) -> JsonObject:
    """What is said of the finalists' recipe; None where nothing is."""
    from smash_export.cli.compile import read_options

    said = {"batch": values["finalist_batch"], "balance": values["balance"]}
    settings = read_options(values["settings"], "--set")
    for field, option in (("batch", "--finalist-batch"), ("balance", "--balance")):
        if said[field] is not None and settings.get(field, said[field]) != said[field]:
            raise UsageError(f"the recipe's {field} is given twice", received=f"{option} and --set {field}")
    return {**said, "augmentation": augmentation(values["augment"]), **settings}


def numbers(option: str, text: str | None) -> tuple[int, ...] | None:
    """``"1,2,4"`` as numbers.

    Raises:
        UsageError: anything else.
    """
    if text is None:
        return None
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError:
        raise UsageError(option, expected="whole numbers, for example 1,2,4", received=text) from None


def options(pairs: tuple[str, ...]) -> JsonObject:
    """``("rate=0.1",)`` as a dictionary; the strategy checks names and numbers.

    Raises:
        UsageError: not of that form.
    """
    found: JsonObject = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (name and equals and value):
            raise UsageError("--strategy-option", expected="NAME=NUMBER", received=pair)
        found[name.replace("-", "_")] = value
    return found

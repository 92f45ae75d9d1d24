"""``smash-export search``: the whole search with defaults that fit the images, and its report.

The method is :func:`smash_search.run.run_search`; this module chooses its numbers, reads the data and writes
``report.html`` beside what the search wrote.
"""

from __future__ import annotations

import contextlib
import itertools
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smash_base import files
from smash_base.errors import UsageError, said_by_the_caller
from smash_base.json_values import JsonObject
from smash_export.progress import SILENT, Output

if TYPE_CHECKING:
    from smash_export.device_search.latency import DeviceLatency
    from smash_export.remote.device import Device
    from smash_export.tracking import Tracker
    from smash_search.data import Dataset
    from smash_search.executors import ExecutorConfig
    from smash_search.rank.finalists import FinalistsConfig
    from smash_search.space.architecture import Architecture, InputSpec
    from smash_search.space.space import Space
    from smash_search.stages.config import SearchConfig
    from smash_search.stages.picks import SearchResult
    from smash_search.train.hypernet import TrainingConfig
    from smash_search.train.recipes import Recipe

# By space. The learning rates are higher than the original program's 1e-3, which serves trainings of a
# hundred thousand steps, and were chosen by the training loss. "tiny" is made for searches of a minute or two
# on two cores: 240 steps on digits (two seeds) ended at 1.25 and 1.39 with 1e-2, 0.99 and 1.02 with 2e-2, and
# 0.50 and 0.73 with 5e-2 and the HyperNet at a thirtieth of it. In "medium" 600 steps on Fashion-MNIST ended
# at 0.57 with 1e-2 and the HyperNet at a fifth of it, and at 0.49 with the rates below.
#
# In "edge" a whitened stem takes 700 steps on CIFAR-10 to an error of 45 % instead of 62 %, with norms at the
# end of blocks alone, and zeroed filters cost 2.2 instead of 0.2 points; with norms inside ops it is 59 %
# (docs/experiments).
#
# Scores of 42 architectures on 1,000 images of Fashion-MNIST by statistics of their own batches and by those
# of 500 training images agreed with a Spearman correlation of 0.984 and the same mean; those on 250 and on
# 1,000 images with 0.970.
_RATES = {"learning_rate": 0.03, "hypernet_rate": 0.07}
SPACE_DEFAULTS: dict[str, dict[str, dict[str, Any]]] = {
    "tiny": {
        "search": {"candidates": 40, "known": 12},
        "hypernet": {"depths": (4, 5, 2)},
        "training": {
            "steps": 240,
            "batch": 64,
            "architectures": 1,
            "learning_rate": 0.05,
            "hypernet_rate": 0.03,
        },
        "scoring": {"statistics_images": 128, "images": (120, 0), "keep": 0.25},
        "finalists": {
            "count": 6,
            "rounds": 2,
            "per_round": 3,
            "rungs": (2, 6),
            "random": 1,
            "known": 3,
            "baseline": "none",
        },
    },
    "edge-tiny": {
        "search": {"candidates": 40, "known": 12},
        "hypernet": {"depths": (4, 5, 2), "norm": "sandwich", "centred": True},
        "training": {
            "steps": 240,
            "batch": 64,
            "architectures": 1,
            "learning_rate": 0.05,
            "hypernet_rate": 0.03,
        },
        "scoring": {"statistics_images": 128, "images": (120, 0), "keep": 0.25},
        "finalists": {
            "count": 8,
            "rounds": 2,
            "per_round": 4,
            "rungs": (4, 10),
            "random": 1,
            "known": 3,
            "baseline": "none",
        },
    },
    "small": {
        "search": {"candidates": 200, "known": 40},
        "hypernet": {},
        "training": {**_RATES, "steps": 4000, "batch": 64, "architectures": 1},
        "scoring": {"statistics": "batch", "images": (250, 1000), "keep": 0.5},
        "finalists": {"count": 12, "rungs": (1, 2, 4), "epoch_images": 20_000, "random": 2, "known": 5},
    },
    "medium": {
        "search": {"candidates": 200, "known": 60},
        "hypernet": {},
        "training": {**_RATES, "steps": 3000, "batch": 64, "architectures": 1},
        "scoring": {"statistics": "batch", "images": (250, 1000), "keep": 0.5},
        "finalists": {"count": 16, "rungs": (1, 2, 4), "epoch_images": 20_000, "random": 2, "known": 8},
    },
    "edge": {
        "search": {"candidates": 120, "known": 40},
        "hypernet": {"depths": (4, 5, 2), "whiten": True, "centred": True},
        "training": {**_RATES, "steps": 750, "batch": 64, "architectures": 1},
        "scoring": {"statistics": "batch", "images": (250, 1000), "keep": 0.5},
        "finalists": {
            "count": 14,
            "rounds": 3,
            "per_round": 6,
            "rungs": (2, 6, 14),
            "epoch_images": 12_800,
            "keep": 0.35,
            "random": 3,
            "known": 4,
            "baseline": "none",
        },
    },
    "paper": {
        "search": {"candidates": 500, "known": 60},
        "hypernet": {"compression": 2},
        "training": {"steps": 80_000, "batch": 64, "architectures": 4, "learning_rate": 2e-3},
        "scoring": {"statistics": "batch", "images": (500, 2000, 0), "keep": 0.3},
        "finalists": {"count": 24, "rungs": (2, 5, 10), "random": 4, "known": 8},
    },
}

STRATEGIES = ("random", "smash", "perturb", "evolution", "bayesian", "hyperband", "gradient")
"""Names in :data:`smash_search.strategies.STRATEGIES`, for a command line that must not import torch."""

# --strategy smash: the paper's way whole. Its ops (_as_in_the_paper), sampler, norms and shared filters, a
# HyperNet that takes most of the time (at least so many updates), no known networks and no proposals; the
# best by score are trained.
SMASH: dict[str, dict[str, Any]] = {
    "search": {"known": 0},
    "hypernet": {
        "norm": "none",
        "sharing": "block",
        "centred": False,
        "whiten": False,
        "depths": (8, 10, 4),
    },
    "training": {"steps": 6000},
    "finalists": {
        "scouts": False,
        "count": 3,
        "rounds": 0,
        "per_round": 0,
        "random": 0,
        "known": 0,
        "drop": 0.9,
    },
}

TEACHER = "teacher"  # first part of the name of the file that holds its answers
DEVICE_FILES = ("device-kit.zip", "device-table.json", "device-table-of.json")  # measured, before a search
_CLAIM = {".lock", "config.json", "timings.json"}  # of a folder that holds no result yet
DRIFT = 1.3  # factor between two measurements of one network; the same machine, idle, has a few percent
FASTEST = 12  # networks of each order that are measured to see whether a latency limit can be kept
SAMPLED = 16  # draws of a space, to see whether a latency table has prices for what is in them
MUTATION_RATE = 0.1  # of each choice, beside: the fastest have few, of which a smaller one changes none

# Share of the training images that choose between networks, where the data have no validation part and the
# usual 10 % are too few to tell networks apart.
VALIDATION = {"digits": 0.25}


def configure(
    dataset: Dataset,
    *,
    space: str | None = None,
    seed: int = 0,
    strategy: str = "random",
    strategy_options: JsonObject | None = None,
    candidates: int | None = None,
    known: int | None = None,
    limits: dict[str, int | None] | None = None,
    hypernet: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
    epochs: float | None = None,
    scoring: dict[str, Any] | None = None,
    finalists: dict[str, Any] | None = None,
    recipe: str = "auto",
    recipe_values: dict[str, Any] | None = None,
    measured: JsonObject | None = None,
    latency_limits: dict[str, float] | None = None,
    require: str | None = None,
    prior: str | None = None,
    last_training: float = 0.0,
) -> SearchConfig:
    """The configuration of a search: the defaults of the space, changed by what is given.

    Args:
        dataset: decides the space where none is named.
        space: one of :data:`SPACE_DEFAULTS`.
        known: candidates that are known networks; at most half of all.
        limits: ``parameters``, ``macs``, ``memory``.
        hypernet, training, scoring, finalists: fields of the configurations in :mod:`search`; None keeps
            the default of the space.
        recipe: Recipe of the finalists' training, one of :data:`smash_search.train.recipes.NAMES`; each
            but "auto" also gives the epochs at which the last rung ends, unless ``finalists["rungs"]`` does.
        recipe_values: fields of the recipe that are not its own.
        epochs: HyperNet training in passes over the training images; in place of ``training["steps"]``.
        latency_limits: milliseconds by label (:func:`latency_limits`); there is a pick within each.
        require: a device that must be able to do everything: see
        :mod:`smash_export.device_search.device_limits`.
        prior: how likely each network is drawn: "regular", "paper" or a TOML file
            (:func:`smash_search.space.prior.prior_named`); the space's own unless given.
        last_training: seconds that the pick will be trained for; 0 where nothing limits them.

    Raises:
        UsageError: a value that cannot be, or a name of nothing.
        InvalidInputError: the prior's file cannot be read.
    """
    from smash_search.model.hypernet import HyperNetConfig
    from smash_search.rank.finalists import input_spec_of
    from smash_search.rank.pareto import Limit
    from smash_search.rank.scoring import ScoringConfig
    from smash_search.space.limits import CostLimits
    from smash_search.stages.config import SearchConfig
    from smash_search.train.recipes import recipe_for

    _check_ensemble(dataset, finalists or {})
    if prior is None and strategy == "smash":
        prior = "paper"
    name, exact_space = _space(input_spec_of(dataset), space, prior, require, strategy)
    defaults = _defaults(name, strategy)
    candidates = candidates or defaults["search"]["candidates"]
    known = min(defaults["search"]["known"] if known is None else known, candidates // 2)
    entering = _entering(_merged(defaults["finalists"], finalists), known, measured or {})
    if not (finalists and finalists.get("rungs")):
        entering["rungs"] = _rungs_of(recipe, entering["rungs"])
    with said_by_the_caller():
        return SearchConfig(
            space=name,
            seed=seed,
            strategy=strategy,
            strategy_options=strategy_options or {},
            candidates=candidates,
            known=known,
            limits=CostLimits(**(limits or {})),
            hypernet=HyperNetConfig(**_merged(defaults["hypernet"], hypernet)),
            training=_training(defaults["training"], training, epochs, len(dataset.train)),
            scoring=ScoringConfig(**_merged(defaults["scoring"], scoring)),
            finalists=_finalists(
                entering, recipe_for(recipe, dataset, seed), recipe_values or {}, len(dataset.classes)
            ),
            measured=measured or {},
            latency_limits=tuple(
                sorted(
                    (Limit(*pair) for pair in (latency_limits or {}).items()), key=lambda x: x.milliseconds
                )
            ),
            exact_space=exact_space,
            last_training=last_training,
        )


def _check_ensemble(dataset: Dataset, finalists: dict[str, Any]) -> None:
    """Raise UsageError for an ensemble of classes that do not exclude each other: what is kept of it are
    probabilities that sum to one.
    """
    if finalists.get("ensemble") and dataset.several:
        raise UsageError(
            f"images of {dataset.spec} may be of several classes, for which no answers of finalists are kept",
            expected="no --ensemble",
            hint="freeze and train --teacher auto train a larger network for them.",
        )


def _space(
    spec: InputSpec, named: str | None, prior: str | None, require: str | None, strategy: str
) -> tuple[str, Space | None]:
    """Name of the space, and the space itself where it differs from the one that is known by this name."""
    from smash_search.space.prior import prior_named
    from smash_search.space.space import space_for

    space = space_for(spec, named, prior_named(prior) if prior else None)
    if strategy == "smash":
        space = _as_in_the_paper(space)
    if require is None:
        return space.name, None if prior is None else space
    from smash_export.device_search.device_limits import limited_space

    return space.name, limited_space(space, spec, require)


def _as_in_the_paper(space: Space) -> Space:
    """The part of a space that the paper has: 1x1 convolutions that reduce what ops read, before up to four
    others; ReLU alone; half the resolution from block to block."""
    return replace(
        space,
        forms=("reduced",),
        squeeze=False,
        activations=("relu",),
        pools=tuple(window for window in space.pools if window > 1),
    )


def _defaults(space: str, strategy: str) -> dict[str, dict[str, Any]]:
    defaults = SPACE_DEFAULTS[space]
    if strategy != "smash":
        return defaults
    merged = {part: {**values, **SMASH.get(part, {})} for part, values in defaults.items()}
    merged["training"]["steps"] = max(values["training"]["steps"] for values in (defaults, SMASH))
    return merged


def _merged(defaults: dict[str, Any], given: dict[str, Any] | None) -> dict[str, Any]:
    return {**defaults, **{name: value for name, value in (given or {}).items() if value is not None}}


def _training(
    defaults: dict[str, Any], given: dict[str, Any] | None, epochs: float | None, images: int
) -> TrainingConfig:
    """Settings of the HyperNet's training, of which ``epochs`` are passes over ``images``.

    Raises:
        UsageError: both epochs and steps are given.
    """
    from smash_search.train.hypernet import TrainingConfig

    values = _merged(defaults, given)
    if epochs is not None:
        if given and given.get("steps") is not None:
            raise UsageError("both --epochs and --steps are given", hint="Choose one.")
        values["steps"] = max(1, round(epochs * images / (values["batch"] * values["architectures"])))
    return TrainingConfig(**values)


def _entering(finalists: dict[str, Any], known: int, measured: JsonObject) -> dict[str, Any]:
    """Values of the finalists that fit each other: no more at random and of known networks than enter, and
    judged by the precision that is measured."""
    from smash_search.rank.finalists import special_places

    random, known = special_places(finalists["count"], finalists["random"], min(finalists["known"], known))
    entering = {**finalists, "random": random, "known": known}
    setting = measured.get("setting")
    if isinstance(setting, Mapping) and setting.get("precision") == "int8":
        entering["precision"] = "int8"
    return entering


def _finalists(
    entering: dict[str, Any], recipe: Recipe, changes: dict[str, Any], classes: int
) -> FinalistsConfig:
    """How finalists are trained: by the recipe, changed where somebody says so.

    Raises:
        UsageError: a change of what the rungs decide, or one that cannot be; before a HyperNet is trained.
    """
    from smash_search.rank.finalists import OF_THE_RUNGS, FinalistsConfig
    from smash_search.train.network import recipe_with

    changes = {name: value for name, value in changes.items() if value is not None}
    if refused := sorted(set(changes) & set(OF_THE_RUNGS)):
        raise UsageError(
            f"finalists have no {refused[0]} of their own",
            expected="any other value of the recipe",
            received=f"{refused[0]}={changes[refused[0]]}",
            hint="Pass --rungs, --finalist-images or --seed.",
        )
    return FinalistsConfig(**entering, recipe=recipe_with(recipe, changes, classes))


def _rungs_of(recipe: str, rungs: tuple[int, ...]) -> tuple[int, ...]:
    """The same shares of the epochs of a recipe that has a length of its own."""
    from smash_search.train.recipes import AUTO, RECIPES

    if recipe == AUTO:
        return rungs
    epochs = RECIPES[recipe].epochs
    return tuple(sorted({max(1, round(rung * epochs / rungs[-1])) for rung in rungs}))


def device_latency(
    dataset: Dataset,
    *,
    max_latency: str | None = None,
    target: str | None = None,
    precision: str | None = None,
    batch: int | None = None,
    threads: int | None = None,
    table: Path | None = None,
    elsewhere: Device | None = None,
) -> DeviceLatency | None:
    """How candidates are measured; None when neither a limit, a target nor a table is given.

    Args:
        max_latency: one or several limits, such as "3ms" or "3ms,5ms"; candidates keep the largest.
        target, precision, batch, threads: see :class:`smash_export.device_search.latency.Setting`.
        table: Table of a device that is not here; decides the setting itself.
        elsewhere: Device of the table, where it can be asked: picks are measured on it.

    Raises:
        UsageError: a table together with a setting; MissingRuntimeError: the runtime is not here.
    """
    from smash_export.device_search.latency import DeviceLatency, LatencyTable, Setting
    from smash_search.rank.finalists import input_spec_of

    given: dict[str, Any] = {"target": target, "precision": precision, "batch": batch, "threads": threads}
    given = {name: value for name, value in given.items() if value is not None}
    if max_latency is None and table is None and not given:
        return None
    if table is not None and given:
        raise UsageError(
            "a latency table says itself what was measured",
            expected="--latency-table alone",
            received=", ".join(given),
        )
    limits = latency_limits(max_latency)
    return DeviceLatency(
        input_spec_of(dataset),
        len(dataset.classes),
        Setting(**given),
        limit_ms=max(limits.values(), default=None),
        table=None if table is None else LatencyTable.read(table),
        elsewhere=elsewhere,
    )


def latency_limits(text: str | None) -> dict[str, float]:
    """``"3ms,5ms"`` as milliseconds by label; a label is also part of a file's name.

    Raises:
        UsageError: not times.
    """
    from smash_export.device_search.latency import parse_milliseconds

    limits: dict[str, float] = {}
    for word in text.split(",") if text is not None else []:
        milliseconds = parse_milliseconds(word)
        limits[f"{milliseconds:g}ms"] = milliseconds
    return limits


def check_latency(
    config: SearchConfig, dataset: Dataset, latency: DeviceLatency, output: Output = SILENT
) -> None:
    """Raise GateError unless a network of the space keeps the largest latency limit, before any training.

    Only networks within the limits on cost count. Before any refusal mutations of the fastest are measured.
    Of smaller limits, those that no measured network keeps are warned of: there may be no pick within them.
    So is a latency table that lacks what draws of the space have.
    """
    from smash_export.device_search.latency import fastest_of
    from smash_search.rank.finalists import input_spec_of
    from smash_search.rank.pareto import Limit
    from smash_search.space.cost import cost_of

    limits = config.latency_limits
    if not limits and latency.limit_ms is not None:
        limits = (Limit(f"{latency.limit_ms:g}ms", latency.limit_ms),)
    if not limits:
        return
    spec = input_spec_of(dataset)
    space = config.space_for(spec)

    def is_within(architecture: Architecture) -> bool:
        return config.limits.refusal(cost_of(architecture, spec, len(dataset.classes))) is None

    def mutate(architecture: Architecture, number: int) -> Architecture | None:
        mutant = space.mutate(architecture, config.seed, number, MUTATION_RATE)
        return mutant if is_within(mutant) else None

    networks = _likely_fast(space, spec, len(dataset.classes), config.seed, is_within)
    if not networks:  # the search itself says so, and how large the smallest is
        return
    draws = (space.draw(config.seed, slot) for slot in range(SAMPLED))
    _warn_of_unpriced(space.name, latency.unpriced(itertools.chain(networks, draws)), output)
    with output.progress("can the limit be kept?", None):
        fastest, milliseconds = fastest_of(
            networks,
            latency,
            max(limit.milliseconds for limit in limits),
            enough_ms=min(limit.milliseconds for limit in limits),
            mutate=mutate,
        )
    missed = [limit.label for limit in limits if milliseconds > limit.milliseconds]
    if missed:
        output.warn(
            f"no network that was measured keeps {', '.join(missed)}: the fastest found, {fastest.key}, "
            f"takes {milliseconds:.3g} ms; there may be no pick within it"
        )


def _warn_of_unpriced(space: str, kinds: Sequence[str], output: Output) -> None:
    if kinds:
        output.warn(
            f"networks of the space {space} have {', '.join(kinds)}, which the latency table has not: "
            f"predicted as if they took no time. Make one by: smash-export latency kit --space {space}"
        )


def _likely_fast(
    space: Space, spec: InputSpec, classes: int, seed: int, is_within: Callable[[Architecture], bool]
) -> list[Architecture]:
    """Networks one of which is likely the fastest of a space, whether work or the number of nodes takes time.

    Of many draws and the known networks those of fewest multiply-accumulates, from the smallest on; the
    smallest network that the space has; and those of fewest convolutions. None that is not within the limits
    on cost.
    """
    from smash_search.space.cost import cost_of
    from smash_search.space.known import known_networks
    from smash_search.space.limits import SURVEY
    from smash_search.space.regular import smallest

    drawn = (space.draw(seed, slot) for slot in range(SURVEY))
    usual = list(filter(is_within, (*drawn, *known_networks(space))))
    by_work = sorted(usual, key=lambda entry: cost_of(entry, spec, classes).macs)
    by_nodes = sorted(by_work, key=lambda entry: sum(1 for _ in entry.convolutions(spec.channels, classes)))
    least = filter(is_within, (smallest(space),))
    return list(dict.fromkeys([*by_work[:FASTEST], *least, *by_nodes[:FASTEST]]))


def tell_drift(
    folder: Path, config: SearchConfig, dataset: Dataset, latency: DeviceLatency, output: Output = SILENT
) -> None:
    """Warn where a network of a search that goes on is measured otherwise than it was when the search began.

    Latencies of two machines, or of an idle and a busy one, say nothing beside each other.
    """
    from smash_search.rank.evaluation import MEASURES, REFERENCE
    from smash_search.rank.finalists import input_spec_of
    from smash_search.rank.measurement import LATENCY, undisturbed
    from smash_search.stages.survey import probe_draws

    if (folder / "best.json").exists():
        return
    measured = {record["key"]: record["measures"][LATENCY] for record in files.read_jsonl(folder / MEASURES)}
    probes = probe_draws(config.space_for(input_spec_of(dataset)), config.seed)
    probe = next((entry for entry in probes if entry.key in measured), None)
    if probe is None:
        return
    before, now = measured[probe.key], latency.measure(probe)[LATENCY]
    times = [undisturbed(record["measures"]) for record in files.read_jsonl(folder / REFERENCE)]
    if times:  # the file has what the survey took; where it met a busy machine, the search knows of it
        before *= min(times) / times[0]
    if max(before, now) > DRIFT * min(before, now):
        output.warn(
            f"network {probe.key} takes {now:.3g} ms, and took {before:.3g} ms when this search measured it "
            "first: this is another machine or one of the two was busy, and what both measured is compared; "
            "go on with the search where and when it is as it was, or begin one in another folder"
        )


def load_data(data: str, *, seed: int = 0, validation: float | None = None) -> Dataset:
    """Data for a search: like :func:`smash_search.data.load_dataset`, with more validation images for
    digits.
    """
    from smash_search.data import load_dataset

    share = validation if validation is not None else VALIDATION.get(data)
    dataset = load_dataset(data, seed=seed, validation=share)
    return replace(dataset, spec=absolute(dataset.spec))


def absolute(spec: str) -> str:
    """A data specification whose places mean the same in any folder: best.json keeps it."""
    from smash_search.data import dataset_names
    from smash_search.data.spec import FOLDERS, parse_spec

    parsed = parse_spec(spec)
    if parsed.path is None or parsed.name not in dataset_names() or not Path(parsed.path).exists():
        return spec  # built in, or a function of a module, whose name a file may have
    options = [
        f"{name}={Path(value).resolve() if name in FOLDERS and value[0] != '~' else value}"
        for name, value in parsed.options.items()
    ]
    return f"{parsed.name}:{Path(parsed.path).resolve()}" + "?" * bool(options) + "&".join(options)


def search(
    data: str | Dataset,
    run: Path | str | None = None,
    *,
    config: SearchConfig | None = None,
    seed: int = 0,
    device: str = "auto",
    resume: bool = True,
    measurement: DeviceLatency | None = None,
    executor: ExecutorConfig | None = None,
    command: list[str] | None = None,
    output: Output = SILENT,
    tracker: Tracker | None = None,
    teacher: Path | str | None = None,
) -> SearchResult | None:
    """Search a network for labelled images and write ``best.json`` and ``report.html``.

    Args:
        data: a specification as ``smash-export datasets`` lists them, or a data set.
        run: folder; ``runs/NAME`` unless given. A search that is in it already is continued.
        config: from :func:`configure`; the defaults of the space unless given.
        seed: Random seed of the search, where no configuration is given.
        device: auto, cpu, cuda or cuda:N.
        resume: continue; False refuses a folder that holds a search.
        measurement: Measurement of candidates on a device, and the limits on it.
        executor: where candidates are scored and finalists trained; in this process unless given.
        command: words of the command line, for the report.
        tracker: gets the curves of every stage.
        teacher: network whose answers finalists learn as well (:mod:`smash_export.export.teacher`).

    Returns:
        What was found; None in all but the first of several processes that ``torchrun`` started.

    Raises:
        UsageError, GateError, InvalidInputError: see :func:`smash_search.run.run_search`.
    """
    from smash_export.tracking import following
    from smash_search.run import join_training, run_search
    from smash_search.train.compute import pick_device
    from smash_search.train.distributed import joined, local_device

    dataset = load_data(data) if isinstance(data, str) else data
    folder = Path(run) if run is not None else default_folder(dataset)
    chosen = config or configure(dataset, seed=seed, measured=measurement.describe() if measurement else None)
    chosen = _limited(chosen, measurement)
    device = local_device(device)
    with joined(pick_device(device)) as ranks:
        if not ranks.is_first:
            join_training(chosen, dataset, device=device, ranks=ranks)
            return None
        if measurement is not None:
            if (folder / "measures.jsonl").exists():
                tell_drift(folder, chosen, dataset, measurement, output)
            else:
                check_latency(chosen, dataset, measurement, output)
        if teacher is not None:
            chosen = _taught(chosen, dataset, teacher, folder, output)
        with _leaving_nothing(folder):
            result = run_search(
                chosen,
                dataset,
                folder,
                device=device,
                resume=resume,
                progress=following(output.progress, tracker),
                measurement=measurement,
                executor=executor,
                ranks=ranks,
            )
    from smash_export.device_search.findings import findings
    from smash_export.report.search import search_page

    words = command or ["smash-export", "search", "--data", dataset.spec, "--run", str(folder)]
    facts = findings(result, chosen)
    text = search_page(
        result, shlex.join(words), headline=facts.headline(), facts=facts.rows(), dataset=dataset
    )
    files.write_text(folder / "report.html", text)
    return result


def _limited(config: SearchConfig, measurement: DeviceLatency | None) -> SearchConfig:
    """The search with the limit of its measurement, where it names none itself."""
    from smash_search.rank.pareto import Limit

    if measurement is None or measurement.limit_ms is None or config.latency_limits:
        return config
    limit = Limit(f"{measurement.limit_ms:g}ms", measurement.limit_ms)
    return replace(config, latency_limits=(limit,))


def _taught(
    config: SearchConfig, dataset: Dataset, teacher: Path | str, folder: Path, output: Output
) -> SearchConfig:
    """The search with a teacher's answers in its folder; the file's name says whose and for which images."""
    from smash_export.export.teacher import answers_file, knowledge
    from smash_search.train.answers import read_answers

    with output.progress("asking the teacher", None):
        kept = answers_file(teacher, dataset, folder / TEACHER, warn=output.warn)
    known = knowledge(read_answers(kept, dataset), dataset, config.finalists.recipe)
    say = output.warn if known.little else output.note
    say(f"the teacher: {known.words}" + "; it may hold the finalists back" * known.little)
    return replace(config, finalists=replace(config.finalists, teacher=kept.name))


@contextlib.contextmanager
def _leaving_nothing(folder: Path) -> Iterator[None]:
    """Remove what a refused search has written of a new folder: the right command must not be refused.

    A folder that holds any result stays.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    claimed = (folder / "config.json").exists()
    try:
        yield
    except BaseException:
        found = {path.name for path in folder.glob("*") if not path.name.startswith(f"{TEACHER}-")}
        if not claimed and found <= _CLAIM | set(DEVICE_FILES):
            for name in _CLAIM:
                (folder / name).unlink(missing_ok=True)
            for path in made:
                with contextlib.suppress(OSError):  # somebody put something there
                    path.rmdir()
        raise


def default_folder(dataset: Dataset) -> Path:
    """``runs/NAME``: of a search whose folder nobody named."""
    from smash_search.data import folder_name

    return Path("runs") / folder_name(dataset)

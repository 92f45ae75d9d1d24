"""What ``smash-export run`` will do: its stages as commands of their own, and how long each takes here.

Every stage is a command that a person could type; the plan only fills in its words. Seconds come from a
rehearsal of the search (:mod:`smash_export.device_search.plan`) and, for what follows it, from counting.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smash_base.errors import InvalidInputError, UsageError
from smash_base.json_values import JsonObject, JsonValue
from smash_export.device_search.plan import (
    EVALUATION,
    Units,
    rehearse,
    scaled,
    search_parts,
    shared_time,
    sooner,
    training_part,
)
from smash_export.device_search.workers import fitting_executor
from smash_export.display import Part

if TYPE_CHECKING:
    from smash_export.device_search.latency import DeviceLatency
    from smash_export.progress import Output
    from smash_search.data import Dataset, DatasetSummary
    from smash_search.stages.config import SearchConfig
    from smash_search.train.network import Recipe

# Seconds beside what the commands are told to measure: starting processes, exporting, reading back. Taken
# on two cores of a Xeon at 2.1 GHz; small beside a search.
EXPORT, COMPILE, VERIFY, BENCH, ADOPT = 3.0, 2.0, 2.0, 1.0, 3.0
ASKING, EXPORTING = "asking the teacher", "exporting"
"""Parts of freezing that are no part of its ``--time``."""

TABLE_NETWORKS, ELSEWHERE = 150, 0.8  # networks that another device measures, and seconds for each
INT8, INT8_IMAGES = (
    12.0,
    16_000,
)  # more to compile: calibration, the noise of every layer, and graphs with some in fp32, on so many images
MEASURED = 3.0  # seconds that bench and compare measure each file for: 2 s of batch 1 and 1 s of stages


@dataclass(frozen=True)
class Request:
    """What was asked for.

    Attributes:
        data: as ``smash-export datasets`` lists it.
        max_latency: such as "2ms", or None.
        max_macs, max_parameters, max_memory: most multiply-accumulates per image, parameters and bytes of
            activations, or None.
        target: runtime that the network is for.
        precision: fp32, fp16 or int8.
        seconds: Time that the whole may take, or None for the default plan.
        space: Name of the space, or None to choose by the size of the images.
        seed: Random seed of everything that is drawn.
        device: auto, cpu or cuda: where to train.
        elsewhere: options that name another device to search for and measure on; empty for this machine.
        recipe: Name of the recipe of the last training.
        balance: Remedy for classes of unequal size in all trainings, or None for what their recipes say.
        false_alarm: share of images of the classes that may be called doubtful, or None for the default.
        teacher: Network that the last training learns from, or None.
        settings: further values of its recipe, ``NAME=VALUE``.
        augment: Augmentation of its images, or None for what the recipe says.
        folds: Folds of a cross-validation before it, or None.
    """

    data: str
    max_latency: str | None = None
    max_macs: int | None = None
    max_parameters: int | None = None
    max_memory: int | None = None
    target: str = "onnxruntime"
    precision: str = "fp32"
    seconds: float | None = None
    space: str | None = None
    seed: int = 0
    device: str = "auto"
    elsewhere: tuple[str, ...] = ()
    recipe: str = "auto"
    balance: str | None = None
    false_alarm: float | None = None
    teacher: str | None = None
    settings: tuple[str, ...] = ()
    augment: str | None = None
    folds: int | None = None

    def check(self) -> None:
        """Raise UsageError or MissingRuntimeError unless the target can be compiled for and run here."""
        from smash_export.device_search.latency import Setting, parse_milliseconds

        Setting(self.target, self.precision).check()
        if self.max_latency is not None:
            if "," in self.max_latency:
                raise UsageError(
                    "--max-latency", expected="one limit, such as 2ms", received=self.max_latency
                )
            parse_milliseconds(self.max_latency)


@dataclass(frozen=True)
class Stage:
    """One command.

    Attributes:
        name: for people.
        words: Words of the command, without ``smash-export``.
        parts: expected seconds by the bars that it shows.
    """

    name: str
    words: tuple[str, ...]
    parts: tuple[Part, ...]

    @property
    def seconds(self) -> float:
        """Expected, in all."""
        return sum(part.seconds for part in self.parts)

    def to_json(self) -> JsonObject:
        """JSON values."""
        parts: list[JsonValue] = [[part.label, round(part.seconds, 2)] for part in self.parts]
        return {"name": self.name, "words": list(self.words), "parts": parts}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Stage:
        """Read :meth:`to_json` back."""
        return cls(value["name"], tuple(value["words"]), tuple(Part(*part) for part in value["parts"]))


@dataclass(frozen=True)
class Plan:
    """What will be done.

    Attributes:
        images: facts about the data, by name, in words.
        searched: facts about the search, by name, in words.
        stages: Stages in their order.
        before: Seconds of reading and measuring before the first of them.
    """

    images: dict[str, str]
    searched: dict[str, str]
    stages: tuple[Stage, ...]
    before: float = 0.0

    @property
    def seconds(self) -> float:
        """Expected, in all."""
        return sum(stage.seconds for stage in self.stages)

    def to_json(self) -> JsonObject:
        """JSON values."""
        return {
            "images": self.images,
            "searched": self.searched,
            "seconds": round(self.seconds, 1),
            "before": round(self.before, 1),
            "stages": [stage.to_json() for stage in self.stages],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Plan:
        """Read :meth:`to_json` back; raises InvalidInputError."""
        try:
            stages = tuple(Stage.from_json(stage) for stage in value["stages"])
            return cls(
                dict(value["images"]), dict(value["searched"]), stages, float(value.get("before", 0.0))
            )
        except (KeyError, TypeError) as error:
            raise InvalidInputError("the plan of a run is malformed", received=error) from None


def make_plan(
    request: Request,
    dataset: Dataset,
    images: DatasetSummary,
    folder: Path,
    output: Output,
    recipe: Recipe,
    begin: float,
) -> Plan:
    """Measure a few steps and plan a job that fits its time, of which reading and measuring are a part.

    Args:
        request: checked.
        dataset: Data set of the request.
        images: what it holds.
        folder: where everything will be written; only named here.
        output: shows what is being measured.
        recipe: Recipe of the last training, whose epochs a given time changes.
        begin: when the job began, on the monotonic clock.

    Raises:
        GateError: no network keeps the limits, or the time is too short for any search.
    """
    from smash_export.device_search.search import check_latency, configure, device_latency, latency_limits

    measurement: DeviceLatency | None = None
    if not request.elsewhere:
        measurement = device_latency(
            dataset, max_latency=request.max_latency, target=request.target, precision=request.precision
        )
    config = configure(
        dataset,
        space=request.space,
        seed=request.seed,
        limits={
            "macs": request.max_macs,
            "parameters": request.max_parameters,
            "memory": request.max_memory,
        },
        measured=measurement.describe() if measurement else None,
        latency_limits=latency_limits(request.max_latency),
    )
    if measurement is not None:
        check_latency(config, dataset, measurement, output)
    with output.progress("measuring a few steps", None) as advance:
        units = rehearse(
            config,
            dataset,
            measurement=measurement,
            device=request.device,
            executor=fitting_executor(config, dataset, request.device),
            advance=advance,
        )

    before = time.monotonic() - begin

    def sized(units: Units, factor: float) -> SearchConfig:
        # The default is the same everywhere.
        return config if request.seconds is None else scaled(config, factor, units.beside)

    def planned(units: Units, factor: float, epochs: int) -> Plan:
        search, last = sized(units, factor), replace(recipe, epochs=epochs)
        stages = _stages(request, dataset, folder, units, search, last)
        return Plan(images.facts(), _searched(request, dataset, search, last, units), stages, before)

    def fitting(units: Units) -> tuple[float, int]:
        if request.seconds is None:
            return 1.0, recipe.epochs
        return shared_time(
            lambda factor, epochs: before + planned(units, factor, epochs).seconds,
            recipe.epochs,
            request.seconds,
        )

    if request.seconds is not None:
        units = sooner(units, lambda units: sized(units, fitting(units)[0]), dataset)
    return planned(units, *fitting(units))


def _stages(
    request: Request, dataset: Dataset, folder: Path, units: Units, config: SearchConfig, recipe: Recipe
) -> tuple[Stage, ...]:
    bundle = folder / "bundle"
    files = 2 + len(_precisions(request)) - (request.target in ("torchscript", "onnxruntime"))
    training = _training_parts(request, recipe, dataset, units)
    if request.seconds is not None:  # the last of its parts is the training of the pick
        config = replace(config, last_training=max(1.0, training[-1].seconds))
    search = search_parts(config, dataset, units)
    if request.elsewhere:
        search.insert(0, Part("latency on", TABLE_NETWORKS * ELSEWHERE))
    there = request.elsewhere
    judging = EVALUATION * (len(dataset.validation) + len(dataset.test)) * units.trained_image
    rounding = INT8 + EVALUATION * INT8_IMAGES * units.trained_image
    return (
        Stage("search", _search_words(request, folder, config, units.beside), tuple(search)),
        Stage(
            "freeze",
            _freeze_words(request, folder, recipe, sum(part.seconds for part in training)),
            (*_asking(request, dataset, units), *training, Part(EXPORTING, EXPORT + judging)),
        ),
        *(
            Stage(
                f"compile {precision}",
                _compile_words(request, bundle, precision, len(dataset.train)),
                (Part("compiling", COMPILE + rounding * (precision == "int8")),),
            )
            for precision in _precisions(request)
        ),
        Stage("verify", ("verify", str(bundle), *there), (Part("verify", VERIFY * files),)),
        Stage(
            "bench",
            ("bench", str(bundle), *there),
            (Part("bench" if there else "measuring", (BENCH + MEASURED) * files),),
        ),
        Stage(
            "compare",
            ("compare", str(bundle), "--html", str(folder / "compare.html"), *there),
            (Part("compar", (BENCH + MEASURED) * files),),
        ),
    )


def _training_parts(request: Request, recipe: Recipe, dataset: Dataset, units: Units) -> tuple[Part, ...]:
    """The last training with what is trained before it, as ``freeze`` divides a time between them."""
    from smash_export.export.teacher import AUTO, TIME_SHARE, TIMES_LARGER

    training = training_part("retrain", recipe, dataset, units)
    parts = [training]
    if request.folds:
        parts.insert(0, Part(f"{request.folds} folds", request.folds * training.seconds))
    if request.teacher == AUTO:
        student = sum(part.seconds for part in parts)
        given = student * TIME_SHARE / (1 - TIME_SHARE)
        larger = TIMES_LARGER * training.seconds
        parts.insert(0, Part("teacher", larger if request.seconds is None else given))
    return tuple(parts)


def _asking(request: Request, dataset: Dataset, units: Units) -> tuple[Part, ...]:
    """A teacher that is there already, as if it were as large as the networks of the search."""
    from smash_export.export.teacher import AUTO

    if request.teacher in (None, AUTO):
        return ()
    images = len(dataset.train) + len(dataset.validation)
    answering = EVALUATION * images * max(units.trained_image, units.random_image)
    return (Part(ASKING, ADOPT + answering),)


def _precisions(request: Request) -> tuple[str, ...]:
    """fp32 is compiled beside a lower precision: without it nobody knows whether that brought anything."""
    return tuple(dict.fromkeys(("fp32", request.precision)))


def _search_words(request: Request, folder: Path, config: SearchConfig, beside: int) -> tuple[str, ...]:
    words = ["search", "--data", request.data, "--run", str(folder / "search")]
    words += ["--seed", str(request.seed), "--device", request.device]
    words += ["--space", str(config.space)]
    words += ["--steps", str(config.training.steps), "--candidates", str(config.candidates)]
    words += ["--known", str(config.known), "--finalists", str(config.finalists.count)]
    words += ["--rungs", _numbers(config.finalists.rungs)]
    if config.finalists.rounds:
        words += ["--rounds", str(config.finalists.rounds), "--per-round", str(config.finalists.per_round)]
    words += ["--target", request.target, "--precision", request.precision]
    words += _given(("--max-latency", request.max_latency), ("--max-macs", request.max_macs))
    words += _given(("--max-parameters", request.max_parameters), ("--max-memory", request.max_memory))
    words += _given(("--balance", request.balance))
    words += ["--executor", "process", "--workers", str(beside)] if beside > 1 else ["--executor", "serial"]
    if config.last_training:
        words += ["--train-within", f"{config.last_training:.0f}s"]
    return (*words, *request.elsewhere)


def _numbers(values: Sequence[int]) -> str:
    return ",".join(map(str, values))


def _given(*options: tuple[str, object]) -> list[str]:
    """Words of those options that have a value."""
    return [word for name, value in options if value is not None for word in (name, str(value))]


def _freeze_words(request: Request, folder: Path, recipe: Recipe, seconds: float) -> tuple[str, ...]:
    """The pick's own size is known after the search only: in a plan of a given time its training gets its
    seconds, and as many epochs as they allow."""
    words = ["freeze", "--arch", str(folder / "search" / "best.json"), "--weights", "retrain"]
    words += ["--data", request.data, "--out", str(folder / "bundle")]
    if request.seconds is None:
        is_said = any(word.startswith("epochs=") for word in request.settings)
        words += [] if is_said else ["--epochs", str(recipe.epochs)]
    else:
        words += ["--time", f"{max(1.0, seconds):.0f}s"]
    words += [*training_words(request), "--seed", str(request.seed)]
    return (*words, "--device", request.device, "--force")


def training_words(request: Request) -> list[str]:
    """Options of ``freeze`` that say how it trains, beside its time."""
    words = ["--recipe", request.recipe] * (request.recipe != "auto")
    words += _given(("--balance", request.balance), ("--false-alarm", request.false_alarm))
    words += _given(("--teacher", request.teacher), ("--augment", request.augment))
    words += _given(("--folds", request.folds))
    return words + [word for setting in request.settings for word in ("--set", setting)]


def _compile_words(request: Request, bundle: Path, precision: str, images: int) -> tuple[str, ...]:
    """Few training images calibrate as well as they can: a refusal here would come after the trainings."""
    words = ("compile", str(bundle), "--target", request.target, "--precision", precision)
    if precision == "int8" and _too_few_to_calibrate(request, images):
        return (*words, "--option", f"calibration_minimum={images}")
    return words


def _too_few_to_calibrate(request: Request, images: int) -> bool:
    from smash_export.compiling.precision.calibration import MINIMUM
    from smash_targets.base import get_target

    quantises = request.precision == "int8" and get_target(request.target).precision_source == "onnx"
    return quantises and images < MINIMUM


def _searched(
    request: Request, dataset: Dataset, config: SearchConfig, recipe: Recipe, units: Units
) -> dict[str, str]:
    finalists = config.finalists
    facts = {
        "space": str(config.space),
        "HyperNet": f"{config.training.steps:,} updates",
        "candidates": f"{config.candidates:,}",
        "finalists": f"{finalists.entering}, epochs {_numbers(finalists.rungs)}",
        "last training": f"{'about ' * (request.seconds is not None)}{recipe.epochs} epochs",
    }
    if request.teacher is not None:
        facts["teacher"] = request.teacher
    if request.folds:
        facts["folds"] = f"{request.folds}, each as long as the last training"
    if units.beside > 1:
        facts["finalists"] += f", {units.beside} trained beside each other"
    if units.measurement:
        facts["candidates"] += ", measured"
    if _too_few_to_calibrate(request, len(dataset.train)):
        facts["calibration"] = f"{len(dataset.train)} training images are few: int8 may lose accuracy"
    return facts


def request_json(request: Request) -> JsonObject:
    """JSON values of a request, as run.json holds them."""
    # None, not an empty list: runs of earlier versions, which had no settings, go on.
    settings: list[JsonValue] | None = list(request.settings) or None
    return {**asdict(request), "elsewhere": list(request.elsewhere), "settings": settings}

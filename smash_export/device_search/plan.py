"""How long a search, and what follows it, takes on this machine; and a search that fits a given time.

The estimate is measured, not looked up: :func:`rehearse` runs the search itself with a handful of updates,
candidates and images in a folder that is thrown away, and takes the seconds of single steps from its
progress. What a whole search costs is then a matter of counting (:func:`search_parts`). It says nothing
about how good the result will be.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from smash_base.errors import GateError, InvalidInputError, UsageError
from smash_base.progress import Advance
from smash_export.display import Part

if TYPE_CHECKING:
    from smash_base.json_values import JsonObject
    from smash_export.device_search.latency import DeviceLatency
    from smash_search.data import Dataset
    from smash_search.executors import ExecutorConfig
    from smash_search.space.architecture import Architecture
    from smash_search.space.limits import CostLimits
    from smash_search.stages.config import SearchConfig
    from smash_search.train.network import Recipe

# Of a rehearsal. Candidates differ in cost by a factor of ten: fewer would say little about their mean.
STEPS, CANDIDATES, FINALISTS, IMAGES, EPOCHS = 8, 10, 6, 256, 3
LADDER = 8  # networks that are measured to know how large one is that takes a latency limit
EVALUATION = 1 / 3  # of the time of a trained image: there is no backward pass
SHORT_RACE = 1 / 8  # of the default search; below it the last rung is left out, below half of it all but one
SMALLEST = {"steps": 60, "candidates": 8, "finalists": 2, "epochs": 3}
PARTS = {"random", "perturbations", "steps"}  # options of the strategy perturb that count candidates
MEASURED = 1.3  # networks measured for each that keeps the latency limit, most of which are predicted to
WHOLE = 4.0  # a plan is never made larger than this many times the default
LAST_TRAINING = 0.5  # of --time: scaled like the search, half an hour of CIFAR-10 left the pick 6 epochs


@dataclass(frozen=True)
class Units:
    """Seconds of single steps on this machine.

    Attributes:
        start: Time before the first update.
        step: an update of the HyperNet.
        measurement: Seconds to measure one candidate; 0 where nothing is measured.
        score: Seconds to score one candidate in the first stage of the race.
        raced_image: Seconds to score one candidate on one image in later stages.
        trained_image: Seconds for one training image of a finalist of middle size, forward and backward.
        random_image: the same of a network of the random search beside; draws are larger than presets.
        set_up: Seconds that a training takes beside its images: filters of the stem, first steps, judging.
        beside: networks that are scored and trained beside each other.
        slower: How many times as long a training takes beside the others as with all threads.
    """

    start: float
    step: float
    measurement: float
    score: float
    raced_image: float
    trained_image: float
    random_image: float
    set_up: float = 0.0
    beside: int = 1
    slower: float = 1.0

    @property
    def each(self) -> float:
        """Seconds of one of several short tasks, over those of one alone."""
        return self.slower / self.beside


@dataclass
class _Bar:
    """What one bar of the rehearsed search reported."""

    label: str
    total: float
    begin: float
    ticks: list[tuple[float, float]] = field(default_factory=list)  # steps done, seconds
    end: float = 0.0

    @property
    def seconds(self) -> float:
        return self.end - self.begin

    @property
    def steady(self) -> float:
        """Seconds per step without the first, which sets things up."""
        if len(self.ticks) < 2:
            return self.seconds / max(1.0, self.total)
        intervals = np.diff([second for _, second in self.ticks])
        steps = np.diff([done for done, _ in self.ticks])
        return float(intervals.sum() / max(1e-9, steps.sum()))


class _Recorder:
    """A search's progress, written down instead of shown."""

    def __init__(self, shown: Advance) -> None:
        self.bars: list[_Bar] = []
        self._shown = shown

    @contextlib.contextmanager
    def __call__(self, label: str, total: float | None) -> Iterator[Advance]:
        bar = _Bar(label, total or 0.0, time.monotonic())
        self.bars.append(bar)

        def advance(n: float = 1, **fields: object) -> None:
            done = bar.ticks[-1][0] if bar.ticks else 0.0
            bar.ticks.append((done + n, time.monotonic()))
            self._shown(n)

        yield advance
        bar.end = time.monotonic()

    def find(self, label: str) -> _Bar | None:
        """The bar whose label begins so."""
        return next((bar for bar in self.bars if bar.label.startswith(label)), None)


class _Timed:
    """A measurement that refuses nothing and knows when it was taken, and how long each took."""

    def __init__(self, inner: DeviceLatency) -> None:
        self._inner = inner
        self.taken: list[tuple[float, float]] = []  # beginnings and seconds

    def measure(self, architecture: Architecture) -> dict[str, float]:
        begin = time.monotonic()
        measures = self._inner.measure(architecture)
        self.taken.append((begin, time.monotonic() - begin))
        return measures

    def confirm(self, architecture: Architecture) -> dict[str, float]:
        return self.measure(architecture)

    def times_over(
        self, architecture: Architecture, others: Sequence[Architecture], briefly: bool = False
    ) -> list[float]:
        return []

    def refusal(self, measures: dict[str, float]) -> str | None:
        return None

    @property
    def mean(self) -> float:
        """Seconds of one measurement."""
        return sum(seconds for _, seconds in self.taken) / max(1, len(self.taken))

    def during(self, bar: _Bar) -> float:
        """Seconds that were measured while a bar was shown."""
        return sum(seconds for begin, seconds in self.taken if bar.begin <= begin < bar.end)


def rehearse(
    config: SearchConfig,
    dataset: Dataset,
    *,
    measurement: DeviceLatency | None = None,
    device: str = "auto",
    executor: ExecutorConfig | None = None,
    advance: Advance = lambda n=1, **fields: None,
) -> Units:
    """Seconds of single steps, from a search of a few of each in a temporary folder.

    Args:
        config: Configuration of the whole search.
        measurement: Measurement of candidates, as in the whole search.
        device: where to compute.
        executor: Workers of the whole search; processes alone are measured.
        advance: called after every small step.

    Raises:
        GateError: no network of the space keeps the limits on cost.
    """
    from smash_search.run import run_search
    from smash_search.strategies import architectures_of

    recorder = _Recorder(advance)
    timed = None if measurement is None else _Timed(measurement)
    small, images = _smaller(config, dataset), _few(dataset, config)
    if timed is not None and config.latency_limits:
        small = replace(small, limits=_limits_at(config, dataset, timed))
    with tempfile.TemporaryDirectory(prefix="smash-export-plan-") as folder:
        begin = time.monotonic()
        run = Path(folder) / "run"
        result = run_search(small, images, run, device=device, progress=recorder, measurement=timed)
        units = _units(small, images, recorder, timed, begin)
        if executor is None or executor.name != "process":
            return units
        largest = max(result.trained, key=lambda entry: entry.macs).key
        architecture = architectures_of(result.scored)[largest]
        beside, slower = _beside(small, images, architecture, executor, run, device)
    return replace(units, beside=beside, slower=slower)


def _beside(
    config: SearchConfig,
    dataset: Dataset,
    architecture: Architecture,
    executor: ExecutorConfig,
    folder: Path,
    device: str,
) -> tuple[int, float]:
    """Workers, and how many times as long as this process each takes for a step while all train a network."""
    import torch

    from smash_search.executors import Task, make_executor
    from smash_search.executors.work import Equipment, Worker
    from smash_search.run import load_supernet
    from smash_search.train.compute import pick_device

    supernet = load_supernet(folder)
    where = str(pick_device(device))
    equipment = Equipment(supernet, dataset, config.scoring, config.finalists, None, folder, where)
    here, task = Worker(equipment), Task("seconds_per_step", (architecture,), architecture.key)
    beside, _ = executor.size(torch.cuda.device_count())
    with contextlib.closing(make_executor(executor, equipment, here)) as workers:
        for _ in range(2):  # the first time they start, each when it can
            together = [seconds for _, seconds in workers.run([task] * beside)]
    slower = np.mean(together) / here.seconds_per_step(architecture)
    return beside, max(1.0, float(slower))  # less only where other programs slowed this process


def _smaller(config: SearchConfig, dataset: Dataset) -> SearchConfig:
    """The search that is rehearsed. Its finalists have the optimiser of the whole one, which few images would
    not have, and all but two are known networks: these are near the limits, as most of a race are, and take
    two to three times as long as draws do."""
    from smash_search.train.network import optimiser_of

    longest = max(np.diff([0, *config.finalists.rungs]))
    recipe = replace(config.finalists.recipe, epochs=int(longest))
    optimiser = optimiser_of(recipe, dataset)
    count = min(FINALISTS, config.finalists.count)
    drawn = min(config.finalists.random, 2)
    known = min(config.known, CANDIDATES // 2)
    return replace(
        config,
        candidates=CANDIDATES,
        strategy_options=_options_for(config, CANDIDATES),
        known=known,
        training=replace(config.training, steps=STEPS),
        finalists=replace(
            config.finalists,
            count=count,
            rounds=0,
            per_round=0,
            random=drawn,
            known=min(config.finalists.known, known, count - drawn),
            rungs=(EPOCHS,),
            epoch_images=IMAGES,
            recipe=replace(config.finalists.recipe, optimiser=optimiser),
            baseline="none" if config.finalists.baseline == "none" else "finalists",
        ),
        latency_limits=(),
        last_training=0.0,
    )


def _limits_at(config: SearchConfig, dataset: Dataset, timed: _Timed) -> CostLimits:
    """Limits on cost that stand for the largest one on latency: what is too large for it is not rehearsed.

    At least a twentieth of the space is within them. A few networks, from small to large, say how latency
    grows with multiply-accumulates.
    """
    from smash_search.rank.finalists import input_spec_of
    from smash_search.rank.measurement import LATENCY
    from smash_search.space.cost import cost_of
    from smash_search.stages.survey import probe_draws

    spec, limits = input_spec_of(dataset), config.limits
    drawn = [
        (cost_of(entry, spec, len(dataset.classes)), entry)
        for entry in probe_draws(config.space_for(spec), config.seed)
    ]
    inside = sorted(
        ((cost.macs, entry) for cost, entry in drawn if limits.refusal(cost) is None),
        key=lambda pair: pair[0],
    )
    if len(inside) < LADDER:
        return limits
    places = np.linspace(0, 3 * len(inside) // 4, LADDER).round().astype(int)  # the largest take long
    macs = np.log([inside[place][0] for place in places])
    latency = np.log([timed.measure(inside[place][1])[LATENCY] for place in places])
    growth, base = np.polyfit(macs, latency, 1)
    limit = max(entry.milliseconds for entry in config.latency_limits)
    if growth <= 0 or limit >= np.exp(latency.max()):
        return limits
    wanted = max(math.exp((math.log(limit) - base) / growth), inside[len(inside) // 20][0])
    return replace(limits, macs=int(wanted))


def _few(dataset: Dataset, config: SearchConfig) -> Dataset:
    """Some of the training images: an epoch of a large data set takes minutes."""
    random = np.random.default_rng(0)
    needed = max(config.training.batch, config.scoring.statistics_images, 2 * IMAGES)
    stages = config.scoring.stages(len(dataset.validation))
    return replace(
        dataset,
        train=dataset.train.some(needed, random),
        validation=dataset.validation.some(stages[-1], random),
    )


def _units(
    small: SearchConfig,
    images: Dataset,
    recorder: _Recorder,
    timed: _Timed | None,
    begin: float,
) -> Units:
    hypernet, candidates, race = map(recorder.find, ("HyperNet", "candidates", "race"))
    assert hypernet is not None
    stages = small.scoring.stages(len(images.validation))
    score = 0.0
    if candidates is not None:
        score = max(0.0, candidates.seconds - (timed.during(candidates) if timed else 0.0)) / CANDIDATES
    raced = score / stages[0]
    if race is not None and race.total:
        raced = race.seconds / race.total / max(1, _raced(images, stages[0], stages[1]))
    trained, set_up = _training(recorder.find("finalists"), images)
    drawn, _ = _training(recorder.find("random search"), images)
    return Units(
        start=max(0.0, hypernet.begin - begin),
        step=hypernet.steady,
        measurement=timed.mean if timed else 0.0,
        score=score,
        raced_image=raced,
        trained_image=trained,
        random_image=drawn or trained,
        set_up=set_up,
    )


def _training(bar: _Bar | None, images: Dataset) -> tuple[float, float]:
    """Seconds of a training image, and what each training takes beside its images and their validation.

    Images by the geometric mean of the networks: one of six may take three times as long as the others, and a
    race drops it.
    """
    if bar is None:
        return 0.0, 0.0
    epoch, validation = min(IMAGES, len(images.train)), len(images.validation)
    rows: list[tuple[float, float]] = []
    before, begin, ends = 0.0, bar.begin, list[float]()
    for done, now in bar.ticks:
        if done > before:
            ends.append(now)
        else:  # this network is trained and judged
            if len(ends) > 2:  # the first epoch sets things up, the last one ends with the validation images
                image = (ends[-2] - ends[0]) / (len(ends) - 2) / epoch
                images_done = len(ends) * epoch + EVALUATION * validation
                rows.append((image, max(0.0, now - begin - image * images_done)))
            begin, ends = now, []
        before = done
    if not rows:
        return 0.0, 0.0
    image, set_up = np.array(rows).T
    return float(np.exp(np.log(np.maximum(image, 1e-12)).mean())), float(set_up.mean())


# ------------------------------------------------------------------------------------------ counting


def search_parts(config: SearchConfig, dataset: Dataset, units: Units) -> list[Part]:
    """Expected seconds of each bar of a search, in their order."""
    from smash_search.stages.race import networks_of_baseline
    from smash_search.stages.survey import KNOWN_PROBES, PROBES

    stages = config.scoring.stages(len(dataset.validation))
    race, kept = 0.0, float(config.candidates)
    for before, images in itertools.pairwise(stages):
        kept = max(1.0, kept * config.scoring.keep)
        race += kept * _raced(dataset, before, images) * units.raced_image * units.each
    finalists, measured = config.finalists, units.measurement
    train = min(finalists.epoch_images or len(dataset.train), len(dataset.train))
    work = train + EVALUATION * len(dataset.validation)
    judged = MEASURED * measured + units.score * units.each  # of one network

    def trained(networks: int, image: float) -> float:
        set_up = sum(finalists.schedule(networks)) * units.set_up * units.each
        epochs = finalists.epochs_in_turn(networks, units.beside)
        return epochs * work * image * units.slower + set_up if networks else 0.0

    drawn = networks_of_baseline(config, dataset)
    parts = [
        Part("device", (PROBES + KNOWN_PROBES) * measured * bool(config.latency_limits)),
        Part("HyperNet", units.start + config.training.steps * units.step),
        Part("candidates", config.candidates * judged),
        Part("race", race),
        Part("training times", _timing(config, dataset) * units.trained_image),
        Part(
            "finalists",
            trained(finalists.entering, units.trained_image)
            + finalists.rounds * finalists.per_round * judged,
        ),
        Part("random search", trained(drawn, units.random_image) + drawn * MEASURED * measured),
    ]
    return [part for part in parts if part.seconds > 0]


def _timing(config: SearchConfig, dataset: Dataset) -> float:
    """Images that are trained on to know how long networks take (:mod:`smash_search.stages.hurry`)."""
    from smash_search.stages.hurry import PROBED
    from smash_search.train.network import PROBED_STEPS

    if not config.last_training:
        return 0.0
    finalists = config.finalists
    networks = min(PROBED, config.candidates) + finalists.rounds * finalists.per_round
    images = PROBED_STEPS * finalists.recipe.batch
    return networks * (images + 2 * EVALUATION * min(images, len(dataset.validation)))


def sooner(units: Units, chosen: Callable[[Units], SearchConfig], dataset: Dataset) -> Units:
    """The units, or those of one process where its finalists take less time each: few of them wait much.

    Args:
        units: measured with workers.
        chosen: function that gives the search that is made with units, or raises GateError.
        dataset: Images of the search.
    """

    def of_an_epoch(units: Units) -> float:
        try:
            config = chosen(units)
        except GateError:  # no search fits the time
            return math.inf
        parts = {part.label: part.seconds for part in search_parts(config, dataset, units)}
        return parts.get("finalists", 0.0) / config.finalists.epochs(config.finalists.entering)

    if units.beside == 1:
        return units
    return min((units, replace(units, beside=1, slower=1.0)), key=of_an_epoch)


def _raced(dataset: Dataset, before: int, images: int) -> int:
    """Images that a network is scored on when a stage of the race follows one of fewer images."""
    return images if dataset.several else images - before


def training_part(label: str, recipe: Recipe, dataset: Dataset, units: Units) -> Part:
    """Expected seconds of training the pick on all images.

    A pick uses its limit: it is as large as the larger ones of what was rehearsed.
    """
    images = len(dataset.train) + (len(dataset.validation) if recipe.include_validation else 0)
    images = min(recipe.epoch_images or images, images)
    epoch = images + EVALUATION * len(dataset.validation)
    return Part(label, recipe.epochs * epoch * max(units.trained_image, units.random_image))


def scaled(config: SearchConfig, factor: float, beside: int = 1) -> SearchConfig:
    """A search with so many times the updates, candidates and finalists, none below what makes sense.

    Below :data:`SHORT_RACE` the fewest finalists are left, and their trainings become shorter: without the
    last rung, then with the first one alone and one round of proposals. Ranks after fewer epochs are less
    sure (docs/experiments, "How long a race must be"), but the last training needs the time more.

    Args:
        config: the default.
        factor: how many times as large.
        beside: networks that are trained beside each other: no round has a place left.
    """
    from smash_search.rank.finalists import special_places

    finalists = config.finalists

    def filled(networks: int) -> int:
        return beside * math.ceil(networks / beside)

    candidates = _scaled(config.candidates, factor, "candidates")
    count = min(filled(_scaled(finalists.count, factor, "finalists")), candidates)
    known = min(config.known, candidates // 2)
    random, entering_known = special_places(count, finalists.random, min(finalists.known, known))
    rungs, rounds = finalists.rungs, finalists.rounds
    if factor < SHORT_RACE:
        rungs = rungs[:-1] or rungs
    if factor < SHORT_RACE / 2:
        rungs, rounds = rungs[:1], min(1, rounds)
    return replace(
        config,
        candidates=candidates,
        strategy_options=_options_for(config, candidates),
        known=known,
        training=replace(config.training, steps=_scaled(config.training.steps, factor, "steps")),
        finalists=replace(
            finalists,
            count=count,
            rounds=rounds,
            per_round=filled(max(min(1, finalists.per_round), round(finalists.per_round * factor))),
            rungs=rungs,
            random=random,
            known=entering_known,
        ),
    )


def _options_for(config: SearchConfig, candidates: int) -> JsonObject:
    """Options of the strategy for another number of candidates, of which they count parts."""
    options = dict(config.strategy_options)
    if config.strategy == "perturb" and candidates != config.candidates:
        for name in PARTS & set(options):
            with contextlib.suppress(ValueError):  # what is no number is refused by the strategy
                options[name] = max(-1, int(str(options[name])) * candidates // config.candidates)
    return options


def with_hypernet_share(config: SearchConfig, share: float, dataset: Dataset, units: Units) -> SearchConfig:
    """The search whose HyperNet trains for that share of the whole time; the rest of it stays as it is."""
    parts = search_parts(config, dataset, units)
    others = sum(part.seconds for part in parts if part.label != "HyperNet")
    seconds = others * share / (1 - share) - units.start
    steps = max(SMALLEST["steps"], round(seconds / max(1e-9, units.step)))
    return replace(config, training=replace(config.training, steps=steps))


def sized_like(config: SearchConfig, document: Mapping[str, Any]) -> SearchConfig:
    """The search with the updates, candidates and finalists of a config.json; raises InvalidInputError."""
    try:
        held = document["identity"]
        sizes = ("count", "rounds", "per_round", "rungs", "random", "known")
        finalists = {name: held["finalists"][name] for name in sizes}
        return replace(
            config,
            candidates=held["candidates"],
            strategy_options=_options_for(config, held["candidates"]),
            known=held["known"],
            training=replace(config.training, steps=held["training"]["steps"]),
            finalists=replace(config.finalists, **finalists),
        )
    except (KeyError, TypeError) as error:
        raise InvalidInputError("config.json is not of this version", received=error) from None


def _scaled(value: int, factor: float, name: str) -> int:
    return max(min(value, SMALLEST[name]), round(value * factor))


def last_epochs(epochs: int, one: float, others: float, seconds: float) -> int:
    """Passes of the last training that fill its share of a time, 3 to four times the default.

    Args:
        epochs: the default.
        one: Expected seconds of one of them.
        others: Expected seconds of everything else in the smallest plan.
        seconds: there are for the whole plan.
    """
    own = min(LAST_TRAINING * seconds, seconds - others)
    return max(min(epochs, SMALLEST["epochs"]), min(int(own / max(1e-9, one)), round(WHOLE * epochs)))


def shared_time(seconds_of: Callable[[float, int], float], epochs: int, seconds: float) -> tuple[float, int]:
    """Factor of the search and passes of the last training that fill a time together.

    The training has half of the time and the search the rest, up to its default size. What is left then, or
    where a race with a rung more would take too long, lengthens the training first: four times the passes
    gained two points on CIFAR-10, and no larger search was shown to find better networks.

    Args:
        seconds_of: function of a factor and of passes that gives the seconds of their plan.
        epochs: the default.
        seconds: there are.

    Raises:
        GateError: even the smallest plan takes longer.
    """
    least = seconds_of(0.0, 0)
    one = seconds_of(0.0, 1) - least
    chosen = last_epochs(epochs, one, least, seconds)
    factor = largest_factor(lambda factor: seconds_of(factor, chosen), seconds)
    if factor > 1.0:
        filling = int((seconds - seconds_of(1.0, 0)) / max(1e-9, one))
        chosen = max(chosen, min(filling, round(WHOLE * epochs)))
        factor = largest_factor(lambda factor: seconds_of(factor, chosen), seconds)
    spare = int((seconds - seconds_of(factor, chosen)) / max(1e-9, one))
    return factor, max(chosen, min(chosen + spare, round(WHOLE * epochs)))


def largest_factor(seconds_of: Callable[[float], float], seconds: float) -> float:
    """The largest factor whose plan takes at most ``seconds``.

    Args:
        seconds_of: function of a factor that gives the seconds of its plan; grows with the factor.
        seconds: there are.

    Raises:
        GateError: even the smallest plan takes longer.
    """
    least = seconds_of(0.0)
    if least > seconds:
        raise GateError(
            "the smallest sensible plan takes longer than --time",
            expected=f"at least {duration_words(least)}",
            received=duration_words(seconds),
            hint="Give more time, fewer images or a smaller --space.",
        )
    low, high = 0.0, WHOLE
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if seconds_of(middle) <= seconds else (low, middle)
    return low


def parse_duration(text: str) -> float:
    """``45m``, ``1h30m``, ``90s`` or ``90`` (seconds) as seconds; raises UsageError."""
    match = re.fullmatch(
        r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m(?:in)?)?(?:(\d+(?:\.\d+)?)s?)?", text.strip().lower()
    )
    hours, minutes, seconds = (float(part or 0) for part in match.groups()) if match else (0.0, 0.0, 0.0)
    total = 3600 * hours + 60 * minutes + seconds
    if not 0 < total < 1e8:
        raise UsageError("--time", expected="a time such as 45m, 1h30m or 90s", received=text)
    return total


def duration_words(seconds: float) -> str:
    """``50 s``, ``3.5 min`` or ``2.1 h``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.3g} min" if seconds < 6000 else f"{seconds / 3600:.3g} h"

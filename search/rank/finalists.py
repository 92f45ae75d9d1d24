"""From scores to one pick: a diverse set of finalists, trained in rungs, the better half going on each time.

Scores of generated weights weed out bad networks but do not pick the best one; short training does. The
finalists therefore are not the top by score (those look alike) but the best of each cost bin among all that
passed a mild filter, some known networks, and a few drawn regardless of score. What the first trainings teach
proposes further ones. The same rungs over networks that were drawn at random, without HyperNet or score, may
stand beside as the baseline. Whatever was trained through the last rung may be picked.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from smash_base import files
from smash_base.errors import InvalidInputError
from smash_base.json_values import JsonObject
from smash_search.model.fake_quantisation import FakeQuantisedNetwork
from smash_search.model.interpreter import Network, fold
from smash_search.rank.patterns import leaders, pattern_of
from smash_search.rank.trained import Trained, expected
from smash_search.space.architecture import Architecture, InputSpec
from smash_search.strategies import Scored
from smash_search.train.compute import (
    DivergedError,
    Feed,
    OutOfMemoryError,
    load_checkpoint,
    save_checkpoint,
    seed_of,
)
from smash_search.train.judging import Judge
from smash_search.train.network import (
    Epoch,
    Measure,
    Recipe,
    accuracy,
    answers_of,
    fit,
    new_network,
)

if TYPE_CHECKING:
    from smash_search.data import Dataset


ENSEMBLE = 3  # finalists whose answers are averaged
OF_THE_RUNGS = ("epochs", "epoch_images", "keep_best", "include_validation", "seconds", "seed")
"""Fields of a recipe that finalists have from their rungs."""

KNOWN, BY_LOT = "known network", "drawn regardless of score"
BY_SCORE, BY_ROUND = "best score", "proposed in round"
"""How reasons begin for which networks enter the race."""

WAITING = 0.2  # of a training: how much longer the last of two takes than their mean; of four twice that
SCOUTS = 3  # networks that usually go through all rungs for the sake of their wiring alone
RANGE_BATCHES, RANGE_BATCH = 8, 64  # training images that show the ranges of activations


@dataclass(frozen=True)
class FinalistsConfig:
    """How finalists are chosen and trained.

    Attributes:
        count: finalists that enter the first rung at first.
        rounds, per_round: further rounds of the first rung, and networks that enter in each: those that a
            model of the trained ones proposes (:mod:`smash_search.rank.proposals`).
        rungs: epochs that a network has trained at the end of each rung, ascending. Each rung has a whole
            cosine of its own, so that networks are compared after annealing.
        epoch_images: most training images of such an epoch, or 0 for all of them (:class:`Recipe`).
        random: finalists drawn from all scored candidates, whatever their score.
        known: finalists that are known networks: within limits on latency the largest of each wiring, and
            otherwise the best score of each of so many size bins of them. The HyperNet trains on random
            draws, and its scores place regular networks too low.
        drop: share of the candidates with the worst scores that is left out.
        keep: share of the networks that goes on to the next rung.
        start: weights of the first rung: "scratch", or "generated" ones from the HyperNet.
        baseline: which random search is recorded beside: "none"; "finalists" trains as many random networks
            in the same rungs; "total" as many more as HyperNet and all stages of the scores cost in images.
        recipe: how each is trained (:func:`smash_search.train.recipes.recipe_for` fits one to the images).
            Epochs, their images and seeds are those of the rungs; networks are compared at the end of a rung,
            so that no epoch is kept as the best and nothing but the epochs ends a training.
        precision: "int8" judges a network by the accuracy that is left when weights and activations are
            rounded to 8 bits, as an int8 runtime rounds them (:func:`int8_accuracy`).
        teacher: file in the run's folder that holds another network's logits for the training images, which
            every finalist learns as well (:mod:`smash_search.train.answers`); or empty.
        scouts: the best of each wiring goes through all rungs first (:func:`run_rungs`).
        ensemble: keep the mean answers of the best finalists, which the pick may learn from when it is
            trained at length (:func:`ensemble_answers`).
        seed: Random seed of initial weights and order of images.
    """

    count: int = 16
    rounds: int = 0
    per_round: int = 0
    rungs: tuple[int, ...] = (1, 2, 4)
    epoch_images: int = 0
    random: int = 3
    known: int = 0
    drop: float = 0.3
    keep: float = 0.5
    start: Literal["scratch", "generated"] = "scratch"
    baseline: Literal["none", "finalists", "total"] = "finalists"
    recipe: Recipe = field(default_factory=Recipe)
    precision: Literal["fp32", "int8"] = "fp32"
    teacher: str = ""
    scouts: bool = True
    ensemble: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "rungs", tuple(self.rungs))
        if not self.rungs or self.rungs[0] < 1 or list(self.rungs) != sorted(set(self.rungs)):
            raise InvalidInputError("rungs", expected="ascending numbers of epochs", received=self.rungs)
        special = self.random + self.known
        if not 1 <= self.count <= 10_000 or min(self.random, self.known) < 0 or special > self.count:
            raise InvalidInputError(
                "finalists",
                expected="1 to 10000, of which 0 to all are random or known",
                received=f"{self.count}, {self.random} random, {self.known} known",
            )
        if not 0 <= self.rounds <= 1000 or not 0 <= self.per_round <= 10_000:
            raise InvalidInputError(
                "finalists",
                expected="0 to 1000 rounds of 0 to 10000 networks",
                received=f"{self.rounds} of {self.per_round}",
            )
        if self.rounds and not self.per_round:
            raise InvalidInputError(
                "finalists",
                expected="networks that each round proposes",
                received=f"{self.rounds} rounds of none",
                hint="Pass --per-round.",
            )
        if not 0 <= self.drop < 1 or not 0 < self.keep < 1:
            raise InvalidInputError(
                "finalists", expected="drop in [0, 1), keep in (0, 1)", received=(self.drop, self.keep)
            )
        for name, known in (
            ("start", ("scratch", "generated")),
            ("baseline", ("none", "finalists", "total")),
            ("precision", ("fp32", "int8")),
        ):
            if getattr(self, name) not in known:
                raise InvalidInputError(name, expected=" or ".join(known), received=getattr(self, name))
        recipe = replace(
            self.recipe,
            epochs=self.rungs[-1],
            epoch_images=self.epoch_images,
            keep_best=False,
            include_validation=False,
            seconds=0.0,
            whiten=bool(self.recipe.whiten),  # "auto" would ask each rung anew
            seed=self.seed,
        )
        object.__setattr__(self, "recipe", recipe)

    def to_json(self) -> JsonObject:
        """Plain lists and numbers, as config.json holds them."""
        return {**asdict(self), "rungs": list(self.rungs)}

    def recipe_of(self, rung: int, key: str) -> Recipe:
        """Recipe of one network in one rung; weights that are trained or generated already are not set anew.

        The whitening filters depend on the images alone: each rung finds them as they are, and keeps them.
        """
        before = self.rungs[rung - 1] if rung else 0
        return replace(
            self.recipe,
            epochs=self.rungs[rung] - before,
            whiten=self.recipe.whiten and self.start == "scratch",
            identity=self.recipe.identity and self.start == "scratch" and rung == 0,
            seed=seed_of(self.seed, int(key, 16), rung),
        )

    @property
    def entering(self) -> int:
        """Networks that enter the first rung over all rounds."""
        return self.count + self.rounds * self.per_round

    @property
    def sends_scouts(self) -> bool:
        """Whether scouts go first: in a race that begins with as few networks they would be all of it."""
        return self.scouts and self.count > SCOUTS

    def schedule(self, count: int) -> list[int]:
        """Networks in each rung when ``count`` enter the first."""
        counts = [count]
        while len(counts) < len(self.rungs):
            counts.append(max(1, math.ceil(self.keep * counts[-1])))
        return counts

    def epochs(self, count: int) -> int:
        """Epochs of training when ``count`` networks enter, :data:`SCOUTS` of them for their wiring alone."""
        return int(np.dot(self._trained(count), np.diff([0, *self.rungs])))

    def epochs_in_turn(self, count: int, beside: int) -> float:
        """Epochs that pass one after the other where several networks are trained beside each other.

        The last of a round or a rung is waited for. Of networks within one limit on multiply-accumulates some
        take twice as long as others.

        Args:
            count: networks that enter.
            beside: networks beside each other.
        """
        if beside == 1:
            return float(self.epochs(count))

        def turns(networks: int) -> float:
            return math.ceil(networks / beside) + WAITING * math.log2(max(1, min(networks, beside)))

        first, *later = self._trained(count)
        rounds = [self.count] + [self.per_round] * self.rounds if count == self.entering else [first]
        return float(np.dot([sum(map(turns, rounds)), *map(turns, later)], np.diff([0, *self.rungs])))

    def _trained(self, count: int) -> list[int]:
        """Networks that are trained in each rung."""
        first, *later = self.schedule(count)
        idle = [self.sends_scouts * min(SCOUTS, first - wanted) for wanted in later]
        return [first] + [_left(wanted, extra) + extra for wanted, extra in zip(later, idle, strict=True)]

    def epochs_done(self, records: Path, group: str) -> int:
        """Epochs that finalists.jsonl holds already for one group."""
        steps = np.diff([0, *self.rungs])
        held = (Trained.from_json(record) for record in files.read_jsonl(records))
        return sum(int(steps[entry.rung]) for entry in held if entry.group == group)


def special_places(count: int, random: int, known: int) -> tuple[int, int]:
    """Places for networks drawn regardless of score and for known networks, of those that are wanted.

    Known networks have one place of two. The score of a short search hardly tells networks apart, and there
    a known network that enters by it alone is one of luck.

    Args:
        count: Networks that enter.
        random, known: as many as are wanted of each.
    """
    random = min(random, count - min(1, known, max(0, count - 1)))
    return random, min(known, count - random)


@dataclass(frozen=True)
class Finalist:
    """A network that enters the rungs.

    Attributes:
        architecture: what to train.
        group: "search", or "random" for the baseline.
        reason: Reason why it is here, for people.
        error: its SMASH score, or None.
        macs: Multiply-accumulates per image; the smaller network wins a tie.
    """

    architecture: Architecture
    group: Literal["search", "random"]
    reason: str
    error: float | None
    macs: int


def choose(
    scored: Sequence[Scored],
    config: FinalistsConfig,
    size: Callable[[Scored], float] | None = None,
    kind: Callable[[Scored], Hashable] | None = None,
    handicaps: Callable[[Sequence[Architecture]], Mapping[str, float]] | None = None,
) -> list[Finalist]:
    """A diverse set of finalists.

    Args:
        scored: every candidate that may be used, with its latest score.
        config: how many.
        size: what the bins are made over, MACs unless given (a latency, for example).
        kind: classes of which each gets a finalist (what keeps a latency limit, for example).
        handicaps: factors of errors, where networks are not trained equally in the end
            (:meth:`smash_search.stages.hurry.LastTraining.handicaps`).
    """
    size = size or (lambda entry: math.log(entry.cost.macs))
    best_score = BY_SCORE if handicaps is None else f"{BY_SCORE} for its training time"
    ranked = _ranked(scored, handicaps)
    places = {entry.candidate.architecture.key: place for place, entry in enumerate(ranked)}
    count = min(config.count, len(ranked))
    lucky = min(config.random, count - 1) if count > 1 else 0
    passed = ranked[: max(count, math.ceil((1 - config.drop) * len(ranked)))]
    chosen: dict[str, Finalist] = {}

    def enter(entry: Scored, reason: str) -> None:
        said = f"{reason}, a {KNOWN}" if entry.candidate.origin == "known" and reason != KNOWN else reason
        chosen.setdefault(entry.candidate.architecture.key, _finalist(entry, said))

    def best_of_bins(entries: Sequence[Scored], most: int) -> list[Scored]:
        by_size = sorted(entries, key=lambda entry: (size(entry), entry.candidate.architecture.key))
        bins = _split(by_size, min(most, max(0, count - lucky - len(chosen))))
        return [min(part, key=lambda one: places[one.candidate.architecture.key]) for part in bins if part]

    kinds = {kind(entry): None for entry in ranked} if kind else {}  # in the order of their best
    if len(kinds) > 1 and kind is not None:
        for wanted in list(kinds)[:count]:
            enter(next(entry for entry in ranked if kind(entry) == wanted), f"{best_score} within its limit")
    known = [entry for entry in ranked if entry.candidate.origin == "known"]
    left = min(config.known, max(0, count - lucky - len(chosen)))
    for entry in best_of_bins(known, left) if kind is None else _largest_of_patterns(known, kind)[:left]:
        enter(entry, KNOWN)
    best = best_of_bins(passed, count)
    for number, entry in enumerate(best):
        enter(entry, f"{best_score} of size bin {number + 1} of {len(best)}")
    for index in np.random.default_rng(seed_of(config.seed, 0x10C)).permutation(len(ranked)):
        if len(chosen) < count:
            enter(ranked[int(index)], BY_LOT)
    return list(chosen.values())


def _largest_of_patterns(entries: Sequence[Scored], kind: Callable[[Scored], Hashable]) -> list[Scored]:
    """The network of each kind and pattern with most multiply-accumulates, the kinds in turn.

    At three limits of CIFAR-10 one of them was the best of all known networks within the limit.
    """
    largest: dict[Hashable, dict[str, Scored]] = {}
    for entry in sorted(entries, key=lambda entry: (-entry.cost.macs, entry.candidate.architecture.key)):
        of_kind = largest.setdefault(kind(entry), {})
        of_kind.setdefault(pattern_of(entry.candidate.architecture), entry)
    rounds = itertools.zip_longest(*(of_kind.values() for of_kind in largest.values()))
    return [entry for entries in rounds for entry in entries if entry is not None]


def _ranked(
    scored: Sequence[Scored], handicaps: Callable[[Sequence[Architecture]], Mapping[str, float]] | None
) -> list[Scored]:
    """Networks that may enter, best score first; by few images after those by many.

    With factors of errors those of few images stand among the others: a network that the race of scores
    dropped may be ahead for its training time.
    """
    usable = [entry for entry in scored if entry.score is not None and entry.refused is None]
    factors = handicaps([entry.candidate.architecture for entry in usable]) if handicaps else None

    def by_score(entry: Scored) -> tuple[float, float, float, str]:
        score = entry.score
        assert score is not None  # filtered above
        if factors is None:
            return (-score.images, score.error, score.loss, score.key)
        factor = factors[score.key]
        return (factor * score.error, factor * score.loss, -score.images, score.key)

    return sorted(usable, key=by_score)


def _split(entries: list[Scored], parts: int) -> list[list[Scored]]:
    edges = np.linspace(0, len(entries), parts + 1).round().astype(int)
    return [entries[a:b] for a, b in itertools.pairwise(edges.tolist())]


def _finalist(entry: Scored, reason: str) -> Finalist:
    assert entry.score is not None
    return Finalist(entry.candidate.architecture, "search", reason, entry.score.error, entry.cost.macs)


def proposed_finalist(entry: Scored, number: int) -> Finalist:
    """A network that a model of the trained ones proposed, in the round of that number."""
    return _finalist(entry, f"{BY_ROUND} {number}: {entry.candidate.origin}")


Propose = Callable[[int, Sequence[Finalist], Sequence[Trained]], list[Finalist]]
"""Number of the round, networks that entered so far and all of their rungs -> networks to train next."""

Rung = tuple[Finalist, int]
"""A finalist and the number of the rung to train it through."""


def run_rungs(
    finalists: Sequence[Finalist],
    config: FinalistsConfig,
    *,
    records: Path,
    work: Callable[[Sequence[Rung]], Iterable[tuple[int, Trained]]],
    keep: Callable[[Trained], Hashable] | None = None,
    holds: Callable[[Finalist], bool] | None = None,
    propose: Propose | None = None,
    handicap: Callable[[Architecture], float] | None = None,
) -> list[Trained]:
    """Train finalists of one group in rungs; what is recorded already is not trained again.

    With scouts, the best of each pattern among ``finalists`` goes through all rungs before anything else
    (:func:`smash_search.rank.trained.expected`). Those that are not among the best of a rung take places of
    others there, a third of them at most.

    Args:
        finalists: Finalists of one group.
        config: Configuration of the rungs.
        records: finalists.jsonl, appended after each network and rung.
        work: trains; gives the number of a pair and its result as results come (:func:`train_rung`).
        keep: sorts networks into classes; the best of each class goes on to the next rung, so that every
            latency limit keeps a network. None stands for one class.
        holds: whether a network may be picked, asked before the last and longest rung of those that would go
            on, and of scouts: a longer measurement, after which ``keep`` may give another class. None where
            all may.
        propose: further networks for the first rung, by round and by what was trained so far.
        handicap: factor of the error that a network will have in the end, for :func:`expected`.

    Returns:
        One entry per network and rung, in the order in which one worker alone trains them.
    """
    held = [Trained.from_json(record) for record in files.read_jsonl(records)]
    done = {(entry.group, entry.key, entry.rung): entry for entry in held}
    results: dict[tuple[str, int], Trained] = {}
    architectures: dict[str, Architecture] = {}

    def handicap_of(entry: Trained) -> float:
        assert handicap is not None
        return handicap(architectures[entry.key])

    def train(finalists: Sequence[Finalist], rung: int) -> None:
        names = [(finalist.group, finalist.architecture.key, rung) for finalist in finalists]
        missing = [finalist for finalist, name in zip(finalists, names, strict=True) if name not in done]
        architectures.update({finalist.architecture.key: finalist.architecture for finalist in finalists})
        for index, trained in work([(finalist, rung) for finalist in missing]):
            done[trained.group, trained.key, rung] = trained
            record = trained.to_json()
            if rung == 0:
                record["architecture"] = missing[index].architecture.to_json()
            files.append_jsonl(records, record)
        results.update({name[1:]: done[name] for name in names})

    def ranked(entered: Sequence[Finalist], rung: int) -> list[tuple[Finalist, Trained]]:
        """Networks of a rung, best first, the smaller network first among equals."""
        judged = expected(list(results.values()), handicap and handicap_of)
        pairs = [(finalist, results[finalist.architecture.key, rung]) for finalist in entered]
        return sorted(pairs, key=lambda pair: (judged(pair[1]), pair[0].macs, pair[1].key))

    answers: dict[str, bool] = {}

    def asked(finalist: Finalist) -> bool:
        """Whether a network holds; each is asked once."""
        key = finalist.architecture.key
        if key not in answers:
            answers[key] = holds is None or holds(finalist)
        return answers[key]

    entered = list(finalists)
    train(entered, 0)
    scouts = _scouts(ranked(entered, 0), asked) if config.sends_scouts and len(config.rungs) > 1 else []
    for rung in range(1, len(config.rungs)):
        train(scouts, rung)
        scouts = [scout for scout in scouts if not results[scout.architecture.key, rung].diverged]
    for number in range(config.rounds if propose else 0):
        assert propose is not None
        proposed = propose(number, entered, list(results.values()))
        train(proposed, 0)
        entered += proposed
    for rung, wanted in enumerate(config.schedule(len(entered))[1:], start=1):
        best = ranked(entered, rung - 1)
        holds_too = asked if rung + 1 == len(config.rungs) else None
        entered = _go_on(best, wanted, keep, holds_too)
        if idle := sum(scout not in entered for scout in scouts):
            entered = _go_on(best, _left(wanted, idle), keep, holds_too)
            entered += [scout for scout in scouts if scout not in entered]
        train(entered, rung)
    return list(results.values())


def _left(wanted: int, idle: int) -> int:
    """Places of a rung for the best of it, beside scouts that are not among them: two thirds at least."""
    return max(math.ceil(2 * wanted / 3), wanted - idle)


def _scouts(ranked: Sequence[tuple[Finalist, Trained]], holds: Callable[[Finalist], bool]) -> list[Finalist]:
    """The best of each pattern that holds; none where all networks have one pattern."""
    left = [(finalist, trained) for finalist, trained in ranked if trained.diverged is None]
    while True:
        architectures = [finalist.architecture for finalist, _ in left]
        places = leaders(architectures, [trained.error for _, trained in left])
        if len(places) < 2:
            return []
        fell = {place for place in places if not holds(left[place][0])}
        if not fell:
            return [left[place][0] for place in places]
        left = [pair for place, pair in enumerate(left) if place not in fell]


def _go_on(
    ranked: Sequence[tuple[Finalist, Trained]],
    wanted: int,
    keep: Callable[[Trained], Hashable] | None,
    holds: Callable[[Finalist], bool] | None,
) -> list[Finalist]:
    """The first ``wanted`` that hold, the best of each class among them; more only where classes are more.

    As if nobody had asked where none holds.
    """
    left = list(ranked)
    while left:
        chosen = _first(left, wanted, keep)
        fell = {finalist.architecture.key for finalist in chosen if holds and not holds(finalist)}
        if not fell:
            return chosen
        left = [pair for pair in left if pair[1].key not in fell]
    return _first(ranked, wanted, keep)


def _first(
    ranked: Sequence[tuple[Finalist, Trained]],
    wanted: int,
    keep: Callable[[Trained], Hashable] | None,
) -> list[Finalist]:
    classes: dict[Hashable, int] = {}
    for place, (_, trained) in enumerate(ranked):
        classes.setdefault(keep(trained) if keep else None, place)
    first = list(classes.values())
    others = [place for place in range(len(ranked)) if place not in first]
    return [ranked[place][0] for place in sorted([*first, *others[: max(0, wanted - len(first))]])]


def train_rung(
    finalist: Finalist,
    rung: int,
    dataset: Dataset,
    config: FinalistsConfig,
    *,
    weights: Path,
    device: torch.device | str = "cpu",
    start: Callable[[Architecture], Network] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
    teacher: np.ndarray | None = None,
) -> Trained:
    """Train one finalist through one rung.

    Args:
        finalist: its weights after the rung before are in ``weights``.
        rung: from 0.
        dataset: training images, and validation images that decide.
        config: Configuration of the rungs.
        weights: folder for weights and partial trainings; may be deleted when all is done.
        start: makes the network of the first rung; from scratch unless given.
        on_epoch: called after each epoch.
        teacher: logits float32 [N, K] of another network for the training images.

    Raises:
        InvalidInputError: the weights after the rung before are missing.
        OutOfMemoryError: the batch does not fit into the memory of a GPU.
    """
    architecture, folder = finalist.architecture, weights
    key = architecture.key
    identity: JsonObject = {"key": key, "data": dataset.fingerprint, "finalists": config.to_json()}
    network = _starting_network(finalist, rung, dataset, config, folder, identity, start)
    recipe = config.recipe_of(rung, key)
    partial = folder / f"{finalist.group}-{key}.{rung}.partial.pt"
    diverged, judge = None, Judge(recipe)
    try:
        result = fit(
            network,
            dataset,
            recipe,
            device=device,
            checkpoint=partial,
            checkpoint_seconds=2.0,
            on_epoch=on_epoch,
            evaluate=False,
            teacher=teacher,
            measure=judge,
        )
        right, loss = result.accuracy, result.history[-1].loss
        if config.precision == "int8":
            right = int8_accuracy(network, dataset, device, judge)
        elif judge.loss is None and dataset.validation.targets is None:  # judged before a restart
            right = judge(network, dataset.validation, dataset.preprocessing, device)
        if judge.loss is None and dataset.validation.targets is None:
            raise DivergedError("the answers for validation images are NaN or infinite")
        error = 1 - right
    except OutOfMemoryError as problem:
        problem.hint = f"Try --finalist-batch {max(1, recipe.batch // 2)}."  # --batch is the HyperNet's
        raise
    except DivergedError as problem:
        error, loss, diverged, judge.loss = 1.0, 1e30, str(problem), None
    state = {name: value.cpu() for name, value in network.state_dict().items()}
    save_checkpoint(_weights(folder, finalist, rung), identity, {"network": state})
    return Trained(
        finalist.group,
        key,
        finalist.reason,
        finalist.error,
        finalist.macs,
        rung,
        config.rungs[rung],
        round(error, 9),  # 1 - accuracy, without the noise of the subtraction
        loss if math.isfinite(loss) else 1e30,
        diverged,
        None if judge.loss is None else round(judge.loss, 9),
        pattern_of(architecture),
    )


def int8_accuracy(
    network: Network,
    dataset: Dataset,
    device: torch.device | str = "cpu",
    measure: Measure = accuracy,
) -> float:
    """Validation accuracy, or what else is measured, when weights and activations are rounded to 8 bits.

    Ranges of activations come from :data:`RANGE_BATCHES` batches of training images, as calibration has them;
    from fewer where there are fewer images.
    An estimate for a race: the file of a runtime is judged by its own gate.
    """
    rounded = FakeQuantisedNetwork(network.architecture, fold(network.cpu().eval())).to(device).train()
    feed = Feed(dataset.train, dataset.preprocessing, torch.device(device))
    order = np.random.default_rng(0).permutation(len(dataset.train))[: RANGE_BATCHES * RANGE_BATCH]
    with torch.no_grad():
        for batch in np.array_split(order, min(RANGE_BATCHES, len(order))):
            rounded(feed(np.sort(batch))[0])
    return measure(rounded, dataset.validation, dataset.preprocessing, device)


def _starting_network(
    finalist: Finalist,
    rung: int,
    dataset: Dataset,
    config: FinalistsConfig,
    folder: Path,
    identity: JsonObject,
    start: Callable[[Architecture], Network] | None,
) -> Network:
    architecture = finalist.architecture
    if start is not None and finalist.group == "search":
        network = start(architecture)
    else:
        seed = seed_of(config.seed, int(architecture.key, 16))
        spec = input_spec_of(dataset)
        network = new_network(architecture, spec, len(dataset.classes), seed)
    if rung:
        path = _weights(folder, finalist, rung - 1)
        held = load_checkpoint(path, identity)
        if held is None:
            raise InvalidInputError(
                f"weights of a finalist are missing: {path}",
                hint="Start the search again in another folder.",
            )
        network.load_state_dict(held["network"])
    return network


def _weights(folder: Path, finalist: Finalist, rung: int) -> Path:
    return folder / f"{finalist.group}-{finalist.architecture.key}.{rung}.pt"


def ensemble_answers(
    best: Sequence[Finalist],
    rung: int,
    dataset: Dataset,
    *,
    weights: Path,
    device: torch.device | str = "cpu",
) -> np.ndarray | None:
    """Mean log-probabilities of trained finalists, float32 [N + V, K].

    Args:
        best: finalists that were trained from scratch through the rung.
        rung: from 0.
        dataset: its N training images are answered, in their order, and then its V validation images.
        weights: folder with their weights.
        device: where to compute.

    Returns:
        None where weights are gone.
    """
    spec, classes = input_spec_of(dataset), len(dataset.classes)
    splits = [split for split in (dataset.train, dataset.validation) if len(split)]
    total = np.zeros((sum(map(len, splits)), classes), np.float32)
    for finalist in best:
        held = load_checkpoint(_weights(weights, finalist, rung), None)
        if held is None:
            return None
        network = new_network(finalist.architecture, spec, classes, 0)
        network.load_state_dict(held["network"])
        parts = [answers_of(network, split, dataset.preprocessing, device) for split in splits]
        total += torch.from_numpy(np.concatenate(parts)).log_softmax(1).numpy() / len(best)
    return total


def input_spec_of(dataset: Dataset) -> InputSpec:
    """Channels and size of a data set's images."""
    channels, *size = dataset.preprocessing.input_shape
    return InputSpec(channels, tuple(size))

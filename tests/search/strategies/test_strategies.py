"""Every registered strategy: legal, new, within the budget, a pure function of what it was told."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from smash_base.errors import GateError, MissingRuntimeError, UsageError
from smash_search.rank.scoring import make_score
from smash_search.space.architecture import Architecture, InputSpec
from smash_search.space.cost import cost_of
from smash_search.space.encoding import Layout
from smash_search.space.space import space_for
from smash_search.strategies import (
    STRATEGIES,
    Candidate,
    Context,
    Scored,
    Strategy,
    common,
    make_strategy,
    random,
)
from smash_search.strategies.evolution import crowding, rank
from smash_search.strategies.gradient import Encoded, predicted_change

SPEC = InputSpec(1, (8, 8))
SPACE = space_for(SPEC)
LAYOUT = Layout(SPACE)
LIMIT = 20_000
IMAGES = 90

HAS_OPTUNA = importlib.util.find_spec("optuna") is not None


def names() -> list:
    """The registry is the test matrix."""
    optional = pytest.mark.skipif(not HAS_OPTUNA, reason="Optuna is not installed")
    return [
        pytest.param(name, marks=optional if name in ("bayesian", "hyperband") else ()) for name in STRATEGIES
    ]


def _refusal(architecture: Architecture) -> str | None:
    return "too many parameters" if _cost(architecture).parameters > LIMIT else None


def _cost(architecture: Architecture):
    return cost_of(architecture, SPEC, 10)


def _gradient(architecture: Architecture, images: int) -> tuple[Layout, np.ndarray]:
    """A stand-in that wants kernels of 7 in the first convolutions."""
    gradient = np.zeros_like(LAYOUT.encode(architecture))
    for axis in range(2):
        gradient[LAYOUT.sections[f"kernel0.{axis}"].start + 2] = -1.0
    return LAYOUT, gradient


def context(budget: int = 24, folder: Path | None = None, **options: float) -> Context:
    return Context(SPACE, 3, budget, _refusal, _cost, options, IMAGES, folder, _gradient)


def small(name: str, folder: Path | None = None) -> Context:
    """As many of a strategy's stages as possible, in little time."""
    pool = {"pool": 4} if name in ("bayesian", "hyperband") else {}
    return context(16, folder, **pool)


def judge(candidate: Candidate) -> Scored:
    """A smooth stand-in for the score: few parameters are good, with noise of its own per network."""
    architecture = candidate.architecture
    cost = _cost(architecture)
    error = min(1.0, cost.parameters / LIMIT * 0.8 + int(architecture.key[:4], 16) / 2**16 * 0.1)
    wrong = np.arange(candidate.images or IMAGES) < error * (candidate.images or IMAGES)
    return Scored(candidate, make_score(architecture.key, wrong, error), cost)


def drive(strategy: Strategy, judged: Callable[[Candidate], Scored] = judge) -> list[Scored]:
    results: list[Scored] = []
    while candidates := strategy.ask():
        told = [judged(candidate) for candidate in candidates]
        strategy.tell(told)
        results += told
    return results


@pytest.mark.parametrize("name", names())
def test_candidates_are_legal_new_and_as_many_as_the_budget(name: str) -> None:
    results = drive(make_strategy(name, small(name)))
    keys = [(entry.candidate.architecture.key, entry.candidate.images) for entry in results]
    assert len(set(keys)) == len(keys)
    assert len({key for key, _ in keys}) == 16
    for entry in results:
        SPACE.check(entry.candidate.architecture)
        assert _refusal(entry.candidate.architecture) is None


@pytest.mark.parametrize("name", names())
def test_a_restarted_strategy_asks_the_same(name: str, tmp_path: Path) -> None:
    def asked() -> list[tuple[str, int | None, str]]:
        results = drive(make_strategy(name, small(name, tmp_path)))
        return [(e.candidate.architecture.key, e.candidate.images, e.candidate.origin) for e in results]

    first = asked()
    assert asked() == first
    other = drive(make_strategy(name, replace(small(name), seed=4)))
    assert {entry.candidate.architecture.key for entry in other} != {key for key, _, _ in first}


@pytest.mark.parametrize("name", names())
def test_refused_candidates_stop_no_strategy(name: str) -> None:
    def all_refused(candidate: Candidate) -> Scored:
        measures = {"latency_ms": float(_cost(candidate.architecture).macs)}
        return Scored(candidate, None, _cost(candidate.architecture), measures, "too slow")

    assert len(drive(make_strategy(name, small(name)), all_refused)) == 16


@pytest.mark.parametrize("name", names())
def test_unknown_options_are_named(name: str) -> None:
    with pytest.raises(UsageError, match="speed"):
        make_strategy(name, context(speed=1))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("perturb", {"random": -5}),
        ("perturb", {"steps": -2}),
        ("evolution", {"population": 6.5}),
        ("evolution", {"population": "6.0"}),
        ("evolution", {"population": -5}),
        ("gradient", {"images": "20.5"}),
        ("gradient", {"random": -5}),
        ("bayesian", {"batch": 2.5}),
        ("bayesian", {"startup": -1}),
        ("hyperband", {"factor": "2.5"}),
        ("hyperband", {"factor": 0}),
        ("hyperband", {"smallest": -4}),
    ],
)
def test_counts_that_are_not_whole_or_below_their_least_are_refused_by_name(
    name: str, options: dict[str, float]
) -> None:
    ((option, value),) = options.items()
    with pytest.raises(UsageError, match=rf"option {option} of .*; received {value}"):
        make_strategy(name, context(**options))


@pytest.mark.parametrize("name", names())
def test_limits_that_leave_nothing_are_an_error(name: str) -> None:
    strategy = make_strategy(name, replace(context(2), refusal=lambda _: "nothing may pass"))
    with pytest.raises(GateError, match="nothing may pass"):
        strategy.ask()


@pytest.mark.parametrize("name", names())
def test_all_of_the_few_networks_that_limits_leave_are_proposed(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random, "TRIES", 40)
    monkeypatch.setattr(common, "TRIES", 20)
    few = {entry.candidate.architecture.key for entry in drive(make_strategy("random", context(6)))}
    left = replace(small(name), refusal=lambda entry: None if entry.key in few else "not one of the few")
    strategy, found = make_strategy(name, left), set[str]()
    with contextlib.suppress(GateError):  # the limits leave no more
        while candidates := strategy.ask():
            found |= {candidate.architecture.key for candidate in candidates}
            strategy.tell([judge(candidate) for candidate in candidates])
    assert found == few


@pytest.mark.parametrize("name", ["perturb", "evolution", "gradient"])
def test_a_strategy_finds_lower_errors_than_its_own_random_start(name: str) -> None:
    results = drive(make_strategy(name, context(70)))
    drawn = [e for e in results if e.candidate.origin == "random"]
    moved = [e for e in results if e.candidate.origin != "random"]
    assert np.median([e.score.error for e in moved]) < np.median([e.score.error for e in drawn])


def test_perturb_has_the_parts_of_the_original() -> None:
    results = drive(make_strategy("perturb", context(70)))
    origins = [entry.candidate.origin for entry in results]
    assert origins == ["random"] * 50 + ["perturbation"] * 10 + ["chain"] * 10
    options = context(9, random=4, perturbations="3", steps=2)  # text, as from a command line
    origins = [entry.candidate.origin for entry in drive(make_strategy("perturb", options))]
    assert origins == ["random"] * 4 + ["perturbation"] * 3 + ["chain"] * 2
    with pytest.raises(UsageError, match="--candidates 10"):
        make_strategy("perturb", context(9, random=5, perturbations=3, steps=2))


def test_the_chain_moves_only_when_strictly_better() -> None:
    strategy = make_strategy("perturb", context(30, random=1, perturbations=0, steps=5))
    centres = []
    for _ in range(6):
        told = [judge(candidate) for candidate in strategy.ask()]
        equal = [replace(e, score=make_score(e.score.key, np.arange(10) < 5, 1.0)) for e in told]
        strategy.tell(equal)
        centres.append(strategy._best.candidate.architecture.key)
    assert len(set(centres)) == 1


def test_fronts_and_crowding_follow_their_definition() -> None:
    values = np.asarray([[0.1, 5.0], [0.2, 3.0], [0.3, 1.0], [0.2, 4.0], [0.4, 6.0], [2.0, 0.5]])
    places = rank(values)
    assert [front for front, _ in places] == [0, 0, 0, 1, 2, 3], "the refused one is behind all others"
    assert crowding(values[:3])[1] == pytest.approx(2.0)
    assert np.isinf(crowding(values[:3])[0])


def test_evolution_keeps_networks_that_are_small_as_well_as_good_ones() -> None:
    strategy = make_strategy("evolution", context(60, population=12))
    results = drive(strategy)
    kept = {entry.candidate.architecture.key for entry in strategy._parents}
    smallest = min(results, key=lambda e: (e.cost.macs, e.cost.parameters, e.score.error))
    best = min(results, key=lambda e: (e.score.error, e.cost.macs))
    assert smallest.candidate.architecture.key in kept
    assert best.candidate.architecture.key in kept
    assert {"random", "mutation"} < {entry.candidate.origin for entry in results}


def test_the_predicted_change_is_the_first_order_one() -> None:
    random = np.random.default_rng(0)
    architecture = next(drawn for slot in range(9) if LAYOUT.tiles(drawn := SPACE.draw(0, slot)))
    c = LAYOUT.encode(architecture)
    gradient = random.standard_normal(c.shape).astype(np.float32)
    here = Encoded(LAYOUT, architecture, gradient)
    assert predicted_change(here, architecture) == 0
    compared = 0
    for slot in range(60):
        other = SPACE.mutate(architecture, 1, slot)
        wanted = LAYOUT.encode(other)
        predicted = predicted_change(here, other)
        if wanted.shape[2] != c.shape[2]:
            assert predicted is None
        elif predicted is not None and wanted.shape == c.shape:
            assert predicted == pytest.approx(float((gradient * (wanted - c)).sum()), rel=1e-4, abs=1e-3)
            compared += 1
    assert compared > 5


def test_gradient_prefers_what_the_gradient_speaks_for() -> None:
    results = drive(make_strategy("gradient", context(30, random=10)))
    moved = [e.candidate.architecture for e in results if e.candidate.origin == "gradient"]
    drawn = [e.candidate.architecture for e in results if e.candidate.origin == "random"]

    def wide(architectures: list[Architecture]) -> float:
        firsts = [op.convs[0] for a in architectures for block in a.blocks for op in block.ops]
        return float(np.mean([size == 7 for conv in firsts for size in conv.kernel]))

    assert wide(moved) > wide(drawn)


@pytest.mark.skipif(not HAS_OPTUNA, reason="Optuna is not installed")
def test_hyperband_looks_at_more_images_of_fewer_networks() -> None:
    results = drive(make_strategy("hyperband", context(24, smallest=10, pool=4)))
    counts = {images: sum(e.candidate.images == images for e in results) for images in (10, 30, 90)}
    assert counts[10] == 24
    assert counts[10] > counts[30] > counts[90] > 0


@pytest.mark.skipif(not HAS_OPTUNA, reason="Optuna is not installed")
def test_the_journal_of_a_restarted_search_holds_each_trial_once(tmp_path: Path) -> None:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    half = make_strategy("bayesian", small("bayesian", tmp_path))
    half.tell([judge(candidate) for candidate in half.ask()])
    drive(make_strategy("bayesian", small("bayesian", tmp_path)))
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "optuna.journal")))
    study = optuna.load_study(study_name="search", storage=storage)
    keys = [trial.user_attrs["architecture"] for trial in study.trials]
    assert len(keys) == len(set(keys)) == 16
    assert all(trial.value is not None for trial in study.trials)


def test_a_missing_optuna_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "optuna", None)
    for name in ("bayesian", "hyperband"):
        with pytest.raises(MissingRuntimeError, match="pip install"):
            make_strategy(name, context())


def test_an_unknown_strategy_is_an_error_that_lists_the_others() -> None:
    with pytest.raises(UsageError, match="evolution"):
        make_strategy("magic", context())

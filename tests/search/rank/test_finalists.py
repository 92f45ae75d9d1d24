"""Finalists: diverse, partly regardless of score, trained in rungs; the pick is the best trained one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from smash_base import files
from smash_base.errors import GateError, InvalidInputError, UsageError
from smash_search.executors.work import Equipment, Worker
from smash_search.model import fake_quantisation
from smash_search.model.hypernet import HyperNetConfig
from smash_search.model.supernet import Supernet
from smash_search.rank.finalists import (
    Finalist,
    FinalistsConfig,
    Rung,
    choose,
    input_spec_of,
    run_rungs,
    special_places,
    train_rung,
)
from smash_search.rank.scoring import Score, ScoringConfig
from smash_search.rank.trained import Trained
from smash_search.space.architecture import InputSpec
from smash_search.space.cost import cost_of
from smash_search.space.known import known_networks
from smash_search.space.space import space_for
from smash_search.strategies import Candidate, Context, Scored, make_strategy
from smash_search.strategies.random import draws
from smash_search.train.compute import OutOfMemoryError
from smash_search.train.judging import Judge
from smash_search.train.network import new_network
from smash_search.train.recipes import Recipe
from tests.search.small_data import small_architecture, small_digits, with_bad_images

SPEC = InputSpec(1, (8, 8))
SPACE = space_for(SPEC)


def _scored(count: int) -> list[Scored]:
    """Candidates whose score gets worse with their number, whatever their size."""
    entries = []
    for slot in range(count):
        drawn = SPACE.draw(3, slot)
        error = slot / count
        score = Score(drawn.key, 100, error, error, error, error, "")
        entries.append(Scored(Candidate(drawn, "random"), score, cost_of(drawn, SPEC, 10)))
    return entries


def test_finalists_come_from_every_size_and_some_regardless_of_score() -> None:
    scored = _scored(40)
    config = FinalistsConfig(count=8, random=2, drop=0.5)
    chosen = choose(scored, config)
    assert len({finalist.architecture.key for finalist in chosen}) == 8
    assert sum("regardless" in finalist.reason for finalist in chosen) == 2
    sizes = sorted(entry.cost.macs for entry in scored[:20])
    binned = [finalist.macs for finalist in chosen if "bin" in finalist.reason]
    assert min(binned) <= sizes[5] < sizes[-6] <= max(binned)
    assert choose(scored, config) == chosen


def test_the_worst_by_score_enter_only_by_lot() -> None:
    scored = _scored(40)
    chosen = choose(scored, FinalistsConfig(count=10, random=0, drop=0.5))
    kept = {entry.candidate.architecture.key for entry in scored[:20]}
    assert {finalist.architecture.key for finalist in chosen} <= kept


def test_known_networks_enter_from_every_size_though_their_scores_are_bad() -> None:
    scored = _scored(40)
    scored[30:] = [
        replace(entry, candidate=replace(entry.candidate, origin="known")) for entry in scored[30:]
    ]
    chosen = choose(scored, FinalistsConfig(count=8, random=1, known=3, drop=0.5))
    entered = [finalist for finalist in chosen if finalist.reason == "known network"]
    assert len(chosen) == 8
    assert len(entered) == 3
    assert {f.architecture.key for f in entered} <= {e.candidate.architecture.key for e in scored[30:]}
    sizes = sorted(entry.cost.macs for entry in scored[30:])
    assert min(f.macs for f in entered) <= sizes[3] < sizes[6] <= max(f.macs for f in entered)
    with pytest.raises(InvalidInputError, match="known"):
        FinalistsConfig(count=4, random=2, known=3)


def test_one_of_two_places_is_for_a_known_network_where_any_are_wanted() -> None:
    assert special_places(2, 3, 3) == (1, 1)
    assert special_places(1, 3, 3) == (1, 0), "no place is left for it"
    assert special_places(2, 3, 0) == (2, 0)
    assert special_places(4, 2, 3) == (2, 2)
    assert special_places(24, 4, 8) == (4, 8)
    assert special_places(0, 3, 3) == (0, 0), "which the configuration refuses"


def test_a_known_network_that_the_score_chose_says_that_it_is_known() -> None:
    scored = _scored(40)
    scored[:20] = [
        replace(entry, candidate=replace(entry.candidate, origin="known")) for entry in scored[:20]
    ]
    chosen = choose(scored, FinalistsConfig(count=4, random=0, drop=0.5))
    assert [finalist.reason for finalist in chosen] == [
        f"best score of size bin {number} of 4, a known network" for number in range(1, 5)
    ]


def test_networks_outside_a_measured_limit_are_never_finalists() -> None:
    scored = _scored(6)
    scored[0] = Scored(scored[0].candidate, None, scored[0].cost, {"latency_ms": 9.0}, "too slow")
    chosen = choose(scored, FinalistsConfig(count=20, random=3))
    assert len(chosen) == 5
    assert scored[0].candidate.architecture.key not in {finalist.architecture.key for finalist in chosen}


def test_rungs_halve_and_train_on_from_the_rung_before(tmp_path: Path) -> None:
    data = small_digits(train=64, validation=32)
    config = FinalistsConfig(count=3, rungs=(1, 2), recipe=Recipe(batch=32), random=0)
    small = sorted(_scored(30), key=lambda entry: entry.cost.macs)[:3]
    finalists = [
        Finalist(entry.candidate.architecture, "search", "test", 0.5, entry.cost.macs) for entry in small
    ]
    records = tmp_path / "finalists.jsonl"

    def work(rungs: Sequence[Rung]) -> Iterator[tuple[int, Trained]]:
        for index, (finalist, rung) in enumerate(rungs):
            yield index, train_rung(finalist, rung, data, config, weights=tmp_path / "w")

    results = run_rungs(finalists, config, records=records, work=work)
    assert [(entry.rung, entry.epochs) for entry in results] == [(0, 1)] * 3 + [(1, 2)] * 2
    losses = {entry.key: entry.validation_loss or 0.0 for entry in results[:3]}
    assert len({loss for loss in losses.values() if loss > 0}) == 3
    best = set(sorted(losses, key=losses.__getitem__)[:2])
    assert {entry.key for entry in results[3:]} == best
    whole = records.read_bytes()
    assert config.epochs_done(records, "search") == config.epochs(3) == 5, "what a resumed bar begins with"
    assert config.epochs_done(records, "random") == 0
    assert run_rungs(finalists, config, records=records, work=work) == results
    assert records.read_bytes() == whole, "nothing is trained twice"
    lines = whole.splitlines(keepends=True)
    records.write_bytes(b"".join(lines[:4]))  # killed in the last rung
    assert run_rungs(finalists, config, records=records, work=work) == results
    assert records.read_bytes() == whole
    assert [Trained.from_json(record) for record in files.read_jsonl(records)] == results


def test_a_finalist_that_a_gpu_has_no_memory_for_names_the_option_of_finalists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large(*arguments: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr("smash_search.model.interpreter.Network.forward", too_large)
    config = FinalistsConfig(rungs=(1,), recipe=Recipe(batch=32), random=0)
    finalist = Finalist(SPACE.draw(0, 0), "search", "", None, 1)
    with pytest.raises(OutOfMemoryError, match=r"batch of 32 images.*Try --finalist-batch 16"):
        train_rung(finalist, 0, small_digits(train=64, validation=32), config, weights=tmp_path)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_rung_has_the_loss_of_the_network_that_it_leaves_killed_or_not(
    precision: Literal["fp32", "int8"], tmp_path: Path
) -> None:
    data = small_digits(train=64, validation=32)
    config = FinalistsConfig(rungs=(2,), recipe=Recipe(batch=32), random=0, precision=precision)
    finalist = Finalist(SPACE.draw(0, 0), "search", "", None, 1)
    whole = train_rung(finalist, 0, data, config, weights=tmp_path)
    assert whole.validation_loss is not None
    assert train_rung(finalist, 0, data, config, weights=tmp_path) == whole, "of a training that was over"
    if precision == "fp32":
        (path,) = tmp_path.glob("*.0.pt")
        network = new_network(finalist.architecture, input_spec_of(data), 10, 0)
        network.load_state_dict(torch.load(path, weights_only=False)["network"])
        judge = Judge(config.recipe)
        assert judge(network, data.validation, data.preprocessing) == pytest.approx(1 - whole.error)
        assert judge.loss == pytest.approx(whole.validation_loss)


def test_epochs_are_counted_as_they_are_trained() -> None:
    config = FinalistsConfig(count=8, rungs=(1, 2, 4), keep=0.5)
    assert config.schedule(8) == [8, 4, 2]
    assert config.epochs(8) == 8 + (3 + 3) + (2 + 3) * 2, "with three scouts that are not among the best"
    assert replace(config, rungs=(3,)).epochs(8) == 24, "one rung needs no scouts"
    assert FinalistsConfig(count=5, rungs=(1, 2), keep=0.5).schedule(5) == [5, 3]
    assert FinalistsConfig(epoch_images=500).recipe_of(1, "0").epoch_images == 500


def test_a_teacher_changes_what_a_rung_trains(tmp_path: Path) -> None:
    data = small_digits(train=64)
    finalist = Finalist(SPACE.draw(0, 0), "search", "", None, 1)
    config = FinalistsConfig(rungs=(1,), recipe=Recipe(batch=32, distillation=1.0))
    wrong = 20 * np.eye(10, dtype=np.float32)[(data.train.labels + 1) % 10]
    alone, taught = (
        train_rung(finalist, 0, data, config, weights=tmp_path / name, teacher=teacher)
        for name, teacher in (("alone", None), ("taught", wrong))
    )
    assert taught.loss != alone.loss


def test_rungs_train_by_one_recipe_with_epochs_of_their_own() -> None:
    recipe = Recipe(epochs=200, label_smoothing=0.1, whiten=True, identity=True, keep_best=True, seconds=9.0)
    config = FinalistsConfig(rungs=(1, 3), recipe=recipe)
    first, second = (config.recipe_of(rung, "0") for rung in (0, 1))
    assert (first.epochs, second.epochs) == (1, 2)
    assert (first.identity, second.identity) == (True, False), "trained weights are not set anew"
    for held in (first, second):
        assert (held.label_smoothing, held.whiten, held.keep_best, held.seconds) == (0.1, True, False, 0.0)
    generated = replace(config, start="generated").recipe_of(0, "0")
    assert not generated.whiten
    assert not generated.identity


@pytest.mark.parametrize(
    "wrong",
    [
        {"rungs": ()},
        {"rungs": (2, 1)},
        {"count": 0},
        {"drop": 1.0},
        {"start": "x"},
        {"baseline": "x"},
        {"rounds": 2},
    ],
)
def test_configurations_are_checked(wrong: dict) -> None:
    with pytest.raises(InvalidInputError):
        FinalistsConfig(**wrong)


def _context(budget: int, most: int | None = None, **options: object) -> Context:
    def refusal(drawn: object) -> str | None:
        parameters = cost_of(drawn, SPEC, 10).parameters  # type: ignore[arg-type]
        return None if most is None or parameters <= most else f"{parameters} parameters"

    return Context(SPACE, 0, budget, refusal, lambda drawn: cost_of(drawn, SPEC, 10), dict(options))


def test_random_search_proposes_its_budget_of_different_networks_within_the_limits() -> None:
    strategy = make_strategy("random", _context(70, most=40_000))
    proposed = []
    while batch := strategy.ask():
        strategy.tell([])
        proposed += [candidate.architecture for candidate in batch]
    assert len({drawn.key for drawn in proposed}) == 70
    assert all(cost_of(drawn, SPEC, 10).parameters <= 40_000 for drawn in proposed)


def test_known_networks_are_proposed_first_where_they_keep_the_limits() -> None:
    known = known_networks(SPACE)
    wanted = replace(_context(30, most=10_000), known=known[:20])
    fitting = [entry.key for entry in known[:20] if wanted.refusal(entry) is None]
    assert 0 < len(fitting) < 20
    candidates = [candidate for _, candidate in draws(wanted, 30, set())]
    assert [entry.architecture.key for entry in candidates if entry.origin == "known"] == fitting
    rest = [entry.architecture.key for entry in candidates[len(fitting) :]]
    plain = [candidate.architecture.key for _, candidate in draws(_context(30, most=10_000), 30, set())]
    assert rest == plain[: len(rest)]


def test_limits_that_leave_nothing_and_unknown_strategies_are_clear_errors() -> None:
    with pytest.raises(GateError, match="parameters"):
        draws(_context(1, most=1), 1, set())
    with pytest.raises(UsageError, match="random"):
        make_strategy("magic", _context(1))
    with pytest.raises(UsageError, match="no options"):
        make_strategy("random", _context(1, depth=3))


def test_a_race_at_int8_judges_what_rounding_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = small_digits(400, 200)
    finalist = Finalist(known_networks(SPACE)[0], "search", "known", None, 1)

    def error(precision: str) -> float:
        recipe = Recipe(batch=32, learning_rate=0.05)
        config = FinalistsConfig(count=1, random=0, rungs=(8,), recipe=recipe, precision=precision)
        return train_rung(finalist, 0, data, config, weights=tmp_path / precision).error

    exact = error("fp32")
    assert exact < 0.4
    assert error("int8") == pytest.approx(exact, abs=0.1)
    monkeypatch.setattr(fake_quantisation, "LEVELS", 1)
    shutil.rmtree(tmp_path / "int8")
    assert error("int8") > exact + 0.2  # two levels hold no image


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_network_that_answers_nan_has_diverged_however_few_its_steps_were(
    precision: Literal["fp32", "int8"], tmp_path: Path
) -> None:
    finalist = Finalist(small_architecture(), "search", "for a test", None, 1)
    config = FinalistsConfig(rungs=(1, 2), recipe=Recipe(batch=32), precision=precision)
    data = with_bad_images(small_digits(train=64, validation=24))
    for rung in (0, 1):
        trained = train_rung(finalist, rung, data, config, weights=tmp_path)
        assert (trained.error, trained.validation_loss) == (1.0, None)
        assert "NaN or infin" in (trained.diverged or "")


def test_a_network_whose_last_step_left_it_without_answers_has_diverged(tmp_path: Path) -> None:
    finalist = Finalist(small_architecture(), "search", "for a test", None, 1)
    recipe = Recipe(batch=32, learning_rate=1000.0, warmup=0.0, weight_decay=0.0, clip=0.0)
    config = FinalistsConfig(rungs=(2,), recipe=recipe)
    trained = train_rung(finalist, 0, small_digits(train=64, validation=24), config, weights=tmp_path)
    assert (trained.error, trained.validation_loss) == (1.0, None)
    assert "validation images" in (trained.diverged or "")


def test_generated_weights_start_a_finalist_where_the_hypernet_left_it(tmp_path: Path) -> None:
    data = small_digits()
    hypernet = HyperNetConfig(depths=(1,), growth=2, norm="sandwich")
    torch.manual_seed(0)
    supernet = Supernet(SPACE, SPEC, 10, hypernet)
    config = FinalistsConfig(count=1, random=0, rungs=(1,), recipe=Recipe(batch=32), start="generated")
    scoring = ScoringConfig(statistics_images=64, images=(48,))
    worker = Worker(Equipment(supernet, data, scoring, config, None, tmp_path, "cpu"))
    finalist = Finalist(SPACE.draw(3, 0), "search", "drawn", None, 1)
    started = worker._start(finalist.architecture).eval()
    with torch.no_grad():
        images = data.preprocessing.normalise(torch.from_numpy(data.validation.images))
        statistics = worker.scorer.statistics(finalist.architecture)
        generated = supernet(finalist.architecture, images, statistics)
        assert torch.allclose(started(images), generated, atol=1e-4)
    assert worker.train(finalist, 0).diverged is None

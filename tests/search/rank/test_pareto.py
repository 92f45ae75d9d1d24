"""The Pareto front, picks within limits, finalists that keep a place for every limit, and settled files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from smash_base import files
from smash_base.errors import GateError
from smash_search.rank.finalists import Finalist, FinalistsConfig, Rung, choose, run_rungs
from smash_search.rank.pareto import Limit, class_of, pareto_entries, pick_that_keeps, pick_within
from smash_search.rank.records import close_torn_line, settle
from smash_search.rank.scoring import Score
from smash_search.rank.trained import Trained, pick
from smash_search.space.architecture import InputSpec
from smash_search.space.cost import cost_of
from smash_search.space.known import densenet, resnet
from smash_search.space.space import space_for
from smash_search.strategies import Candidate, Scored

SPEC = InputSpec(1, (8, 8))
SPACE = space_for(SPEC)
LIMITS = (Limit("1ms", 1.0), Limit("3ms", 3.0))


def _scored(count: int, latencies: Sequence[float]) -> list[Scored]:
    entries = []
    for slot in range(count):
        architecture = SPACE.draw(0, slot)
        score = Score(architecture.key, 24, slot / 100, 0.0, 1.0, 0.5, "00")
        measures = {"latency_ms": latencies[slot]}
        entries.append(
            Scored(Candidate(architecture, "random"), score, cost_of(architecture, SPEC, 10), measures)
        )
    return entries


def _of_one_pattern(latencies: Sequence[float]) -> list[Scored]:
    networks = [resnet((4, 8), layers) for layers in range(1, 1 + len(latencies))]
    return [
        Scored(Candidate(network, "known"), None, cost_of(network, SPEC, 10), {"latency_ms": milliseconds})
        for network, milliseconds in zip(networks, latencies, strict=True)
    ]


def _trained(entry: Scored, rung: int, error: float) -> Trained:
    key = entry.candidate.architecture.key
    return Trained("search", key, "test", 0.1, entry.cost.macs, rung, rung + 1, error, 0.1)


def test_the_front_holds_what_nothing_beats() -> None:
    scored = _scored(3, [1.0, 2.0, 2.5])
    cost = scored[0].cost
    scored = [replace(entry, cost=cost) for entry in scored]
    trained = [_trained(e, 0, error) for e, error in zip(scored, (0.3, 0.2, 0.25), strict=True)]
    trained.append(_trained(scored[1], 1, 0.1))  # its last rung counts
    by_key = {entry.key: entry for entry in pareto_entries(trained, scored)}
    keys = [entry.candidate.architecture.key for entry in scored]
    assert [by_key[key].on_front for key in keys] == [True, True, False]
    assert by_key[keys[1]].error == 0.1
    assert by_key[keys[1]].epochs == 2
    assert by_key[keys[1]].architecture == scored[1].candidate.architecture


def test_the_front_compares_errors_after_equal_training() -> None:
    """The second has half the error after twice the epochs, and the larger one after as many."""
    scored = _scored(2, [1.0, 0.9])
    scored = [replace(entry, cost=scored[0].cost) for entry in scored]
    trained = [_trained(scored[0], 0, 0.4), _trained(scored[1], 0, 0.5), _trained(scored[1], 1, 0.2)]
    assert all(entry.on_front for entry in pareto_entries(trained, scored))


def test_a_network_that_diverged_is_not_on_the_front_and_keeps_nothing_off_it() -> None:
    scored = _scored(3, [1.0, 1.0, 1.0])
    scored = [replace(entry, cost=scored[0].cost) for entry in scored]
    trained = [_trained(e, 0, error) for e, error in zip(scored, (0.2, 0.3, 0.4), strict=True)]
    trained.append(replace(_trained(scored[0], 1, 1.0), diverged="NaN in 11 steps in a row"))
    by_key = {entry.key: entry for entry in pareto_entries(trained, scored)}
    assert [by_key[entry.key].on_front for entry in trained[:3]] == [False, True, False]
    assert pick(trained).key == trained[1].key


def test_what_a_random_search_trained_is_among_the_networks_that_may_be_picked() -> None:
    scored = _scored(2, [1.0, 2.0])
    trained = [_trained(scored[0], 0, 0.4), replace(_trained(scored[1], 0, 0.3), group="random")]
    assert len(pareto_entries(trained, scored)) == 2


def test_each_limit_has_the_best_network_within_it() -> None:
    scored = _scored(3, [0.5, 2.0, 2.5])
    latencies = {e.candidate.architecture.key: e.measures["latency_ms"] for e in scored}
    trained = [_trained(e, 0, error) for e, error in zip(scored, (0.3, 0.2, 0.1), strict=True)]
    trained += [_trained(scored[1], 1, 0.15)]
    assert pick_within(trained, latencies, LIMITS[0]).key == trained[0].key
    assert pick_within(trained, latencies, LIMITS[1]).key == trained[1].key, "the deepest rung decides"
    with pytest.raises(GateError, match=r"0\.5 ms for the fastest"):
        pick_within(trained, latencies, Limit("100us", 0.1))


def test_every_limit_gets_a_finalist_though_its_networks_score_worse() -> None:
    latencies = [0.9 if slot == 39 else 2.0 + slot / 100 for slot in range(40)]  # the worst score is fast
    scored = _scored(40, latencies)
    config = FinalistsConfig(count=5, random=1, drop=0.5)
    of_latency = class_of(LIMITS)
    chosen = choose(
        scored,
        config,
        lambda entry: entry.measures["latency_ms"],
        lambda entry: of_latency(entry.measures["latency_ms"]),
    )
    assert len(chosen) == 5
    assert scored[39].candidate.architecture.key in {finalist.architecture.key for finalist in chosen}


def test_the_largest_known_network_of_each_pattern_within_a_limit_enters() -> None:
    known = [resnet((4, 8), layers) for layers in (1, 2, 3)] + [
        densenet(4, layers, 2) for layers in (1, 2, 3)
    ]
    scored = []
    for place, architecture in enumerate(known):
        cost, error = cost_of(architecture, SPEC, 10), 0.2 + place / 100
        score = Score(architecture.key, 100, error, error, error, error, "")
        scored.append(Scored(Candidate(architecture, "known"), score, cost, {"latency_ms": 0.3}))
    config = FinalistsConfig(count=3, known=2, random=0)
    chosen = choose(scored, config, lambda entry: entry.cost.macs, lambda _: 0)
    entered = [finalist.architecture for finalist in chosen if finalist.reason == "known network"]
    assert {entry.key for entry in entered} == {known[2].key, known[5].key}


def test_the_best_network_of_every_limit_goes_on_to_the_next_rung(tmp_path: Path) -> None:
    scored = _of_one_pattern([2.0] * 5 + [0.5])
    finalists = [
        Finalist(entry.candidate.architecture, "search", "test", 0.5, entry.cost.macs) for entry in scored
    ]
    latencies = {e.candidate.architecture.key: e.measures["latency_ms"] for e in scored}
    errors = {entry.candidate.architecture.key: place / 10 for place, entry in enumerate(scored)}

    def work(rungs: Sequence[Rung]) -> Iterator[tuple[int, Trained]]:
        for index in reversed(range(len(rungs))):  # results may come in any order
            finalist, rung = rungs[index]
            key = finalist.architecture.key
            trained = Trained("search", key, "test", 0.5, finalist.macs, rung, rung + 1, errors[key], 0.1)
            yield index, trained

    config = FinalistsConfig(count=6, rungs=(1, 2), keep=0.3, random=0)
    of_latency = class_of(LIMITS)
    path = tmp_path / "finalists.jsonl"
    results = run_rungs(
        finalists, config, records=path, work=work, keep=lambda entry: of_latency(latencies[entry.key])
    )
    last = [entry.key for entry in results if entry.rung == 1]
    assert last == [finalists[0].architecture.key, finalists[5].architecture.key]


def test_the_last_rung_is_for_networks_that_keep_a_limit_when_they_are_measured_longer(
    tmp_path: Path,
) -> None:
    """The best breaks both limits then, a fast one the smaller one: the next best take their places."""
    scored = _of_one_pattern([2.9, 2.0, 0.9, 2.0, 0.5, 2.0])
    finalists = [
        Finalist(entry.candidate.architecture, "search", "test", 0.5, entry.cost.macs) for entry in scored
    ]
    keys = [finalist.architecture.key for finalist in finalists]
    latencies = {e.candidate.architecture.key: e.measures["latency_ms"] for e in scored}
    longer = latencies | {keys[0]: 3.1, keys[2]: 1.1}
    asked: list[str] = []

    def work(rungs: Sequence[Rung]) -> Iterator[tuple[int, Trained]]:
        for index, (finalist, rung) in enumerate(rungs):
            yield (
                index,
                _trained(
                    scored[keys.index(finalist.architecture.key)],
                    rung,
                    keys.index(finalist.architecture.key) / 10,
                ),
            )

    def holds(finalist: Finalist) -> bool:
        key = finalist.architecture.key
        asked.append(key)
        latencies[key] = longer[key]
        return latencies[key] <= 3.0

    config = FinalistsConfig(count=6, rungs=(1, 2), keep=0.3, random=0)
    results = run_rungs(
        finalists,
        config,
        records=tmp_path / "finalists.jsonl",
        work=work,
        keep=lambda entry: class_of(LIMITS)(latencies[entry.key]),
        holds=holds,
    )
    assert [entry.key for entry in results if entry.rung == 1] == [keys[1], keys[4]]
    assert len(asked) == len(set(asked)) == 4


def test_files_are_settled_into_the_order_of_one_worker(tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    for key in ("c", "a", "b", "other"):
        files.append_jsonl(path, {"key": key, "name": "ä"})
    settle(path, ("key",), [("a",), ("b",), ("a",), ("c",)])
    settled = path.read_bytes()
    assert [record["key"] for record in files.read_jsonl(path)] == ["a", "b", "c", "other"]
    expected = tmp_path / "expected.jsonl"
    for key in ("a", "b", "c", "other"):
        files.append_jsonl(expected, {"key": key, "name": "ä"})
    assert settled == expected.read_bytes()
    path.write_bytes(settled + b'{"key": "to')
    close_torn_line(path)
    assert path.read_bytes() == settled


def test_a_pick_that_fails_the_longer_measurement_gives_way_to_the_next() -> None:
    scored = _scored(3, [0.5, 0.9, 0.9])
    latencies = {e.candidate.architecture.key: e.measures["latency_ms"] for e in scored}
    trained = [_trained(e, 0, error) for e, error in zip(scored, (0.3, 0.2, 0.1), strict=True)]
    longer = {trained[2].key: 1.2, trained[1].key: 0.95, trained[0].key: 0.5}
    assert pick_that_keeps(LIMITS[0], trained, latencies, longer.__getitem__).key == trained[1].key
    assert latencies[trained[2].key] == 1.2
    with pytest.raises(GateError, match="no finalist keeps"):
        pick_that_keeps(Limit("400us", 0.4), trained, latencies, longer.__getitem__)

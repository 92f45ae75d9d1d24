"""A network is not refused because the machine has become slower, and not picked because it was lucky."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from smash_base import files
from smash_search.executors import Task
from smash_search.rank.evaluation import Evaluator
from smash_search.rank.measurement import LOWEST, SLOWDOWN, undisturbed
from smash_search.space.architecture import InputSpec
from smash_search.space.space import space_for
from smash_search.stages.picks import lasting_of

DRAWS = [space_for(InputSpec(1, (8, 8)), "edge-tiny").draw(0, slot) for slot in range(6)]


class Machine:
    """Does the work of a search: one millisecond more for each draw, times what else the machine does."""

    slowness = 1.0
    spread = 1.0  # of several longer measurements

    def __init__(self) -> None:
        self.asked: list[str] = []

    def run(self, tasks: Sequence[Task], *, alone: bool = False) -> Iterator[tuple[int, Any]]:
        assert alone, "nothing disturbs a measurement"
        for number, task in enumerate(tasks):
            self.asked.append(task.method)
            latency = self.slowness * (10 + DRAWS.index(task.arguments[0]))
            if task.method == "confirm" and self.spread > 1:
                yield number, {"latency_ms": self.spread * latency, LOWEST: latency}
            else:
                yield number, {"latency_ms": latency}


@pytest.fixture
def machine() -> Machine:
    return Machine()


def evaluator(folder: Path, machine: Machine) -> Evaluator:
    """One of a search that measured all draws already."""
    found = Evaluator(folder, 8, None, machine, machine)  # type: ignore[arg-type]
    found.measure(DRAWS)
    return found


def test_a_slower_machine_is_told_from_a_slower_network_by_others_that_are_measured_again(
    tmp_path: Path, machine: Machine
) -> None:
    measured = evaluator(tmp_path, machine)
    assert measured.confirm(DRAWS[0]) == {"latency_ms": 10.0}
    machine.slowness = 1.25
    slower = measured.confirm(DRAWS[2])
    assert slower == {"latency_ms": 15.0, SLOWDOWN: 1.25}
    assert undisturbed(slower) == 12.0
    machine.slowness = 1.0
    measured.measures[DRAWS[3].key] = {"latency_ms": 9.0}  # a lucky short measurement
    assert measured.confirm(DRAWS[3]) == {"latency_ms": 13.0}
    assert undisturbed({"latency_ms": 13.0}) == 13.0
    assert undisturbed({"latency_ms": 13.0, LOWEST: 12.5}) == 12.5
    assert undisturbed({"latency_ms": 13.0, LOWEST: 12.5, SLOWDOWN: 1.25}) == 10.0, "of the fastest, both"


def test_a_pick_is_held_to_what_is_measured_at_last_and_a_resumed_search_finds_both(
    tmp_path: Path, machine: Machine
) -> None:
    measured = evaluator(tmp_path, machine)
    machine.slowness = 1.25
    measured.confirm(DRAWS[1])
    machine.slowness = 1.1
    assert measured.confirm_at_last(DRAWS[1], 20.0) == {"latency_ms": pytest.approx(12.1)}
    assert measured.confirm(DRAWS[1])[SLOWDOWN] == 1.25, "what the race went by stays"
    machine.slowness = 1.0
    assert measured.confirm_at_last(DRAWS[4], 20.0) == {"latency_ms": 14.0}
    asked = len(machine.asked)
    resumed = evaluator(tmp_path, machine)
    for draw in (DRAWS[1], DRAWS[4]):
        assert resumed.confirm(draw) == measured.confirm(draw)
        assert resumed.confirm_at_last(draw, 20.0) == measured.confirm_at_last(draw, 20.0)
    assert len(machine.asked) == asked, "nothing is measured twice"
    assert len(files.read_jsonl(tmp_path / "confirmed.jsonl")) == 3
    resumed.forget_confirmed()
    assert resumed.confirm(DRAWS[1]) == {"latency_ms": 11.0}


@pytest.mark.parametrize(("limit", "is_open"), [(9.5, False), (10.5, True), (11.5, False)])
def test_a_pick_whose_times_are_on_both_sides_of_the_limit_is_measured_once_more(
    limit: float, is_open: bool, tmp_path: Path, machine: Machine
) -> None:
    measured = evaluator(tmp_path, machine)
    machine.spread = 1.1
    first = measured.confirm(DRAWS[0])
    assert first == {"latency_ms": pytest.approx(11.0), LOWEST: 10.0}
    machine.spread = 1.01
    for _ in range(2):
        last = measured.confirm_at_last(DRAWS[0], limit)
        assert last == ({"latency_ms": pytest.approx(10.1), LOWEST: 10.0} if is_open else first)
    resumed, asked = evaluator(tmp_path, machine), len(machine.asked)
    assert resumed.confirm_at_last(DRAWS[0], limit) == last
    assert len(machine.asked) == asked, "nothing is measured twice"
    twice = lasting_of(files.read_jsonl(tmp_path / "confirmed.jsonl"))
    assert twice == {DRAWS[0].key: last["latency_ms"] if is_open else 10.0}


def test_a_network_that_kept_a_limit_is_not_given_up_for_a_slower_second_measurement(
    tmp_path: Path, machine: Machine
) -> None:
    measured = evaluator(tmp_path, machine)
    machine.slowness = 1.25
    kept = measured.confirm(DRAWS[1])
    assert kept == {"latency_ms": 13.75, SLOWDOWN: 1.25}
    machine.slowness = 2.0
    assert measured.confirm_at_last(DRAWS[1], 14.0) == kept
    machine.slowness, machine.spread = 1.0, 1.1
    kept = measured.confirm(DRAWS[0])
    machine.spread = 1.3
    assert measured.confirm_at_last(DRAWS[0], 10.5) == kept, "its times are on both sides of one limit"
    assert measured.confirm_at_last(DRAWS[0], 12.0) == kept, "all of the first ones keep the larger limit"
    resumed = evaluator(tmp_path, machine)
    assert resumed.confirm_at_last(DRAWS[0], 12.0) == kept
    records = files.read_jsonl(tmp_path / "confirmed.jsonl")
    assert len(records) == 4
    assert lasting_of(records) == {DRAWS[1].key: 13.75, DRAWS[0].key: kept["latency_ms"]}


def test_the_first_network_of_all_has_nothing_to_be_compared_with(tmp_path: Path, machine: Machine) -> None:
    alone = Evaluator(tmp_path, 8, None, machine, machine)  # type: ignore[arg-type]
    alone.measure(DRAWS[:1])
    machine.slowness = 2.0
    assert alone.confirm(DRAWS[0]) == {"latency_ms": 20.0}

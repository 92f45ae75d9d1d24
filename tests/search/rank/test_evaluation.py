"""A network is not refused because the machine has become slower, and not picked because it was lucky."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from smash_base import files
from smash_search.executors import Task
from smash_search.rank.evaluation import Evaluator
from smash_search.rank.measurement import LOWEST, NOW, undisturbed
from smash_search.space.architecture import Architecture, InputSpec
from smash_search.space.space import space_for
from smash_search.stages.picks import lasting_of

DRAWS = [space_for(InputSpec(1, (8, 8)), "edge-tiny").draw(0, slot) for slot in range(6)]


def own(architecture: Architecture) -> float:
    """Milliseconds with nothing else on the machine."""
    return 10.0 + DRAWS.index(architecture)


class Machine:
    """Does the work of a search: one millisecond more for each draw, times what else the machine does."""

    slowness = 1.0
    spread = 1.0  # of several longer measurements
    elsewhere = False  # whether they are taken on another machine

    def __init__(self) -> None:
        self.asked: list[str] = []

    def run(self, tasks: Sequence[Task], *, alone: bool = False) -> Iterator[tuple[int, Any]]:
        assert alone, "nothing disturbs a measurement"
        for number, task in enumerate(tasks):
            self.asked.append(task.method)
            latency = self.slowness * own(task.arguments[0])
            if task.method == "times_over":
                others = () if self.elsewhere else task.arguments[1]
                yield number, [latency / (self.slowness * own(other)) for other in others]
            elif task.method == "confirm" and self.spread > 1:
                yield number, {"latency_ms": self.spread * latency, LOWEST: latency}
            else:
                yield number, {"latency_ms": latency}


@pytest.fixture
def machine() -> Machine:
    return Machine()


def evaluator(folder: Path, machine: Machine, networks: Sequence[Architecture] = DRAWS) -> Evaluator:
    """One of a search that measured these already."""
    found = Evaluator(folder, 8, None, machine, machine)  # type: ignore[arg-type]
    found.measure(networks)
    return found


def test_a_slower_machine_is_told_from_a_slower_network_by_others_in_turns_with_it(
    tmp_path: Path, machine: Machine
) -> None:
    measured = evaluator(tmp_path, machine)
    assert measured.confirm(DRAWS[0]) == {"latency_ms": 10.0}
    machine.slowness = 1.25
    slower = measured.confirm(DRAWS[2])
    assert slower == {"latency_ms": pytest.approx(12.0), LOWEST: pytest.approx(12.0), NOW: 15.0}
    assert undisturbed(slower) == pytest.approx(12.0)
    machine.spread = 1.1
    assert measured.confirm(DRAWS[1]) == {
        "latency_ms": pytest.approx(11.0),
        LOWEST: pytest.approx(11.0),
        NOW: pytest.approx(15.125),
    }
    machine.spread, machine.elsewhere = 1.0, True
    assert measured.confirm(DRAWS[4]) == {"latency_ms": 17.5}, "nobody knows what it took there before"
    machine.elsewhere = False
    machine.slowness = 1.0
    measured.measures[DRAWS[3].key] = {"latency_ms": 9.0}  # a lucky short measurement
    assert measured.confirm(DRAWS[3]) == {"latency_ms": 13.0}
    assert undisturbed({"latency_ms": 13.0}) == 13.0
    assert undisturbed({"latency_ms": 13.0, LOWEST: 12.5}) == 12.5


def test_a_pick_is_held_to_what_it_took_before_the_machine_was_slower_and_a_resumed_search_finds_it(
    tmp_path: Path, machine: Machine
) -> None:
    measured = evaluator(tmp_path, machine)
    machine.slowness = 1.25
    kept = measured.confirm(DRAWS[1])
    machine.slowness = 1.1
    assert measured.confirm_at_last(DRAWS[1], 11.5) == kept
    assert kept == {"latency_ms": pytest.approx(11.0), LOWEST: pytest.approx(11.0), NOW: 13.75}
    asked = len(machine.asked)
    resumed = evaluator(tmp_path, machine)
    assert resumed.confirm_at_last(DRAWS[1], 11.5) == kept
    assert len(machine.asked) == asked, "nothing is measured twice"
    assert len(files.read_jsonl(tmp_path / "confirmed.jsonl")) == 1
    resumed.forget_confirmed()
    machine.slowness = 1.0
    assert resumed.confirm(DRAWS[1]) == {"latency_ms": 11.0}


def test_others_whose_short_measurements_were_lucky_do_not_make_a_network_faster_than_most_tell(
    tmp_path: Path, machine: Machine
) -> None:
    measured = evaluator(tmp_path, machine)
    machine.slowness = 1.25
    measured.measures[DRAWS[2].key] = {"latency_ms": 9.0}  # 0.75 of what it takes
    measured.measures[DRAWS[5].key] = {"latency_ms": 14.4}  # 0.96 of it
    told = measured.confirm(DRAWS[0])
    assert told == {"latency_ms": pytest.approx(10.0), LOWEST: pytest.approx(10.0), NOW: 12.5}
    measured.measures[DRAWS[3].key] = {"latency_ms": 14.3}  # 1.1 of it
    measured.measures[DRAWS[4].key] = {"latency_ms": 16.8}  # 1.2 of it
    told = measured.confirm(DRAWS[1])
    assert told == {"latency_ms": pytest.approx(12.1), LOWEST: pytest.approx(11.0), NOW: 13.75}


@pytest.mark.parametrize(("limit", "is_open"), [(9.5, False), (10.2, True), (11.5, False)])
def test_a_pick_whose_times_are_on_both_sides_of_the_limit_is_measured_once_more(
    limit: float, is_open: bool, tmp_path: Path, machine: Machine
) -> None:
    measured = evaluator(tmp_path, machine)
    machine.spread = 1.03
    first = measured.confirm(DRAWS[0])
    assert first == {"latency_ms": pytest.approx(10.3), LOWEST: 10.0}
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
    machine.spread, machine.elsewhere = 1.1, True
    kept = measured.confirm(DRAWS[0])
    machine.spread = 1.3
    assert measured.confirm_at_last(DRAWS[0], 10.5) == kept, "its times are on both sides of one limit"
    assert measured.confirm_at_last(DRAWS[0], 12.0) == kept, "all of the first ones keep the larger limit"
    resumed = evaluator(tmp_path, machine)
    assert resumed.confirm_at_last(DRAWS[0], 12.0) == kept
    records = files.read_jsonl(tmp_path / "confirmed.jsonl")
    assert len(records) == 2
    assert lasting_of(records) == {DRAWS[0].key: kept["latency_ms"]}


def test_the_first_network_of_all_has_nothing_to_be_compared_with(tmp_path: Path, machine: Machine) -> None:
    alone = Evaluator(tmp_path, 8, None, machine, machine)  # type: ignore[arg-type]
    alone.measure(DRAWS[:1])
    machine.slowness = 2.0
    assert alone.confirm(DRAWS[0]) == {"latency_ms": 20.0}


def test_short_measurements_in_turns_with_one_network_do_not_follow_the_machine(
    tmp_path: Path, machine: Machine
) -> None:
    measured = evaluator(tmp_path, machine, DRAWS[:3])
    machine.spread = 1.1
    measured.refer_to(DRAWS[1])
    for slowness, network in zip((1.0, 1.25, 0.9), DRAWS[3:], strict=True):
        machine.slowness = slowness
        measured.measure([network])
        assert measured.measures[network.key] == {"latency_ms": pytest.approx(own(network))}
    assert machine.asked.count("measure") == 3, "only those before it are measured alone"


def test_what_networks_are_measured_in_turns_with_keeps_its_time_when_a_search_goes_on(
    tmp_path: Path, machine: Machine
) -> None:
    evaluator(tmp_path, machine, DRAWS[:2]).refer_to(DRAWS[1])
    machine.slowness = 1.25
    resumed = evaluator(tmp_path, machine, DRAWS[:2])
    resumed.refer_to(DRAWS[1])
    resumed.forget_confirmed()
    again = evaluator(tmp_path, machine, DRAWS[:2])
    again.refer_to(DRAWS[1])
    again.measure(DRAWS[2:3])
    assert again.measures[DRAWS[2].key] == {"latency_ms": pytest.approx(own(DRAWS[2]))}
    assert machine.asked.count("confirm") == 1


def test_short_measurements_that_are_not_taken_here_are_not_in_turns(
    tmp_path: Path, machine: Machine
) -> None:
    machine.elsewhere = True
    measured = evaluator(tmp_path, machine, DRAWS[:2])
    measured.refer_to(DRAWS[1])
    measured.measure(DRAWS[2:3])
    assert machine.asked == ["measure", "measure", "times_over", "measure"]
    assert measured.measures[DRAWS[2].key] == {"latency_ms": own(DRAWS[2])}


def test_a_survey_that_met_a_busy_machine_is_told_by_the_same_network_later(
    tmp_path: Path, machine: Machine
) -> None:
    machine.slowness = 1.25
    evaluator(tmp_path, machine, DRAWS[:3]).refer_to(DRAWS[1])
    for slowness, asked in ((1.0, 1), (1.6, 0)):  # the second time it goes on
        machine.slowness = slowness
        before = machine.asked.count("confirm")
        measured = evaluator(tmp_path, machine, DRAWS[:3])
        measured.refer_to(DRAWS[1])
        assert measured.measures[DRAWS[0].key] == {"latency_ms": 12.5}
        assert measured.refer_again()
        assert machine.asked.count("confirm") - before == asked
        measured.measure(DRAWS)
        for network in DRAWS[:4]:
            assert measured.measures[network.key] == {"latency_ms": pytest.approx(own(network))}
        measured.forget_confirmed()
    assert not Evaluator(tmp_path, 8, None, machine, machine).refer_again()  # type: ignore[arg-type]


def test_a_survey_on_a_machine_that_became_slower_stays_as_it_is(tmp_path: Path, machine: Machine) -> None:
    measured = evaluator(tmp_path, machine, DRAWS[:3])
    measured.refer_to(DRAWS[1])
    machine.slowness = 1.25
    assert not measured.refer_again()
    measured.measure(DRAWS[3:4])
    assert measured.measures[DRAWS[3].key] == {"latency_ms": pytest.approx(own(DRAWS[3]))}


def test_a_finalist_that_others_are_measured_in_turns_with_is_held_to_what_it_takes_as_one(
    tmp_path: Path, machine: Machine
) -> None:
    machine.slowness = 1.25
    evaluator(tmp_path, machine, []).refer_to(DRAWS[1])
    machine.slowness = 1.0
    measured = evaluator(tmp_path, machine, [])
    measured.refer_to(DRAWS[1])
    measured.measure(DRAWS[:3])
    assert measured.refer_again()
    assert measured.confirm(DRAWS[1]) == {"latency_ms": 11.0}, "not what it took on a busy machine"
    machine.slowness = 1.02
    measured.forget_confirmed()
    assert measured.confirm(DRAWS[1]) == {"latency_ms": pytest.approx(11.22)}, "and is measured again"


def test_who_is_stopped_while_longer_measurements_are_forgotten_goes_on_in_the_same_unit(
    tmp_path: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    measured = evaluator(tmp_path, machine, [])
    measured.refer_to(DRAWS[1])
    measured.confirm(DRAWS[1])
    with monkeypatch.context() as patched, contextlib.suppress(KeyboardInterrupt):
        patched.setattr(files, "append_jsonl", stopped)
        measured.forget_confirmed()
    machine.slowness = 1.25
    resumed = evaluator(tmp_path, machine, [])
    resumed.refer_to(DRAWS[1])
    resumed.measure(DRAWS[2:3])
    assert resumed.measures[DRAWS[2].key] == {"latency_ms": pytest.approx(own(DRAWS[2]))}

"""Where draws of a search are to be, for its limits on latency."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from smash_search.rank.evaluation import Evaluator
from smash_search.rank.latency_model import LatencyModel, fit_latency
from smash_search.rank.pareto import Limit
from smash_search.rank.patterns import pattern_of
from smash_search.space.architecture import Architecture, InputSpec
from smash_search.space.cost import cost_of
from smash_search.space.known import known_networks
from smash_search.space.limits import CostLimits
from smash_search.space.space import space_for
from smash_search.stages.aims import FEWEST, IDLE, aims_for, busiest_within
from smash_search.stages.bounds import Bounds, accepted_draws
from smash_search.stages.config import Run, SearchConfig
from tests.search.small_data import small_digits

SPEC = InputSpec(3, (32, 32))
SPACE = space_for(SPEC, "edge")
DRAWN = [SPACE.draw(7, slot) for slot in range(400)]


def macs(architecture: Architecture) -> int:
    return cost_of(architecture, SPEC, 10).macs


def squeezed(architecture: Architecture) -> bool:
    return any(op.squeeze for block in architecture.blocks for op in block.ops)


def milliseconds(architecture: Architecture) -> float:
    """A made-up device that is slowed down by ops more than by what they compute."""
    ops = sum(len(block.ops) for block in architecture.blocks)
    return 0.02 * ops + 2e-9 * macs(architecture)


@pytest.fixture(scope="module", name="latency")
def a_model_of_latency() -> LatencyModel:
    return fit_latency(DRAWN[:80], [milliseconds(entry) for entry in DRAWN[:80]], SPEC, 10)


def test_a_third_of_the_draws_near_a_limit_is_left_out_those_of_the_fewest_macs(
    latency: LatencyModel,
) -> None:
    aims = aims_for(latency, [Limit("0.15ms", 0.15)], SPACE, 0)
    (place,) = aims.places
    near = [entry for entry in DRAWN if place.low <= latency.predict(entry) <= place.high]
    kept = [entry for entry in near if aims.near(entry)]
    assert len(kept) / len(near) == pytest.approx(1 - IDLE, abs=0.12)
    assert min(map(macs, kept)) >= place.macs > max(macs(entry) for entry in near if entry not in kept)
    assert not [entry for entry in DRAWN if aims.near(entry) and entry not in kept]


def test_known_networks_within_a_limit_are_of_each_wiring_in_turns_the_busiest_first(
    latency: LatencyModel,
) -> None:
    aims, known = aims_for(latency, [Limit("0.15ms", 0.15)], SPACE, 0), known_networks(SPACE)
    measured: list[Architecture] = []

    def is_within(entry: Architecture) -> bool:
        if latency.predict(entry) > 0.15 * (1 + 2 * latency.error):
            return False
        measured.append(entry)
        return milliseconds(entry) <= 0.15

    found = busiest_within(aims, known, is_within)
    first = list(itertools.islice(found, 40))
    assert len(measured) < 200, "no more than it takes to find forty"
    every = first + list(found)
    assert sorted(entry.key for entry in every) == sorted(entry.key for entry in known if is_within(entry))
    wirings = {pattern_of(entry) for entry in first}
    assert {pattern_of(entry) for entry in first[:5]} == wirings == {"inverted", "residual", "dense", "chain"}
    large = [entry for entry in every if latency.predict(entry) >= aims.places[0].low]
    assert large == every[: len(large)]
    for wiring in wirings:
        counts = [macs(entry) for entry in large if pattern_of(entry) == wiring and not squeezed(entry)]
        assert counts == sorted(counts, reverse=True)


def test_known_networks_are_there_for_each_of_several_limits(latency: LatencyModel) -> None:
    limits = [Limit("0.08ms", 0.08), Limit("0.15ms", 0.15)]
    found = busiest_within(
        aims_for(latency, limits, SPACE, 0),
        known_networks(SPACE),
        lambda entry: latency.predict(entry) <= 0.15,
    )
    tight = [latency.predict(entry) <= 0.08 for entry in itertools.islice(found, 40)]
    assert 8 <= sum(tight) <= 24


def test_each_limit_has_its_own_fewest_macs(latency: LatencyModel) -> None:
    limits = [Limit("0.08ms", 0.08), Limit("0.15ms", 0.15)]
    both = aims_for(latency, limits, SPACE, 0)
    assert both.places[0].macs < both.places[1].macs
    alone = [aims_for(latency, [limit], SPACE, 0) for limit in limits]
    for entry in DRAWN[:150]:
        assert both.near(entry) == any(aims.near(entry) for aims in alone)


def test_macs_are_counted_among_networks_that_keep_the_other_limits(latency: LatencyModel) -> None:
    """Otherwise a limit on MACs beside one on latency could leave nothing."""
    limits = [Limit("0.15ms", 0.15)]
    small = 0.8 * aims_for(latency, limits, SPACE, 0).places[0].macs
    within = aims_for(latency, limits, SPACE, 0, lambda entry: macs(entry) <= small)
    assert 0 < within.places[0].macs < small
    config = SearchConfig(limits=CostLimits(macs=int(small)), latency_limits=tuple(limits))
    accept = accepted_draws(config, SPEC, 10, within)
    assert accept is not None
    assert any(map(accept, DRAWN))


def test_where_hardly_any_draw_is_near_a_limit_all_of_them_are_welcome(latency: LatencyModel) -> None:
    """A third of a handful would be a limit by chance."""
    tight = min(latency.predict(entry) for entry in DRAWN)
    limits = [Limit("tight", tight)]
    aims = aims_for(latency, limits, SPACE, 0)
    assert 0 < sum(map(aims.near, DRAWN)) < FEWEST
    assert aims.places[0].macs == 0


def test_the_same_seed_aims_at_the_same_draws(latency: LatencyModel) -> None:
    limits = [Limit("0.15ms", 0.15)]
    assert aims_for(latency, limits, SPACE, 3) == aims_for(latency, limits, SPACE, 3)


def test_what_a_draw_is_worth_stays_what_it_was_when_more_was_measured(tmp_path: Path) -> None:
    """Candidates are near the limit: with them a quarter of all measurements lies above what draws take."""
    config = SearchConfig(latency_limits=(Limit("9ms", 9.0),))
    run = Run(config, small_digits(), tmp_path, torch.device("cpu"))
    bounds = Bounds(run)
    slots = sorted(range(100), key=lambda slot: cost_of(run.space.draw(1, slot), run.spec, 10).macs)
    drawn = [run.space.draw(1, slot) for slot in slots]
    times = [cost_of(entry, run.spec, 10).macs / 1e5 for entry in drawn]
    bounds.probes, largest = drawn[:80:2], drawn[80:]
    bounds.model = fit_latency(bounds.probes, times[:80:2], run.spec, 10)
    bounds.aims = aims_for(bounds.model, config.latency_limits, run.space, 0)
    bounds.evaluator = Evaluator(tmp_path, 24, run.cost, None, None)
    bounds.evaluator.measures = {
        entry.key: {"latency_ms": time} for entry, time in zip(drawn, times, strict=True)
    }
    before = [bounds.worthwhile(entry) for entry in drawn]
    assert any(before)
    bounds.evaluator.measured = {entry.key: entry for entry in [*bounds.probes, *largest]}
    bounds.learn()
    assert bounds.model != bounds.aims.latency
    assert [bounds.worthwhile(entry) for entry in drawn] == before

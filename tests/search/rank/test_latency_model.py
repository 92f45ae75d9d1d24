"""Latency that is predicted from measured networks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from smash_base.errors import InvalidInputError
from smash_search.rank.evaluation import Evaluator
from smash_search.rank.latency_model import fit_latency, parts_of
from smash_search.rank.pareto import Limit
from smash_search.space.architecture import InputSpec
from smash_search.space.cost import cost_of
from smash_search.space.space import space_for
from smash_search.stages.bounds import Bounds
from smash_search.stages.config import Run, SearchConfig
from smash_search.strategies import Candidate, Scored
from tests.search.small_data import small_digits

SPEC = InputSpec(3, (32, 32))
SPACE = space_for(SPEC, "edge")


def device(slot: int) -> float:
    """Milliseconds of a made-up device: a price per node, per MAC and per number written."""
    parts = parts_of(SPACE.draw(1, slot), SPEC, 10)
    return (
        0.01
        + 0.002 * sum(value for name, value in parts.items() if name.endswith("nodes"))
        + 1e-8 * sum(value for name, value in parts.items() if name.endswith("MACs"))
        + 5e-8 * parts["added"]
    )


def test_networks_that_were_not_measured_are_predicted_within_a_few_percent() -> None:
    known, unseen = range(80), range(80, 160)
    model = fit_latency([SPACE.draw(1, slot) for slot in known], [device(s) for s in known], SPEC, 10)
    errors = [model.predict(SPACE.draw(1, slot)) / device(slot) - 1 for slot in unseen]
    assert np.median(np.abs(errors)) < 0.05
    assert model.error < 0.1
    assert min(model.prices.values()) >= 0


def test_the_parts_hold_every_multiply_accumulate() -> None:
    for slot in range(30):
        architecture = SPACE.draw(2, slot)
        parts = parts_of(architecture, SPEC, 10)
        macs = sum(value for name, value in parts.items() if name.endswith("MACs"))
        assert macs == cost_of(architecture, SPEC, 10).macs


def test_too_few_measurements_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="too few"):
        fit_latency([SPACE.draw(0, 0)], [1.0], SPEC, 10)


def test_what_draws_usually_take_stays_what_it_was_before_candidates_were_chosen(tmp_path: Path) -> None:
    """Candidates are near the limit: with them a quarter of all measurements lies above what draws take."""
    run = Run(
        SearchConfig(latency_limits=(Limit("9ms", 9.0),)), small_digits(), tmp_path, torch.device("cpu")
    )
    bounds = Bounds(run)
    slots = sorted(range(100), key=lambda slot: cost_of(run.space.draw(1, slot), run.spec, 10).macs)
    drawn = [run.space.draw(1, slot) for slot in slots]
    times = [cost_of(entry, run.spec, 10).macs / 1e5 for entry in drawn]
    bounds.probes, largest = drawn[:80:2], drawn[80:]
    bounds.model = fit_latency(bounds.probes, times[:80:2], run.spec, 10)
    bounds.evaluator = Evaluator(tmp_path, 24, run.cost, None, None)
    bounds.evaluator.measures = {
        entry.key: {"latency_ms": time} for entry, time in zip(drawn, times, strict=True)
    }
    fast_enough = drawn[70]
    assert bounds.worthwhile(fast_enough)
    bounds.learn([Scored(Candidate(entry, "random"), None, run.cost(entry)) for entry in largest])
    assert bounds.worthwhile(fast_enough)
